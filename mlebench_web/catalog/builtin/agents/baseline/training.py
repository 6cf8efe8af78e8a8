"""Gradient boosting: one model for each fold."""

import time
from collections.abc import Callable

import lightgbm as lgb
import numpy as np
import pandas as pd
import surroundings
from checkpoint import Fold
from sklearn.model_selection import KFold, StratifiedKFold
from targets import Target

FOLDS = 5
MAX_ROUNDS = 3000
PATIENCE = 40
LEARNING_RATE = 0.1


def splits(target: Target, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers to train on and to hold out, for each fold."""
    kind = KFold if target.objective == "regression" else StratifiedKFold
    folds = kind(FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(target.values)), target.values))


def train_fold(
    train: pd.DataFrame,
    test: pd.DataFrame,
    target: Target,
    split: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    threads: int,
) -> Fold:
    """Stops when the held-out rows get no better, or when the time of the run or of the step is
    over."""
    began = time.monotonic()
    seen, held_out = split
    parameters = {
        "objective": target.objective,
        "learning_rate": LEARNING_RATE,
        "num_leaves": 31,
        "min_data_in_leaf": 20 if len(train) > 2000 else 5,
        "feature_fraction": 0.7 if train.shape[1] <= 50 else 0.3,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "num_threads": threads,
        "seed": seed,
        # The same seed gives the same model.
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    if target.objective == "multiclass":
        parameters["num_class"] = target.classes
    data = lgb.Dataset(train.iloc[seen], target.values[seen])
    model = lgb.train(
        parameters,
        data,
        num_boost_round=MAX_ROUNDS,
        valid_sets=[data.create_valid(train.iloc[held_out], target.values[held_out])],
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False), stop_in_time(began)],
    )
    rounds = model.best_iteration if model.best_iteration > 0 else model.current_iteration()
    return Fold(
        held_out_prediction=model.predict(train.iloc[held_out], num_iteration=rounds),
        test_prediction=model.predict(test, num_iteration=rounds),
        rounds=rounds,
    )


def stop_in_time(began: float) -> Callable[[lgb.callback.CallbackEnv], None]:
    def look(state: lgb.callback.CallbackEnv) -> None:
        if min(surroundings.seconds_left(), surroundings.step_seconds_left(began)) <= 0:
            raise lgb.callback.EarlyStopException(state.iteration, state.evaluation_result_list)

    return look
