"""Submission -> the competition's grader, in its own process -> GradingReport.

The rule whose fault a failure is: runs/core/grader_verdict.py, explained in docs/grading.md.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import structlog
import yaml
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from mlebench_web import __version__
from mlebench_web.catalog import data
from mlebench_web.catalog.models import Competition
from runs import grader_process, logs
from runs.core.grader_verdict import Ended, Fault, GraderVerdict, decide, told
from runs.core.medals import Thresholds, standing
from runs.grader_process import GraderProcess, GraderUnreachable, Request
from runs.models import Attempt, GradingReport, LogSegment, Run
from runs.workspace import kind_of

__all__ = ["GraderFailed", "GraderProcess", "grade", "null_report", "validate", "validate_file"]

logger = structlog.get_logger(__name__)

# Of one POST /validate: an agent waits for it, and its container's relay for ten minutes.
VALIDATION_LIMIT_SECONDS = 300
VALID = "Submission is valid."
INVALID = (
    "Submission invalid! The attempt to grade the submission has resulted in the following "
    "error message:\n"
)


class GraderFailed(Exception):
    """The grader itself, its data or its process failed; no word about the submission."""


class Unprepared(GraderFailed):
    """The competition's answers are not on this host."""


# ---------------------------------------------------------------------------- reports


def grade(
    attempt: Attempt,
    submission: Path | None,
    *,
    tick: Callable[[], None],
    refused: str | None = None,
) -> GradingReport:
    """Grade what an attempt left and make its report the current one; older ones stay.

    `submission` is the collected file, None when there is none. `refused` says why a file that
    was left is not graded (a link, for example): it counts as an invalid submission. `tick` is
    called at least once a second. Raises GraderFailed when the grader is at fault.
    """
    if refused:
        return save(attempt, exists=True, message=refused, submission=submission)
    if submission is None:
        return null_report(attempt)
    if submission.suffix.lower() != ".csv":
        return save(attempt, exists=False, message=f"{submission.name} is not a .csv file.")
    try:
        file = open_submission(submission)
    except FileNotFoundError:
        return null_report(attempt)
    except Unreadable as error:
        return save(attempt, exists=True, message=str(error), submission=submission)
    with file:
        if too_big := refuse_size(file):
            return save(attempt, exists=True, message=too_big, submission=submission)
        competition = attempt.run.competition
        began = time.perf_counter()
        ended, verdict = judge(competition, file, tick=tick)
        seconds = time.perf_counter() - began
    if ended.detail:
        logs.append(attempt.pk, LogSegment.Source.GRADER, ended.detail)
    if verdict.fault == Fault.GRADER:
        raise GraderFailed(f"{competition.name}: {verdict.message}")
    return save(
        attempt,
        exists=True,
        valid=verdict.fault == Fault.NOBODY,
        score=ended.score,
        message=verdict.message,
        submission=submission,
        seconds=seconds,
    )


def null_report(attempt: Attempt) -> GradingReport:
    """The report of an attempt that left no submission: no score, thresholds filled in."""
    return save(attempt, exists=False)


@transaction.atomic
def save(
    attempt: Attempt,
    *,
    exists: bool,
    valid: bool = False,
    score: float | None = None,
    message: str = "",
    submission: Path | None = None,
    seconds: float | None = None,
) -> GradingReport:
    """Make the current report, with the medals that the score brings."""
    competition = attempt.run.competition
    asked = thresholds_of(competition)
    place = standing(score, asked)
    attempt.reports.filter(is_current=True).update(is_current=False)
    report = GradingReport.objects.create(
        attempt=attempt,
        score=score,
        gold_threshold=asked.gold,
        silver_threshold=asked.silver,
        bronze_threshold=asked.bronze,
        median_threshold=asked.median,
        any_medal=place.any_medal,
        gold_medal=place.gold,
        silver_medal=place.silver,
        bronze_medal=place.bronze,
        above_median=place.above_median,
        submission_exists=exists,
        valid_submission=valid,
        is_lower_better=asked.is_lower_better,
        created_at=timezone.now(),
        submission_path=shown_path(submission) if exists else "None",
        message=message,
        grader=grader_version(competition),
        data_digest=answers_digest(competition),
        seconds=seconds,
    )
    # A report made anew for the attempt that counts changes its run's result.
    run = Run.objects.filter(pk=attempt.run_id, counted=attempt).first()
    if run:
        run.count(attempt, cut_short=run.is_cut_short)
    return report


