"""Seconds to grade one small submission in a warm, isolated child. Aim: at most 20 ms.

    python bench/grading.py [--count N]

Grades a made-up submission of 1,000 rows with the grader of demo-diamond-prices, and beside it
the same submission in a new Python each time: what it costs without a warm process. A
competition of a checkout is graded too, by a small package in mle-bench's layout, or by
spaceship-titanic of the checkout that MLEBENCH_DIR names: each child imports the checkout anew.
The last line is the summary; status 1 when the median misses the aim.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AIM_SECONDS = 0.020
NAME = "demo-diamond-prices"
ROWS = 1000


def write_data(folder: Path) -> Path:
    """Answers, a sample submission, and the submission that is graded."""
    chance = random.Random(0)
    private, public = (folder / NAME / "prepared" / part for part in ("private", "public"))
    for made in (private, public):
        made.mkdir(parents=True)
    prices = [chance.randrange(300, 19_000) for _ in range(ROWS)]
    lines = "".join(f"{row},{price}\n" for row, price in enumerate(prices))
    (private / "test.csv").write_text("id,price\n" + lines)
    guesses = "".join(f"{row},{price * 1.1:.2f}\n" for row, price in enumerate(prices))
    (public / "sample_submission.csv").write_text("id,price\n" + guesses)
    return public / "sample_submission.csv"


def official(count: int) -> None:
    """Prints what a competition of a checkout takes, in an official grader process."""
    from django.conf import settings

    from mlebench_web.catalog import official_data
    from mlebench_web.catalog.models import Checkout, Competition
    from runs import grading
    from runs.grader_process import GraderProcess, Kind
    from tests.support import mini_mlebench

    named = settings.MLEBENCH_DIRS[0] if settings.MLEBENCH_DIRS else None
    if named is None or official_data.cannot_grade():
        named, name = settings.DATA_DIR / "mini", "our-pears"
        mini_mlebench.add(named)
        mini_mlebench.add_data(settings.COMPETITIONS_DIR)
        settings.MLEBENCH_PYTHON = settings.ML_PYTHON
    else:
        name = "spaceship-titanic"
        rows = "PassengerId,Transported\n" + "".join(f"{n},True\n" for n in range(ROWS))
        for part, file in (("private", "test.csv"), ("public", "sample_submission.csv")):
            folder = settings.COMPETITIONS_DIR / name / "prepared" / part
            folder.mkdir(parents=True)
            (folder / file).write_text(rows)
    competition = Competition(
        name=name,
        checkout=Checkout(pk=1, name="bench", path=str(named)),
        folder=str(named / "mlebench" / "competitions" / name),
        answers_path=f"{name}/prepared/private/test.csv",
        sample_submission_path=f"{name}/prepared/public/sample_submission.csv",
    )
    process = GraderProcess(kind=Kind.OFFICIAL)
    process.ensure()
    took = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            with grading.open_submission(
                settings.COMPETITIONS_DIR / competition.sample_submission_path
            ) as file:
                ended, _ = grading.judge(competition, file, tick=lambda: None)
            took.append(time.perf_counter() - began)
            if not ended.has_score:
                sys.exit(f"not graded: {ended}")
    finally:
        process.stop()
    print(
        f"{name} of a checkout: median {statistics.median(took) * 1000:.1f} ms, "
        f"worst {max(took) * 1000:.1f} ms of {count}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory(prefix="mlw-") as name:
        os.environ["MLEBENCH_WEB_DATA"] = name
        os.environ["DJANGO_SETTINGS_MODULE"] = "mlebench_web.settings"
        os.environ.setdefault("LOG_LEVEL", "WARNING")
        sys.path.insert(0, str(ROOT))
        import django

        django.setup()
        from django.conf import settings

        from mlebench_web.catalog import folders
        from mlebench_web.catalog.models import Competition
        from runs import grading

        submission = write_data(settings.COMPETITIONS_DIR)
        competition = Competition(
            name=NAME,
            folder=folders.builtin(NAME),
            answers_path=f"{NAME}/prepared/private/test.csv",
            sample_submission_path=f"{NAME}/prepared/public/sample_submission.csv",
        )
        process = grading.GraderProcess()
        began = time.perf_counter()
        process.ensure()
        print(f"start of the grader process: {time.perf_counter() - began:.2f} s")
        warm = []
        try:
            for _ in range(count):
                began = time.perf_counter()
                with grading.open_submission(submission) as file:
                    ended, _ = grading.judge(competition, file, tick=lambda: None)
                warm.append(time.perf_counter() - began)
                if not ended.has_score:
                    print(f"not graded: {ended}")
                    return 1
        finally:
            process.stop()
        official(count)
        cold = []
        for _ in range(3):
            began = time.perf_counter()
            code = "import pandas, sklearn.metrics"
            subprocess.run([settings.ML_PYTHON, "-I", "-c", code], check=True)
            cold.append(time.perf_counter() - began)
    median = statistics.median(warm)
    print(f"imports alone in a new Python: median {statistics.median(cold) * 1000:.0f} ms of 3")
    print(
        f"warm: median {median * 1000:.1f} ms, worst {max(warm) * 1000:.1f} ms of {count} "
        f"(aim {AIM_SECONDS * 1000:.0f} ms): {'met' if median <= AIM_SECONDS else 'MISSED'}"
    )
    return 0 if median <= AIM_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
