"""Checkpoints of a running attempt, and the start of another one from them.

A save runs in a thread beside the watch: the files are copied aside (the agent stands still only
where it keeps changing them), then stored from the copy. Complete or nothing: blobs, the manifest
with their hashes, and last the row, under the lease token. Two are kept for each run.
"""

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.db.models import Max, QuerySet

from mlebench_web.fleet import hosts
from runs import agent_manifest, checkpoint_files, checkpoint_store, grading, guards, snapshots
from runs.agent_manifest import AgentManifest
from runs.checkpoint_files import Restless, TooMuch
from runs.checkpoint_store import Corrupt
from runs.containers import EngineFailure
from runs.core.checkpoints import (
    NOTHING_YET,
    Entry,
    Manifest,
    Seen,
    Stored,
    gap_after,
    refusal,
    to_drop,
    unchanged,
)
from runs.core.failures import Cause
from runs.core.states import Outcome, RunState
from runs.core.step_limits import charged_seconds
from runs.models import Attempt, Checkpoint, Replaced, Run
from runs.patience import patiently
from runs.watching import Ending, Watch
from runs.workspace import Workspace, remove_tree

if TYPE_CHECKING:
    from runs.worker import Supervisor

logger = structlog.get_logger(__name__)

LOOK_EVERY = 0.5
# After a save that failed and that somebody waits for.
AGAIN_AFTER = 60.0
# A last save is waited for this long; a storage that hangs must not keep the run from its end.
LAST_SAVE_SECONDS = 900.0
# Rows of checkpoints that are dropped, for each run: enough to see how often they were made.
DROPPED_REMEMBERED = 100
# Ours in an attempt's folder; containers see none of them.
COPY, RESTORING, MARKER = "saving", "restoring", "restored"


# ------------------------------------------------------------------------------ one save


@dataclass(frozen=True)
class Wish:
    """Why to save now."""

    # The agent said that its state is whole.
    is_agents_word: bool = False
    step: int | None = None
    # A person asked; the answer is written to the row.
    is_asked: bool = False


@dataclass(frozen=True)
class Saved:
    """How a save ended. No problem and no checkpoint: nothing had changed since the last one."""

    wish: Wish
    checkpoint: Checkpoint | None = None
    problem: str = ""
    seconds: float = 0


