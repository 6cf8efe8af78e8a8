"""Submission -> the competition's grader, in its own process -> GradingReport.

The rule whose fault a failure is: runs/core/grader_verdict.py, explained in docs/grading.md.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from mlebench_web.catalog.models import Competition
from runs import grader_process, graders, logs
from runs.core.grader_verdict import Ended, Fault, GraderVerdict, decide, told
from runs.core.medals import Thresholds, standing
from runs.grader_process import GraderProcess, GraderUnreachable, Kind, Request
from runs.graders import GraderFailed, Provenance, Unprepared, answers_digest
from runs.models import Attempt, GradingReport, LogSegment, Run
from runs.workspace import kind_of

__all__ = [
    "GraderFailed",
    "GraderProcess",
    "answers_digest",
    "grade",
    "null_report",
    "validate",
    "validate_file",
]

logger = structlog.get_logger(__name__)

# Of one POST /validate: an agent waits for it, and its container's relay for ten minutes.
VALIDATION_LIMIT_SECONDS = 300
TURN_EVERY_SECONDS = 0.2
VALID = "Submission is valid."
INVALID = (
    "Submission invalid! The attempt to grade the submission has resulted in the following "
    "error message:\n"
)


# ---------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Judged:
    """What the grader said of a submission, not yet written down."""

    made_with: Provenance
    exists: bool = False
    valid: bool = False
    score: float | None = None
    message: str = ""
    path: str = "None"
    seconds: float | None = None


def grade(
    attempt: Attempt,
    submission: Path | None,
    *,
    tick: Callable[[], None],
    refused: str | None = None,
) -> GradingReport:
    """Grade what an attempt left and make its report the current one; older ones stay.

    See `look`.
    """
    return record(attempt, look(attempt, submission, tick=tick, refused=refused))


def null_report(attempt: Attempt) -> GradingReport:
    """The report of an attempt that left no submission: no score, thresholds filled in."""
    return record(attempt, nothing(attempt))


def nothing(attempt: Attempt) -> Judged:
    return Judged(graders.provenance(attempt.run.competition))


def look(
    attempt: Attempt,
    submission: Path | None,
    *,
    tick: Callable[[], None],
    refused: str | None = None,
) -> Judged:
    """Have the grader judge what an attempt left; writes nothing but the grader's log.

    `submission` is the collected file, None when there is none. `refused` says why a file that
    was left is not graded (a link, for example): it counts as an invalid submission. `tick` is
    called at least once a second. Raises GraderFailed when the grader is at fault.
    """
    competition = attempt.run.competition

    def invalid(why: str) -> Judged:
        made_with = graders.provenance(competition)
        return Judged(made_with, exists=True, message=why, path=shown_path(submission))

    if refused:
        return invalid(refused)
    if submission is None:
        return nothing(attempt)
    if submission.suffix.lower() != ".csv":
        return replace(nothing(attempt), message=f"{submission.name} is not a .csv file.")
    try:
        file = open_submission(submission)
    except FileNotFoundError:
        return nothing(attempt)
    except Unreadable as error:
        return invalid(str(error))
    with file:
        if too_big := refuse_size(file):
            return invalid(too_big)
        began = time.perf_counter()
        ended, verdict = judge(competition, file, tick=tick)
        seconds = time.perf_counter() - began
    if ended.detail:
        logs.append(attempt.pk, LogSegment.Source.GRADER, ended.detail)
    if verdict.fault == Fault.GRADER:
        raise GraderFailed(f"{competition.name}: {verdict.message}")
    return Judged(
        graders.provenance(competition, ended.libraries),
        exists=True,
        valid=verdict.fault == Fault.NOBODY,
        score=ended.score,
        message=verdict.message,
        path=shown_path(submission),
        seconds=seconds,
    )


@transaction.atomic
def record(attempt: Attempt, judged: Judged) -> GradingReport:
    """Make the current report, with the medals that the score brings."""
    asked = thresholds_of(attempt.run.competition)
    place = standing(judged.score, asked)
    attempt.reports.filter(is_current=True).update(is_current=False)
    report = GradingReport.objects.create(
        attempt=attempt,
        score=judged.score,
        gold_threshold=asked.gold,
        silver_threshold=asked.silver,
        bronze_threshold=asked.bronze,
        median_threshold=asked.median,
        any_medal=place.any_medal,
        gold_medal=place.gold,
        silver_medal=place.silver,
        bronze_medal=place.bronze,
        above_median=place.above_median,
        submission_exists=judged.exists,
        valid_submission=judged.valid,
        is_lower_better=asked.is_lower_better,
        created_at=timezone.now(),
        submission_path=judged.path,
        message=judged.message,
        grader=judged.made_with.grader,
        grader_commit=judged.made_with.commit,
        files_digest=judged.made_with.files_digest,
        data_digest=judged.made_with.data_digest,
        seconds=judged.seconds,
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
    request = graders.request_for(competition, limit_seconds)
    with turn(request.kind, tick) if with_control else nullcontext():
        ended = ask(request, submission, tick=tick)
        verdict = decided(ended, request)
        if verdict.fault == Fault.UNSURE and with_control:
            verdict = checked(competition, request, verdict, tick=tick)
    return ended, verdict


@contextmanager
def turn(kind: Kind, tick: Callable[[], None]) -> Iterator[None]:
    """mle-bench's graders may need gigabytes: on a host they grade one run at a time.

    Ours are small and wait for nobody, and neither does an agent's /validate.
    """
    if kind is Kind.OURS:
        yield
        return
    settings.SOCKETS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.SOCKETS_DIR / "official.turn").open("w") as lock:
        while True:
            try:
                # Given back by the system, also when this process is killed.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tick()
                time.sleep(TURN_EVERY_SECONDS)
        yield


def checked(
    competition: Competition, request: Request, unsure: GraderVerdict, *, tick: Callable[[], None]
) -> GraderVerdict:
    """The verdict after grading what a sound grader can grade, with the same grader and limits."""
    said = unsure.message
    for name, path in graders.controls(competition):
        try:
            with open_submission(path) as file:
                control = ask(request, file, tick=tick)
        except (OSError, Unreadable) as error:
            said += f" There is no {name.removeprefix('the ')} to tell why: {error}"
            continue
        if control.has_score:
            return GraderVerdict(Fault.SUBMISSION, unsure.message)
        said += f" So does {name}: {decided(control, request).message}"
    return GraderVerdict(Fault.GRADER, said)


def decided(ended: Ended, request: Request) -> GraderVerdict:
    return decide(ended, memory_bytes=request.memory_bytes, limit_seconds=request.limit_seconds)


def ask(request: Request, submission: BinaryIO, *, tick: Callable[[], None]) -> Ended:
    """Ask the host's grader process, or one of our own when it does not answer."""
    # A child shares our offset in the file.
    os.lseek(submission.fileno(), 0, os.SEEK_SET)
    try:
        return grader_process.ask(request, submission.fileno(), tick=tick, path=request.kind.socket)
    except GraderUnreachable as error:
        logger.info("grader.private", why=str(error))
    os.lseek(submission.fileno(), 0, os.SEEK_SET)
    try:
        with grader_process.private(tick, request.kind) as path:
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
