"""Hosts that fail by causes of their own, and hosts that somebody says are gone."""

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import bell, queue
from runs.core.failures import Cause
from runs.core.retries import Ended, why_put_aside
from runs.core.states import Outcome, State
from runs.models import Attempt

logger = structlog.get_logger(__name__)

# How far back a host's attempts are read: those that say nothing lie between those that do.
HISTORY = 50


class HostAnswers(Exception):
    """A host that was heard of a moment ago is not gone."""


def judge(host: Host, outcome: Outcome) -> None:
    """After an attempt on `host` was sealed, in its transaction: put it aside, or call it well."""
    if outcome in (Outcome.GRADED, Outcome.AGENT_FAILED):
        Host.objects.filter(pk=host.pk).exclude(failing="").update(failing="")
        return
    if outcome != Outcome.INFRASTRUCTURE_FAILED:
        return
    reason = why_put_aside(history(host))
    if not reason:
        return
    # All rows, in one order: of two hosts that fail at once, one stays in use.
    rows = {row.pk: row for row in Host.objects.select_for_update().order_by("pk")}
    row = rows[host.pk]
    if row.put_aside:
        return
    at = hosts.now()
    others = [
        other
        for other in rows.values()
        if other.pk != row.pk
        and other.is_online(at)
        and not other.put_aside
        and not other.is_draining
    ]
    if others:
        Host.objects.filter(pk=row.pk).update(put_aside=reason, failing="")
        logger.error("host.put_aside", host=row.name, reason=reason)
    else:
        Host.objects.filter(pk=row.pk).update(failing=reason)
        logger.error("host.failing", host=row.name, reason=reason)


def history(host: Host) -> list[Ended]:
    """Its ended attempts, newest first, since somebody last said "use it again"."""
    host.refresh_from_db(fields=["used_again_at"])
    rows = Attempt.objects.filter(host=host, state=State.ENDED).order_by("-ended_at", "-pk")
    if host.used_again_at:
        rows = rows.filter(ended_at__gt=host.used_again_at)
    return [
        Ended(Outcome(outcome), Cause(cause) if cause else None, detail)
        for outcome, cause, detail in rows.values_list("outcome", "cause", "cause_detail")[:HISTORY]
    ]


def use_again(host: Host, *, by: User | None) -> bool:
    """It takes runs again, and what failed before is forgiven; False when it was in use."""
    with transaction.atomic():
        row = Host.objects.select_for_update().get(pk=host.pk)
        if not (row.put_aside or row.failing):
            return False
        Host.objects.filter(pk=row.pk).update(put_aside="", failing="", used_again_at=Now())
        audit.record(
            by,
            "use again",
            row,
            detail={"host": row.name, "put_aside": row.put_aside or row.failing},
        )
        transaction.on_commit(bell.ring, robust=True)
    return True


def declare_lost(host: Host, *, by: User | None) -> list[Attempt]:
    """Somebody has looked: it is gone. Its attempts end now, and are queued again elsewhere.

    Raises HostAnswers where it was heard of within one lease: it would go on.
    """
    with transaction.atomic():
        row = Host.objects.select_for_update().get(pk=host.pk)
        silence = row.silence(hosts.now())
        if silence is not None and silence < settings.LEASE_TTL:
            raise HostAnswers(
                f"{row.name} was heard of {silence.total_seconds():.0f} s ago, so it is not gone. "
                "Drain it, or stop its worker and host service first; "
                f"after {settings.LEASE_TTL.total_seconds():.0f} s of silence this works."
            )
        name = audit.name_of(by)
        Host.objects.filter(pk=row.pk).update(declared_lost_at=Now(), declared_lost_by=name)
        sealed = queue.declare_lost(row, by=name)
        audit.record(
            by,
            "declare lost",
            row,
            detail={"host": row.name, "attempts": [attempt.pk for attempt in sealed]},
        )
        transaction.on_commit(bell.ring, robust=True)
    return sealed