class Saver:
    """Saves the state of one attempt, and remembers what it saved last."""

    def __init__(
        self,
        attempt: Attempt,
        token: uuid.UUID,
        manifest: AgentManifest,
        *,
        host: str,
        freeze: Callable[[], AbstractContextManager[None]],
        open_up: Callable[[], None],
    ) -> None:
        """`freeze` lets the agent stand still; `open_up` makes its files readable to this user."""
        self.attempt = attempt
        self.token = token
        self.workspace = Workspace.for_attempt(attempt.pk)
        self.folders = manifest.saved_folders
        self.host = host
        self.freeze = freeze
        self.open_up = open_up
        self.left = threading.Event()
        self._last: Manifest | None = None
        self._last_key = 0
        # By the key of their row: the blobs of these are known to be whole.
        self._sound: dict[int, Manifest] = {}

    def save(self, wish: Wish, *, active_seconds: float) -> Saved:
        """Blocks; for a thread of its own. Raises Replaced."""
        began = time.monotonic()
        try:
            checkpoint = self._save(wish, active_seconds, began)
            return Saved(wish, checkpoint, seconds=time.monotonic() - began)
        except (TooMuch, Restless, OSError, EngineFailure) as error:
            return Saved(wish, problem=str(error), seconds=time.monotonic() - began)
        finally:
            remove_tree(self.workspace.root / COPY)

    def _save(self, wish: Wish, active_seconds: float, began: float) -> Checkpoint | None:
        self._remember()
        copy = self._copy(wish)
        if self._last and {each.path: each.seen for each in self._last.entries} == copy.look.seen:
            self._holds(wish.step)
            return None
        is_manifest_last = guards.is_on(guards.Guard.MANIFEST)
        manifest, added = self._store(
            copy, checkpoint_store.put if is_manifest_last else checkpoint_store.put_nothing
        )
        path, digest = checkpoint_store.write_manifest(self.attempt.run_id, manifest)
        row = self._patiently(
            lambda: self.attempt.add_checkpoint(
                token=self.token,
                step=wish.step,
                active_seconds=round(active_seconds, 3),
                is_agents_word=wish.is_agents_word,
                files=manifest.files,
                size=manifest.size,
                added_bytes=added,
                save_seconds=round(time.monotonic() - began, 3),
                pause_seconds=round(copy.pause_seconds, 3),
                path=path,
                digest=digest,
            )
        )
        if not is_manifest_last:
            self._store(copy, checkpoint_store.put)
        self._last = self._sound[row.pk] = manifest
        self._last_key = row.pk
        self._thin_out()
        return row

    def _holds(self, step: int | None) -> None:
        """What was saved last is what the agent says now: it was further than its last word."""

        def write() -> None:
            with transaction.atomic():
                held = Attempt.objects.select_for_update().get(pk=self.attempt.pk)
                if not held.is_held_by(self.token):
                    raise Replaced(f"Another supervisor holds {self.attempt}.")
                Checkpoint.objects.filter(pk=self._last_key).update(step=step)

        if step is not None:
            self._patiently(write)

    def _store(
        self, copy: checkpoint_files.Copy, put: checkpoint_store.Put
    ) -> tuple[Manifest, int]:
        return checkpoint_store.store(
            self.attempt.run_id,
            copy,
            self._same(copy.look.seen),
            attempt=self.attempt.pk,
            host=self.host,
            sound={name for each in self._sound.values() for name in each.blobs()},
            put=put,
        )

    def _copy(self, wish: Wish) -> checkpoint_files.Copy:
        def copy() -> checkpoint_files.Copy:
            return checkpoint_files.copy_aside(
                self.workspace.root,
                self.folders,
                self.workspace.root / COPY,
                known=self._same,
                refuse=lambda seen: refusal(seen, quota_bytes=settings.CHECKPOINT_QUOTA_BYTES),
                freeze=self.freeze,
                settled=not wish.is_agents_word,
            )

        try:
            return copy()
        except PermissionError:
            self.open_up()
            return copy()

    def _same(self, seen: Mapping[str, Seen]) -> dict[str, Entry]:
        return unchanged(seen, self._last, attempt=self.attempt.pk, host=self.host)

    def _remember(self) -> None:
        """What the run's checkpoints hold by now: their blobs need not be stored again."""
        for row in self._patiently(self.attempt.checkpoints_to_try):
            if row.pk in self._sound:
                continue
            try:
                manifest = checkpoint_store.read_manifest(row.path, row.digest, roots=self.folders)
            except Corrupt as error:
                mark_corrupt(row, str(error))
                continue
            self._sound[row.pk] = manifest
            if row.attempt_id == self.attempt.pk and self._last is None:
                self._last, self._last_key = manifest, row.pk

    def _thin_out(self) -> None:
        """Drop what is too old, then the blobs that nothing needs any more."""
        kept = self._patiently(lambda: drop_old(self.attempt, self.token))
        for key in set(self._sound) - set(kept):
            del self._sound[key]
        if set(kept) <= set(self._sound):
            used = {name for each in self._sound.values() for name in each.blobs()}
            checkpoint_store.remove_unused(self.attempt.run_id, used, kept.values())

    def _patiently[T](self, act: Callable[[], T]) -> T:
        return patiently(act, tick=self._stay, what="checkpoint")

    def _stay(self) -> None:
        if self.left.is_set():
            raise Replaced(f"{self.attempt} is no longer watched by this process.")


def drop_old(attempt: Attempt, token: uuid.UUID) -> dict[int, str]:
    """Forget all checkpoints of the run but the newest; those kept, with their manifests.

    Raises Replaced.
    """
    with transaction.atomic():
        if not Attempt.objects.select_for_update().get(pk=attempt.pk).is_held_by(token):
            raise Replaced(f"Another supervisor holds {attempt}.")
        places = {row.pk: place for place, row in enumerate(attempt.lineage())}
        rows = {
            row.pk: row for row in Checkpoint.objects.stored().filter(attempt__run=attempt.run_id)
        }
        # Those of attempts before a restart from zero help nobody: last of all.
        found = [
            Stored(
                row.pk,
                places.get(row.attempt_id, len(places)),
                row.number,
                bool(row.fault) or row.attempt_id not in places,
            )
            for row in rows.values()
        ]
        dropped = to_drop(found)
        Checkpoint.objects.filter(pk__in=dropped).update(path="")
        forget_old(attempt)
    return {key: row.path for key, row in rows.items() if key not in dropped}


