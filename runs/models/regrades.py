"""Grading again what has ended: a press, and a job for each run of it (docs/states.md)."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.urls import reverse

from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs.core.failures import Cause
from runs.core.states import Outcome, RunState, State
from runs.models.attempts import Attempt, Run
from runs.models.base import Replaced
from runs.models.history import Move
from runs.models.results import GradingReport, SubmissionSnapshot

# Causes of an attempt that is sealed without anybody having collected what it left.
UNCOLLECTED = (Cause.HOST_LOST, Cause.PRODUCT_ERROR)
OVER = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)
# Of an attempt whose grader failed, what the new one has: all that says what the agent did.
KEPT = (
    "host_id",
    "overrides",
    "claimed_at",
    "agent_started_at",
    "agent_ended_at",
    "ended_at",
    "cpus",
    "memory_bytes",
    "image_id",
    "hardware",
    "usage",
    "exit_code",
    "ended_by_itself",
    "memory_killed",
    "has_submission",
    "graded_snapshot_id",
    "active_seconds",
    "paused_seconds",
    "down_seconds",
    "interruptions",
    "validations",
    "timings",
    "artifacts",
    "left_out",
    "last_lines",
)


class Regrade(models.Model):
    """One press of "grade again", by page, API or shell."""

    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    by_name = models.CharField(max_length=150)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(db_default=Now())
    # Of the leaderboard: what the jobs changed, all else equal; see runs.regrading.
    moved = models.JSONField(default=list, blank=True)
    # Set with `moved`, when the last job had ended.
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"re-grade {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("regrade", args=[self.pk])


class RegradeJobQuerySet(models.QuerySet["RegradeJob"]):
    def open(self) -> "RegradeJobQuerySet":
        return self.filter(state__in=[RegradeJob.State.WANTED, RegradeJob.State.GRADING])

    def takeable(self) -> "RegradeJobQuerySet":
        """Nobody is at it: wanted, or left by a host service that died."""
        return self.filter(
            Q(state=RegradeJob.State.WANTED)
            | Q(state=RegradeJob.State.GRADING, lease_until__lt=Now())
        )


class RegradeJob(models.Model):
    """One attempt of a re-grade."""

    class State(models.TextChoices):
        WANTED = "wanted"
        GRADING = "grading"
        DONE = "done"
        FAILED = "failed"
        # The run went on meanwhile: what was to be graded again counts no more.
        VOID = "void"

    regrade = models.ForeignKey(Regrade, on_delete=models.CASCADE, related_name="jobs")
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="regrade_jobs")
    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="regrade_jobs")
    state = models.CharField(max_length=10, choices=State.choices, default=State.WANTED)
    host = models.ForeignKey(Host, on_delete=models.SET_NULL, null=True, blank=True)
    lease_token = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    # Null: the grader had failed, so there was none.
    before = models.ForeignKey(
        GradingReport, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    after = models.ForeignKey(
        GradingReport, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Of an attempt whose grader had failed: the graded one in its place.
    made = models.ForeignKey(
        Attempt, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Why it failed, or is void.
    error = models.TextField(blank=True)
    asked_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, blank=True)
    # Whether the results' folder shows it.
    is_published = models.BooleanField(default=False)

    objects = RegradeJobQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["attempt"],
                condition=Q(state__in=["wanted", "grading"]),
                name="one_open_regrade_an_attempt",
            )
        ]

    def __str__(self) -> str:
        return f"re-grade of attempt {self.attempt_id}"

    @property
    def is_over(self) -> bool:
        return self.state not in (self.State.WANTED, self.State.GRADING)

    # ---------------------------------------------------------------- its states

    def take(self, host: Host) -> uuid.UUID:
        """Wanted, or left behind -> grading here, under a new token. Raises Replaced."""
        token = uuid.uuid4()
        taken = (
            RegradeJob.objects.takeable()
            .filter(pk=self.pk)
            .update(
                state=self.State.GRADING,
                host=host,
                lease_token=token,
                lease_until=Now() + settings.LEASE_TTL,
            )
        )
        if not taken:
            raise Replaced(f"Another host has taken {self}.")
        return token

    def beat(self, token: uuid.UUID) -> None:
        """Keep the lease. Raises Replaced when it is another's by now."""
        held = RegradeJob.objects.filter(pk=self.pk, lease_token=token, state=self.State.GRADING)
        if not held.update(lease_until=Now() + settings.LEASE_TTL):
            raise Replaced(f"Another host has taken {self}.")

    def end(self, new: "RegradeJob.State", *, token: uuid.UUID, **fields: object) -> None:
        """Raises Replaced when it is another's by now."""
        held = RegradeJob.objects.filter(pk=self.pk, lease_token=token, state=self.State.GRADING)
        if not held.update(state=new, ended_at=Now(), lease_until=None, **fields):
            raise Replaced(f"Another host has taken {self}.")

    def locked(self, token: uuid.UUID) -> Run:
        """The run, locked with this job: nobody starts it again meanwhile. Raises Replaced.

        Only inside a transaction.
        """
        if (
            not RegradeJob.objects.select_for_update()
            .filter(pk=self.pk, lease_token=token, state=self.State.GRADING)
            .exists()
        ):
            raise Replaced(f"Another host has taken {self}.")
        return Run.objects.select_for_update().get(pk=self.run_id)


def target_of(run: Run) -> Attempt | None:
    """The attempt that a re-grade of this run is about; None: it has not ended, or has no result.

    One whose grader failed, or that was lost after its last try, goes first: its agent's work has
    no report yet.
    """
    if run.state not in OVER:
        return None
    newest = run.newest_attempt()
    if grader_failed(newest) or was_lost(newest):
        return newest
    return run.counted


def grader_failed(attempt: Attempt) -> bool:
    return attempt.outcome == Outcome.INFRASTRUCTURE_FAILED and attempt.cause == Cause.GRADER_FAILED


def was_lost(attempt: Attempt) -> bool:
    """Whether nobody could collect it, and a submission was copied aside in time that may count.

    Of the last attempt of a run that has ended. Whether one is valid is the grader's to say; what
    it has refused by now counts no more.
    """
    if attempt.outcome != Outcome.INFRASTRUCTURE_FAILED or attempt.cause not in UNCOLLECTED:
        return False
    copies = SubmissionSnapshot.objects.filter(attempt__in=attempt.lineage()).exclude(path="")
    return copies.exclude(is_valid=False).exists()


def graded_in_place_of(attempt: Attempt, *, by: str) -> Attempt:
    """A new attempt, ended and graded, of one whose grader had failed or that was lost.

    An ended one never changes. Only inside a transaction that holds the run.
    """
    cut_short = was_lost(attempt)
    why = "it was lost with no try left" if cut_short else "the grader had failed"
    made = Attempt.objects.create(
        run=attempt.run,
        number=attempt.number + 1,
        state=State.ENDED,
        outcome=Outcome.GRADED,
        cause=attempt.cause if cut_short else "",
        cause_detail=f"Graded in place of attempt {attempt.number}, which has the log: {why}.",
        queued_at=attempt.queued_at,
        # All of its time was the other's: sums over attempts count it once.
        charged_seconds=attempt.active_seconds,
        released_at=attempt.released_at or Now(),
        # Nothing of it is on a host: its work was the other's.
        swept_at=Now(),
        **{name: getattr(attempt, name) for name in KEPT},
    )
    Move.objects.create(attempt=made, old="", new=State.ENDED, outcome=Outcome.GRADED, by=by)
    Run.objects.filter(pk=attempt.run_id).update(state=RunState.FINISHED)
    return made
