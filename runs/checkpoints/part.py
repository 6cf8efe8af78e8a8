"""The watch's part that saves while an attempt runs, in a thread beside the watch."""

import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.db import connection

from runs import agent_manifest
from runs.checkpoints.saving import Saved, Saver, Wish
from runs.core.checkpoints import (
    NOTHING_YET,
    gap_after,
)
from runs.core.failures import Cause
from runs.models import Attempt, Replaced
from runs.watching import Ending, Watch

if TYPE_CHECKING:
    from runs.worker import Supervisor

logger = structlog.get_logger(__name__)

LOOK_EVERY = 0.5
# After a save that failed and that somebody waits for.
AGAIN_AFTER = 60.0
# A last save is waited for this long; a storage that hangs must not keep the run from its end.
LAST_SAVE_SECONDS = 900.0


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
        # The ask for a move that a save was made for: an older checkpoint is no ground to move on.
        self._saved_for_move: datetime | None = None

    def _period(self) -> float:
        return (self.manifest.checkpoint_every or settings.CHECKPOINT_EVERY).total_seconds()

    @property
    def has_left(self) -> bool:
        """It has made its last save."""
        return self.saver.left.is_set()

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
        if attempt.move_asked_at and attempt.move_asked_at == self._saved_for_move:
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
            return Wish(
                is_agents_word=self._speaks,
                step=self._step,
                is_asked=True,
                move_asked_at=attempt.move_asked_at,
            )
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
            watch.supervisor.log.say(words(saved))
        fields: dict[str, object] = {}
        if saved.problem != watch.attempt.checkpoint_problem:
            fields["checkpoint_problem"] = saved.problem
        if saved.wish.is_asked:
            self._saved_for_move = None if saved.problem else saved.wish.move_asked_at
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
