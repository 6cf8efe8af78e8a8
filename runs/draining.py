"""Drain a host: it takes no new runs, and finishes what it has or gives it to others."""

from collections.abc import Collection
from datetime import timedelta

from django.db import transaction

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import bell, queue, resuming
from runs.core.states import State
from runs.models import Attempt


def drain(host: Host, *, by: User | None, move: bool = False) -> bool:
    """Whether this call changed anything; a second press does not.

    `move`: runs that can go on from a checkpoint are saved, stopped and queued for other hosts.
    """
    with transaction.atomic():
        changed = _set(host, draining=True, by=by)
        moved = resuming.ask_move(host, by=by) if move else []
        if moved:
            audit.record(by, "move", host, detail={"host": host.name, "runs": len(moved)})
    return changed or bool(moved)


def undrain(host: Host, *, by: User | None) -> bool:
    """It takes new runs again, at once: the bell is rung. What was to leave it stays."""
    with transaction.atomic():
        # An agent that is still to be saved would be stopped later, on a host that is in use.
        kept = (
            Attempt.objects.unended()
            .filter(host=host, move_asked_at__isnull=False, goes_on=False)
            .update(move_asked_at=None, move_asked_by="")
        )
        return _set(host, draining=False, by=by) or bool(kept)


def longest_left(host: Host) -> timedelta | None:
    """Agent time until its agents have ended, at most; None when none is at work.

    Pauses are not agent time, and grading comes after it.
    """
    return longest_left_by_host([host]).get(host.pk)


def longest_left_by_host(of: Collection[Host]) -> dict[int, timedelta]:
    """The same of several hosts by key; without those on which none is at work. Two queries."""
    at = hosts.now()
    longest: dict[int, timedelta] = {}
    at_work = Attempt.objects.filter(host__in=of, state__in=[State.STARTING, State.RUNNING])
    for attempt in at_work.select_related("run__group"):
        used = timedelta(seconds=attempt.active_seconds_by(at) or 0)
        left = max(timedelta(0), queue.time_limit_of(attempt) - used)
        if attempt.host_id is not None:
            longest[attempt.host_id] = max(left, longest.get(attempt.host_id, left))
    return longest


def _set(host: Host, *, draining: bool, by: User | None) -> bool:
    with transaction.atomic():
        changed = bool(
            Host.objects.filter(pk=host.pk, is_draining=not draining).update(is_draining=draining)
        )
        host.is_draining = draining
        if changed:
            audit.record(by, "drain" if draining else "undrain", host, detail={"host": host.name})
            transaction.on_commit(bell.ring, robust=True)
    return changed
