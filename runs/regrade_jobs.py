"""The host service's part of grading again: take a job, grade, record, publish, compare ranks."""

import threading
import time
import uuid
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction
from django.db.models.functions import Now

from mlebench_web.catalog import data
from mlebench_web.fleet.models import Host
from runs import graders, grading, layout, logs, regrading, snapshots
from runs.core.failures import Cause
from runs.core.states import Outcome
from runs.grading import Judged
from runs.layout import SUBMISSION
from runs.models import (
    Attempt,
    GradingReport,
    LogSegment,
    Regrade,
    RegradeJob,
    Replaced,
    SubmissionSnapshot,
)
from runs.models.regrades import graded_in_place_of, grader_failed, target_of, was_lost

logger = structlog.get_logger(__name__)

WENT_ON = "The run was started again meanwhile, or another attempt counts now."


class Gone(Exception):
    """The submission that was graded before is not there."""


@dataclass(frozen=True)
class Found:
    """What the grader said, and the snapshot that it was about, where that was not the file."""

    judged: Judged
    snapshot: SubmissionSnapshot | None = None


class RegradeJobs:
    """One loop: jobs one after the other, oldest first, and what follows from them."""

    def __init__(self, host: Host, stop: threading.Event) -> None:
        self.host = host
        self.stop = stop

    def work(self) -> None:
        for job in RegradeJob.objects.takeable().order_by("pk"):
            if self.stop.is_set():
                return
            if self.can_do(job):
                self.do(job)
        self.publish()
        self.close()

    def can_do(self, job: RegradeJob) -> bool:
        """Whether the answers, the grader and the files are on this host."""
        competition = job.run.competition
        if not competition.answers_path or not data.answers(competition).is_file():
            return False
        if graders.missing_here(competition):
            return False
        attempt = job.attempt
        if attempt.cause == Cause.PRODUCT_ERROR and attempt.swept_at is None:
            # Its container is still there: the janitor of its host keeps what it left first.
            return False
        # Files of another host's attempt that are not here may be there. Of one that was lost with
        # its host there are none, only what was copied aside for all hosts.
        return (
            attempt.host_id in (None, self.host.pk)
            or layout.attempt_folder(attempt).is_dir()
            or (was_lost(attempt) and not regrading.left_a_file(attempt))
        )

    def do(self, job: RegradeJob) -> None:
        try:
            token = job.take(self.host)
            try:
                found = self.judge(job, token)
            except (grading.GraderFailed, Gone) as error:
                job.end(RegradeJob.State.FAILED, token=token, error=str(error))
                logger.warning("regrade.failed", job=job.pk, why=str(error)[:300])
                return
            except (OperationalError, InterfaceError, Replaced):
                raise
            except Exception as error:
                # Of whatever kind: it must not come again with each lease, nor hold up the others.
                logger.exception("regrade.broke", job=job.pk)
                why = f"{type(error).__name__}: {error}"
                job.end(RegradeJob.State.FAILED, token=token, error=why)
                return
            try:
                made = self.record(job, token, found)
                if made:
                    logs.append(made.pk, LogSegment.Source.RUN, made.cause_detail)
            except OSError as error:
                # Of an attempt in whose place a new one was to be: its files.
                job.end(RegradeJob.State.FAILED, token=token, error=f"Not recorded: {error}")
        except Replaced as replaced:
            logger.info("regrade.left", job=job.pk, why=str(replaced))

    def judge(self, job: RegradeJob, token: uuid.UUID) -> Found:
        """Changes nothing of the run. Raises Gone, GraderFailed, Replaced."""
        attempt, tick = job.attempt, Beat(job, token)
        if attempt.outcome == Outcome.AGENT_FAILED:
            return Found(grading.nothing(attempt))
        file = layout.attempt_folder(attempt) / SUBMISSION
        refused = next(
            (str(item["why"]) for item in attempt.left_out if item["path"] == SUBMISSION), None
        )
        was_there = job.before.submission_exists if job.before else regrading.left_a_file(attempt)
        if was_there and not refused and not file.exists():
            raise Gone(
                f"The submission is not at {grading.shown_path(file)} on {self.host.name}: the "
                "report before stays."
            )
        found = grading.look(attempt, file if file.exists() else None, tick=tick, refused=refused)
        is_lost = was_lost(attempt)
        if found.valid or not (grader_failed(attempt) or is_lost) or ended_cleanly(attempt):
            return Found(found)
        # As its supervisor would have done, had it lived and the grader worked.
        snapshot = snapshots.newest_valid(attempt, tick=tick)
        if snapshot is None and is_lost:
            raise Gone("Nothing valid was copied aside before it was lost.")
        return Found(self.of_snapshot(attempt, snapshot), snapshot) if snapshot else Found(found)

    def of_snapshot(self, attempt: Attempt, snapshot: SubmissionSnapshot) -> Judged:
        return Judged(
            graders.provenance(attempt.run.competition),
            exists=True,
            valid=True,
            score=snapshot.score,
            message=snapshot.message,
            path=grading.shown_path(layout.attempt_folder(attempt) / SUBMISSION),
        )

    @transaction.atomic
    def record(self, job: RegradeJob, token: uuid.UUID, found: Found) -> Attempt | None:
        """The report and what follows from it, if the run still stands as it did.

        The new attempt, where one was made.
        """
        run = job.locked(token)
        target = target_of(run)
        if target is None or target.pk != job.attempt_id:
            job.end(RegradeJob.State.VOID, token=token, error=WENT_ON)
            return None
        attempt, made = job.attempt, None
        before = attempt.reports.filter(is_current=True).first()
        is_cut_short = was_lost(attempt)
        if grader_failed(attempt) or is_cut_short:
            made = graded_in_place_of(attempt, by=job.regrade.by_name)
            # By links, so it takes milliseconds; the lock keeps a re-run from taking the name.
            layout.take_over(attempt, made)
            if found.snapshot:
                snapshots.put_in_place(found.snapshot, layout.attempt_folder(made) / SUBMISSION)
                Attempt.objects.filter(pk=made.pk).update(graded_snapshot=found.snapshot)
            report = grading.record(made, found.judged)
            run.count(made, cut_short=is_cut_short)
        else:
            report = grading.record(attempt, found.judged)
            # The curve is to be of one grader: the host service scores them anew.
            attempt.snapshots.exclude(path="").update(is_valid=None, score=None, message="")
        job.end(
            RegradeJob.State.DONE, token=token, before=before, after=report, made=made, error=""
        )
        logger.info("regrade.done", job=job.pk, score=report.score, was=score_of(before))
        return made

    # ---------------------------------------------------------------- what follows

    def publish(self) -> None:
        """Results' folders of what was recorded; one that cannot be written is tried again."""
        for job in RegradeJob.objects.filter(
            state=RegradeJob.State.DONE, is_published=False
        ).select_related("made__run__group", "attempt__run__group"):
            is_here = layout.group_folder(job.attempt.run.group).is_dir()
            if not is_here and job.host_id != self.host.pk:
                # Of another machine, whose host service makes it.
                continue
            try:
                layout.publish(job.made or job.attempt)
            except OSError as error:
                logger.warning("regrade.not_published", job=job.pk, error=str(error))
                continue
            RegradeJob.objects.filter(pk=job.pk).update(is_published=True)

    def close(self) -> None:
        """Whose rank moved, once nothing of a re-grade is open. Every host does it; one writes."""
        for regrade in Regrade.objects.filter(ended_at__isnull=True).exclude(
            pk__in=RegradeJob.objects.open().values("regrade")
        ):
            moved = regrading.moved_by(regrade)
            Regrade.objects.filter(pk=regrade.pk, ended_at__isnull=True).update(
                moved=moved, ended_at=Now()
            )


def ended_cleanly(attempt: Attempt) -> bool:
    return attempt.ended_by_itself and attempt.exit_code == 0


def score_of(report: GradingReport | None) -> float | None:
    return report.score if report else None


class Beat:
    """Keeps the lease of a job while its grader works. Raises Replaced when it is lost."""

    def __init__(self, job: RegradeJob, token: uuid.UUID) -> None:
        self.job = job
        self.token = token
        self.last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last < settings.HEARTBEAT.total_seconds():
            return
        self.job.beat(self.token)
        self.last = time.monotonic()
