"""Mean absolute error of `price`; four rows."""

import pandas as pd
from mlebench.grade_helpers import InvalidSubmissionError


def grade(submission: pd.DataFrame, answers: pd.DataFrame) -> float:
    if list(submission.columns) != ["id", "price"]:
        raise InvalidSubmissionError("Submission should have the columns id and price.")
    if len(submission) != len(answers):
        raise InvalidSubmissionError("Submission and answers should have the same number of rows")
    joined = answers.merge(submission, on="id", suffixes=("_true", ""))
    return float((joined["price"] - joined["price_true"]).abs().mean())
