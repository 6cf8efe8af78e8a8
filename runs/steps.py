"""Steps of a running agent: what it says in its events, or what a probe reads in its files.

Each look writes what is new in one transaction with how far was read, under the lease token: a
supervisor that adopts the attempt goes on behind it, and no event is lost or counted twice.
"""

import math
import time
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import structlog

from mlebench_web.fleet import hosts
from runs import checkpoints, probes
from runs.core.probing import News
from runs.core.steps import (
    Event,
    Ledger,
    Metric,
    Source,
    StepEnd,
    StepState,
    Word,
    parse,
)
from runs.event_file import Lines, Place, Tail
from runs.patience import patiently
from runs.probes import Unread
from runs.watching import Ending, Watch

if TYPE_CHECKING:
    from runs.worker import Supervisor

logger = structlog.get_logger(__name__)

LOOK_EVERY = 1.0
# Probes list folders and read whole files.
PROBE_EVERY = 2.0
# How often the row says that there was a sign of life, at most.
SIGN_EVERY = 10.0
# What is still read of an events file when the agent has ended, or before its step is; a disk full
# of it must not keep the run from its end.
LAST_LOOKS = 256
TICK_EVERY = 1000
ABOUT_STEPS = (Word.STEP_STARTED, Word.STEP_FINISHED, Word.METRIC)


