"""The ten reference baselines behind this competition's medal thresholds.

Each takes the public folder alone and returns a submission. `manage.py
build_reference_leaderboard` runs and grades them. The two best decide gold and silver.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

SEED = 0
GRADES = {
    "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
    "color": ["J", "I", "H", "G", "F", "E", "D"],
    "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
}
NUMBERS = ["carat", "depth", "table", "x", "y", "z"]


def log_carat(table: pd.DataFrame) -> pd.DataFrame:
    return np.log(table[["carat"]])


def raw_columns(table: pd.DataFrame) -> pd.DataFrame:
    return table[[*NUMBERS, *GRADES]]


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Grades as ranks."""
    ranks = {name: table[name].map(order.index) for name, order in GRADES.items()}
    return table[NUMBERS].assign(**ranks)


def ranked_with_logs(table: pd.DataFrame) -> pd.DataFrame:
    return ranked(table).assign(log_carat=np.log(table["carat"]))


def with_one_hot(model: object) -> object:
    columns = make_column_transformer(
        (StandardScaler(), NUMBERS), (OneHotEncoder(), list(GRADES)), sparse_threshold=0
    )
    return make_pipeline(columns, model)


def scaled(model: object) -> object:
    return make_pipeline(StandardScaler(), model)


# name: (features, model of log(1 + price))
LADDER: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], Callable[[], object]]] = {
    "constant": (log_carat, DummyRegressor),
    "weight alone, linear": (log_carat, LinearRegression),
    "all columns, ridge": (raw_columns, lambda: with_one_hot(Ridge())),
    "grades as ranks and log weight, ridge": (ranked_with_logs, lambda: scaled(Ridge())),
    "15 nearest neighbours": (ranked, lambda: scaled(KNeighborsRegressor(15))),
    "decision tree of depth 10": (
        ranked,
        lambda: DecisionTreeRegressor(max_depth=10, random_state=SEED),
    ),
    "random forest of 100": (
        ranked,
        lambda: RandomForestRegressor(100, min_samples_leaf=2, n_jobs=-1, random_state=SEED),
    ),
    "extra trees of 100": (
        ranked,
        lambda: ExtraTreesRegressor(100, min_samples_leaf=2, n_jobs=-1, random_state=SEED),
    ),
    "histogram gradient boosting of 100": (
        ranked,
        lambda: HistGradientBoostingRegressor(max_iter=100, random_state=SEED),
    ),
    "histogram gradient boosting of 400": (
        ranked,
        lambda: HistGradientBoostingRegressor(max_iter=400, random_state=SEED),
    ),
}
RUNGS = list(LADDER)


def run(rung: str, public: Path) -> pd.DataFrame:
    features, make_model = LADDER[rung]
    train = pd.read_csv(public / "train.csv")
    test = pd.read_csv(public / "test.csv")
    model = make_model()
    model.fit(features(train), np.log1p(train["price"]))
    price = np.expm1(model.predict(features(test))).clip(0)
    return pd.DataFrame({"id": test["id"], "price": price})
