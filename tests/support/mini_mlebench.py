"""A small package in the layout of mle-bench's, with two graders of its own.

It stands at the edge, for a checkout that a build machine does not have: what mlebench.utils and
mlebench.grade_helpers offer to graders, as our grader process uses it. Any Python with pandas and
scikit-learn runs it.
"""

import json
from pathlib import Path

from tests.support.checkout import COMPETITION, POINTER, write

UTILS = """\
import importlib
import json

import pandas as pd


def import_fn(name):
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def read_csv(*args, **kwargs):
    try:
        return pd.read_csv(*args, **{"float_precision": "round_trip", **kwargs})
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def load_answers(path):
    if path.suffix == ".csv":
        return read_csv(path)
    if path.suffix == ".jsonl":
        with open(path) as lines:
            return [json.loads(line) for line in lines]
    raise ValueError(f"Unsupported file format for answers: {path}")
"""
HELPERS = """\
class InvalidSubmissionError(Exception):
    pass
"""
# Shared by graders, as mlebench/competitions/utils.py is.
SHARED = """\
from mlebench.grade_helpers import InvalidSubmissionError


def aligned(submission, answers, key):
    if key not in submission.columns:
        raise InvalidSubmissionError(f"Submission must have a `{key}` column")
    if len(submission) != len(answers):
        raise InvalidSubmissionError("Submission must have the same length as the answers.")
    return submission.sort_values(key), answers.sort_values(key)
"""
# A relative import, and a folder whose name is no Python name: both are usual there.
PEARS = """\
from mlebench.competitions.utils import aligned

from .places import PLACES


def grade(submission, answers):
    ours, theirs = aligned(submission, answers, "id")
    return round(float((ours["ripe"].values == theirs["ripe"].values).mean()), PLACES)
"""
QUESTIONS = """\
from mlebench.competitions.utils import aligned
import pandas as pd


def grade(submission, answers):
    known = pd.DataFrame(answers)
    ours, theirs = aligned(submission, known, "example_id")
    return float((ours["answer"].astype(str).values == theirs["answer"].values).mean())
"""
ANSWERS = "id,ripe\n1,1\n2,0\n3,1\n4,1\n"
SAMPLE = "id,ripe\n1,0\n2,0\n3,0\n4,0\n"
# Three of four.
GOOD = "id,ripe\n4,1\n3,1\n2,0\n1,0\n"
QUESTION_ANSWERS = [{"example_id": 7, "answer": "yes"}, {"example_id": 8, "answer": "no"}]


def add(root: Path, *, pears: str = PEARS) -> None:
    """`our-pears` (a table) and `our-questions` (JSON lines, a gold file of its own)."""
    write(root, "mlebench/__init__.py", "")
    write(root, "mlebench/utils.py", UTILS)
    write(root, "mlebench/grade_helpers.py", HELPERS)
    write(root, "mlebench/competitions/__init__.py", "")
    write(root, "mlebench/competitions/utils.py", SHARED)
    for name, grader in (("our-pears", pears), ("our-questions", QUESTIONS)):
        folder = f"mlebench/competitions/{name}"
        write(root, f"{folder}/grade.py", grader)
        write(root, f"{folder}/description.md", f"# {name}\n")
        write(root, f"{folder}/leaderboard.csv", POINTER)
        write(root, f"{folder}/config.yaml", COMPETITION.format(name=name))
    write(root, "mlebench/competitions/our-pears/places.py", "PLACES = 5\n")
    config = COMPETITION.format(name="our-questions")
    config = config.replace("private/test.csv", "private/test.jsonl").replace(
        "dataset:\n", "dataset:\n  gold_submission: our-questions/prepared/private/gold.csv\n"
    )
    write(root, "mlebench/competitions/our-questions/config.yaml", config)


def add_data(competitions: Path) -> None:
    """Prepared data of both, in mle-bench's layout."""
    write(competitions, "our-pears/prepared/private/test.csv", ANSWERS)
    write(competitions, "our-pears/prepared/public/sample_submission.csv", SAMPLE)
    write(competitions, "our-pears/prepared/public/description.md", "# pears\n")
    lines = "".join(json.dumps(row) + "\n" for row in QUESTION_ANSWERS)
    write(competitions, "our-questions/prepared/private/test.jsonl", lines)
    gold = "example_id,answer\n7,yes\n8,no\n"
    write(competitions, "our-questions/prepared/private/gold.csv", gold)
    write(competitions, "our-questions/prepared/public/description.md", "# questions\n")
    # A sample with which no grader can do anything, as some of mle-bench's.
    write(competitions, "our-questions/prepared/public/sample_submission.csv", "nothing\n")