@dataclass
class Feed:
    """`Attempt.step_feed`: how far its events are read, and what they say of the whole."""

    place: Place = field(default_factory=Place)
    lines: int = 0
    # Lines and parts of lines that were no events, and what was wrong with the first.
    faults: int = 0
    fault: str = ""
    # The agent tells of its steps itself: no probe looks any more.
    speaks: bool = False
    total: int | None = None
    overall: Metric | None = None
    # The step of the last `checkpoint` that it said; -1: one without a number.
    checkpoint: int | None = None
    # The process that does the running step, where the agent names one; as its container calls it.
    process: int | None = None
    # When a step was marked as timed out and the agent has not gone on since: active seconds.
    ending_since: float | None = None
    # As in the ledger: its rows alone do not show them.
    timeouts: int = 0
    has_finished: bool = False

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Feed":
        known = {each.name for each in fields(cls)} & set(row)
        values = {name: row[name] for name in known}
        if "place" in values:
            values["place"] = Place(**values["place"])
        if values.get("overall"):
            values["overall"] = Metric(**values["overall"])
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class StepPart:
    """The watch's part that keeps the steps."""

    every = LOOK_EVERY

    def __init__(self, supervisor: "Supervisor") -> None:
        attempt = supervisor.attempt
        self.supervisor = supervisor
        self.feed = Feed.of(attempt.step_feed)
        self.tail = Tail(supervisor.workspace.root, place=self.feed.place)
        rows = []
        if supervisor.adopted:
            rows = patiently(lambda: list(attempt.steps.all()), tick=supervisor.tick, what="steps")
        checkpoint = attempt.restored_checkpoint
        self.ledger = Ledger(
            {row.number: row.as_state() for row in rows},
            after=checkpoint.step or 0 if checkpoint else 0,
            total=self.feed.total,
            overall=self.feed.overall,
            timeouts=self.feed.timeouts,
            has_finished=self.feed.has_finished,
        )
        self.probe = probes.of(supervisor.manifest.probe, supervisor.workspace.root)
        self._news = News(
            since=time.time() - (_age(supervisor) if self.probe else 0),
            told=(row.number for row in rows if row.end in (StepEnd.FINISHED, StepEnd.FAILED)),
        )
        self._probe_due = 0.0
        self._unread = ""
        # Nothing is said to be older than what was read before it.
        said = (moment for row in rows for moment in (row.began_seconds, row.ended_seconds))
        self._said_until = max((each for each in said if each), default=attempt.charged_seconds)
        # When everything that there was had been read; None: by an earlier supervisor.
        self._read_at: float | None = None
        self._sign_saved = time.monotonic()
        self._saves_again = supervisor.adopted and self.feed.checkpoint is not None

    @property
    def running(self) -> StepState | None:
        """The step that runs now; its `began` is active time of the run."""
        return self.ledger.running

    def time_out(self, watch: Watch) -> StepState | None:
        """Mark the running step as ended for its time, in the row at once; None: none runs.

        What the agent says of its end later does not change that. Raises Replaced.
        """
        active = round(watch.active(), 3)
        step = self.ledger.time_out(active)
        if step is not None:
            self.feed.ending_since = active
            self._write(watch)
        return step

    # ------------------------------------------------------------------ the watch's calls

    def look(self, watch: Watch) -> Ending | None:
        if self._saves_again:
            # The supervisor before may have died between the event and the save.
            self._saves_again = False
            self._save_checkpoint(watch)
        found = self.tail.read()
        is_new = self._take_lines(watch, found)
        if not self.feed.speaks and self.probe and time.monotonic() >= self._probe_due:
            is_new = self._take_probe(watch) or is_new
            self._probe_due = time.monotonic() + PROBE_EVERY
        if is_new:
            watch.last_sign = time.monotonic()
            self._write(watch)
        else:
            self._write_sign(watch)
        return None

    def last(self, watch: Watch, ending: Ending) -> None:
        """Its files are complete now: read what is left, and end the step that it was in."""
        is_new = self._take_all(watch)
        ended = max(ending.active_seconds, self._said_until)
        self.ledger.close(round(ended, 3), by_itself=ending.ended_by_itself)
        if is_new or self.ledger.changed:
            self._write(watch)

    def catch_up(self, watch: Watch) -> None:
        """Read all that the agent has said by now: one look may be far behind, so that a step
        which ended long ago still seems to run."""
        if self._take_all(watch):
            watch.last_sign = time.monotonic()
            self._write(watch)

    # ------------------------------------------------------------------ what is said

    def _take_all(self, watch: Watch) -> bool:
        """Whether there was anything in what is still unread."""
        is_new = False
        for _ in range(LAST_LOOKS):
            watch.supervisor.tick()
            found = self.tail.read()
            is_new = self._take_lines(watch, found) or is_new
            if not found.is_behind:
                break
        if not self.feed.speaks and self.probe:
            is_new = self._take_probe(watch) or is_new
        return is_new

    def _take_lines(self, watch: Watch, found: Lines) -> bool:
        """Whether there was anything."""
        now = time.monotonic()
        if found.fault:
            self._note(found.fault)
        says_checkpoint = False
        for line in found.lines:
            if self.feed.lines % TICK_EVERY == 0:
                # A file of nothing but line ends takes seconds.
                self.supervisor.tick()
            self.feed.lines += 1
            parsed = parse(line, self.supervisor.log.redact)
            if parsed.fault:
                self._note(parsed.fault)
            if parsed.event is None:
                continue
            word = parsed.event.word
            self.feed.speaks = self.feed.speaks or word in ABOUT_STEPS
            says_checkpoint = says_checkpoint or word == Word.CHECKPOINT
            self._take(watch, parsed.event, oldest=self._oldest(now))
        if not found.is_behind:
            self._read_at = now
        if says_checkpoint:
            self._save_checkpoint(watch)
        return bool(found.lines or found.fault)

    def _oldest(self, now: float) -> float:
        """How many seconds ago a line that is new now may have been written."""
        return math.inf if self._read_at is None else now - self._read_at

    def _take(self, watch: Watch, event: Event, *, oldest: float = math.inf) -> None:
        """The agent's clock is believed within what is known: a line that was not there at the
        last look is younger than that, and not of the future."""
        active = watch.active()
        age = 0.0 if event.at is None else min(max(0.0, time.time() - event.at), oldest)
        said = max(min(active, active - age), min(self._said_until, active))
        self._said_until = said
        if event.word == Word.CHECKPOINT:
            self.feed.checkpoint = -1 if event.step is None else event.step
        elif event.word in (Word.STEP_STARTED, Word.STEP_FINISHED):
            self.feed.process, self.feed.ending_since = event.process, None
        self.ledger.take(event, round(said, 3))
        self.ledger.thin_out()

    def _save_checkpoint(self, watch: Watch) -> None:
        step = self.feed.checkpoint
        checkpoints.save_soon(watch, step=step if step is not None and step >= 0 else None)

    def _take_probe(self, watch: Watch) -> bool:
        """Whether its files show anything new."""
        assert self.probe is not None  # noqa: S101 - asked by the callers
        try:
            seen = self.probe.look()
        except Unread as error:
            words = self.supervisor.log.redact(str(error))
            if words != self._unread:
                self._unread = words
                self.supervisor.log.say(f"Steps of the agent cannot be read: {words}.")
            return False
        if seen is None:
            return False
        events = self._news.of(self.ledger.steps, seen, self.supervisor.log.redact)
        for event in events:
            self._take(watch, event)
        return bool(events)

    def _note(self, fault: str) -> None:
        """Counted; the first is told, since a hostile agent writes as many as it likes."""
        self.feed.faults += 1
        if not self.feed.fault:
            self.feed.fault = self.supervisor.log.redact(fault)
            self.supervisor.log.say(
                f"Not all in the agent's events file is an event: {self.feed.fault}. That is left "
                "out; further ones are counted, and not told of."
            )

    # ------------------------------------------------------------------ what is written

    def _write(self, watch: Watch) -> None:
        steps, gone = self.ledger.taken()
        feed, ledger = self.feed, self.ledger
        feed.total, feed.overall = ledger.total, ledger.overall
        feed.timeouts, feed.has_finished = ledger.timeouts, ledger.has_finished
        attempt, supervisor = watch.attempt, self.supervisor
        now = patiently(hosts.now, tick=supervisor.tick, what="clock")
        self._sign_saved = watch.last_sign
        patiently(
            lambda: attempt.record_steps(
                supervisor.token,
                steps,
                gone=gone,
                source=Source.AGENT if feed.speaks else Source.PROBE,
                active=watch.active(),
                now=now,
                step_feed=feed.as_json(),
                signs=self._signs(watch, now.timestamp(), step=True),
            ),
            tick=supervisor.tick,
            what="steps",
        )

    def _write_sign(self, watch: Watch) -> None:
        """A line, CPU time, or a pause that is over: the page shows when it was."""
        if watch.last_sign - self._sign_saved < SIGN_EVERY:
            return
        now = patiently(hosts.now, tick=self.supervisor.tick, what="clock")
        self._sign_saved = watch.last_sign
        self.supervisor.save(signs=self._signs(watch, now.timestamp()))

    def _signs(self, watch: Watch, now: float, *, step: bool = False) -> dict[str, float]:
        ago = max(0.0, time.monotonic() - watch.last_sign)
        signs = {**watch.attempt.signs, "any": round(now - ago, 1)}
        return {**signs, "step": round(now, 1)} if step else signs


def _age(supervisor: "Supervisor") -> float:
    """Seconds since the agent was started."""
    started = supervisor.attempt.agent_started_at
    if started is None:
        return 0.0
    now = patiently(hosts.now, tick=supervisor.tick, what="clock")
    return max(0.0, (now - started).total_seconds())


def part_of(watch: Watch) -> StepPart | None:
    """The part of this watch that keeps the steps."""
    return next((part for part in watch.parts if isinstance(part, StepPart)), None)
