"""Area under the ROC curve of `has_cactus`. Written for our tests: the words of its errors are
those that mle-bench's grading server answered with (shared/golden/upstream-synthetic)."""

import pandas as pd
from mlebench.grade_helpers import InvalidSubmissionError
from sklearn.metrics import roc_auc_score


def score(submission: pd.DataFrame, answers: pd.DataFrame) -> float:
    if "id" not in submission.columns:
        raise InvalidSubmissionError("Submission should have an id column")
    if len(submission) != len(answers):
        raise InvalidSubmissionError("Submission and answers should have the same number of rows")
    if set(submission["id"]) != set(answers["id"]):
        raise InvalidSubmissionError("Submission and answers should have the same ids")
    both = answers.merge(submission, on="id", suffixes=("", "_predicted"))
    return roc_auc_score(both["has_cactus"], both["has_cactus_predicted"])