def forget_old(attempt: Attempt) -> None:
    """Remove the rows of all dropped ones but the newest: an agent may say one each second.

    Those stay that an attempt began with, that are corrupt, and the newest of each attempt, from
    which its numbers go on.
    """
    dropped = Checkpoint.objects.filter(attempt__run=attempt.run_id, path="", fault="")
    kept = list(dropped.order_by("-id").values_list("pk", flat=True)[:DROPPED_REMEMBERED])
    began_with = Attempt.objects.filter(restored_checkpoint__isnull=False, run=attempt.run_id)
    newest = attempt.run.attempts.annotate(last=Max("checkpoints")).values_list("last", flat=True)
    kept += [*began_with.values_list("restored_checkpoint", flat=True), *filter(None, newest)]
    dropped.exclude(pk__in=kept).delete()


def mark_corrupt(row: Checkpoint, why: str) -> None:
    logger.warning("checkpoint.corrupt", checkpoint=row.pk, why=why)
    patiently(
        lambda: Checkpoint.objects.filter(pk=row.pk).update(fault=why), what="mark a checkpoint"
    )


# ------------------------------------------------------------------------------ while it runs


class CheckpointPart:
    """The watch's part that saves: at the agent's word, at a person's, and by the clock."""

    every = LOOK_EVERY

    def __init__(self, supervisor: "Supervisor") -> None:
        self.manifest = agent_manifest.of(supervisor.group.agent)
        self.saver = Saver(
            supervisor.attempt,
            supervisor.token,
            self.manifest,
            host=supervisor.host.name,
            freeze=supervisor.pauser.hold,
            open_up=lambda: open_up(supervisor),
        )
        self._said: Wish | None = None
        # The last step that its state holds, as far as the agent said.
        began_with = supervisor.attempt.restored_checkpoint
        self._step: int | None = began_with.step if began_with else None
        # It keeps the protocol: what is in its folder is whole whenever it is looked at.
        self._speaks = (
            self.manifest.resume.mode == "native"
            or supervisor.attempt.checkpoints.filter(is_agents_word=True).exists()
        )
        self._thread: threading.Thread | None = None
        self._result: Saved | None = None
        self._not_before = 0.0
        self._by_clock = time.monotonic() + self._period()
        self._is_ready_to_move = False

    def _period(self) -> float:
        return (self.manifest.checkpoint_every or settings.CHECKPOINT_EVERY).total_seconds()

    @property
    def can_resume(self) -> bool:
        return self.manifest.can_resume or self._speaks

    def say_saved(self, step: int | None) -> None:
        """The agent said `checkpoint`: what is in its folders is whole."""
        self._said = Wish(is_agents_word=True, step=step)
        self._step = step
        self._speaks = True

    # ------------------------------------------------------------------ the watch's calls

    def look(self, watch: Watch) -> Ending | None:
        self._take_result(watch)
        if self._thread is not None:
            return None
        attempt = watch.attempt
        if attempt.move_asked_at and self._is_ready_to_move:
            return watch.go_on_from_checkpoint(
                Cause.MOVED, f"{attempt.move_asked_by} asked to move it to another host."
            )
        wish = self._wish(attempt)
        if wish is not None:
            self._start(watch, wish)
        return None

    def last(self, watch: Watch, ending: Ending) -> None:
        """What a run may go on from, as new as it can be: its files are still here.

        Only for an agent that speaks: its files are whole at any moment, even after a kill.
        """
        self._wait(watch)
        if not ending.is_clean and self._speaks:
            self._start(watch, Wish(is_agents_word=True, step=self._step))
            self._wait(watch)
        self.saver.left.set()

    def save_now(self, watch: Watch) -> None:
        """The save that is at work, or else one, to its end."""
        if self._thread is None:
            self._start(watch, Wish(is_agents_word=self._speaks, step=self._step))
        self._wait(watch)

    def _wish(self, attempt: Attempt) -> Wish | None:
        """What is asked for now, the most urgent first."""
        now = time.monotonic()
        if attempt.checkpoint_asked_at or attempt.move_asked_at:
            if now < self._not_before and attempt.checkpoint_problem:
                return None
            return Wish(is_agents_word=self._speaks, step=self._step, is_asked=True)
        if now < self._not_before:
            return None
        if self._said:
            return self._said
        if self.can_resume and now >= self._by_clock:
            return Wish(is_agents_word=self._speaks, step=self._step)
        return None

    # ------------------------------------------------------------------ the thread

    def _start(self, watch: Watch, wish: Wish) -> None:
        active = watch.active()

        def work() -> None:
            try:
                self._result = self.saver.save(wish, active_seconds=active)
            except Replaced as error:
                self._result = Saved(wish, problem=str(error))
            except Exception as error:
                # The edge of the thread: whatever is wrong with a save, the run goes on.
                logger.exception("checkpoint.failed", attempt=watch.attempt.pk)
                self._result = Saved(wish, problem=f"{type(error).__name__}: {error}")
            finally:
                connection.close()

        if wish.is_agents_word:
            self._said = None
        self._thread = threading.Thread(
            target=work, name=f"checkpoint-{watch.attempt.pk}", daemon=True
        )
        self._thread.start()

    def _wait(self, watch: Watch) -> None:
        deadline = time.monotonic() + LAST_SAVE_SECONDS
        while self._thread is not None and time.monotonic() < deadline:
            self._thread.join(0.1)
            watch.supervisor.tick()
            self._take_result(watch)

    def _take_result(self, watch: Watch) -> None:
        if self._thread is None or self._thread.is_alive():
            return
        saved, self._thread, self._result = self._result, None, None
        if saved is None:
            return
        now = time.monotonic()
        self._by_clock = now + self._period()
        # An agent that had nothing yet may have something in a moment.
        is_trouble = saved.problem not in ("", NOTHING_YET)
        self._not_before = now + (AGAIN_AFTER if is_trouble else gap_after(saved.seconds))
        if not saved.problem or saved.problem != watch.attempt.checkpoint_problem:
            watch.supervisor.say(words(saved))
        fields: dict[str, object] = {}
        if saved.problem != watch.attempt.checkpoint_problem:
            fields["checkpoint_problem"] = saved.problem
        if saved.wish.is_asked:
            self._is_ready_to_move = not saved.problem
            fields |= {"checkpoint_asked_at": None}
        if fields:
            watch.supervisor.save(**fields)


