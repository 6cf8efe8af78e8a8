"""Attempts that go on from a checkpoint: from the newest whole one, and with no step left out.

What an agent did is read from its own events (they carry the machine's clock), what was saved from
the rows of the checkpoints. Times here are seconds of the Unix epoch, as in the events.
"""

import itertools
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chaoskit.ledger import Fault, Ledger
from chaoskit.world import World

if TYPE_CHECKING:
    from runs.models import Attempt, Checkpoint, Run

AGENTS = ("marathon", "baseline")
# The supervisor looks each half second, and saves take at most a quarter of the time.
HEARD_WITHIN, SAVE_SHARE = 1.5, 4
# Marathon's steps are half a second apart, on a machine that has time for them.
STEP_WITHIN = 2.0
# Faults after which a checkpoint is not what was saved: one interval more is lost.
TORN = "torn"
# Moved on purpose, by the product itself.
MOVED = "continued"


@dataclass
class Work:
    """What one attempt did, as it says itself."""

    attempt: "Attempt"
    begin: float = 0
    # Of steps that it finished: number and time.
    steps: list[tuple[int, float]] = field(default_factory=list)
    # When it said that a checkpoint is whole.
    words: list[float] = field(default_factory=list)
    # The last step that was finished when it began; None: it never came to a step.
    after: int | None = None
    total: int | None = None

    @property
    def interval(self) -> float:
        """The longest time between two of its words, or from its begin to the first one."""
        marks = [self.begin, *self.words]
        return max((b - a for a, b in itertools.pairwise(marks)), default=0.0)

    @property
    def alive_until(self) -> float:
        """Who was silent for longer than any of its steps took had died of an earlier fault."""
        marks = [self.begin, *(at for _, at in self.steps)]
        return marks[-1] + max((b - a for a, b in itertools.pairwise(marks)), default=float("inf"))

    def until(self, end: float) -> "Work":
        """As if it had ended then: what a frozen agent does after that counts no more."""
        steps = [each for each in self.steps if each[1] <= end]
        words = [each for each in self.words if each <= end]
        return Work(self.attempt, self.begin, steps, words, self.after, self.total)


@dataclass
class Loss:
    """One attempt that was lost, and what of its work was done again."""

    kind: str
    agent: str
    seconds: float
    # Steps that had been finished, and were done again.
    steps: int
    interval: float
    save_seconds: float

    @property
    def is_too_much(self) -> bool:
        intervals = 2 if TORN in self.kind else 1
        if self.agent == "baseline":
            # A checkpoint for each step, and steps as long as the machine has other things to do.
            return self.steps > intervals
        allowed = self.interval + HEARD_WITHIN + SAVE_SHARE * self.save_seconds
        return self.seconds > intervals * allowed


def look(world: World, *, is_bounded: bool) -> list[Loss]:
    """Violations to the ledger; what each loss cost. `is_bounded`: faults let saves succeed."""
    from runs.models import Run

    losses = []
    for run in Run.objects.filter(group__agent__name__in=AGENTS).select_related(
        "group__agent", "group", "competition"
    ):
        attempts = list(run.attempts.select_related("host").order_by("number"))
        works = {attempt.pk: work_of(attempt) for attempt in attempts}
        for before, after in itertools.pairwise(attempts):
            goes_on_from_the_newest(world.ledger, run, before, after)
        steps_continue(world.ledger, run, [works[attempt.pk] for attempt in attempts])
        losses += lost(world, run, [works[attempt.pk] for attempt in attempts])
    for loss in losses:
        if is_bounded and loss.is_too_much:
            world.ledger.violate(
                "more than one checkpoint interval was lost",
                f"{loss.agent}, {loss.kind}: {loss.seconds:.1f} s, {loss.steps} finished steps; "
                f"its checkpoints were "
                f"{loss.interval:.1f} s apart, the longest save took {loss.save_seconds:.1f} s",
            )
    return losses


# ------------------------------------------------------------------------------ what it did


def work_of(attempt: "Attempt") -> Work:
    from runs import layout

    work = Work(attempt)
    path = layout.attempt_folder(attempt) / "logs" / "events.jsonl"
    if not path.exists():
        return work
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            # Its last line, when it was killed.
            continue
        work.begin = work.begin or event["t"]
        match event["type"]:
            case "step_started":
                if work.after is None:
                    work.after = event["step"] - 1
                work.total = event["total"]
            case "step_finished":
                work.steps.append((event["step"], event["t"]))
            case "checkpoint":
                work.words.append(event["t"])
    return work


# ------------------------------------------------------------------------------ what must hold


def goes_on_from_the_newest(
    ledger: Ledger, run: "Run", before: "Attempt", after: "Attempt"
) -> None:
    """What was saved and verifies is used, the newest first."""
    if after.agent_started_at is None:
        return
    sound = sound_checkpoints(before, began_with=after.restored_checkpoint_id)
    newest = sound[0] if sound else None
    if after.restored_checkpoint_id != (newest.pk if newest else None):
        ledger.violate(
            "an attempt did not go on from the newest checkpoint",
            f"run {run.pk}: attempt {after.number} began with {after.restored_checkpoint}, "
            f"the newest was {newest}; {before.cause}",
        )


