"""Steps of an agent's own work: what it says of them, read as a stranger's words. Pure.

An event is a line of JSON in MLE_EVENTS_FILE (docs/agents.md). Whoever wrote it may lie, err or
attack: sizes are limited, odd characters dropped, and what is of the wrong kind is left out and
counted. Times are seconds of the run's active time.
"""

import json
import math
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

VERSION = 1
# A line that is longer is no event.
MAX_LINE_BYTES = 64 * 2**10
MAX_NAME = 200
MAX_METRIC_NAME = 100
MAX_ERROR = 300
# What a database column holds, with room.
MAX_NUMBER = 10**9
# Steps of an attempt that are kept; of more, the older ones are thinned out.
MAX_STEPS = 2000


class Word(StrEnum):
    """What an event is about."""

    STEP_STARTED = "step_started"
    STEP_FINISHED = "step_finished"
    METRIC = "metric"
    CHECKPOINT = "checkpoint"
    SUBMISSION = "submission"
    LLM = "llm"
    LOG = "log"
    HEARTBEAT = "heartbeat"


class StepEnd(StrEnum):
    """How a step ended; a step without one is running."""

    FINISHED = "finished"
    # The agent said so itself: its code was wrong, its step's process was killed.
    FAILED = "failed"
    # It took longer than the step timeout, and was ended.
    TIMED_OUT = "timed_out"
    # The attempt ended during it.
    INTERRUPTED = "interrupted"
    # The next step began, and nothing was said about the end of this one.
    NOT_SAID = "not_said"


class Source(StrEnum):
    """Who told of a step: the agent in its events, or a probe of ours that read its files."""

    AGENT = "agent"
    PROBE = "probe"


@dataclass(frozen=True)
class Metric:
    name: str
    value: float
    # None: the agent did not say which way is better.
    maximize: bool | None = None


@dataclass(frozen=True)
class Event:
    word: Word
    # By the agent's clock, seconds since 1970.
    at: float | None = None
    step: int | None = None
    total: int | None = None
    name: str = ""
    metric: Metric | None = None
    error: str = ""
    # Of a step's start: the process that does it, as its container calls it.
    process: int | None = None
    # A probe's guess: the next step begins where the last one ended.
    is_assumed: bool = False


@dataclass(frozen=True)
class Parsed:
    """An event, or none; and what was wrong with the line, or with a part of it."""

    event: Event | None = None
    fault: str = ""


# ------------------------------------------------------------------------------ one line


def parse(line: bytes, redact: Callable[[str], str] = str) -> Parsed:
    """One line of the file. A part that is of the wrong kind is left out, the rest still counts:
    a step whose metric is NaN has ended all the same. `redact` takes the secrets out of its texts.
    """
    if len(line) > MAX_LINE_BYTES:
        return Parsed(fault="a line is too long")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Parsed(fault="a line is no JSON")
    if not isinstance(row, dict):
        return Parsed(fault="a line is no JSON object")
    if row.get("v", VERSION) != VERSION:
        return Parsed(fault="an event is of another version")
    kind = row.get("type")
    if not isinstance(kind, str):
        return Parsed(fault="an event has no type")
    if kind not in list(Word):
        return Parsed(fault="an event has an unknown type")
    faults: list[str] = []
    event = Event(
        word=Word(kind),
        at=_number(row, "t", faults),
        step=_count(row, "step", faults),
        total=_count(row, "total", faults),
        name=clean(redact(_text(row, "name", faults)), MAX_NAME),
        metric=_metric(row.get("metric"), redact, faults),
        error=clean(redact(_text(row, "error", faults)), MAX_ERROR),
        process=_count(row, "pid", faults),
    )
    return Parsed(event, faults[0] if faults else "")


def clean(text: str, limit: int) -> str:
    """On one line, without control and invisible characters, and at most `limit` long."""
    # Nothing after this can be among the first `limit`, and a megabyte is not looked through.
    text = text[: 8 * limit]
    shown = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _text(row: dict[str, Any], key: str, faults: list[str]) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        faults.append(f"{key} is no text")
        return ""
    return value


def _count(row: dict[str, Any], key: str, faults: list[str]) -> int | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        faults.append(f"{key} is no whole number from 0 to {MAX_NUMBER}")
        return None
    return value


def _number(row: dict[str, Any], key: str, faults: list[str]) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    number = as_number(value)
    if number is None:
        faults.append(f"{key} is no number")
    return number


def as_number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _metric(value: object, redact: Callable[[str], str], faults: list[str]) -> Metric | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        faults.append("metric is no JSON object")
        return None
    number, maximize = as_number(value.get("value")), value.get("maximize")
    if number is None:
        faults.append("metric.value is no number")
        return None
    if not isinstance(maximize, bool | None):
        faults.append("metric.maximize is neither true nor false")
        maximize = None
    name = clean(redact(_text(value, "name", faults)), MAX_METRIC_NAME)
    return Metric(name, number, maximize)


# ------------------------------------------------------------------------------ the steps


@dataclass(frozen=True)
class StepState:
    """One step of an attempt, as far as is known."""

    number: int
    name: str = ""
    # Null: its start was not told of.
    began: float | None = None
    ended: float | None = None
    end: StepEnd | None = None
    metric: Metric | None = None
    error: str = ""
    is_assumed: bool = False

    @property
    def is_running(self) -> bool:
        return self.end is None

    @property
    def seconds(self) -> float | None:
        if self.began is None or self.ended is None:
            return None
        return max(0.0, self.ended - self.began)