def words(saved: Saved) -> str:
    """A line for the run's log."""
    if saved.problem:
        return f"No checkpoint was saved: {saved.problem}. Earlier ones stay."
    row = saved.checkpoint
    if row is None:
        return "No new checkpoint: nothing has changed since the last one."
    step = f", step {row.step}" if row.step is not None else ""
    pause = f", the agent stood still for {row.pause_seconds:.2f} s" if row.pause_seconds else ""
    return (
        f"Checkpoint {row.number}{step}: {row.files} files, {row.size / 1e6:.1f} MB, "
        f"{row.added_bytes / 1e6:.1f} MB new, in {saved.seconds:.1f} s{pause}."
    )


def save_soon(watch: Watch, *, step: int | None = None) -> None:
    """The agent said in its events that its checkpoint is whole. Comes back at once."""
    for part in watch.parts:
        if isinstance(part, CheckpointPart):
            part.say_saved(step)


def save_now(watch: Watch) -> None:
    """Save what there is to go on from, and come back when it is stored or could not be."""
    for part in watch.parts:
        if isinstance(part, CheckpointPart) and part.can_resume:
            part.save_now(watch)


def open_up(supervisor: "Supervisor") -> None:
    """Let this user read what the agent wrote for itself alone. Raises EngineFailure."""
    for name in agent_manifest.of(supervisor.group.agent).saved_folders:
        supervisor.engine.make_readable(
            supervisor.workspace.root / name, supervisor.attempt.image_id
        )


# ------------------------------------------------------------------------------ going on


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
            supervisor.say(f"{name_of(row)} cannot be used: {error}. Trying the one before.")
            continue
        restored = row
        break
    if restored is None:
        supervisor.say(
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
        supervisor.say(
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
    manifest = checkpoint_store.read_manifest(row.path, row.digest, roots=saved)
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
    checkpoint_files.put_back(
        manifest.entries,
        aside,
        read=lambda entry: checkpoint_store.content(run, entry),
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
        supervisor.say(f"The last submission could not be judged, and is not handed in: {error}")
        return
    if snapshot is None:
        return
    place: Path = supervisor.workspace.submission / "submission.csv"
    with snapshots.opened(snapshot) as file, place.open("wb") as target:
        shutil.copyfileobj(file, target)
    # The image's own user replaces it, or writes into it.
    place.chmod(0o666)
    supervisor.say("Its newest valid submission so far is in its folder again.")


# ------------------------------------------------------------------------------ housekeeping


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
        checkpoint_store.remove_all(key)
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
