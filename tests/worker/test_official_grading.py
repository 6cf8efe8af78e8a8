"""Competitions of a checkout, graded by the checkout's own code in a process of its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from mlebench_web.catalog import checkouts, official_data
from mlebench_web.catalog.models import Checkout, Competition
from runs import graders, grading
from runs.core.states import Result, State
from runs.grader_process import GraderProcess, Kind
from runs.models import Attempt, GradingReport
from tests.factories import make_group, make_run
from tests.support import mini_mlebench
from tests.support.checkout import write


def no_tick() -> None:
    pass


@pytest.fixture(scope="module")
def one_process() -> Iterator[GraderProcess]:
    """Started by the first test that needs it: it holds nothing of any checkout."""
    process = GraderProcess(kind=Kind.OFFICIAL)
    yield process
    process.stop()


@pytest.fixture
def official(settings: Settings, one_process: GraderProcess) -> GraderProcess:
    """The process for mle-bench's graders, where the product looks for it."""
    settings.MLEBENCH_PYTHON = settings.ML_PYTHON
    one_process.ensure()
    return one_process


@pytest.fixture
def root(settings: Settings, tmp_path: Path, db: None) -> Path:
    settings.COMPETITIONS_DIR = tmp_path / "data"
    settings.GRADING_TIME_LIMIT = timedelta(seconds=60)
    mini_mlebench.add(tmp_path / "mini")
    mini_mlebench.add_data(settings.COMPETITIONS_DIR)
    return tmp_path / "mini"


MakePears = Callable[..., Competition]


@pytest.fixture
def pears(root: Path, official: GraderProcess) -> Competition:
    return read(root, "our-pears")


def read(root: Path, name: str) -> Competition:
    """The competition as the catalog reads it from the checkout, with thresholds as a fact."""
    checkout, _ = Checkout.objects.get_or_create(name="mini", path=str(root))
    assert checkouts.refresh(checkout).error == ""
    Competition.objects.filter(name=name).update(
        is_lower_better=False,
        gold_threshold=0.9,
        silver_threshold=0.7,
        bronze_threshold=0.5,
        median_threshold=0.4,
    )
    return Competition.objects.get(name=name)


def attempt_of(competition: Competition) -> Attempt:
    group = make_group(competitions=[competition])
    return make_run(group, competition=competition, state=State.GRADING).newest_attempt()


def grade(competition: Competition, text: str | bytes, tmp_path: Path) -> GradingReport:
    file = tmp_path / "submission.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return grading.grade(attempt_of(competition), file, tick=no_tick)


def test_a_competition_of_a_checkout_is_graded_by_its_own_grade_fn(
    pears: Competition, tmp_path: Path
) -> None:
    report = grade(pears, mini_mlebench.GOOD, tmp_path)

    assert (report.score, report.result) == (0.75, Result.SILVER)
    assert report.grader.startswith("mlebench without git; pandas ")
    assert len(report.files_digest) == len(report.data_digest) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "must have a `id` column", id="empty"),
        pytest.param("id,ripe\n1,1\n", "the same length as the answers", id="wrong rows"),
        pytest.param(b"\xff\xfe\x00", "codec can't decode byte 0xff", id="binary"),
        pytest.param("id,ripe\n1,2\n1,2,3,4\n", "Error tokenizing data", id="ragged"),
        pytest.param("id\n1\n2\n3\n4\n", "failed with KeyError", id="the grader stumbles"),
    ],
)
def test_an_invalid_submission_is_told_apart_from_a_broken_grader(
    text: str | bytes, message: str, pears: Competition, tmp_path: Path
) -> None:
    report = grade(pears, text, tmp_path)

    assert (report.result, report.score) == (Result.INVALID, None)
    assert message in report.message


