"""Drain a host: it takes no new runs, and finishes what it has or gives it to others."""

from django.db import transaction

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import bell, resuming


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
    """It takes new runs again, at once: the bell is rung."""
    return _set(host, draining=False, by=by)


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
