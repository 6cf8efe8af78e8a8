"""Failed runs of all groups: find them by cause, queue many again, and take that back.

An undo takes back what has not started: the queued attempts are removed as if they had never been
(they left nothing behind), so the failure before them is again what each run shows. What a host has
claimed meanwhile goes on. The audit log keeps both.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Now

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from runs import resuming, submit
from runs.core.failures import AGENTS_OWN, EXPLAINED, Cause
from runs.core.overrides import Overrides
from runs.core.states import Outcome, RunState, State
from runs.models import Attempt, Checkpoint, Requeue, Run

# Of one press: what a transaction and a person can still answer for.
AT_MOST = 5000


class TooMany(Exception):
    """More runs than one press may queue."""


@dataclass(frozen=True)
class Filters:
    """Of the newest attempt of each run; empty: all."""

    causes: tuple[str, ...] = ()
    host: str = ""
    agent: str = ""
    since: datetime | None = None
    until: datetime | None = None


def matching(filters: Filters) -> "QuerySet[Any]":
    """Runs that failed, or were cut short, with `last_*` of their newest attempt; newest first."""
    newest = Attempt.objects.filter(run=OuterRef("pk")).order_by("-number")
    rows = (
        Run.objects.filter(
            Q(state=RunState.FAILED) | Q(state=RunState.FINISHED, is_cut_short=True),
            group__import_digest="",
        )
        .annotate(
            last_cause=Subquery(newest.values("cause")[:1]),
            last_outcome=Subquery(newest.values("outcome")[:1]),
            last_host=Subquery(newest.values("host__name")[:1]),
            last_ended=Subquery(newest.values("ended_at")[:1]),
            last_detail=Subquery(newest.values("cause_detail")[:1]),
        )
        .select_related("competition", "group__experiment", "group__agent")
        .order_by(F("last_ended").desc(nulls_last=True), "-pk")
    )
    if filters.causes:
        rows = rows.filter(last_cause__in=filters.causes)
    if filters.host:
        rows = rows.filter(last_host=filters.host)
    if filters.agent:
        rows = rows.filter(group__agent__name=filters.agent)
    if filters.since:
        rows = rows.filter(last_ended__gte=filters.since)
    if filters.until:
        rows = rows.filter(last_ended__lt=filters.until)
    return rows


@dataclass
class CauseGroup:
    cause: str
    count: int = 0
    hosts: Counter[str] = field(default_factory=Counter)
    agents: Counter[str] = field(default_factory=Counter)

    @property
    def sentence(self) -> str:
        return EXPLAINED[Cause(self.cause)][0] if self.cause else "No cause was recorded."

    @property
    def advice(self) -> str:
        return EXPLAINED[Cause(self.cause)][1] if self.cause else ""

    @property
    def is_agents_own(self) -> bool:
        return self.cause in AGENTS_OWN

    @property
    def by_host(self) -> list[tuple[str, int]]:
        return self.hosts.most_common()

    @property
    def by_agent(self) -> list[tuple[str, int]]:
        return self.agents.most_common()


def by_cause(filters: Filters) -> list[CauseGroup]:
    """All that match, grouped; the largest first. One query."""
    groups: dict[str, CauseGroup] = {}
    rows = matching(filters).order_by().values_list("last_cause", "last_host", "group__agent__name")
    for cause, host, agent in rows:
        group = groups.setdefault(cause or "", CauseGroup(cause or ""))
        group.count += 1
        if host:
            group.hosts[host] += 1
        if agent:
            group.agents[agent] += 1
    return sorted(groups.values(), key=lambda each: (-each.count, each.cause))


# ---------------------------------------------------------------------------- what it would cost


@dataclass(frozen=True)
class Plan:
    """What a re-run would do; nothing was changed."""

    runs: Sequence[Run]
    # Queued or at work by now: left alone.
    skipped: int
    needs_reason: int
    expected_hours: float
    # Runs whose hours are the time limit, since nothing like them has finished.
    guessed: int
    # Runs that "resume" would take up from a checkpoint; it restarts the others from zero.
    resumable: int
    # Runs with a checkpoint at the end of their time limit: resumable under a larger one.
    used_up: int

    @property
    def no_resume(self) -> str:
        """Why "resume" is no choice; "" when it is one for some of them."""
        return "" if self.resumable or self.used_up else "none of them has a checkpoint"


def plan(ids: Iterable[int]) -> Plan:
    """Raises TooMany."""
    wanted = set(ids)
    if len(wanted) > AT_MOST:
        raise TooMany(f"{len(wanted)} runs are more than {AT_MOST} at once: narrow it down.")
    runs = list(matching(Filters()).filter(pk__in=wanted))
    hours, guessed = expected_hours(runs)
    whys = why_not_resumable(runs)
    return Plan(
        runs=runs,
        skipped=len(wanted) - len(runs),
        needs_reason=sum(run.last_outcome == Outcome.AGENT_FAILED for run in runs),
        expected_hours=hours,
        guessed=guessed,
        resumable=sum(not why for why in whys.values()),
        used_up=sum(map(resuming.is_used_up, whys.values())),
    )


def why_not_resumable(runs: Iterable[Run], overrides: Overrides | None = None) -> dict[int, str]:
    """By the key of each run; "" for one that can go on from a checkpoint.

    Few of thousands of failed runs have a checkpoint left, and only those are looked at closely.
    """
    keys = [run.pk for run in runs]
    saved = set(
        Checkpoint.objects.stored()
        .filter(attempt__run__in=keys)
        .values_list("attempt__run", flat=True)
    )
    newest = {
        attempt.run_id: attempt
        for attempt in Attempt.objects.filter(run__in=saved)
        .select_related("run__group")
        .order_by("number")
    }
    return {
        key: resuming.why_not_resumable(newest[key], overrides)
        if key in newest
        else resuming.NO_CHECKPOINT
        for key in keys
    }


def expected_hours(runs: Sequence[Run]) -> tuple[float, int]:
    """Of agent time: the median of finished runs of the same agent and competition, else the time
    limit; and for how many it is the limit."""
    took: dict[tuple[int | None, int], list[float]] = defaultdict(list)
    for agent, competition, seconds in Attempt.objects.filter(
        outcome=Outcome.GRADED,
        run__group__agent__in={run.group.agent_id for run in runs},
        run__competition__in={run.competition_id for run in runs},
        active_seconds__gt=0,
    ).values_list("run__group__agent", "run__competition", "active_seconds"):
        took[agent, competition].append(seconds)
    total, guessed = timedelta(), 0
    for run in runs:
        known = took.get((run.group.agent_id, run.competition_id))
        if known:
            total += timedelta(seconds=median(known))
        else:
            guessed += 1
            total += run.group.time_limit or settings.DEFAULT_TIME_LIMIT
    return total.total_seconds() / 3600, guessed


# ---------------------------------------------------------------------------- do, and undo


def rerun(
    runs: Sequence[Run],
    *,
    by: User | None,
    reason: str,
    mode: str = "restart",
    overrides: Overrides | None = None,
) -> Requeue | None:
    """Queue them again, all or nothing; None when none of them could be.

    `mode` "resume": those that can go on from a checkpoint do, the others restart from zero: of
    thousands, one without a checkpoint must not keep the rest. Raises submit.NotRerunnable as
    `submit.rerun` does.
    """
    with transaction.atomic():
        locked = Run.objects.select_for_update().filter(pk__in=[run.pk for run in runs])
        tries = {str(pk): used for pk, used in locked.values_list("pk", "tries_used")}
        requeue = Requeue.objects.create(by=by, by_name=audit.name_of(by), reason=reason.strip())
        attempts = []
        for each, some in _by_mode(runs, mode, overrides).items():
            attempts += submit.rerun(
                some, by=by, reason=reason, mode=each, overrides=overrides, requeue=requeue
            )
        if not attempts:
            requeue.delete()
            return None
        queued = {str(attempt.run_id) for attempt in attempts}
        requeue.tries_before = {pk: used for pk, used in tries.items() if pk in queued}
        requeue.save(update_fields=["tries_before"])
        audit.record(
            by,
            "rerun many",
            requeue,
            reason=reason,
            detail={
                "runs": len(attempts),
                "mode": mode,
                "resumed": sum(each.resumed_from_id is not None for each in attempts),
            },
        )
    return requeue


def _by_mode(runs: Sequence[Run], mode: str, overrides: Overrides | None) -> dict[str, list[Run]]:
    """What each run is asked for, where `mode` is asked for them all."""
    if mode != "resume":
        return {mode: list(runs)}
    whys = why_not_resumable(runs, overrides)
    return {
        "resume": [run for run in runs if not whys[run.pk]],
        "restart": [run for run in runs if whys[run.pk]],
    }


@dataclass(frozen=True)
class Undone:
    withdrawn: int
    # A host had claimed them, or somebody cancelled them.
    left: int


def undo(requeue: Requeue, *, by: User | None) -> Undone:
    """Take back what has not started. Safe to press twice."""
    withdrawn = left = 0
    with transaction.atomic():
        for attempt in requeue.attempts.select_related("run").order_by("pk"):
            used = int(requeue.tries_before.get(str(attempt.run_id), 0))
            if attempt.run.withdraw(attempt, tries_used=used):
                withdrawn += 1
            else:
                left += 1
        if withdrawn:
            Requeue.objects.filter(pk=requeue.pk).update(
                undone_at=Now(), undone_by=audit.name_of(by)
            )
            audit.record(by, "undo rerun", requeue, detail={"withdrawn": withdrawn, "left": left})
    return Undone(withdrawn, left)


def recent(count: int = 10) -> list[Requeue]:
    """The newest, each with how many of its attempts still wait (`waiting`)."""
    rows = list(Requeue.objects.select_related("by")[:count])
    waiting = Counter(
        Attempt.objects.filter(requeue__in=rows, state=State.QUEUED).values_list(
            "requeue", flat=True
        )
    )
    for row in rows:
        row.waiting = waiting[row.pk]  # type: ignore[attr-defined]
    return rows