def thresholds_of(competition: Competition) -> Thresholds:
    return Thresholds(
        gold=competition.gold_threshold,
        silver=competition.silver_threshold,
        bronze=competition.bronze_threshold,
        median=competition.median_threshold,
        is_lower_better=competition.is_lower_better,
    )


def shown_path(submission: Path | None) -> str:
    """Below the folder of run groups, as upstream's paths; no path of this machine on a page."""
    if submission is None:
        return "None"
    runs_dir = Path(settings.RUN_GROUPS_DIR)
    if submission.is_relative_to(runs_dir):
        return str(submission.relative_to(runs_dir))
    return submission.name


# ---------------------------------------------------------------------------- files


class Unreadable(Exception):
    """A link, a pipe, a folder: not a file that is graded. The text is for the report."""


def open_submission(path: Path) -> BinaryIO:
    """Open a regular file, following no link. Raises Unreadable, FileNotFoundError."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(f"{path.name} is {kind_of(found.st_mode)}; only a file is graded.")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unreadable(f"{path.name} was exchanged while it was read.")
    return os.fdopen(handle, "rb")


def refuse_size(file: BinaryIO) -> str:
    """Why a file of this size is not graded; empty when it is."""
    size = os.fstat(file.fileno()).st_size
    limit = settings.SUBMISSION_MAX_BYTES
    if size <= limit:
        return ""
    return (
        f"The submission has {size / 2**30:.3g} GiB; more than {limit / 2**30:.3g} GiB are "
        "not graded (SUBMISSION_MAX_GIB)."
    )


def grader_folder(competition: Competition) -> Path:
    """The folder with grade.py. Raises GraderFailed saying what is missing."""
    folder = data.folder_of(competition)
    if folder is None:
        raise GraderFailed(
            f"There is no grader for {competition.name}, only its facts are known. "
            "Set MLEBENCH_DIR to an mle-bench checkout that has it."
        )
    if not (folder / "grade.py").is_file():
        raise GraderFailed(f"There is no grade.py in {folder}, the folder of {competition.name}.")
    return folder


def grade_function(folder: Path) -> str:
    """The function's name from config.yaml: what follows the colon of grader.grade_fn."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
        name = str(config["grader"]["grade_fn"]).partition(":")[2]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise GraderFailed(f"{path}: grader.grade_fn cannot be read: {error}") from error
    if not name.isidentifier():
        raise GraderFailed(f"{path}: grader.grade_fn should be module:function, not {name!r}.")
    return name


