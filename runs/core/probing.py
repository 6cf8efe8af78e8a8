"""What a probe saw of an agent's steps, turned into the events that the agent does not say. Pure.

A probe reads all steps that the agent's own files show, each time anew; what is known of them
already is left out here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from runs.core.steps import (
    MAX_ERROR,
    MAX_NAME,
    MAX_NUMBER,
    Event,
    Metric,
    StepEnd,
    StepState,
    Word,
    clean,
)


@dataclass(frozen=True)
class SeenStep:
    """One step as the agent's files show it. Texts are as they were found."""

    # The agent's own place in its count, from 1.
    number: int
    name: str = ""
    # By the host's clock, seconds since 1970; None: not to be seen.
    began_at: float | None = None
    ended_at: float | None = None
    is_running: bool = False
    metric: Metric | None = None
    error: str = ""
    # Nothing of it is in the files: it begins where the last one ended.
    is_assumed: bool = False


STILL_IN_THE_FILES = (StepEnd.TIMED_OUT, StepEnd.NOT_SAID)


class News:
    """What has happened since the last look, as events: starts and ends, in order.

    `since`: when the agent started; what had ended before is of the attempt that it goes on from.
    """

    def __init__(self, *, since: float, told: Iterable[int] = ()) -> None:
        self.since = since
        # Steps whose end was told.
        self.told = set(told)
        self._ended = 0

    def of(
        self,
        known: Mapping[int, StepState],
        seen: Sequence[SeenStep],
        redact: Callable[[str], str] = str,
    ) -> list[Event]:
        """`known`: the steps of this attempt so far."""
        ended = sum(not step.is_running for step in seen)
        if ended < self._ended:
            # It counts from the beginning: the agent has started again in its container.
            self.told.clear()
        self._ended = ended
        events: list[Event] = []
        for step in seen:
            if 0 <= step.number <= MAX_NUMBER:
                events += self._of_step(known.get(step.number), step, redact)
        return events

    def _of_step(
        self, before: StepState | None, step: SeenStep, redact: Callable[[str], str]
    ) -> list[Event]:
        number, name = step.number, clean(redact(step.name), MAX_NAME)
        start = Event(
            Word.STEP_STARTED, step.began_at, number, name=name, is_assumed=step.is_assumed
        )
        # One that was ended for its time still runs in the files until the agent goes on, and of
        # several at once only the last one counts as running.
        waits = before and before.end in STILL_IN_THE_FILES and number not in self.told
        begins = before is None or not (before.is_running or waits)
        if step.is_running:
            if begins:
                self.told.discard(number)
            return [start] if begins else []
        if number in self.told:
            return []
        self.told.add(number)
        if step.ended_at is not None and step.ended_at < self.since:
            return []
        end = Event(
            Word.STEP_FINISHED,
            step.ended_at,
            number,
            name=name,
            metric=step.metric,
            error=clean(redact(step.error), MAX_ERROR),
        )
        return [start, end] if begins else [end]
