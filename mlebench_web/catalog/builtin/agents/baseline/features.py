"""Tables and images -> numbers for trees."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from task import NotUnderstood, Task

# Up to this many number columns each pair also gives a ratio.
RATIOS_UP_TO = 8
# More values than this and a category is told by its frequency.
CATEGORIES_UP_TO = 500
TEXT_FROM_CHARACTERS = 25
TEXT_DIMENSIONS = 32
IMAGE_SIZE = 32


def of_task(task: Task, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For the training rows, and for the rows of the sample submission in its order."""
    if task.test is None:
        ids = task.train[task.id_column], task.sample[task.id_column]
        train, test = (of_images(task.images, names) for names in ids)
        return pd.DataFrame(train), pd.DataFrame(test)
    test = task.test.drop_duplicates(task.id_column).set_index(task.id_column)
    test = test.reindex(task.sample[task.id_column]).reset_index()
    columns = [name for name in test if name in task.train and name != task.id_column]
    columns = [name for name in columns if name not in task.targets]
    if not columns:
        raise NotUnderstood("train.csv and test.csv have no column in common.")
    return of_tables(task.train[columns], test[columns], seed)


def of_tables(
    train: pd.DataFrame, test: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    both = pd.concat([train, test], ignore_index=True)
    parts: list[pd.DataFrame | pd.Series] = []
    numbers = [name for name in both if pd.api.types.is_numeric_dtype(both[name])]
    parts += [both[name].astype(float) for name in numbers]
    if len(numbers) <= RATIOS_UP_TO:
        parts += ratios(both[numbers])
    for name in both:
        if name in numbers:
            continue
        text = both[name].astype(str)
        values = text.nunique()
        if values > len(text) / 2 and text.str.len().mean() > TEXT_FROM_CHARACTERS:
            parts.append(of_text(text, name, seed))
        elif values > CATEGORIES_UP_TO:
            parts.append(text.map(text.value_counts()).astype(float).rename(f"count of {name}"))
        else:
            parts.append(text.astype("category").rename(name))
    # LightGBM refuses some characters in names, and does not need them.
    joined = pd.concat(parts, axis=1)
    joined.columns = [f"f{number}" for number in range(joined.shape[1])]
    return joined.iloc[: len(train)], joined.iloc[len(train) :].reset_index(drop=True)


def ratios(numbers: pd.DataFrame) -> list[pd.Series]:
    names = list(numbers)
    return [
        (numbers[one] / numbers[other].replace(0, np.nan)).rename(f"{one} / {other}")
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    ]


def of_text(text: pd.Series, name: str, seed: int) -> pd.DataFrame:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=50_000).fit_transform(text)
    dimensions = min(TEXT_DIMENSIONS, words.shape[1] - 1)
    reduced = TruncatedSVD(dimensions, random_state=seed).fit_transform(words)
    return pd.DataFrame(reduced).add_prefix(f"{name} ")


def of_images(files: dict[str, Path], names: Iterable[str]) -> np.ndarray:
    missing = [name for name in names if name not in files]
    if missing:
        raise NotUnderstood(f"There is no image for {len(missing)} ids, such as {missing[0]}.")
    pixels = np.empty((len(list(names)), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    for place, name in enumerate(names):
        with Image.open(files[name]) as image:
            small = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
        pixels[place] = np.asarray(small, dtype=np.float32) / 255
    return np.hstack(list(image_features(pixels)))


def image_features(pixels: np.ndarray) -> Iterable[np.ndarray]:
    """Blocks of columns that say little of where in the image something is: colour and texture."""
    count = len(pixels)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    grey = pixels.mean(axis=-1)
    layers = [red, green, blue, grey, green - red, green - blue]
    layers += [2 * green - red - blue, (green - red) / (green + red + 0.01)]
    for layer in layers:
        flat = layer.reshape(count, -1)
        yield np.quantile(flat, [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98], axis=1).T
        yield np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1)
        # Spread between and within cells of 8 x 8: lumps or fine grain.
        cells = layer.reshape(count, 4, 8, 4, 8)
        means = cells.mean(axis=(2, 4)).reshape(count, -1)
        spreads = cells.std(axis=(2, 4)).reshape(count, -1)
        for values in (means, spreads):
            yield np.sort(values, axis=1)[:, [0, 3, 7, 8, 12, 15]]
            yield values.std(axis=1, keepdims=True)
    yield from edges(grey)
    yield local_patterns(grey)


def edges(grey: np.ndarray) -> Iterable[np.ndarray]:
    """Strength of gradients at three scales, and how it spreads over directions."""
    count = len(grey)
    for scale in (1, 2, 4):
        size = IMAGE_SIZE // scale
        coarse = grey.reshape(count, size, scale, size, scale).mean(axis=(2, 4))
        rows, columns = np.gradient(coarse, axis=(1, 2))
        strength = np.hypot(rows, columns)
        direction = (np.arctan2(rows, columns) % np.pi / np.pi * 8).astype(int) % 8
        parts = [np.where(direction == value, strength, 0).sum(axis=(1, 2)) for value in range(8)]
        yield np.stack(parts, axis=1)
        flat = strength.reshape(count, -1)
        yield np.quantile(flat, [0.1, 0.5, 0.9, 0.98], axis=1).T


def local_patterns(grey: np.ndarray) -> np.ndarray:
    """Share of each number of brighter neighbours (0 to 8) and of changes round the pixel."""
    middle = grey[:, 1:-1, 1:-1]
    steps = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    around = np.stack(
        [
            grey[:, 1 + row : IMAGE_SIZE - 1 + row, 1 + column : IMAGE_SIZE - 1 + column] > middle
            for row, column in steps
        ]
    )
    brighter = around.sum(axis=0)
    changes = (around != np.roll(around, 1, axis=0)).sum(axis=0)
    columns = [(brighter == value).mean(axis=(1, 2)) for value in range(9)]
    columns += [(changes == value).mean(axis=(1, 2)) for value in (0, 2, 4, 6, 8)]
    return np.stack(columns, axis=1)
