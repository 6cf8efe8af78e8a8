"""Grading with the real grader process: hostile submissions, broken graders, what is recorded."""

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from mlebench_web.catalog.models import Competition
from runs import grader_process, graders, grading, logs
from runs.core.states import Result, State
from runs.models import Attempt, GradingReport
from tests.factories import make_group, make_run

ANSWERS = "id,y\n1,10\n2,20\n3,30\n"
HONEST = """
from mlebench.grade_helpers import InvalidSubmissionError

def grade(submission, answers):
    if list(submission.columns[:2]) != ["id", "y"]:
        raise InvalidSubmissionError("Submission should have the columns id and y")
    if len(submission) != len(answers):
        raise InvalidSubmissionError("Submission and answers should have the same number of rows")
    return float((submission["y"] - answers["y"]).abs().mean())
"""


def no_tick() -> None:
    pass


MakeCompetition = Callable[..., Competition]


@pytest.fixture
def make_competition(db: None, settings: Settings, tmp_path: Path) -> MakeCompetition:
    """A competition whose grader is the given text; lower is better, gold is 1."""
    settings.COMPETITIONS_DIR = tmp_path / "competitions"
    settings.GRADING_TIME_LIMIT = timedelta(seconds=20)

    def make(grader: str = HONEST, *, sample: str = ANSWERS) -> Competition:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "grade.py").write_text(grader)
        (folder / "config.yaml").write_text("grader: {name: mae, grade_fn: 'grade:grade'}\n")
        prepared = settings.COMPETITIONS_DIR / "tests" / "prepared"
        for part, name, text in (("private", "a.csv", ANSWERS), ("public", "s.csv", sample)):
            (prepared / part).mkdir(parents=True)
            (prepared / part / name).write_text(text)
        return Competition.objects.create(
            name="tests",
            title="Tests",
            is_lower_better=True,
            gold_threshold=1,
            silver_threshold=2,
            bronze_threshold=3,
            median_threshold=4,
            folder=str(folder),
            answers_path="tests/prepared/private/a.csv",
            sample_submission_path="tests/prepared/public/s.csv",
        )

    return make


def attempt_of(competition: Competition) -> Attempt:
    group = make_group(competitions=[competition])
    return make_run(group, competition=competition, state=State.GRADING).newest_attempt()


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    path = tmp_path / "submission.csv"
    path.write_text(ANSWERS)
    return path


def grade(competition: Competition, submission: Path | None) -> GradingReport:
    return grading.grade(attempt_of(competition), submission, tick=no_tick)


pytestmark = pytest.mark.usefixtures("warm_grader")


# ---------------------------------------------------------------------------- submissions


def test_a_good_submission_gets_its_score_and_medal(
    make_competition: MakeCompetition, submission: Path
) -> None:
    submission.write_text("id,y\n1,11\n2,22\n3,33\n")

    report = grade(make_competition(), submission)

    assert (report.score, report.result) == (2.0, Result.SILVER)
    assert report.gold_threshold == 1
    assert report.grader.startswith("mlebench-web ")
    assert len(report.data_digest) == 64


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(255, -1, -1)) * 50)


def ragged(path: Path) -> None:
    path.write_text("id,y\n1,2\n1,2,3,4,5\n")


def wrong_rows(path: Path) -> None:
    path.write_text("id,y\n1,10\n")


def many_columns(path: Path) -> None:
    path.write_text(",".join(f"c{n}" for n in range(10_000)) + "\n")


def zeros(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 * 2**30)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("leave", "message"),
    [
        pytest.param(nothing, "Submission should have the columns id and y", id="empty"),
        pytest.param(binary, "'utf-8' codec can't decode byte 0xff", id="binary"),
        pytest.param(ragged, "Error tokenizing data", id="ragged"),
        pytest.param(wrong_rows, "the same number of rows", id="wrong rows"),
        pytest.param(many_columns, "the columns id and y", id="10,000 columns"),
        pytest.param(zeros, "2 GiB; more than 1 GiB are not graded", id="2 GiB of zeros"),
        pytest.param(link, "is a symbolic link", id="symbolic link"),
        pytest.param(pipe, "is a named pipe", id="named pipe"),
        pytest.param(folder, "is a folder", id="folder"),
    ],
)
def test_a_submission_that_cannot_be_graded_is_invalid_and_says_why(
    leave: Callable[[Path], None],
    message: str,
    make_competition: MakeCompetition,
    submission: Path,
) -> None:
    leave(submission)

    report = grade(make_competition(), submission)

    assert (report.result, report.score) == (Result.INVALID, None)
    assert message in report.message


