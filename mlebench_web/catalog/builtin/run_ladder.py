"""Runs a competition's reference ladder and grades each rung. Needs requirements/ml.txt.

    python run_ladder.py COMPETITION_FOLDER PREPARED_FOLDER ANSWERS

Prints one line of JSON for each rung: {"rung", "score", "seconds", "total"}, then one with the
versions of the libraries. A rung sees the public folder alone.
"""

import importlib
import importlib.metadata
import json
import platform
import sys
import time
import types
from pathlib import Path

LIBRARIES = ("numpy", "pandas", "scikit-learn", "scipy", "pillow")


class InvalidSubmissionError(Exception):
    """A rung's submission was refused: an error in the ladder."""


def offer_grade_helpers() -> None:
    """The module that graders import from, under its name in mle-bench."""
    helpers = types.ModuleType("mlebench.grade_helpers")
    helpers.InvalidSubmissionError = InvalidSubmissionError  # type: ignore[attr-defined]
    sys.modules["mlebench"] = types.ModuleType("mlebench")
    sys.modules["mlebench.grade_helpers"] = helpers


def main(folder: Path, prepared: Path, answers_file: Path) -> None:
    offer_grade_helpers()
    sys.path.insert(0, str(folder))
    grader = importlib.import_module("grade")
    ladder = importlib.import_module("reference_ladder")
    pandas = importlib.import_module("pandas")
    answers = pandas.read_csv(answers_file)
    for rung in ladder.RUNGS:
        started = time.perf_counter()
        submission = ladder.run(rung, prepared / "public")
        seconds = time.perf_counter() - started
        score = round(float(grader.grade(submission, answers)), 5)
        line = {"rung": rung, "score": score, "seconds": seconds, "total": len(ladder.RUNGS)}
        print(json.dumps(line), flush=True)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    print(json.dumps({"versions": {"python": platform.python_version(), **versions}}), flush=True)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
