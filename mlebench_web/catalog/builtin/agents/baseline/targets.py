"""From what is asked for to what a model fits, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from task import Kind, Task


@dataclass(frozen=True)
class Target:
    """One model's worth of the task."""

    name: str
    objective: str
    values: np.ndarray
    classes: int
    # Prediction -> columns of the submission.
    answer: Callable[[np.ndarray], dict[str, Any]]
    metric: str
    is_higher_better: bool
    measure: Callable[[np.ndarray, np.ndarray], float]


def of_task(task: Task) -> list[Target]:
    match task.kind:
        case Kind.NUMBER:
            return [number(name, task) for name in task.targets]
        case Kind.PROBABILITY:
            return [probability(name, task) for name in task.targets]
        case Kind.LABEL:
            return [label(task)]
        case Kind.CLASS_PROBABILITIES:
            return [class_probabilities(task)]


def number(name: str, task: Task) -> Target:
    values = task.train[name].to_numpy(dtype=float)
    as_logarithm = task.wants_logarithm and values.min() >= 0

    def answer(prediction: np.ndarray) -> dict[str, Any]:
        return {name: np.expm1(prediction).clip(0) if as_logarithm else prediction}

    def error(actual: np.ndarray, prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((actual - prediction) ** 2)))

    return Target(
        name=name,
        objective="regression",
        values=np.log1p(values) if as_logarithm else values,
        classes=1,
        answer=answer,
        metric="rmsle" if as_logarithm else "rmse",
        is_higher_better=False,
        measure=error,
    )


def probability(name: str, task: Task) -> Target:
    return Target(
        name=name,
        objective="binary",
        values=task.train[name].to_numpy(dtype=int),
        classes=2,
        answer=lambda prediction: {name: prediction},
        metric="auc" if task.wants_auc else "log loss",
        is_higher_better=task.wants_auc,
        measure=roc_auc_score if task.wants_auc else log_loss,
    )


def label(task: Task) -> Target:
    name = task.targets[0]
    labels, codes = np.unique(task.train[name].to_numpy(), return_inverse=True)

    def chosen(prediction: np.ndarray) -> np.ndarray:
        return prediction.argmax(axis=1) if prediction.ndim == 2 else (prediction > 0.5).astype(int)

    return Target(
        name=name,
        objective="multiclass" if len(labels) > 2 else "binary",
        values=codes,
        classes=len(labels),
        answer=lambda prediction: {name: labels[chosen(prediction)]},
        metric="accuracy",
        is_higher_better=True,
        measure=lambda actual, prediction: float(accuracy_score(actual, chosen(prediction))),
    )


def class_probabilities(task: Task) -> Target:
    column = task.train[task.class_column].astype(str)
    codes = column.map({name: place for place, name in enumerate(task.targets)}).to_numpy()
    everything = list(range(len(task.targets)))
    return Target(
        name=task.class_column,
        objective="multiclass",
        values=codes,
        classes=len(task.targets),
        answer=lambda prediction: dict(zip(task.targets, prediction.T, strict=True)),
        metric="log loss",
        is_higher_better=False,
        measure=lambda actual, prediction: log_loss(actual, prediction, labels=everything),
    )
