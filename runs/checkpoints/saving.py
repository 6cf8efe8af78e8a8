"""One save: the files are copied aside, stored from the copy, and last comes the row.

Complete or nothing: blobs, the manifest with their hashes, and last the row, under the lease
token. Two are kept for each run.
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Max

from runs import guards
from runs.agent_manifest import AgentManifest
from runs.checkpoints import files, store
from runs.checkpoints.files import Restless, TooMuch
from runs.checkpoints.store import Corrupt
from runs.containers import EngineFailure
from runs.core.checkpoints import (
    Entry,
    Manifest,
    Seen,
    Stored,
    refusal,
    to_drop,
    unchanged,
)
from runs.models import Attempt, Checkpoint, Replaced
from runs.patience import patiently
from runs.workspace import Workspace, remove_tree

if TYPE_CHECKING:
    pass

logger = structlog.get_logger(__name__)

# Rows of checkpoints that are dropped, for each run: enough to see how often they were made.
DROPPED_REMEMBERED = 100
# Ours in an attempt's folder; containers do not see it. Each supervisor has its own: one that was
# frozen and replaced removes no other's.
COPIES = "saving-"


@dataclass(frozen=True)
class Wish:
    """Why to save now."""

    # The agent said that its state is whole.
    is_agents_word: bool = False
    step: int | None = None
    # A person asked; the answer is written to the row.
    is_asked: bool = False
    # When the move was asked that this save is for, as it stood when the save began.
    move_asked_at: datetime | None = None


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
        self.copy = self.workspace.root / f"{COPIES}{token.hex}"
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
            remove_tree(self.copy)

    def _save(self, wish: Wish, active_seconds: float, began: float) -> Checkpoint | None:
        self._remember()
        self._patiently(self._stay_holder)
        for left in self.workspace.root.glob(f"{COPIES}*"):
            # Of one that this process has followed.
            remove_tree(left)
        copy = self._copy(wish)
        if self._last and {each.path: each.seen for each in self._last.entries} == copy.look.seen:
            self._holds(wish.step)
            return None
        is_manifest_last = guards.is_on(guards.Guard.MANIFEST)
        manifest, added = self._store(copy, store.put if is_manifest_last else store.put_nothing)
        path, digest = store.write_manifest(self.attempt.run_id, manifest)
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
            self._store(copy, store.put)
        self._last = self._sound[row.pk] = manifest
        self._last_key = row.pk
        self._thin_out()
        return row

    def _stay_holder(self) -> None:
        if not Attempt.objects.get(pk=self.attempt.pk).is_held_by(self.token):
            raise Replaced(f"Another supervisor holds {self.attempt}.")

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

    def _store(self, copy: files.Copy, put: store.Put) -> tuple[Manifest, int]:
        return store.store(
            self.attempt.run_id,
            copy,
            self._same(copy.look.seen),
            attempt=self.attempt.pk,
            host=self.host,
            sound={name for each in self._sound.values() for name in each.blobs()},
            put=put,
        )

    def _copy(self, wish: Wish) -> files.Copy:
        def copy() -> files.Copy:
            return files.copy_aside(
                self.workspace.root,
                self.folders,
                self.copy,
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
                manifest = store.read_manifest(row.path, row.digest, roots=self.folders)
            except Corrupt as error:
                mark_corrupt(row, str(error))
                continue
            self._sound[row.pk] = manifest
            if row.attempt_id == self.attempt.pk and self._last is None:
                self._last, self._last_key = manifest, row.pk

    def _thin_out(self) -> None:
        """Drop what is too old, then the blobs that nothing needs any more."""
        # Before it is proved that this process still holds the run.
        among = store.stored(self.attempt.run_id)
        kept = self._patiently(lambda: drop_old(self.attempt, self.token))
        for key in set(self._sound) - set(kept):
            del self._sound[key]
        if set(kept) <= set(self._sound):
            used = {name for each in self._sound.values() for name in each.blobs()}
            store.remove_unused(self.attempt.run_id, used, kept.values(), among=among)

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
