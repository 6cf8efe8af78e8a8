"""What a competition's grade.py imports from mle-bench."""


class InvalidSubmissionError(Exception):
    """The submission cannot be graded; the text tells its author why."""
