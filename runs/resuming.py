"""Asks about checkpoints: save one now, move a host's runs off it, and who can be resumed."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models.functions import Now

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import agent_manifest, queue
from runs.core.states import State
from runs.models import Attempt, Run


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

    The attempts that were asked by this call; the others finish where they are.
    """
    asked = []
    for attempt in Attempt.objects.filter(
        host=host, state__in=[State.STARTING, State.RUNNING], move_asked_at__isnull=True
    ).select_related("run__group__agent"):
        if not can_resume(attempt):
            continue
        changed = Attempt.objects.filter(
            pk=attempt.pk, host=host, state__in=[State.STARTING, State.RUNNING]
        ).update(move_asked_at=Now(), move_asked_by=audit.name_of(by))
        if changed:
            asked.append(attempt)
    return asked


def why_not_resumable(attempt: Attempt) -> str:
    """A sentence, or "" when a new attempt can go on from a checkpoint of this one."""
    stored = attempt.checkpoints_to_try()
    if not stored:
        return "it has no checkpoint"
    limit = queue.time_limit_of(attempt).total_seconds()
    if stored[0].active_seconds >= limit:
        return "its time limit is used up"
    return ""


def unresumable(ended: Sequence[tuple[Run, Attempt]]) -> list[tuple[Run, str]]:
    """Those that can only be restarted, each with the reason."""
    return [(run, why) for run, last in ended if (why := why_not_resumable(last))]
