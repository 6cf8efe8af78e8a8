"""A supervisor that is cut off from the database pauses its container in time.

By then another host may soon be given the run, and two agents must not both spend money and GPU
hours on it. The thread here never touches the database, so no query that hangs can stop it.

A checkpoint of files that would not stand still pauses the container too (`hold`).
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mlebench_web.fleet import hosts
from runs.containers import EngineFailure
from runs.core.interruptions import Kind
from runs.core.limits import must_pause

if TYPE_CHECKING:
    from runs.containers import Engine
    from runs.patience import Heart

logger = structlog.get_logger(__name__)

MARKER = "paused.json"
LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Pause:
    """On this host's monotonic clock, which all its processes share until it boots again."""

    began: float
    ended: float
    kind: Kind = Kind.PAUSED
    # Its end was not written: it lasts, or whoever made it died in it.
    is_open: bool = False

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.began)


class Pauser(threading.Thread):
    """Pauses and unpauses one container. `watch` and `let_go` say when there is an agent to pause.

    Its pauses lie in `taken` until the supervisor has written them to the row (`written`).
    """

    def __init__(
        self, heart: "Heart", engine: "Engine", folder: Path, *, lost_after: float, ttl: float
    ) -> None:
        super().__init__(name=f"pauser-{folder.name}", daemon=True)
        self._heart = heart
        self._engine = engine
        self._marker = folder / MARKER
        self._lost_after = lost_after
        self._ttl = ttl
        self._lock = threading.Lock()
        self._stop_asked = threading.Event()
        self._container = ""
        self._began: float | None = None
        self._kind = Kind.PAUSED
        # A copy of the agent's files is being made: contact alone is no reason to go on.
        self._is_kept = False
        self._failed = False
        # As it was at the last contact with the database.
        self.could_be_replaced = False
        self.taken: list[Pause] = []
        self._over_seconds = 0.0

    # ------------------------------------------------------------------ for the supervisor

    def watch(self, container: str) -> None:
        """There is an agent at work in it."""
        with self._lock:
            self._container = container

    def let_go(self) -> None:
        """The agent is to end: from here nothing is paused, and what is paused goes on."""
        with self._lock:
            self._go_on()
            self._container = ""

    def begin_anew(self) -> None:
        """The agent's time counts from here: what was paused before is part of no account."""
        self.let_go()
        with self._lock:
            self.taken.clear()
            self._marker.unlink(missing_ok=True)

    def leave(self) -> None:
        """Another one decides now, also about what is paused."""
        with self._lock:
            self._container = ""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The agent stands still in here, where it runs and the engine answers; not charged."""
        with self._lock:
            if self._container and self._began is None:
                self._pause(Kind.COPIED)
                self._is_kept = self._began is not None
        try:
            yield
        finally:
            with self._lock:
                if self._is_kept:
                    self._is_kept = False
                    self._go_on()

    @property
    def is_holding(self) -> bool:
        return self._began is not None

    def seconds(self) -> float:
        """Paused in all by this supervisor, until now."""
        with self._lock:
            now = time.monotonic()
            return self._over_seconds + (now - self._began if self._began is not None else 0.0)

    def unwritten(self) -> float:
        """Of these, what the row does not know yet."""
        with self._lock:
            held = time.monotonic() - self._began if self._began is not None else 0.0
            return held + sum(pause.seconds for pause in self.taken)

    def written(self, pause: Pause) -> None:
        """The row has it: the file beside the attempt's folders is no longer needed."""
        with self._lock:
            self.taken.remove(pause)
            if self._began is None and not self.taken:
                self._marker.unlink(missing_ok=True)

    def left_behind(self) -> Pause | None:
        """The pause of a supervisor that died; None when there was none on this boot."""
        if self._began is not None or self.taken:
            # The file tells of this one's own pause, which it writes down itself.
            return None
        try:
            said = json.loads(self._marker.read_text())
            if said["boot_id"] != hosts.boot_id():
                return None
            ended = said["ended"] or time.monotonic()
            kind = Kind(said.get("kind", Kind.PAUSED))
            return Pause(said["began"], ended, kind, is_open=not said["ended"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            # A disk that was full when it was written: the pause is charged, and that is said.
            logger.warning("pause.unreadable", file=str(self._marker), error=str(error))
            return None

    def forget_what_was_left(self) -> None:
        if self._began is None and not self.taken:
            self._marker.unlink(missing_ok=True)

    def stop(self) -> None:
        self._stop_asked.set()
        if self.is_alive():
            self.join(timeout=5)

    # ------------------------------------------------------------------ the thread

    def run(self) -> None:
        while not self._stop_asked.wait(LOOK_EVERY):
            with self._lock:
                self._look()

    def _look(self) -> None:
        if not self._container or self._heart.replaced:
            return
        cut_off = time.monotonic() - self._heart.last_beat
        if self._began is None:
            if must_pause(
                cut_off=cut_off,
                lost_after=self._lost_after,
                ttl=self._ttl,
                could_be_replaced=self.could_be_replaced,
            ):
                self._pause(Kind.PAUSED, cut_off)
        elif self._heart.last_beat > self._began and not self._is_kept:
            self._go_on()

    def _pause(self, kind: Kind, cut_off: float = 0) -> None:
        began = time.monotonic()
        try:
            # Written first: a pause that nobody knows of would be charged.
            self._mark(Pause(began, 0, kind))
            self._engine.pause(self._container)
        except (EngineFailure, OSError) as error:
            if not self._failed:
                logger.warning("pause.failed", container=self._container, error=str(error))
            self._failed = True
            # There is no pause to know of. One of before that is not written yet stays in `taken`.
            with suppress(OSError):
                self._marker.unlink(missing_ok=True)
            return
        self._failed = False
        self._began, self._kind = began, kind
        if cut_off:
            logger.warning("pause.began", container=self._container, cut_off_seconds=round(cut_off))

    def _go_on(self) -> None:
        if self._began is None:
            return
        try:
            self._engine.unpause(self._container)
        except EngineFailure as error:
            # The next look tries again; so does the watch, which unpauses what it finds paused.
            logger.warning("unpause.failed", container=self._container, error=str(error))
            return
        pause = Pause(self._began, time.monotonic(), self._kind)
        self._began = None
        self._over_seconds += pause.seconds
        self.taken.append(pause)
        logger.info("pause.ended", container=self._container, seconds=round(pause.seconds, 1))
        try:
            self._mark(pause)
        except OSError as error:
            logger.warning("pause.not_marked", error=str(error))

    def _mark(self, pause: Pause) -> None:
        """`ended` is 0 while it lasts."""
        temporary = self._marker.with_suffix(".tmp")
        said = {"began": pause.began, "ended": pause.ended, "kind": pause.kind}
        temporary.write_text(json.dumps({"boot_id": hosts.boot_id(), **said}))
        temporary.replace(self._marker)
