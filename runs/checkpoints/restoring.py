"""The start of an attempt from the newest checkpoint of the one before it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from runs import agent_manifest, grading, snapshots
from runs.checkpoints import files, store
from runs.checkpoints.saving import mark_corrupt
from runs.checkpoints.store import Corrupt
from runs.containers import EngineFailure
from runs.core.failures import Cause
from runs.core.states import Outcome
from runs.core.step_limits import charged_seconds
from runs.models import Attempt, Checkpoint
from runs.patience import patiently
from runs.workspace import remove_tree

if TYPE_CHECKING:
    from runs.worker import Supervisor

logger = structlog.get_logger(__name__)

# Ours in an attempt's folder; containers see neither.
RESTORING, MARKER = "restoring", "restored"


def begin_from(supervisor: "Supervisor") -> None:
    """Put the newest checkpoint that verifies into the new attempt's folders, before it is made.

    Where one is corrupt the one before is taken, and the run's log says so; where none is left the
    attempt is a restart from zero. Repeatable until the container is made. Raises OSError when
    storage does not answer or the disk is full.
    """
    attempt, workspace = supervisor.attempt, supervisor.workspace
    marker = workspace.root / MARKER
    if attempt.resumed_from is None or marker.exists():
        return
    before = attempt.resumed_from
    restored = None
    for row in patiently(before.checkpoints_to_try, tick=supervisor.tick):
        try:
            _restore(supervisor, row)
        except Corrupt as error:
            mark_corrupt(row, str(error))
            supervisor.log.say(f"{name_of(row)} cannot be used: {error}. Trying the one before.")
            continue
        restored = row
        break
    if restored is None:
        supervisor.log.say(
            f"Nothing of attempt {before.number} can be restored: starting from zero, with the "
            "full time limit."
        )
        supervisor.save(
            resumed_from=None, restored_checkpoint=None, charged_seconds=0, active_seconds=0
        )
    else:
        timed_out = [
            each.active_seconds
            for each in before.lineage()
            if (each.outcome, each.cause) == (Outcome.CONTINUED, Cause.STEP_TIMEOUT)
        ]
        charged = charged_seconds(restored.active_seconds, timed_out)
        supervisor.log.say(
            f"Going on from {name_of(restored)}: {charged:.0f} s of the time limit are used."
        )
        _hand_in_again(supervisor, before)
        supervisor.save(
            restored_checkpoint=restored, charged_seconds=charged, active_seconds=charged
        )
    marker.touch()


def name_of(row: Checkpoint) -> str:
    step = f" (step {row.step})" if row.step is not None else ""
    return f"checkpoint {row.number} of attempt {row.attempt.number}{step}"


def _restore(supervisor: "Supervisor", row: Checkpoint) -> None:
    """Raises Corrupt before anything of it is in the attempt's folders."""
    workspace = supervisor.workspace
    saved = agent_manifest.of(supervisor.group.agent).saved_folders
    manifest = store.read_manifest(row.path, row.digest, roots=saved)
    free = shutil.disk_usage(workspace.root).free
    if manifest.size > free:
        raise EngineFailure(
            Cause.DISK_FULL,
            f"The checkpoint has {manifest.size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are "
            "free on the host.",
        )
    aside = workspace.root / RESTORING
    remove_tree(aside)
    for name in saved:
        (aside / name).mkdir(parents=True)
    run = supervisor.attempt.run_id
    files.put_back(
        manifest.entries,
        aside,
        read=lambda entry: store.content(run, entry),
        tick=supervisor.tick,
    )
    for name in saved:
        place = workspace.root / name
        remove_tree(place)
        (aside / name).rename(place)
        place.chmod(0o777)
    remove_tree(aside)


def _hand_in_again(supervisor: "Supervisor", before: Attempt) -> None:
    """The newest valid submission so far: a resumed attempt never stands without one."""
    try:
        snapshot = snapshots.newest_valid(before, tick=supervisor.tick)
    except grading.GraderFailed as error:
        supervisor.log.say(
            f"The last submission could not be judged, and is not handed in: {error}"
        )
        return
    if snapshot is None:
        return
    place: Path = supervisor.workspace.submission / "submission.csv"
    with snapshots.opened(snapshot) as file, place.open("wb") as target:
        shutil.copyfileobj(file, target)
    # The image's own user replaces it, or writes into it.
    place.chmod(0o666)
    supervisor.log.say("Its newest valid submission so far is in its folder again.")
