"""A container engine that does not answer: said on the run's page, and outlasted."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from django.conf import settings

from mlebench_web.fleet import hosts
from runs.containers import EngineFailure
from runs.core.failures import Cause
from runs.patience import engine_patiently, patiently

if TYPE_CHECKING:
    from runs.worker import Supervisor

logger = structlog.get_logger(__name__)


class EngineSilence:
    """Since when the engine of an attempt is silent, in the attempt's row."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self.supervisor = supervisor

    def begins(self, failure: EngineFailure) -> None:
        """Written once, however often it fails."""
        supervisor = self.supervisor
        if supervisor.attempt.engine_silent_since is None:
            logger.warning("engine.silent", attempt=supervisor.attempt.pk, text=failure.text)
            now = patiently(hosts.now, tick=supervisor.tick, what="clock")
            supervisor.save(engine_silent_since=now, engine_silence=failure.text)

    def ends(self) -> None:
        supervisor = self.supervisor
        if supervisor.attempt.engine_silent_since is not None:
            supervisor.log.say("The container engine answers again.")
            supervisor.save(engine_silent_since=None, engine_silence="")

    def outlasted[T](self, act: Callable[[], T]) -> T:
        """For what must be done before the attempt can leave its state, however long it takes."""
        return self._patiently(act, self.supervisor.tick, lambda _: True)

    def outlasted_while_unreachable[T](self, act: Callable[[], T]) -> T:
        """For what is good to have: a refusal is an answer."""
        return self._patiently(
            act, self.supervisor.tick, lambda failure: failure.cause == Cause.ENGINE_UNREACHABLE
        )

    def within_the_start_limit[T](self, act: Callable[[], T]) -> T:
        """For a start: an engine that restarts is waited for, a refusal is an answer."""
        began = time.monotonic()

        def is_worth_waiting(failure: EngineFailure) -> bool:
            left = settings.START_LIMIT.total_seconds() - (time.monotonic() - began)
            return failure.cause == Cause.ENGINE_UNREACHABLE and left > 0

        return self._patiently(act, self._tick_unless_cancelled, is_worth_waiting)

    def _tick_unless_cancelled(self) -> None:
        self.supervisor.tick()
        self.supervisor.refresh()
        if self.supervisor.attempt.cancel_requested_at:
            raise EngineFailure(Cause.CANCELLED, "Cancelled during start-up.")

    def _patiently[T](
        self,
        act: Callable[[], T],
        tick: Callable[[], None],
        is_worth_waiting: Callable[[EngineFailure], bool],
    ) -> T:
        return engine_patiently(
            act,
            tick=tick,
            silent=self.begins,
            answers=self.ends,
            is_worth_waiting=is_worth_waiting,
        )
