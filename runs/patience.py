"""A supervisor outlives an outage of the database or the engine: it waits, it does not fall.

A long task cannot rely on CONN_HEALTH_CHECKS, which act at the border of a web request only.
"""

import threading
import time
from collections.abc import Callable

import structlog
from django.db import InterfaceError, OperationalError, connection

from runs.containers import EngineFailure

logger = structlog.get_logger(__name__)

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 5.0


def patiently[T](
    act: Callable[[], T], *, tick: Callable[[], None] = lambda: None, what: str = "database"
) -> T:
    """The result of `act`, tried again for as long as the database does not answer.

    `act` must be safe to repeat: an error at commit may come after the commit. `tick` is called
    between tries and may raise to give up.
    """
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return act()
        except (OperationalError, InterfaceError) as error:
            logger.warning("database.waiting", what=what, error=str(error), seconds=wait)
            connection.close()
            tick()
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)


# An engine call that fails at once must not be repeated in a busy loop, nor a healed one wait long.
LONGEST_ENGINE_WAIT_SECONDS = 15.0


def engine_patiently[T](
    act: Callable[[], T],
    *,
    tick: Callable[[], None],
    silent: Callable[[EngineFailure], None],
    answers: Callable[[], None],
    is_worth_waiting: Callable[[EngineFailure], bool],
) -> T:
    """The result of `act`, tried again while the engine's failures are worth waiting for.

    `act` must be safe to repeat. `tick` is called about each second between tries and may raise to
    give up; `silent` is told each failure, `answers` once a try after one has succeeded.
    """
    wait = FIRST_WAIT_SECONDS
    failed = False
    while True:
        try:
            result = act()
        except EngineFailure as failure:
            if not is_worth_waiting(failure):
                raise
            failed = True
            logger.warning("engine.waiting", text=failure.text, cause=failure.cause, seconds=wait)
            silent(failure)
            until = time.monotonic() + wait
            while (left := until - time.monotonic()) > 0:
                tick()
                time.sleep(min(1.0, left))
            wait = min(wait * 2, LONGEST_ENGINE_WAIT_SECONDS)
        else:
            if failed:
                answers()
            return result


class Heart(threading.Thread):
    """Keeps a lease alive while the supervising loop moves.

    `beat` renews the lease and returns False when another supervisor holds the attempt. The
    thread has its own database connection. It does not beat when the loop has not ticked for
    `stuck_after` seconds: a hung supervisor must lose its lease.
    """

    def __init__(
        self, beat: Callable[[], bool], *, every: float, stuck_after: float, name: str
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._beat = beat
        self._every = every
        self._stuck_after = stuck_after
        self._stop_asked = threading.Event()
        self._last_tick = time.monotonic()
        self.last_beat = time.monotonic()
        self.replaced = False

    def tick(self) -> None:
        """The loop says that it moves."""
        self._last_tick = time.monotonic()

    def run(self) -> None:
        try:
            while not self._stop_asked.wait(self._every):
                if time.monotonic() - self._last_tick > self._stuck_after:
                    logger.error("heart.loop_is_stuck", name=self.name)
                    continue
                try:
                    alive = self._beat()
                except (OperationalError, InterfaceError) as error:
                    logger.warning("heart.database_silent", name=self.name, error=str(error))
                    connection.close()
                    continue
                if not alive:
                    self.replaced = True
                    return
                self.last_beat = time.monotonic()
        finally:
            connection.close()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(timeout=5)
