"""RMSLE of the predicted prices."""

import numpy as np
import pandas as pd
from mlebench.grade_helpers import InvalidSubmissionError


def grade(submission: pd.DataFrame, answers: pd.DataFrame) -> float:
    for column in ("id", "price"):
        if column not in submission.columns:
            raise InvalidSubmissionError(f"Submission should have a column `{column}`.")
    if len(submission) != len(answers):
        raise InvalidSubmissionError(
            f"Submission should have {len(answers)} rows, it has {len(submission)}."
        )
    if submission["id"].duplicated().any():
        raise InvalidSubmissionError("Submission should have each id once.")
    price = pd.to_numeric(submission["price"], errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(price).all():
        raise InvalidSubmissionError("Each `price` should be a finite number.")
    if (price < 0).any():
        raise InvalidSubmissionError("No `price` should be below zero.")
    predicted = pd.Series(price, index=submission["id"])
    try:
        predicted = predicted.loc[answers["id"].to_list()]
    except KeyError:
        raise InvalidSubmissionError("Submission should have the ids of test.csv.") from None
    error = np.log1p(predicted.to_numpy()) - np.log1p(answers["price"].to_numpy(dtype=float))
    return float(np.sqrt(np.mean(error**2)))