@dataclass
class Ledger:
    """The steps of one attempt, from what is said of them in its order.

    `after`: the last step that the attempt went on from, so that those without a number continue.
    """

    steps: dict[int, StepState] = field(default_factory=dict)
    after: int = 0
    # How many steps the agent means to take, where it says so.
    total: int | None = None
    # The last metric that belongs to no single step: of the whole, as the agent says.
    overall: Metric | None = None
    # Step timeouts with no finished step after them, and whether any step has finished. Counted as
    # they come, for `steps` forgets: one that begins again under its number loses its last end.
    timeouts: int = 0
    has_finished: bool = False
    # Numbers of steps that have changed since `taken` was called.
    changed: set[int] = field(default_factory=set)

    # Looked up at each event, so not searched for: a hostile agent says very many.
    _running: int | None = field(init=False, default=None)
    _last: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._last = max(self.steps, default=self.after)
        running = [step.number for step in self.steps.values() if step.is_running]
        self._running = max(running, default=None)

    @property
    def running(self) -> StepState | None:
        """The one step that has begun and not ended: the start of another ends it."""
        return None if self._running is None else self.steps[self._running]

    def take(self, event: Event, active: float) -> None:
        """What an event changes; `active` is when it was said."""
        if event.total is not None:
            self.total = event.total
        match event.word:
            case Word.STEP_STARTED:
                self._start(event, active)
            case Word.STEP_FINISHED:
                self._finish(event, active)
            case Word.METRIC:
                self._measure(event)

    def _start(self, event: Event, active: float) -> None:
        running = self.running
        number = self._last + 1 if event.step is None else event.step
        if running and running.number != number:
            self._put(replace(running, ended=active, end=StepEnd.NOT_SAID))
        self._put(StepState(number, name=event.name, began=active, is_assumed=event.is_assumed))

    def _finish(self, event: Event, active: float) -> None:
        running = self.running
        if event.step is not None:
            number = event.step
        else:
            number = running.number if running else self._last + 1
        step = self.steps.get(number) or StepState(number)
        end = StepEnd.FAILED if event.error else StepEnd.FINISHED
        if step.end == StepEnd.TIMED_OUT:
            # It was ended for its time; what the agent makes of that is its own word.
            end = StepEnd.TIMED_OUT
        if end == StepEnd.FINISHED:
            self.timeouts, self.has_finished = 0, True
        self._put(
            replace(
                step,
                name=event.name or step.name,
                ended=active,
                end=end,
                metric=event.metric or step.metric,
                error=event.error,
                is_assumed=False,
            )
        )

    def _measure(self, event: Event) -> None:
        running = self.running
        number = event.step if event.step is not None else running.number if running else None
        step = self.steps.get(number) if number is not None else None
        if step is None or (step.end and step.metric):
            # Said after the steps that it sums up.
            self.overall = event.metric or self.overall
        elif event.metric:
            self._put(replace(step, metric=event.metric))

    def time_out(self, active: float) -> StepState | None:
        """The running step is ended for its time; None when none runs."""
        running = self.running
        if running is None:
            return None
        ended = replace(running, ended=active, end=StepEnd.TIMED_OUT, is_assumed=False)
        self._put(ended)
        self.timeouts += 1
        return ended

    def close(self, active: float, *, by_itself: bool) -> None:
        """The attempt has ended. A step that only a probe assumed had not begun, if the agent
        ended by itself."""
        step = self.running
        if step and step.is_assumed and by_itself:
            self._remove(step.number)
        elif step:
            self._put(replace(step, ended=active, end=StepEnd.INTERRUPTED))

    def thin_out(self) -> None:
        """Keep at most MAX_STEPS: of the older half, every second one goes. The best of it and
        the running one stay."""
        if len(self.steps) <= MAX_STEPS:
            return
        kept = {step.number for step in best_of(self.steps.values()).values()}
        older = sorted(self.steps)[: MAX_STEPS // 2]
        for number in older[1::2]:
            if number not in kept and not self.steps[number].is_running:
                self._remove(number)

    def taken(self) -> tuple[list[StepState], list[int]]:
        """Steps that are new or have changed since the last call, and numbers that are gone."""
        changed, self.changed = sorted(self.changed), set()
        here = [self.steps[number] for number in changed if number in self.steps]
        return here, [number for number in changed if number not in self.steps]

    def _put(self, step: StepState) -> None:
        self.steps[step.number] = step
        self.changed.add(step.number)
        self._last = max(self._last, step.number)
        if step.is_running:
            self._running = step.number
        elif self._running == step.number:
            self._running = None

    def _remove(self, number: int) -> None:
        del self.steps[number]
        self.changed.add(number)
        if self._running == number:
            self._running = None


def best_of(steps: Iterable[StepState]) -> dict[str, StepState]:
    """Of each metric that has a direction, the step with the best value; the first of equals."""
    best: dict[str, StepState] = {}
    for step in steps:
        metric = step.metric
        if metric is None or metric.maximize is None:
            continue
        held = best.get(metric.name)
        if held is None or held.metric is None or is_better(metric, held.metric):
            best[metric.name] = step
    return best


def is_better(metric: Metric, than: Metric) -> bool:
    return metric.value > than.value if metric.maximize else metric.value < than.value