def test_a_score_that_is_no_number_is_valid_and_written_as_null(
    root: Path, official: GraderProcess, tmp_path: Path
) -> None:
    mini_mlebench.add(root, pears="def grade(submission, answers):\n    return float('nan')\n")

    report = grade(read(root, "our-pears"), mini_mlebench.GOOD, tmp_path)

    assert (report.result, report.score) == (Result.VALID, None)


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        pytest.param("import levenshtein_of_nowhere\n", "ModuleNotFoundError", id="library"),
        pytest.param("def grade(s, a):\n    1 / 0\n", "So does the sample submission", id="bug"),
    ],
)
def test_a_grader_of_the_checkout_that_never_works_is_not_the_submissions_fault(
    grader: str, message: str, root: Path, official: GraderProcess, tmp_path: Path
) -> None:
    mini_mlebench.add(root, pears=grader)

    with pytest.raises(grading.GraderFailed, match=message):
        grade(read(root, "our-pears"), mini_mlebench.GOOD, tmp_path)

    assert not GradingReport.objects.exists()


def test_answers_in_json_lines_are_read_and_a_gold_file_speaks_where_the_sample_cannot(
    root: Path, official: GraderProcess, tmp_path: Path
) -> None:
    questions = read(root, "our-questions")

    right = grade(questions, "example_id,answer\n8,no\n7,no\n", tmp_path)
    # The grader stumbles over it, and over the sample; the gold submission shows that it works.
    wrong = grade(questions, "example_id,other\n8,no\n7,no\n", tmp_path)

    assert (right.score, right.result) == (0.5, Result.BRONZE)
    assert wrong.result == Result.INVALID
    assert "KeyError" in wrong.message


def test_two_checkouts_are_graded_side_by_side_each_by_its_own_code(
    pears: Competition, tmp_path: Path
) -> None:
    other = tmp_path / "fork"
    mini_mlebench.add(other, pears="def grade(submission, answers):\n    return 0.123456789\n")
    write(other, "mlebench/competitions/our-plums/config.yaml", "")
    fork = Checkout.objects.create(name="fork", path=str(other), position=1)
    plums = Competition.objects.create(
        name="our-plums",
        title="Plums",
        checkout=fork,
        folder=str(other / "mlebench/competitions/our-pears"),
        answers_path=pears.answers_path,
        sample_submission_path=pears.sample_submission_path,
    )

    assert grade(plums, mini_mlebench.GOOD, tmp_path).score == 0.12346
    assert grade(pears, mini_mlebench.GOOD, tmp_path).score == 0.75


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_report_carries_the_commit_and_the_digest_of_what_graded_it(
    root: Path, official: GraderProcess, tmp_path: Path
) -> None:
    git(root, "init", "--quiet")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "mini")
    commit = git(root, "rev-parse", "HEAD")
    competition = read(root, "our-pears")

    clean = grade(competition, mini_mlebench.GOOD, tmp_path)
    # In shared code of all graders, after the catalog was read.
    with (root / "mlebench" / "competitions" / "utils.py").open("a") as file:
        file.write("# changed\n")
    changed = grade(competition, mini_mlebench.GOOD, tmp_path)

    assert (clean.grader_commit, changed.grader_commit) == (commit, commit)
    assert clean.grader.startswith(f"mlebench {commit[:12]}; pandas ")
    assert changed.grader.startswith(f"mlebench {commit[:12]}, changed; pandas ")
    assert clean.files_digest != changed.files_digest
    assert clean.data_digest == changed.data_digest
    assert git(root, "status", "--porcelain") == "M mlebench/competitions/utils.py"


def test_without_mlebenchs_libraries_it_is_said_how_to_get_them(
    root: Path, settings: Settings, tmp_path: Path
) -> None:
    settings.MLEBENCH_PYTHON = tmp_path / "nowhere" / "python"
    competition = read(root, "our-pears")
    file = tmp_path / "submission.csv"
    file.write_text(mini_mlebench.GOOD)

    with pytest.raises(grading.GraderFailed, match=r"\./run mlebench"):
        grading.grade(attempt_of(competition), file, tick=no_tick)

    assert grading.validate(competition, file) == (
        500,
        {"error": "An unexpected error occurred.", "details": "The grader is not available."},
    )


