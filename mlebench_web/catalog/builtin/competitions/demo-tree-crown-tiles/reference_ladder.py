"""The ten reference baselines behind this competition's medal thresholds.

Each takes the public folder alone and returns a submission. `manage.py
build_reference_leaderboard` runs and grades them. The two best decide gold and silver.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

SEED = 0


@cache
def tiles(folder: Path) -> np.ndarray:
    """All tiles of a folder by name: count x 32 x 32 x 3, from 0 to 1."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]) / 255


def mean_green(tiles: np.ndarray) -> np.ndarray:
    return tiles[..., 1].mean(axis=(1, 2))[:, None]


def mean_colour(tiles: np.ndarray) -> np.ndarray:
    return tiles.mean(axis=(1, 2))


def colour(tiles: np.ndarray) -> np.ndarray:
    return np.hstack([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2))])


def pixels(tiles: np.ndarray) -> np.ndarray:
    return tiles.reshape(len(tiles), -1)


def colour_and_edges(tiles: np.ndarray) -> np.ndarray:
    """Mean and spread, a histogram of 8 bins a channel, and gradient directions in 4 x 4 cells."""
    bins = np.minimum((tiles * 8).astype(int), 7)
    histograms = np.stack([(bins == value).mean(axis=(1, 2)) for value in range(8)], axis=1)
    rows, columns = np.gradient(tiles.mean(axis=-1), axis=(1, 2))
    strength = np.hypot(rows, columns)
    direction = (np.arctan2(rows, columns) % np.pi / np.pi * 8).astype(int) % 8
    cells = [
        np.where(direction == value, strength, 0).reshape(-1, 4, 8, 4, 8).sum(axis=(2, 4))
        for value in range(8)
    ]
    edges = np.stack(cells, axis=1).reshape(len(tiles), -1)
    return np.hstack([colour(tiles), histograms.reshape(len(tiles), -1), edges])


def scaled(model: object) -> object:
    return make_pipeline(StandardScaler(), model)


# name: (features, model)
LADDER: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[], object]]] = {
    "constant": (mean_green, lambda: DummyClassifier(strategy="prior")),
    "mean green, logistic": (mean_green, LogisticRegression),
    "mean colour, logistic": (mean_colour, LogisticRegression),
    "colour mean and spread, logistic": (
        colour,
        lambda: scaled(LogisticRegression(max_iter=1000)),
    ),
    "raw pixels, 15 nearest neighbours": (pixels, lambda: KNeighborsClassifier(15)),
    "raw pixels, random forest of 200": (
        pixels,
        lambda: RandomForestClassifier(200, n_jobs=-1, random_state=SEED),
    ),
    "colour and edges, logistic": (
        colour_and_edges,
        lambda: scaled(LogisticRegression(C=0.1, max_iter=2000)),
    ),
    "colour and edges, support vectors": (colour_and_edges, lambda: scaled(SVC(C=3))),
    "colour and edges, extra trees of 400": (
        colour_and_edges,
        lambda: ExtraTreesClassifier(400, n_jobs=-1, random_state=SEED),
    ),
    "colour and edges, histogram gradient boosting": (
        colour_and_edges,
        lambda: HistGradientBoostingClassifier(max_iter=200, random_state=SEED),
    ),
}
RUNGS = list(LADDER)


def run(rung: str, public: Path) -> pd.DataFrame:
    features, make_model = LADDER[rung]
    # The tables are written in the order of the ids, which are the names of the tiles.
    train = pd.read_csv(public / "train.csv", dtype={"id": str}).sort_values("id")
    test = pd.read_csv(public / "sample_submission.csv", dtype={"id": str}).sort_values("id")
    model = make_model()
    model.fit(features(tiles(public / "train")), train["has_tree"])
    known = features(tiles(public / "test"))
    if hasattr(model, "predict_proba"):
        score = model.predict_proba(known)[:, 1]
    else:
        score = model.decision_function(known)
    return pd.DataFrame({"id": test["id"].astype(int), "has_tree": score})
