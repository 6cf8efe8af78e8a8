"""Area under the ROC curve."""

import numpy as np
import pandas as pd
from mlebench.grade_helpers import InvalidSubmissionError
from sklearn.metrics import roc_auc_score


def grade(submission: pd.DataFrame, answers: pd.DataFrame) -> float:
    for column in ("id", "has_tree"):
        if column not in submission.columns:
            raise InvalidSubmissionError(f"Submission should have a column `{column}`.")
    if len(submission) != len(answers):
        raise InvalidSubmissionError(
            f"Submission should have {len(answers)} rows, it has {len(submission)}."
        )
    if submission["id"].duplicated().any():
        raise InvalidSubmissionError("Submission should have each id once.")
    has_tree = pd.to_numeric(submission["has_tree"], errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(has_tree).all():
        raise InvalidSubmissionError("Each `has_tree` should be a finite number.")
    predicted = pd.Series(has_tree, index=submission["id"])
    try:
        predicted = predicted.loc[answers["id"].to_list()]
    except KeyError:
        raise InvalidSubmissionError(
            "Submission should have the ids of sample_submission.csv."
        ) from None
    return float(roc_auc_score(answers["has_tree"], predicted.to_numpy()))
