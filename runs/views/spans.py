"""Where an attempt's time went: the stretches of its timeline, and what of it is not charged."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from runs.core.interruptions import Kind, read
from runs.core.states import State
from runs.models import Attempt

# The colour of each stretch; the words are in the chart's text and in the table below it.
QUEUE, START, AGENT, PAUSED, DOWN, UNWATCHED, AFTER = (
    "f-q",
    "f-b",
    "f-run",
    "f-warn",
    "f-k",
    "f-bar",
    "f-b",
)
OF_KIND = {
    Kind.PAUSED: PAUSED,
    Kind.COPIED: PAUSED,
    Kind.DOWN: DOWN,
    Kind.UNWATCHED: UNWATCHED,
}


@dataclass(frozen=True)
class Span:
    """Seconds since the run was first queued."""

    begin: float
    end: float
    css: str
    words: str


@dataclass(frozen=True)
class Spent:
    """Of one attempt, in seconds; None: it never came to that."""

    number: int
    queue: float | None
    start: float | None
    agent: float | None
    paused: float
    down: float
    unwatched: float
    after: float | None
    asked: list[str]

    @property
    def not_charged(self) -> float:
        return sum(one or 0 for one in (self.queue, self.start, self.paused, self.down, self.after))


def spans_of(attempt: Attempt, origin: datetime, now: datetime, *, agent_css: str) -> list[Span]:
    """In the order in which they are drawn: interruptions lie over the agent's time."""

    def at(moment: datetime) -> float:
        return max(0.0, (moment - origin).total_seconds())

    end = attempt.ended_at or now
    claimed = attempt.claimed_at
    found = [Span(at(attempt.queued_at), at(claimed or end), QUEUE, "waited in the queue")]
    if claimed is None:
        return found
    started = attempt.agent_started_at
    found.append(Span(at(claimed), at(started or attempt.agent_ended_at or end), START, "start-up"))
    if started is None:
        return found
    agent_end = attempt.agent_ended_at or end
    found.append(Span(at(started), at(agent_end), agent_css, "agent"))
    for one in read(attempt.interruptions):
        begin = at(started) + one.at
        last = min(begin + one.seconds, at(agent_end))
        if last > begin:
            found.append(Span(begin, last, OF_KIND[one.kind], one.words))
    if attempt.agent_ended_at:
        found.append(Span(at(agent_end), at(end), AFTER, "collecting and grading"))
    return found


def spent(attempt: Attempt, now: datetime, *, agent_seconds: float | None) -> Spent:
    end = attempt.ended_at or now
    claimed, started, ended = attempt.claimed_at, attempt.agent_started_at, attempt.agent_ended_at
    unwatched = sum(one.seconds for one in read(attempt.interruptions) if one.is_charged)
    never_ran = started is None and attempt.state not in (State.QUEUED, State.STARTING)
    return Spent(
        number=attempt.number,
        queue=((claimed or end) - attempt.queued_at).total_seconds(),
        start=((started or ended or end) - claimed).total_seconds() if claimed else None,
        agent=None if started is None or never_ran else agent_seconds,
        paused=attempt.paused_seconds,
        down=attempt.down_seconds,
        unwatched=unwatched,
        after=(end - ended).total_seconds() if ended else None,
        asked=attempt.asked.words(),
    )


def total(all_spent: Sequence[Spent]) -> float:
    """What of the run's time since it was queued is not charged to its agent."""
    return sum(each.not_charged for each in all_spent)
