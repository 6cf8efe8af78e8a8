"""Run > Attempt, and the one door for their states."""

import uuid
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone

from mlebench_web.catalog.models import Competition
from mlebench_web.fleet.models import Host
from runs import guards
from runs.core.checkpoints import Stored, to_try
from runs.core.failures import EXPLAINED, Cause
from runs.core.overrides import Overrides
from runs.core.retries import wait_before_next
from runs.core.states import (
    HOLDING,
    AttemptEnd,
    Outcome,
    Result,
    RunState,
    State,
    Verdict,
    check_move,
    run_state,
)
from runs.core.steps import Source, StepEnd, StepState
from runs.models.base import Replaced, choices_of
from runs.models.checkpoints import Checkpoint
from runs.models.history import Move, Requeue
from runs.models.leases import GpuLease
from runs.models.steps import Step


class Run(models.Model):
    """One competition x one seed of a run group."""

    group = models.ForeignKey("RunGroup", on_delete=models.CASCADE, related_name="runs")
    competition = models.ForeignKey(Competition, on_delete=models.PROTECT, related_name="runs")
    seed = models.PositiveIntegerField()
    # Upstream's run id is <competition>_<uuid>.
    uuid = models.UUIDField(default=uuid.uuid4, unique=True)
    # A copy of the newest attempt's, written in the same transaction.
    state = models.CharField(max_length=20, choices=choices_of(RunState), default=RunState.QUEUED)
    # The newest attempt that is graded or agent failed, and what it achieved.
    counted = models.ForeignKey(
        "Attempt", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    result = models.CharField(max_length=20, choices=choices_of(Result), blank=True)
    score = models.FloatField(null=True, blank=True)
    # Graded although the infrastructure failed and no try was left.
    is_cut_short = models.BooleanField(default=False)
    # Infrastructure failures since a person last queued the run; at MAX_TRIES it stops.
    tries_used = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["competition__name", "seed"]
        constraints = [
            models.UniqueConstraint(fields=["group", "competition", "seed"], name="one_run_a_seed")
        ]
        indexes = [
            # Counts by state on the list of run groups.
            models.Index(fields=["group", "state"]),
        ]

    def __str__(self) -> str:
        return f"{self.competition.name}, seed {self.seed}"

    def get_absolute_url(self) -> str:
        return reverse("run", args=[self.pk])

    @property
    def upstream_id(self) -> str:
        return f"{self.competition.name}_{self.uuid}"

    def newest_attempt(self) -> "Attempt":
        return self.attempts.latest("number")

    def queue_attempt(
        self,
        *,
        by: str,
        resumed_from: "Attempt | None" = None,
        fresh_tries: bool = False,
        wait_seconds: float = 0,
        overrides: Overrides | None = None,
        requeue: "Requeue | None" = None,
    ) -> "Attempt":
        """Queue the next attempt. `fresh_tries`: a person asked, so tries count anew.

        `wait_seconds`: nobody claims it before (back-off).
        """
        number = (self.attempts.aggregate(models.Max("number"))["number__max"] or 0) + 1
        attempt = Attempt.objects.create(
            run=self,
            number=number,
            resumed_from=resumed_from,
            overrides=(overrides or Overrides()).as_json(),
            requeue=requeue,
        )
        if wait_seconds:
            Attempt.objects.filter(pk=attempt.pk).update(
                not_before=Now() + timedelta(seconds=wait_seconds)
            )
        changes: dict[str, object] = {"state": RunState.QUEUED}
        if fresh_tries:
            changes["tries_used"] = 0
        Run.objects.filter(pk=self.pk).update(**changes)
        Move.objects.create(attempt=attempt, old="", new=State.QUEUED, by=by)
        return attempt

    def withdraw(self, attempt: "Attempt", *, tries_used: int) -> bool:
        """Take back a queued attempt, as if it had never been queued; False when it has started.

        It has left nothing behind. The run is again what its newest older attempt made of it, with
        the tries that were used before.
        """
        with transaction.atomic():
            # The lock: a claim that comes now finds no row, one that came before leaves none here.
            held = (
                Attempt.objects.select_for_update()
                .filter(pk=attempt.pk, run=self, state=State.QUEUED, number__gt=1)
                .first()
            )
            if held is None:
                return False
            held.delete()
            last = self.newest_attempt()
            Run.objects.filter(pk=self.pk).update(
                state=run_state(State(last.state), Outcome(last.outcome)), tries_used=tries_used
            )
        return True

    def record_import(self, *, by: str) -> "Attempt":
        """The one attempt of an imported run: ended and graded elsewhere, without a host."""
        attempt = Attempt.objects.create(
            run=self, number=1, state=State.ENDED, outcome=Outcome.GRADED
        )
        Move.objects.create(attempt=attempt, old="", new=State.ENDED, outcome=Outcome.GRADED, by=by)
        Run.objects.filter(pk=self.pk).update(state=RunState.FINISHED)
        return attempt

    def count(self, attempt: "Attempt", *, cut_short: bool = False) -> None:
        """`attempt` is now the one that counts; copy its report's result to the run."""
        report = attempt.reports.filter(is_current=True).first()
        Run.objects.filter(pk=self.pk).update(
            counted=attempt,
            result=report.result if report else Result.NO_SUBMISSION,
            score=report.score if report else None,
            is_cut_short=cut_short,
        )


class AttemptQuerySet(models.QuerySet["Attempt"]):
    def unended(self) -> "AttemptQuerySet":
        return self.exclude(state=State.ENDED)

    def holding(self) -> "AttemptQuerySet":
        """Attempts that hold CPUs, memory and GPUs of their host."""
        return self.filter(host__isnull=False, released_at__isnull=True).exclude(state=State.QUEUED)

    def claimable(self) -> "AttemptQuerySet":
        """Queued, not cancelled, and not waiting out a back-off."""
        return self.filter(
            Q(not_before__isnull=True) | Q(not_before__lte=Now()),
            state=State.QUEUED,
            cancel_requested_at__isnull=True,
        )

    def lost_contact(self) -> "AttemptQuerySet":
        """Not ended, lease expired: computed, never stored."""
        return self.unended().filter(lease_until__lt=Now())


class Attempt(models.Model):
    """One try at a run on one host."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=20, choices=choices_of(State), default=State.QUEUED)
    outcome = models.CharField(max_length=30, choices=choices_of(Outcome), blank=True)
    cause = models.CharField(max_length=30, choices=choices_of(Cause), blank=True)
    # What was seen, in the engine's or the product's own words.
    cause_detail = models.TextField(blank=True)
    # The last log lines at the moment of the end.
    last_lines = models.TextField(blank=True)

    # Fencing: every write of a supervisor is conditional on this token.
    lease_token = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    host = models.ForeignKey(
        Host, on_delete=models.PROTECT, null=True, blank=True, related_name="attempts"
    )
    supervisor_boot_id = models.CharField(max_length=64, blank=True)
    supervisor_pid = models.IntegerField(null=True, blank=True)
    supervisor_started = models.FloatField(
        null=True, blank=True, help_text="process start: seconds after boot"
    )

    queued_at = models.DateTimeField(default=timezone.now)
    # Back-off after an infrastructure failure: nobody claims it before.
    not_before = models.DateTimeField(null=True, blank=True)
    # What a re-run asked for in place of the group's settings: see runs.core.overrides.
    overrides = models.JSONField(default=dict, blank=True)
    # The re-run of many that queued it, so that it can be undone.
    requeue = models.ForeignKey(
        "Requeue", on_delete=models.SET_NULL, null=True, blank=True, related_name="attempts"
    )
    claimed_at = models.DateTimeField(null=True, blank=True)
    agent_started_at = models.DateTimeField(null=True, blank=True)
    agent_ended_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    # Set when CPUs, memory and GPUs are free again.
    released_at = models.DateTimeField(null=True, blank=True)
    # The container and the attempt's folder are gone from the host.
    swept_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.CharField(max_length=150, blank=True)

    # Reserved by the claim; the container's limits.
    cpus = models.FloatField(null=True, blank=True)
    memory_bytes = models.BigIntegerField(null=True, blank=True)
    container_id = models.CharField(max_length=100, blank=True)
    image_id = models.CharField(max_length=100, blank=True)
    # What the host measured it had: see worker.hardware().
    hardware = models.JSONField(default=dict, blank=True)
    # What it used: cpu_seconds, memory_peak_bytes, gpu_utilisation_mean; null where not measured.
    usage = models.JSONField(default=dict, blank=True)

    # How the agent ended, saved by the move to collecting; the container is not asked again.
    exit_code = models.IntegerField(null=True, blank=True)
    ended_by_itself = models.BooleanField(default=False)
    memory_killed = models.BooleanField(default=False)
    has_submission = models.BooleanField(default=False)
    # Graded in place of a missing or invalid file: the newest valid snapshot.
    graded_snapshot = models.ForeignKey(
        "SubmissionSnapshot", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Active agent time; queue wait, start-up, host downtime and pauses are not in it.
    active_seconds = models.FloatField(default=0)
    paused_seconds = models.FloatField(default=0)
    # Its container had ended while no worker watched.
    down_seconds = models.FloatField(default=0)
    # When nobody watched it or it was paused: see runs.core.interruptions.
    interruptions = models.JSONField(default=list, blank=True)
    # The engine does not answer about its container, which may be healthy; and what it said.
    engine_silent_since = models.DateTimeField(null=True, blank=True)
    engine_silence = models.TextField(blank=True)
    validations = models.PositiveIntegerField(default=0)
    # Phases in seconds, for the figures: prepare, create, start, health, agent, collect, grade.
    timings = models.JSONField(default=dict, blank=True)
    # Of an imported one, what its source says: run_id, success, host, seconds (where it gave the
    # time), wall_seconds, resumed, run_again.
    reported = models.JSONField(default=dict, blank=True)
    # Files that were kept: [{"path", "bytes"}], and what was left out and why.
    artifacts = models.JSONField(default=list, blank=True)
    left_out = models.JSONField(default=list, blank=True)
    resumed_from = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Which of that attempt's checkpoints (or of one that it goes on from) it really began with.
    restored_checkpoint = models.ForeignKey(
        "Checkpoint", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Of active_seconds, what was active time up to that checkpoint.
    charged_seconds = models.FloatField(default=0)
    # We end the container so that another attempt goes on; written before the agent is signalled.
    goes_on = models.BooleanField(default=False)
    # A person's asks, and why the last save failed; "" when it did not.
    checkpoint_asked_at = models.DateTimeField(null=True, blank=True)
    checkpoint_asked_by = models.CharField(max_length=150, blank=True)
    move_asked_at = models.DateTimeField(null=True, blank=True)
    move_asked_by = models.CharField(max_length=150, blank=True)
    checkpoint_problem = models.TextField(blank=True)
    # How far its events are read, and what they say of the whole: see runs.steps.Feed.
    step_feed = models.JSONField(default=dict, blank=True)
    # The last sign of life of each kind, seconds since 1970 by the database's clock.
    signs = models.JSONField(default=dict, blank=True)

    objects = AttemptQuerySet.as_manager()

    class Meta:
        ordering = ["run", "number"]
        constraints = [
            models.UniqueConstraint(fields=["run", "number"], name="one_attempt_a_number"),
            models.CheckConstraint(
                name="ended_has_outcome",
                condition=Q(state=State.ENDED) & ~Q(outcome="")
                | ~Q(state=State.ENDED) & Q(outcome=""),
            ),
            models.CheckConstraint(
                name="supervised_has_lease",
                condition=Q(state__in=[State.QUEUED, State.ENDED])
                | Q(lease_token__isnull=False, host__isnull=False),
            ),
            models.UniqueConstraint(
                fields=["run"], condition=~Q(state=State.ENDED), name="one_unended_attempt_a_run"
            ),
        ]
        indexes = [
            # take_work of a host; the reaper.
            models.Index(fields=["state", "host"]),
            models.Index(fields=["host", "released_at"]),
            models.Index(fields=["host", "swept_at", "state"]),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.run}"

    # ---------------------------------------------------------------- the one door

    def move(self, new: State, *, token: uuid.UUID | None, by: str, **fields: object) -> None:
        """Change the state, the run's copy of it and the history, or change nothing.

        `token` is the lease token of the supervisor that asks; None moves a queued attempt, which
        has no lease. `by` is the user, host or command that asks. `fields` are saved with the
        state. Raises IllegalMove when the rules forbid the move, and Replaced when the attempt
        has moved on or another supervisor holds it.
        """
        old = State(self.state)
        check_move(old, new)
        with transaction.atomic():
            # The filter is the lock: of two movers, one updates no row.
            moved = Attempt.objects.filter(guards.fence(token), pk=self.pk, state=old).update(
                state=new, **fields
            )
            if not moved:
                raise Replaced(f"{self} is no longer {old}, or another supervisor holds it.")
            outcome = fields.get("outcome") or None
            Run.objects.filter(pk=self.run_id).update(
                state=run_state(new, Outcome(str(outcome)) if outcome else None)
            )
            Move.objects.create(
                attempt=self,
                old=old,
                new=new,
                by=by,
                outcome=str(outcome or ""),
                cause=str(fields.get("cause") or ""),
                lease_token=token,
            )
        self.refresh_from_db()

    def claim(self, host: Host, *, token: uuid.UUID, **fields: object) -> None:
        """Queued -> starting, with a lease. Raises Replaced when somebody was first."""
        self.move(
            State.STARTING,
            token=None,
            by=host.name,
            host=host,
            lease_token=token,
            lease_until=Now() + settings.LEASE_TTL,
            claimed_at=Now(),
            **fields,
        )

    def seal(
        self,
        sealed: Verdict,
        *,
        token: uuid.UUID | None,
        by: str,
        release: bool = True,
        try_again: bool = True,
        **fields: object,
    ) -> None:
        """Move to ended with exactly one outcome, and do what follows from it.

        In the same transaction: resources are free, the run's result points at the attempt that
        counts, and an infrastructure failure queues the next attempt while tries are left.
        `release=False`: the container may still be there; the host's janitor frees them.
        `try_again=False`: another attempt could not end differently.
        """
        with transaction.atomic():
            self.move(
                State.ENDED,
                token=token,
                by=by,
                outcome=sealed.outcome,
                cause=sealed.cause or "",
                ended_at=Now(),
                released_at=self.released_at or (Now() if release else None),
                **fields,
            )
            if release:
                self.free_gpus()
            run = Run.objects.get(pk=self.run_id)
            # Its supervisor may have died during one, or the host with it.
            self.steps.filter(end="").update(end=StepEnd.INTERRUPTED)
            if sealed.outcome in (Outcome.GRADED, Outcome.AGENT_FAILED):
                run.count(self, cut_short=sealed.cut_short)
            elif sealed.outcome == Outcome.INFRASTRUCTURE_FAILED:
                Run.objects.filter(pk=run.pk).update(tries_used=F("tries_used") + 1)
                run.refresh_from_db()
                again = try_again and run.tries_used < settings.MAX_TRIES
                if again and not self.cancel_requested_at:
                    run.queue_attempt(
                        by=by,
                        resumed_from=self if self.can_go_on() else None,
                        wait_seconds=wait_before_next(sealed.cause, run.tries_used),
                        overrides=self.overrides_for_the_next(sealed.cause),
                    )
            elif sealed.outcome == Outcome.CONTINUED:
                run.queue_attempt(
                    by=by, resumed_from=self, overrides=self.overrides_for_the_next(sealed.cause)
                )

    def release(self, *, token: uuid.UUID, by: str) -> None:
        """Collecting -> grading: CPUs, memory and GPUs are free, the container is gone."""
        with transaction.atomic():
            self.move(State.GRADING, token=token, by=by, released_at=Now())
            self.free_gpus()

    def free_gpus(self) -> None:
        GpuLease.objects.filter(attempt=self, released_at__isnull=True).update(released_at=Now())

    def save_held(self, token: uuid.UUID, **fields: object) -> None:
        """Save fields of an attempt that this token holds. Raises Replaced when it does not."""
        if (
            not Attempt.objects.filter(guards.fence(token), pk=self.pk)
            .exclude(state=State.ENDED)
            .update(**fields)
        ):
            raise Replaced(f"Another supervisor holds {self}.")
        for name, value in fields.items():
            if not hasattr(value, "resolve_expression"):
                setattr(self, name, value)

    def record_steps(
        self,
        token: uuid.UUID,
        steps: Iterable[StepState],
        *,
        gone: Iterable[int] = (),
        source: Source,
        active: float,
        now: datetime,
        **fields: object,
    ) -> None:
        """Write steps as they are, remove those that are `gone`, and save `fields` of the attempt:
        all or nothing. `active` seconds of the run is `now`. Raises Replaced.
        """
        states = {step.number: step for step in steps}
        with transaction.atomic():
            # The conditional update first: it is the lock, and the fence of what follows.
            self.save_held(token, **fields)
            known = {row.number: row for row in self.steps.filter(number__in=states)}
            Step.objects.bulk_create(
                (
                    Step.of(self, state, known.get(state.number), source, active, now)
                    for state in states.values()
                ),
                update_conflicts=True,
                unique_fields=["attempt", "number"],
                update_fields=Step.WRITTEN,
            )
            self.steps.filter(number__in=list(gone)).delete()

    def overrides_for_the_next(self, cause: Cause | None) -> Overrides:
        """What was asked for this attempt holds for those that follow by themselves, but nobody
        waits for a host that is gone, or that somebody moved it off."""
        leaves_host = cause in (Cause.HOST_LOST, Cause.MOVED)
        return replace(self.asked, host=None) if leaves_host else self.asked

    # ---------------------------------------------------------------- checkpoints

    def add_checkpoint(self, *, token: uuid.UUID, **fields: object) -> "Checkpoint":
        """The row of one that is stored: from here it is a checkpoint. Raises Replaced."""
        with transaction.atomic():
            row = Attempt.objects.select_for_update().get(pk=self.pk)
            if not row.is_held_by(token):
                raise Replaced(f"Another supervisor holds {self}.")
            last = self.checkpoints.aggregate(models.Max("number"))["number__max"] or 0
            return Checkpoint.objects.create(attempt=self, number=last + 1, **fields)

    def active_seconds_by(self, now: datetime) -> float | None:
        """Of the agent: as it was counted, or while it runs since it started, less its pauses."""
        if self.state == State.RUNNING and self.agent_started_at:
            passed = (now - self.agent_started_at).total_seconds()
            own = max(0.0, passed - self.paused_seconds - self.down_seconds)
            return max(self.charged_seconds + own, self.active_seconds)
        return self.active_seconds or None

    def lineage(self) -> "list[Attempt]":
        """This attempt and those that it goes on from, newest first. Costs one query."""
        line: list[Attempt] = [self]
        for row in Attempt.objects.filter(run=self.run_id, number__lt=self.number).order_by(
            "-number"
        ):
            if row.pk == line[-1].resumed_from_id:
                line.append(row)
        return line

    def checkpoints_to_try(self) -> "list[Checkpoint]":
        """What the next attempt can begin with: the newest first, then what to fall back to."""
        line = {attempt.pk: place for place, attempt in enumerate(self.lineage())}
        rows = {row.pk: row for row in Checkpoint.objects.stored().filter(attempt__in=line)}
        stored = [
            Stored(row.pk, line[row.attempt_id], row.number, bool(row.fault))
            for row in rows.values()
        ]
        return [rows[key] for key in to_try(stored)]

    def can_go_on(self) -> bool:
        """Whether another attempt could begin with a checkpoint of this one or of its lineage."""
        return bool(self.checkpoints_to_try())

    # ---------------------------------------------------------------- reading

    @property
    def own_seconds(self) -> float:
        """Of active_seconds, what this attempt itself was at work."""
        return max(0.0, self.active_seconds - self.charged_seconds)

    def is_held_by(self, token: uuid.UUID) -> bool:
        """Whether the row, as it was read last, is unended and under this token."""
        is_fenced = guards.is_on(guards.Guard.FENCING)
        return not self.is_ended and (self.lease_token == token or not is_fenced)

    @property
    def asked(self) -> Overrides:
        return Overrides.of(self.overrides)

    @property
    def is_ended(self) -> bool:
        return self.state == State.ENDED

    def has_lost_contact(self, at: datetime) -> bool:
        return not self.is_ended and self.lease_until is not None and self.lease_until < at

    def end(self) -> AttemptEnd:
        """How it ended, as saved by the move to collecting."""
        return AttemptEnd(
            cause=Cause(self.cause) if self.cause else None,
            ended_by_itself=self.ended_by_itself,
            exit_code=self.exit_code,
            memory_killed=self.memory_killed,
            has_submission=self.has_submission,
            cancelled=self.cancel_requested_at is not None,
            goes_on_from_checkpoint=self.goes_on,
        )

    @property
    def last_sign_at(self) -> datetime | None:
        """The last sign of life: an event, a line, CPU time; to some 15 s."""
        return self._sign_at("any")

    @property
    def last_step_sign_at(self) -> datetime | None:
        """When it last told of a step, or a probe saw one."""
        return self._sign_at("step")

    def _sign_at(self, kind: str) -> datetime | None:
        seconds = self.signs.get(kind)
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    @property
    def cause_sentence(self) -> str:
        return EXPLAINED[Cause(self.cause)][0] if self.cause else ""

    @property
    def cause_advice(self) -> str:
        return EXPLAINED[Cause(self.cause)][1] if self.cause else ""

    @property
    def has_time(self) -> bool:
        """Whether active_seconds was measured: here, or by the source of an import."""
        return self.host_id is not None or "seconds" in self.reported

    @property
    def is_agents_own_end(self) -> bool:
        """It failed by itself, or was cancelled after its start."""
        return self.outcome == Outcome.AGENT_FAILED or (
            self.outcome == Outcome.CANCELLED and self.agent_started_at is not None
        )

    @property
    def was_resumed(self) -> bool:
        return self.resumed_from_id is not None or bool(self.reported.get("resumed"))

    @property
    def wall_seconds(self) -> float | None:
        """From claim to end."""
        if not (self.claimed_at and self.ended_at):
            return self.reported.get("wall_seconds")
        return (self.ended_at - self.claimed_at).total_seconds()

    def holds_resources(self) -> bool:
        return self.state in HOLDING and self.released_at is None