def test_reading_more_than_the_memory_limit_is_the_submissions_fault(
    make_competition: MakeCompetition, submission: Path, settings: Settings
) -> None:
    settings.GRADING_MEMORY_BYTES = 64 * 2**20
    submission.write_text("id,y\n" + "1,10\n" * 8_000_000)

    report = grade(make_competition(), submission)

    assert report.result == Result.INVALID
    assert report.message == "Reading the submission needed more than 0.0625 GiB of memory."


def test_no_submission_is_a_null_report_with_thresholds(
    make_competition: MakeCompetition,
) -> None:
    report = grade(make_competition(), None)

    assert (report.result, report.score, report.submission_path) == (
        Result.NO_SUBMISSION,
        None,
        "None",
    )
    assert report.median_threshold == 4


def test_a_file_of_another_kind_does_not_count_as_a_submission(
    make_competition: MakeCompetition, submission: Path
) -> None:
    other = submission.rename(submission.with_suffix(".txt"))

    assert grade(make_competition(), other).result == Result.NO_SUBMISSION


def test_a_score_that_is_no_number_is_valid_without_a_medal(
    make_competition: MakeCompetition, submission: Path
) -> None:
    report = grade(make_competition("def grade(s, a):\n    return float('nan')\n"), submission)

    assert (report.result, report.score) == (Result.VALID, None)
    assert "not a finite number" in report.message
    json.dumps(report.as_upstream(), allow_nan=False)


# ---------------------------------------------------------------------------- broken graders

ONLY_FOR_THE_SAMPLE = """
def grade(submission, answers):
    if len(submission) == 3 and int(submission["y"][0]) == 10:
        return 0.0
    {what}
"""
STRANGE = "id,y\n1,99\n2,99\n3,99\n"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        pytest.param("raise KeyError('id')", "failed with KeyError", id="exception"),
        pytest.param("import sys; sys.exit(0)", "failed with SystemExit", id="exit"),
        pytest.param("import os; os._exit(0)", "without a result", id="hard exit"),
        pytest.param("import os; os.abort()", "crashed with signal 6", id="abort"),
        pytest.param("x = bytearray(2**40)", "more than 8 GiB of memory", id="allocates"),
        pytest.param("return 'high'", "returned str, not a number", id="no number"),
        pytest.param("while True: pass", "took longer than 1 s", id="loops"),
        pytest.param("open('big', 'wb').write(bytes(2**25))", "OSError", id="fills the disk"),
    ],
)
def test_a_grader_that_stops_on_one_submission_but_not_on_the_sample_makes_it_invalid(
    what: str,
    message: str,
    make_competition: MakeCompetition,
    submission: Path,
    settings: Settings,
) -> None:
    settings.GRADING_TIME_LIMIT = timedelta(seconds=1)
    submission.write_text(STRANGE)

    report = grade(make_competition(ONLY_FOR_THE_SAMPLE.format(what=what)), submission)

    assert report.result == Result.INVALID
    assert message in report.message


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        pytest.param("def grade(s, a):\n    1/0\n", "So does the sample submission", id="always"),
        pytest.param("import nowhere_to_be_found\n", "Loading the grader failed", id="import"),
        pytest.param("def grade(:\n", "Loading the grader failed with SyntaxError", id="syntax"),
        pytest.param("def other(s, a):\n    return 1\n", "AttributeError", id="no function"),
        pytest.param("import os; os.kill(os.getpid(), 9)\n", "signal 9", id="killed"),
    ],
)
def test_a_grader_that_never_works_is_not_the_submissions_fault(
    grader: str, message: str, make_competition: MakeCompetition, submission: Path
) -> None:
    competition = make_competition(grader)

    with pytest.raises(grading.GraderFailed, match=message):
        grade(competition, submission)

    assert not GradingReport.objects.exists()