def sound_checkpoints(attempt: "Attempt", *, began_with: int | None) -> "list[Checkpoint]":
    """Of it and of those that it goes on from, the newest first, also those dropped by now.

    What the next one began with was whole then, whatever has become of it since.
    """
    from runs.models import Checkpoint

    place = {row.pk: number for number, row in enumerate(attempt.lineage())}
    rows = [
        row
        for row in Checkpoint.objects.filter(attempt__in=place)
        if not row.fault or row.pk == began_with
    ]
    return sorted(rows, key=lambda row: (place[row.attempt_id], -row.number))


def steps_continue(ledger: Ledger, run: "Run", works: Sequence[Work]) -> None:
    """No step is left out, and none that a checkpoint holds is done again."""
    done = 0
    for work in works:
        if work.after is None:
            continue
        attempt = work.attempt
        who = f"run {run.pk}, attempt {attempt.number}"
        numbers = [step for step, _ in work.steps]
        row = attempt.restored_checkpoint
        if (row is None and work.after) or (row and work.after < (row.step or 0)):
            why = f"{who} began after step {work.after}, with {row} of step {row and row.step}"
            ledger.violate("an attempt did not begin where its checkpoint ended", why)
        if work.after > done:
            why = f"{who} began after step {work.after}, and {done} were done"
            ledger.violate("steps were left out", why)
        if numbers != list(range(work.after + 1, work.after + 1 + len(numbers))):
            ledger.violate("steps are out of order", f"{who}: {numbers}")
        done = max([done, *numbers])
        if attempt.outcome == "graded" and done != work.total:
            why = f"{who}: {done} of {work.total} steps"
            ledger.violate("a finished run has not done all its steps", why)


# ------------------------------------------------------------------------------ what it cost


def lost(world: World, run: "Run", works: Sequence[Work]) -> Iterable[Loss]:
    """Of each attempt that ended before its work did: the work that the next one did again."""
    for number, work in enumerate(works):
        attempt = work.attempt
        if attempt.outcome not in ("infrastructure_failed", MOVED) or not work.begin:
            continue
        later = [each for each in works[number + 1 :] if each.after is not None]
        if not later:
            continue
        fault = fault_of(world, work)
        if fault and attempt.outcome != MOVED:
            end = on_the_wall(fault.begin)
            # An engine takes a second or two to die.
            known = work.until(end + 3)
            end = min(max([end, *(at for _, at in known.steps)]), known.alive_until)
        else:
            known, end = work, max([work.begin, *(at for _, at in work.steps)])
        after = later[0].after or 0
        saved = max((at for step, at in known.steps if step <= after), default=work.begin)
        seconds = max(0.0, end - saved)
        saves = attempt.checkpoints.values_list("save_seconds", flat=True)
        assert run.group.agent
        if fault:
            fault.redone += seconds
            fault.lost_attempts += 1
        yield Loss(
            kind=fault.kind if fault else attempt.cause,
            agent=run.group.agent.name,
            seconds=seconds,
            steps=sum(1 for step, _ in known.steps if step > after),
            # The first one is not yet there where it was lost early.
            interval=max(known.interval, typical_interval(works)),
            save_seconds=max(saves, default=0.0),
        )


def typical_interval(works: Sequence[Work]) -> float:
    """Of the run's attempts, as far as they came to a checkpoint."""
    found = [work.interval for work in works if work.words]
    return statistics.median(found) if found else float("inf")


def fault_of(world: World, work: Work) -> Fault | None:
    """The last one at its host while it lasted."""
    attempt = work.attempt
    assert attempt.host
    assert attempt.ended_at
    here = [fault for fault in world.ledger.faults if fault.target == attempt.host.name]
    if world.has_moved_clock:
        # Its row's times are the fleet's; its events have the machine's.
        last = max([work.begin, *(at for _, at in work.steps)])
        here = [fault for fault in here if on_the_wall(fault.begin) <= last + STEP_WITHIN]
    else:
        begin = attempt.agent_started_at or attempt.queued_at
        here = [
            fault
            for fault in here
            if begin.timestamp() <= on_the_wall(fault.begin) <= attempt.ended_at.timestamp()
        ]
    return here[-1] if here else None


def on_the_wall(monotonic: float) -> float:
    return monotonic + time.time() - time.monotonic()


def words(losses: Sequence[Loss]) -> list[str]:
    """Figures for people."""
    lines = []
    by_place = {
        "container": [loss for loss in losses if not loss.kind.startswith("host")],
        "host": [loss for loss in losses if loss.kind.startswith("host")],
    }
    for place, found in by_place.items():
        if found:
            seconds = [loss.seconds for loss in found]
            lines.append(
                f"agent time lost at the loss of a {place}: median "
                f"{statistics.median(seconds):.1f} s, max {max(seconds):.1f} s over {len(found)} "
                "attempts"
            )
    for agent in AGENTS:
        mine = [loss for loss in losses if loss.agent == agent]
        if mine:
            apart = statistics.median(loss.interval for loss in mine)
            saves = [loss.save_seconds for loss in mine]
            lines.append(
                f"{agent}: checkpoints {apart:.1f} s apart, the longest save {max(saves):.1f} s; "
                f"lost: {', '.join(f'{loss.seconds:.1f}' for loss in mine)} s"
            )
    return lines