def test_a_python_without_pandas_is_not_taken_for_mlebenchs(
    settings: Settings, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    settings.MLEBENCH_PYTHON = tmp_path / "env" / "bin" / "python"

    assert official_data.cannot_grade().endswith(
        "lacks pandas sklearn: `./run mlebench` installs it."
    )
    # Installed meanwhile: it is asked again.
    [packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    for name in ("pandas", "sklearn"):
        write(packages, f"{name}/__init__.py", "")
    os.utime(packages, (packages.stat().st_atime, packages.stat().st_mtime + 5))
    assert official_data.cannot_grade() == ""


def test_a_competition_of_ours_needs_no_mlebench(settings: Settings, tmp_path: Path) -> None:
    settings.MLEBENCH_PYTHON = tmp_path / "nowhere" / "python"

    assert graders.missing_here(Competition(name="demo")) == ""


def test_validate_answers_as_the_grader_of_the_checkout_and_tells_no_score(
    pears: Competition, tmp_path: Path
) -> None:
    file = tmp_path / "submission.csv"

    def said(text: str) -> tuple[int, dict[str, str]]:
        file.write_text(text)
        return grading.validate(pears, file)

    assert said(mini_mlebench.GOOD) == (200, {"result": "Submission is valid."})
    assert said("id,ripe\n1,1\n") == (
        200,
        {"result": grading.INVALID + "Submission must have the same length as the answers."},
    )
    # Its text would name a column of the answers.
    assert said("id,other\n1,1\n2,1\n3,1\n4,1\n")[1]["result"].endswith("stopped with KeyError.")


def test_mlebenchs_graders_grade_one_run_at_a_time(settings: Settings) -> None:
    waited = threading.Event()
    entered: list[str] = []

    def second() -> None:
        with grading.turn(Kind.OFFICIAL, waited.set):
            entered.append("second")

    with grading.turn(Kind.OFFICIAL, no_tick):
        thread = threading.Thread(target=second)
        thread.start()
        # It asks again and again, and lets its supervisor tick meanwhile.
        assert waited.wait(30)
        assert entered == []
    thread.join(30)

    assert entered == ["second"]


def test_the_process_holds_nothing_of_the_checkout_so_a_change_counts_at_once(
    pears: Competition, root: Path, tmp_path: Path
) -> None:
    before = grade(pears, mini_mlebench.GOOD, tmp_path)
    write(root, "mlebench/competitions/our-pears/places.py", "PLACES = 0\n")
    after = grade(pears, mini_mlebench.GOOD, tmp_path)

    assert (before.score, after.score) == (0.75, 1.0)
    assert not list(root.rglob("__pycache__"))


# ---------------------------------------------------------------------------- the real one


def test_the_real_checkouts_spaceship_titanic_is_graded(
    settings: Settings, tmp_path: Path, db: None
) -> None:
    named = os.environ.get("MLEBENCH_DIR", "").split(os.pathsep)[0]
    if not named:
        pytest.skip("MLEBENCH_DIR names no checkout of mle-bench")
    name = "spaceship-titanic"
    settings.COMPETITIONS_DIR = tmp_path / "data"
    rows = "".join(f"{row:04}_01,{row % 3 == 0}\n" for row in range(90))
    write(tmp_path, f"data/{name}/prepared/private/test.csv", "PassengerId,Transported\n" + rows)
    none = rows.replace("True", "False")
    sample = write(
        tmp_path,
        f"data/{name}/prepared/public/sample_submission.csv",
        "PassengerId,Transported\n" + none,
    )
    competition = read(Path(named), name)
    if official_data.cannot_grade():
        with pytest.raises(grading.GraderFailed, match=r"\./run mlebench"):
            grade(competition, sample.read_text(), tmp_path)
        return

    report = grade(competition, sample.read_text(), tmp_path)

    assert report.score == 0.66667
    assert "mlebench" in report.grader