def test_a_traceback_of_the_grader_goes_to_its_log(
    make_competition: MakeCompetition, submission: Path
) -> None:
    attempt = attempt_of(make_competition("def grade(s, a):\n    1/0\n"))

    with pytest.raises(grading.GraderFailed):
        grading.grade(attempt, submission, tick=no_tick)

    assert "ZeroDivisionError" in "".join(logs.last_lines(attempt.pk, "grader", 20))


def test_what_a_grader_starts_dies_with_it(
    make_competition: MakeCompetition, submission: Path, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    grader = f"""
import os, time
def grade(submission, answers):
    if os.fork() == 0:
        with open({str(note) + ".new"!r}, "w") as file:
            file.write(str(os.getpid()))
        os.rename({str(note) + ".new"!r}, {str(note)!r})
        time.sleep(600)
    while not os.path.exists({str(note)!r}):
        time.sleep(0.01)
    return 0.5
"""
    assert grade(make_competition(grader), submission).score == 0.5

    assert_gone(int(note.read_text()))


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_competition_without_a_grader_says_what_is_missing(
    make_competition: MakeCompetition, submission: Path
) -> None:
    competition = make_competition()
    Competition.objects.update(folder="")

    with pytest.raises(grading.GraderFailed, match=r"no grader for tests.*MLEBENCH_DIR"):
        grade(Competition.objects.get(pk=competition.pk), submission)


def test_missing_answers_are_named(
    make_competition: MakeCompetition, submission: Path, settings: Settings, tmp_path: Path
) -> None:
    competition = make_competition()
    settings.COMPETITIONS_DIR = tmp_path / "elsewhere"

    with pytest.raises(grading.GraderFailed, match="`tests` is not prepared"):
        grade(competition, submission)


# ---------------------------------------------------------------------------- the process


def test_the_loop_ticks_while_a_grader_works(
    make_competition: MakeCompetition, submission: Path
) -> None:
    ticks: list[float] = []
    competition = make_competition(
        "import time\ndef grade(s, a):\n    time.sleep(5)\n    return 1\n"
    )

    grading.grade(attempt_of(competition), submission, tick=lambda: ticks.append(time.monotonic()))

    assert max(late - early for early, late in itertools.pairwise(ticks)) < 4


def test_without_the_host_services_process_grading_starts_its_own(
    make_competition: MakeCompetition, submission: Path, settings: Settings, tmp_path: Path
) -> None:
    settings.SOCKETS_DIR = tmp_path / "s"

    assert grade(make_competition(), submission).result == Result.GOLD


def test_the_folder_of_a_killed_private_grader_is_removed(
    settings: Settings, tmp_path: Path
) -> None:
    settings.SOCKETS_DIR = tmp_path
    left, starting = tmp_path / "g-left", tmp_path / "g-starting"
    for folder in (left, starting):
        folder.mkdir()
    os.utime(left, (0, 0))

    grader_process.clear_private()

    assert [path.name for path in tmp_path.iterdir()] == ["g-starting"]


def test_a_grader_process_that_dies_in_the_middle_is_replaced(
    make_competition: MakeCompetition, submission: Path, settings: Settings, tmp_path: Path
) -> None:
    settings.SOCKETS_DIR = tmp_path / "s"
    process = grading.GraderProcess()
    process.ensure()
    notes = tmp_path / "pids"
    killed: list[int] = []

    def kill_once() -> None:
        """The server, once its child is in the middle of grading."""
        if not killed and notes.exists() and process._process:
            killed.append(process._process.pid)
            os.kill(process._process.pid, signal.SIGKILL)

    grader = f"""
import os, time
def grade(submission, answers):
    with open({str(notes)!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep(600 if len(open({str(notes)!r}).readlines()) == 1 else 0)
    return len(submission)
"""
    report = grading.grade(attempt_of(make_competition(grader)), submission, tick=kill_once)
    process.stop()

    assert killed
    # The second child reads the file from its start.
    assert report.score == 3
    # The first one did not outlive its server.
    assert_gone(int(notes.read_text().split()[0]))


def test_the_process_ends_with_its_owner(settings: Settings, tmp_path: Path) -> None:
    """A host service that is killed leaves no grader behind: its standard input closes."""
    settings.SOCKETS_DIR = tmp_path / "s"
    process = grading.GraderProcess()
    process.ensure()
    child = process._process
    assert child is not None
    assert child.stdin is not None

    child.stdin.close()

    assert child.wait(timeout=10) == 0
    assert not process.answers()
    child.stderr.close()  # type: ignore[union-attr]


def test_only_one_process_serves_a_socket(settings: Settings, tmp_path: Path) -> None:
    settings.SOCKETS_DIR = tmp_path / "s"
    first, second = grading.GraderProcess(), grading.GraderProcess()
    first.ensure()

    second.start()
    second.stop()

    assert first.answers()
    first.stop()
    assert not first.answers()


def test_nobody_else_may_open_the_socket(warm_grader: grading.GraderProcess) -> None:
    assert warm_grader.path.stat().st_mode & 0o077 == 0


def test_a_request_that_is_given_up_does_not_disturb_the_next(
    warm_grader: grading.GraderProcess, make_competition: MakeCompetition, submission: Path
) -> None:
    request = grader_process.Request(folder=Path("/nowhere"), answers=Path("/nowhere"))
    for payload in (b"", b'{"op": "gra', b"nonsense\n", b"[]\n", request.as_json()):
        with grader_process.connected(warm_grader.path, timeout=2) as connection:
            if payload.endswith(b"\n"):
                with submission.open() as file:
                    socket.send_fds(connection, [payload], [file.fileno()])
            else:
                connection.sendall(payload or b"x")

    assert grade(make_competition(), submission).result == Result.GOLD


# ---------------------------------------------------------------------------- the record


def test_grading_again_keeps_the_old_report(
    make_competition: MakeCompetition, submission: Path
) -> None:
    attempt = attempt_of(make_competition())

    first = grading.grade(attempt, submission, tick=no_tick)
    submission.write_text("id,y\n")
    second = grading.grade(attempt, submission, tick=no_tick)

    first.refresh_from_db()
    assert (first.is_current, second.is_current) == (False, True)
    assert attempt.reports.count() == 2


def test_grading_a_counted_attempt_again_changes_the_runs_result(
    make_competition: MakeCompetition, submission: Path
) -> None:
    competition = make_competition()
    run = make_run(
        make_group(competitions=[competition]), competition=competition, result=Result.INVALID
    )

    grading.grade(run.newest_attempt(), submission, tick=no_tick)

    run.refresh_from_db()
    assert (run.result, run.score) == (Result.GOLD, 0.0)


def test_a_changed_grader_has_another_version(make_competition: MakeCompetition) -> None:
    competition = make_competition()
    before = graders.files_digest(competition)

    Path(competition.folder, "grade.py").write_text(HONEST + "\n# changed\n")

    assert graders.files_digest(competition) != before


# ---------------------------------------------------------------------------- /validate


def test_validate_tells_nothing_that_a_grader_did_not_mean_to_tell(
    make_competition: MakeCompetition, submission: Path
) -> None:
    competition = make_competition("def grade(s, a):\n    raise ValueError(str(list(a['y'])))\n")

    status, answer = grading.validate(competition, submission)

    assert status == 200
    assert answer["result"].startswith("Submission invalid!")
    assert answer["result"].endswith("The grader stopped with ValueError.")


def test_validate_of_a_valid_submission_tells_no_score(
    make_competition: MakeCompetition, submission: Path
) -> None:
    assert grading.validate(make_competition(), submission) == (
        200,
        {"result": "Submission is valid."},
    )


def test_validate_with_a_broken_grader_is_an_error_of_ours(
    make_competition: MakeCompetition, submission: Path
) -> None:
    status, answer = grading.validate(make_competition("import nowhere_at_all\n"), submission)

    assert status == 500
    assert answer["details"] == "The grader failed."
