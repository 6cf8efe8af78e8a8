"""Checkpoints that nobody needs any more are removed."""

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Max, QuerySet

from mlebench_web.fleet import hosts
from runs.checkpoints import store
from runs.core.states import RunState
from runs.models import Checkpoint, Run


def tidy() -> int:
    """Remove the checkpoints of runs that need none any more; the number of runs. Repeatable.

    Those that have a result, and those that ended long ago (CHECKPOINTS_KEPT_DAYS).
    """
    try:
        folders, _ = default_storage.listdir("checkpoints")
    except FileNotFoundError:
        return 0
    keys = {int(name) for name in folders if name.isdigit()}
    if not keys:
        return 0
    needless = keys - set(Run.objects.filter(pk__in=keys).values_list("pk", flat=True))
    for run in _over(keys):
        if _forget(run):
            needless.add(run.pk)
    for key in needless:
        store.remove_all(key)
    return len(needless)


def _over(keys: set[int]) -> QuerySet[Run]:
    over = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)
    return Run.objects.filter(pk__in=keys, state__in=over).annotate(last=Max("attempts__ended_at"))


def _forget(run: Run) -> bool:
    """Whether nobody can resume it any more. The lock: a resume that is asked for now waits."""
    has_result = run.state == RunState.FINISHED and not run.is_cut_short
    is_old = run.last and run.last < hosts.now() - settings.CHECKPOINTS_KEPT  # type: ignore[attr-defined]
    if not has_result and not is_old:
        return False
    with transaction.atomic():
        now = Run.objects.select_for_update().get(pk=run.pk)
        if now.state != run.state or now.newest_attempt().is_ended is False:
            return False
        Checkpoint.objects.stored().filter(attempt__run=run).update(path="")
    return True
