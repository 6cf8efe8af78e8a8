"""What is asked for: read from the sample submission, the tables and the description."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pandas as pd

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
# A table needs about this many times its file's size in memory until a model is trained.
MEMORY_FACTOR = 8


class NotUnderstood(Exception):
    """The data has a form that this agent does not know; says which."""


class Kind(Enum):
    NUMBER = "a number"
    PROBABILITY = "a probability"
    LABEL = "a label"
    CLASS_PROBABILITIES = "a probability for each class"


@dataclass(frozen=True)
class Task:
    kind: Kind
    id_column: str
    # Columns of the submission; of the training table too, but for CLASS_PROBABILITIES.
    targets: list[str]
    # The training table's column with the classes, for CLASS_PROBABILITIES.
    class_column: str
    sample: pd.DataFrame
    train: pd.DataFrame
    # None: there are only ids to predict for, as with images.
    test: pd.DataFrame | None
    images: dict[str, Path]
    description: str

    @property
    def wants_logarithm(self) -> bool:
        """Errors count by ratio, so the logarithm of the target is what to fit."""
        return bool(re.search(r"rmsle|logarithmic error", self.description, re.IGNORECASE))

    @property
    def wants_auc(self) -> bool:
        return bool(re.search(r"\bauc\b|\broc\b", self.description, re.IGNORECASE))


def read(data: Path, sample_file: Path, memory_bytes: int) -> Task:
    """Raises NotUnderstood."""
    description_file = data / "description.md"
    description = description_file.read_text(errors="replace") if description_file.exists() else ""
    columns = list(pd.read_csv(sample_file, nrows=0))
    test_file = table(data, "test")
    known = set(pd.read_csv(test_file, nrows=0)) if test_file else set(columns[:1])
    ids = [name for name in columns if name in known] or columns[:1]
    if len(ids) != 1 or len(columns) < 2:
        raise NotUnderstood(f"The sample submission's columns are {', '.join(columns)}.")
    id_column, targets = ids[0], [name for name in columns if name not in ids]
    # Ids are text: some start with zeros.
    sample = pd.read_csv(sample_file, dtype={id_column: str})
    test = pd.read_csv(test_file, dtype={id_column: str}) if test_file else None
    train_file = table(data, "train")
    if train_file is None:
        raise NotUnderstood(f"There is no train.csv in {data}.")
    train = pd.read_csv(
        train_file, dtype={id_column: str}, nrows=rows_that_fit(train_file, memory_bytes)
    )
    kind, class_column = kind_of(sample, train, targets, description)
    train = train.dropna(subset=[class_column] if class_column else targets)
    images = {} if test is not None else find_images(data)
    if test is None and not images:
        raise NotUnderstood(f"{data} has neither test.csv nor images.")
    return Task(kind, id_column, targets, class_column, sample, train, test, images, description)


def table(data: Path, name: str) -> Path | None:
    for path in (data / f"{name}.csv", *sorted(data.glob(f"{name}*.csv"))):
        if path.is_file():
            return path
    return None


def rows_that_fit(path: Path, memory_bytes: int) -> int | None:
    """None: all of them."""
    size = path.stat().st_size
    if size * MEMORY_FACTOR <= memory_bytes:
        return None
    with path.open("rb") as file:
        lines = [len(file.readline()) for _ in range(1000)]
    return int(memory_bytes / MEMORY_FACTOR / (sum(lines) / len(lines)))


def kind_of(
    sample: pd.DataFrame, train: pd.DataFrame, targets: list[str], description: str
) -> tuple[Kind, str]:
    """The kind, and the column with the classes where the submission has one column for each."""
    if not set(targets) <= set(train):
        for column in train:
            if {str(value) for value in train[column].unique()} == set(targets):
                return Kind.CLASS_PROBABILITIES, column
        raise NotUnderstood(f"train.csv says nothing about {', '.join(targets)}.")
    numeric = all(pd.api.types.is_numeric_dtype(train[name]) for name in targets)
    if not numeric:
        if len(targets) == 1:
            return Kind.LABEL, targets[0]
        raise NotUnderstood(f"The targets {', '.join(targets)} are text.")
    if all(set(train[name].dropna().unique()) <= {0, 1} for name in targets):
        whole = all(pd.api.types.is_integer_dtype(sample[name]) for name in targets)
        asks_label = re.search(r"accuracy|\bf1\b|kappa", description, re.IGNORECASE)
        if len(targets) == 1 and whole and asks_label:
            return Kind.LABEL, targets[0]
        return Kind.PROBABILITY, ""
    few = len(targets) == 1 and train[targets[0]].nunique() <= 100
    if few and re.search(r"accuracy|\bf1\b", description, re.IGNORECASE):
        return Kind.LABEL, targets[0]
    return Kind.NUMBER, ""


def find_images(data: Path) -> dict[str, Path]:
    """By name with and without its ending; ids come in both forms."""
    found = {}
    for path in data.rglob("*"):
        if path.suffix.lower() in IMAGES:
            found[path.stem] = found[path.name] = path
    return found
