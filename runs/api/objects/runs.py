"""Runs, attempts and what they leave."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from runs.api.objects.base import Page, address, finite
from runs.api.objects.steps import MetricObject
from runs.models import Attempt, Checkpoint, Run

MEDALS = frozenset({"gold", "silver", "bronze"})


class AttemptObject(BaseModel):
    id: int
    run: int
    number: int
    state: str
    outcome: str | None
    cause: str | None
    cause_text: str | None
    cause_detail: str | None
    last_lines: str | None
    exit_code: int | None
    host: str | None
    hardware: dict[str, Any] | None
    usage: dict[str, Any] | None
    has_lost_contact: bool
    lost_contact_since: datetime | None
    engine_silent_since: datetime | None
    not_before: datetime | None  # back-off after a failure
    overrides: dict[str, Any]  # what a re-run asked for
    cancel_requested_at: datetime | None
    queued_at: datetime
    claimed_at: datetime | None
    agent_started_at: datetime | None
    agent_ended_at: datetime | None
    ended_at: datetime | None
    active_seconds: float | None
    paused_seconds: float | None
    down_seconds: float | None  # its container had ended while no worker watched
    wall_seconds: float | None
    validations: int
    image_id: str | None
    resumed_from: int | None
    # Of active_seconds, what was used up to the checkpoint that it began with.
    charged_seconds: float
    checkpoint_asked_at: datetime | None
    checkpoint_problem: str | None  # why the last one was not saved
    move_asked_at: datetime | None
    last_sign_at: datetime | None  # of life: an event, a line of its log, CPU time
    metric: MetricObject | None  # of the whole, as the agent says

    @classmethod
    def of(cls, attempt: Attempt, at: datetime) -> "AttemptObject":
        return cls(
            id=attempt.pk,
            run=attempt.run_id,
            number=attempt.number,
            state=attempt.state,
            outcome=attempt.outcome or None,
            cause=attempt.cause or None,
            cause_text=attempt.cause_sentence or None,
            cause_detail=attempt.cause_detail or None,
            last_lines=attempt.last_lines or None,
            exit_code=attempt.exit_code,
            host=attempt.host.name if attempt.host else None,
            hardware=attempt.hardware or None,
            usage=attempt.usage or None,
            has_lost_contact=(lost := attempt.has_lost_contact(at)),
            lost_contact_since=attempt.lease_until if lost else None,
            engine_silent_since=attempt.engine_silent_since,
            not_before=attempt.not_before,
            overrides=attempt.overrides,
            cancel_requested_at=attempt.cancel_requested_at,
            queued_at=attempt.queued_at,
            claimed_at=attempt.claimed_at,
            agent_started_at=attempt.agent_started_at,
            agent_ended_at=attempt.agent_ended_at,
            ended_at=attempt.ended_at,
            active_seconds=active_seconds(attempt),
            charged_seconds=attempt.charged_seconds,
            checkpoint_asked_at=attempt.checkpoint_asked_at,
            checkpoint_problem=attempt.checkpoint_problem or None,
            move_asked_at=attempt.move_asked_at,
            paused_seconds=attempt.paused_seconds if attempt.agent_started_at else None,
            down_seconds=attempt.down_seconds if attempt.agent_started_at else None,
            wall_seconds=attempt.wall_seconds,
            validations=attempt.validations,
            image_id=attempt.image_id or None,
            resumed_from=attempt.resumed_from_id,
            last_sign_at=attempt.last_sign_at,
            metric=MetricObject(**overall)
            if (overall := attempt.step_feed.get("overall"))
            else None,
        )


def active_seconds(attempt: Attempt) -> float | None:
    """Null until its agent has started."""
    is_known = attempt.agent_started_at or "seconds" in attempt.reported
    return attempt.active_seconds if is_known else None


class RunObject(BaseModel):
    """Host, hardware and times are those of the attempt that counts, else of the newest."""

    id: int
    uuid: str
    run_group: int
    competition: str
    seed: int
    state: str
    result: str | None
    score: float | None
    medal: str | None
    is_cut_short: bool
    waiting: str | None  # why a queued run has not started; only on the run itself
    cause: str | None
    cause_text: str | None
    host: str | None
    hardware: dict[str, Any] | None
    active_seconds: float | None
    wall_seconds: float | None
    attempts: list[AttemptObject]
    url: str

    @classmethod
    def of(cls, run: Run, at: datetime, *, waiting: str | None = None) -> "RunObject":
        """`run` comes with its attempts and their hosts prefetched, as `with_attempts` does."""
        attempts = sorted(run.attempts.all(), key=lambda attempt: attempt.number)
        newest = attempts[-1]
        counted = next((each for each in attempts if each.pk == run.counted_id), newest)
        return cls(
            id=run.pk,
            uuid=str(run.uuid),
            run_group=run.group_id,
            competition=run.competition.name,
            seed=run.seed,
            state=run.state,
            result=run.result or None,
            score=finite(run.score),
            medal=run.result if run.result in MEDALS else None,
            is_cut_short=run.is_cut_short,
            waiting=waiting,
            cause=newest.cause or None,
            cause_text=newest.cause_sentence or None,
            host=counted.host.name if counted.host else None,
            hardware=counted.hardware or None,
            active_seconds=active_seconds(counted),
            wall_seconds=counted.wall_seconds,
            attempts=[AttemptObject.of(attempt, at) for attempt in attempts],
            url=address(run.get_absolute_url()),
        )


def with_attempts(runs: Any) -> Any:
    """A query set of runs with all that `RunObject.of` reads. Three queries."""
    return runs.select_related("competition").prefetch_related("attempts__host")


class Requeued(Page[AttemptObject]):
    """The new attempts, and the runs that were left alone since they have not ended."""

    skipped: list[int]


class CheckpointObject(BaseModel):
    id: int
    attempt: int  # its number
    number: int
    state: str  # kept, dropped, corrupt
    fault: str | None
    created_at: datetime
    step: int | None
    active_seconds: float
    files: int
    bytes: int
    added_bytes: int
    pause_seconds: float

    @classmethod
    def of(cls, row: Checkpoint) -> "CheckpointObject":
        return cls(
            id=row.pk,
            attempt=row.attempt.number,
            number=row.number,
            state="corrupt" if row.fault else "kept" if row.path else "dropped",
            fault=row.fault or None,
            created_at=row.created_at,
            step=row.step,
            active_seconds=row.active_seconds,
            files=row.files,
            bytes=row.size,
            added_bytes=row.added_bytes,
            pause_seconds=row.pause_seconds,
        )


class LogWindow(BaseModel):
    """Some of a log. Ask on with `offset=next_offset`; at `total` there is no more for now."""

    run: int
    attempt: int  # its number
    source: str
    text: str
    offset: int
    next_offset: int
    total: int
    first_line: int


class ArtifactObject(BaseModel):
    path: str
    bytes: int | None
    url: str


class Artifacts(Page[ArtifactObject]):
    left_out: list[dict[str, Any]]  # what was not kept, and why
