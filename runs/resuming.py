"""Asks about checkpoints: save one now, move a host's runs off it, and who can be resumed."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import agent_manifest, queue
from runs.core import placement
from runs.core.overrides import Overrides
from runs.core.states import State
from runs.models import Attempt, Run

# Of runs that stay where they are, those that are named one by one.
NAMED = 10
NO_CHECKPOINT = "it has no checkpoint"


class CannotSave(Exception):
    """Why no checkpoint can be made of this run now; says it in a sentence."""


def can_resume(attempt: Attempt) -> bool:
    """Whether its agent can go on from a checkpoint: known to, or it said that it made one."""
    manifest = agent_manifest.of(attempt.run.group.agent)
    return manifest.can_resume or attempt.checkpoints.filter(is_agents_word=True).exists()


def ask_checkpoint(run: Run, *, by: User | None) -> bool:
    """Whether this call changed anything; a second press does not. Saved within a second or two.

    Raises CannotSave.
    """
    with transaction.atomic():
        attempt = run.newest_attempt()
        if not can_resume(attempt):
            raise CannotSave(
                f"{run.group.agent} cannot go on from a checkpoint, so none is made. "
                f"{agent_manifest.of(run.group.agent).resume_note}"
            )
        asked = Attempt.objects.filter(
            pk=attempt.pk, state=State.RUNNING, checkpoint_asked_at__isnull=True
        ).update(checkpoint_asked_at=Now(), checkpoint_asked_by=audit.name_of(by))
        if asked:
            audit.record(by, "checkpoint", run)
            return True
        attempt.refresh_from_db()
        if attempt.state != State.RUNNING:
            raise CannotSave(f"{run}: its agent does not run ({attempt.state}).")
    return False


def ask_move(host: Host, *, by: User | None) -> list[Attempt]:
    """Ask each running attempt of a host that can go on elsewhere to be saved and moved.

    The attempts that were asked by this call; the others finish where they are: see `not_moved`.
    """
    asked = []
    for attempt in _to_move(host):
        if why_not_moved(attempt):
            continue
        changed = Attempt.objects.filter(
            pk=attempt.pk, host=host, state__in=[State.STARTING, State.RUNNING]
        ).update(move_asked_at=Now(), move_asked_by=audit.name_of(by))
        if changed:
            asked.append(attempt)
    return asked


def _to_move(host: Host) -> "list[Attempt]":
    """What runs on the host and was not asked to leave it."""
    return list(
        Attempt.objects.filter(
            host=host, state__in=[State.STARTING, State.RUNNING], move_asked_at__isnull=True
        )
        .select_related("host", "run__competition", "run__group__agent", "run__group__image")
        .order_by("pk")
    )


def not_moved(host: Host) -> list[tuple[Run, str]]:
    """The runs that finish on a host after its move was asked for, each with the reason."""
    return [(each.run, why) for each in _to_move(host) if (why := why_not_moved(each))]


def words_of_not_moved(refused: Sequence[tuple[Run, str]]) -> str:
    """For a person: which runs stay, and why."""
    shown = "; ".join(f"run {run.pk} ({run}): {why}" for run, why in refused[:NAMED])
    more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
    return f"Not moved, they go on here: {shown}{more}."


def why_not_moved(attempt: Attempt) -> str:
    """A clause, or "" when it can be saved here and go on at another host."""
    if not can_resume(attempt):
        return f"{attempt.run.group.agent} cannot go on from a checkpoint"
    if queue.another_host_could_take(attempt):
        return ""
    # Stopped here, it would wait for a host that there is not.
    others = _why_others_cannot(attempt)
    return f"no other host could take it ({others or 'none takes runs now'})"


def _why_others_cannot(attempt: Attempt) -> str:
    """What keeps each other host that is online from it."""
    [need] = queue.needs_of([attempt])
    need = replace(need, host="")
    here = attempt.host.name if attempt.host else ""
    whys = [
        f"{offer.host}: {why}"
        for offer in queue.bare_offers()
        if offer.host != here and (why := placement.never_fits(need, offer))
    ]
    return ", ".join(whys[:NAMED])


# ---------------------------------------------------------------------------- resume or restart


def why_not_resumable(attempt: Attempt, overrides: Overrides | None = None) -> str:
    """A clause, or "" when a new attempt with these overrides can go on from a checkpoint of it."""
    stored = attempt.checkpoints_to_try()
    if not stored:
        return NO_CHECKPOINT
    used = timedelta(seconds=stored[0].active_seconds)
    limit = _limit_of_next(attempt, overrides)
    if used < limit:
        return ""
    return f"its time limit is used up ({_hours(used)} of {_hours(limit)} h)"


def is_used_up(why: str) -> bool:
    """Whether that reason is one that a larger limit mends, so none to offer no resume."""
    return why not in ("", NO_CHECKPOINT)


def _limit_of_next(attempt: Attempt, overrides: Overrides | None) -> timedelta:
    """What was asked for an earlier attempt does not hold for one that a person queues."""
    if overrides and overrides.time_limit_s:
        return timedelta(seconds=overrides.time_limit_s)
    return attempt.run.group.time_limit or settings.DEFAULT_TIME_LIMIT


def _hours(length: timedelta) -> str:
    return f"{length / timedelta(hours=1):.4g}"


def unresumable(
    ended: Sequence[tuple[Run, Attempt]], overrides: Overrides | None = None
) -> list[tuple[Run, str]]:
    """Those that can only be restarted, each with the reason."""
    return [(run, why) for run, last in ended if (why := why_not_resumable(last, overrides))]