@lru_cache(maxsize=256)
def digest(path: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file; size and time of change make a changed file another question."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, empty when it is not there."""
    try:
        found = path.stat()
        return digest(path, found.st_size, found.st_mtime_ns)
    except OSError:
        return ""


def grader_version(competition: Competition) -> str:
    """Ours, and a digest of what decides about a score besides the answers."""
    folder = data.folder_of(competition)
    if folder is None:
        return f"mlebench-web {__version__}"
    parts = "".join(digest_of(folder / name) for name in ("grade.py", "leaderboard.csv"))
    return f"mlebench-web {__version__}, grader {hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def answers_digest(competition: Competition) -> str:
    return digest_of(data.answers(competition)) if competition.answers_path else ""


# ---------------------------------------------------------------------------- judging


def judge(
    competition: Competition,
    submission: BinaryIO,
    *,
    tick: Callable[[], None],
    limit_seconds: float | None = None,
    with_control: bool = True,
) -> tuple[Ended, GraderVerdict]:
    """Grade an open file in a child, and say whose fault a failure is.

    Where the grader stopped in a way that its author did not foresee, the competition's sample
    submission is graded too: if that works, the submission was at fault, else the grader. Raises
    GraderFailed when there is no grader, no data or no process to ask.
    """
    request = request_for(competition, limit_seconds)
    ended = ask(request, submission, tick=tick)
    verdict = decided(ended, request)
    if verdict.fault == Fault.UNSURE and with_control:
        return ended, checked(competition, request, verdict, tick=tick)
    return ended, verdict


def checked(
    competition: Competition, request: Request, unsure: GraderVerdict, *, tick: Callable[[], None]
) -> GraderVerdict:
    """The verdict after grading the sample submission with the same grader and limits."""
    sample = data.sample_submission(competition)
    try:
        with open_submission(sample) as file:
            control = ask(request, file, tick=tick)
    except (OSError, Unreadable) as error:
        return GraderVerdict(
            Fault.GRADER, f"{unsure.message} There is no sample submission to tell why: {error}"
        )
    if control.has_score:
        return GraderVerdict(Fault.SUBMISSION, unsure.message)
    return GraderVerdict(
        Fault.GRADER,
        f"{unsure.message} So does the sample submission: {decided(control, request).message}",
    )


def request_for(competition: Competition, limit_seconds: float | None) -> Request:
    folder = grader_folder(competition)
    answers = data.answers(competition)
    if not competition.answers_path or not answers.is_file():
        # Upstream's words.
        raise Unprepared(
            f"Dataset for competition `{competition.name}` is not prepared! Please run "
            f"`mlebench prepare -c {competition.name}` to prepare the dataset."
        )
    return Request(
        folder=folder.resolve(),
        answers=answers.resolve(),
        function=grade_function(folder),
        memory_bytes=settings.GRADING_MEMORY_BYTES,
        limit_seconds=limit_seconds or settings.GRADING_TIME_LIMIT.total_seconds(),
    )


def decided(ended: Ended, request: Request) -> GraderVerdict:
    return decide(ended, memory_bytes=request.memory_bytes, limit_seconds=request.limit_seconds)


def ask(request: Request, submission: BinaryIO, *, tick: Callable[[], None]) -> Ended:
    """Ask the host's grader process, or one of our own when it does not answer."""
    # A child shares our offset in the file.
    os.lseek(submission.fileno(), 0, os.SEEK_SET)
    try:
        return grader_process.ask(
            request, submission.fileno(), tick=tick, path=settings.SOCKETS_DIR / "grader"
        )
    except GraderUnreachable as error:
        logger.info("grader.private", why=str(error))
    os.lseek(submission.fileno(), 0, os.SEEK_SET)
    try:
        with grader_process.private(tick) as path:
            return grader_process.ask(request, submission.fileno(), tick=tick, path=path)
    except GraderUnreachable as error:
        raise GraderFailed(str(error)) from error


# ---------------------------------------------------------------------------- /validate


def validate(competition: Competition, submission: Path) -> tuple[int, dict[str, str]]:
    """Status and JSON of upstream's POST /validate, less what could tell an answer."""
    try:
        with open_submission(submission) as file:
            return validate_file(competition, file)
    except (OSError, Unreadable) as error:
        return 200, {"result": INVALID + str(error)}


def validate_file(
    competition: Competition,
    submission: BinaryIO,
    *,
    tick: Callable[[], None] = lambda: None,
) -> tuple[int, dict[str, str]]:
    """The same for an open file. No score is ever in it."""
    if too_big := refuse_size(submission):
        return 200, {"result": INVALID + too_big}
    try:
        ended, verdict = judge(
            competition,
            submission,
            tick=tick,
            limit_seconds=VALIDATION_LIMIT_SECONDS,
            with_control=False,
        )
    except Unprepared as error:
        return 500, unexpected(str(error))
    except GraderFailed as error:
        # The text may hold paths of the host.
        logger.warning("validation.grader_failed", competition=competition.name, why=str(error))
        return 500, unexpected("The grader is not available.")
    if verdict.fault == Fault.GRADER:
        logger.warning(
            "validation.grader_failed", competition=competition.name, why=verdict.message
        )
        return 500, unexpected("The grader failed.")
    if verdict.fault == Fault.NOBODY:
        return 200, {"result": VALID}
    return 200, {"result": INVALID + told(verdict, ended)}


def unexpected(details: str) -> dict[str, str]:
    return {"error": "An unexpected error occurred.", "details": details}
