"""Who works in the fleet: what is submitted for each agent, and what must come out of it.

`counter` knows no checkpoint: an attempt that is lost is begun again. `marathon` and `baseline` are
the product's own agents, which go on from a checkpoint; chaoskit/resumed.py looks whether they do.
"""

import hashlib
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chaoskit import agent, rows

if TYPE_CHECKING:
    from chaoskit.world import World
    from runs.models import Attempt, Run

MARATHON_STEP_SECONDS, MARATHON_LINES = 0.5, 2
# In steps: what is lost with a host is at most so much, and what a save takes.
MARATHON_CHECKPOINT_EVERY = 6
# So that no host ever waits for work.
QUEUED_AT_LEAST = 2
TRAIN_ROWS, TEST_ROWS, COLUMNS = 6000, 200, 8
WENT_ON = re.compile(r"^Going on after step (\d+) and line (\d+)\.$", re.MULTILINE)


@dataclass(frozen=True)
class Earned:
    result: str
    score: float


class Worker(Protocol):
    """One agent of the fleet."""

    name: str

    def set_up(self, world: "World") -> None:
        """Its image on both engines, and its rows."""

    def begin(self, world: "World") -> None:
        """Once the fleet runs, before the first fault."""

    def order(self, world: "World", *, with_gpu: bool) -> dict[str, Any]:
        """What to send to POST run-groups, beside what is the same for all."""

    def earned(self, run: "Run") -> Earned: ...

    def lines(self, run: "Run", text: str) -> tuple[int, int | None]:
        """Number of an attempt's first line; of its last one, if it ended well, or None."""

    def wrong_with(self, attempt: "Attempt") -> str:
        """Of an attempt that was graded: how its work is not whole, or ""."""


class Counter:
    name = rows.COUNTER

    def set_up(self, world: "World") -> None:
        rows.add_agent(self.name, world.image)

    def begin(self, world: "World") -> None:
        pass

    def order(self, world: "World", *, with_gpu: bool) -> dict[str, Any]:
        seconds = world.random.uniform(*world.steps)
        return {
            "competitions": [rows.COMPETITION],
            "container_config": rows.GPU_CONFIG if with_gpu else rows.CONFIG,
            "seeds": 4,
            "env": {"STEPS": str(int(seconds / agent.STEP_SECONDS))},
        }

    def earned(self, run: "Run") -> Earned:
        return Earned("gold", 0.0)

    def lines(self, run: "Run", text: str) -> tuple[int, int | None]:
        return 1, int(run.group.env["STEPS"]) * agent.LINES_A_STEP

    def wrong_with(self, attempt: "Attempt") -> str:
        return ""


class Marathon:
    name = "marathon"

    def __init__(self, padding_bytes: int, seeds: int = 4) -> None:
        """`padding_bytes`: noise in each checkpoint, so that a save takes a while."""
        self.padding_bytes = padding_bytes
        self.seeds = seeds

    def set_up(self, world: "World") -> None:
        rows.add_image(self.name, world.image)

    def begin(self, world: "World") -> None:
        pass

    def order(self, world: "World", *, with_gpu: bool) -> dict[str, Any]:
        seconds = world.random.uniform(*world.steps)
        told = {
            "STEPS": int(seconds / MARATHON_STEP_SECONDS),
            "STEP_SECONDS": MARATHON_STEP_SECONDS,
            "LINES": MARATHON_LINES,
            "CHECKPOINT_EVERY": MARATHON_CHECKPOINT_EVERY,
            "CHECKPOINT_BYTES": self.padding_bytes,
        }
        return {
            "competitions": [rows.COMPETITION],
            "container_config": rows.GPU_CONFIG if with_gpu else rows.CONFIG,
            "seeds": self.seeds,
            "env": {f"MARATHON_{name}": str(value) for name, value in told.items()},
        }

    def earned(self, run: "Run") -> Earned:
        # Of the sample submission: zeros, where 1, 2, 3 and 4 are right.
        return Earned("valid", 2.5)

    def lines(self, run: "Run", text: str) -> tuple[int, int | None]:
        found = WENT_ON.search(text)
        last = int(run.group.env["MARATHON_STEPS"]) * MARATHON_LINES
        return (int(found[2]) if found else 0) + 1, last

    def wrong_with(self, attempt: "Attempt") -> str:
        """It hands in at once: only its steps say whether it has done its work."""
        from runs import logs

        text = b"".join(logs.raw(attempt.pk, "agent")).decode()
        steps = int(attempt.run.group.env["MARATHON_STEPS"])
        if f" of step {steps}\n" in text:
            return ""
        return f"it ended before step {steps}: ...{text[-300:]}"


class Baseline:
    """Real learning: a resumed run hands in, byte for byte, what an undisturbed one does."""

    name = "baseline"
    seeds = 2

    def __init__(self) -> None:
        # By seed, of runs that nothing had disturbed: score and SHA-256 of the submission.
        self.undisturbed: dict[int, tuple[Earned, str]] = {}

    def set_up(self, world: "World") -> None:
        first, second = (host.engine for host in world.hosts)
        image = agent.provide_baseline(first.client, first.url)
        agent.copy(first.client, second.client, image)
        rows.add_image(self.name, image)
        rows.add_competition(rows.TABLE, tables())
        rows.add_config(rows.TABLE_CONFIG, {"mem_limit": "512m"})

    def begin(self, world: "World") -> None:
        from runs.models import Run

        world.submit(self, with_gpu=False)
        runs = Run.objects.filter(group__agent__name=self.name, state="finished")
        world.wait_until(lambda: runs.count() == self.seeds, 240, "undisturbed runs of baseline")
        for run in runs.select_related("group", "competition"):
            assert run.score is not None
            self.undisturbed[run.seed] = (Earned(run.result, run.score), handed_in(run))
        world.say(
            "undisturbed baseline: "
            + ", ".join(f"seed {seed}: {it[0].score}" for seed, it in self.undisturbed.items())
        )

    def order(self, world: "World", *, with_gpu: bool) -> dict[str, Any]:
        return {
            "competitions": [rows.TABLE],
            "container_config": rows.TABLE_CONFIG,
            "seeds": self.seeds,
            "env": {},
        }

    def earned(self, run: "Run") -> Earned:
        return self.undisturbed[run.seed][0]

    def lines(self, run: "Run", text: str) -> tuple[int, int | None]:
        return 1, None

    def wrong_with(self, attempt: "Attempt") -> str:
        if attempt.run.seed not in self.undisturbed:
            # One of them.
            return ""
        _, digest = self.undisturbed[attempt.run.seed]
        if handed_in(attempt.run) in ("", digest):
            # Whether it was published at all is looked at for all runs alike.
            return ""
        return f"seed {attempt.run.seed}: its submission is another than the undisturbed one's"


def handed_in(run: "Run") -> str:
    """SHA-256 of a finished run's submission; "" while it is not published."""
    from runs import layout

    path = layout.run_folder(run) / "submission" / "submission.csv"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


class Crew:
    """The agents of one fleet, and how often each is submitted."""

    def __init__(self, *members: tuple[Worker, int], queued: int = QUEUED_AT_LEAST) -> None:
        """`queued`: so many wait at least; those that were lost wait behind them."""
        self.queued = queued
        self.members = [member for member, _ in members]
        self.weights = [weight for _, weight in members]

    def next(self, chance: random.Random) -> Worker:
        return chance.choices(self.members, self.weights)[0]

    def of(self, run: "Run") -> Worker:
        agent = run.group.agent
        assert agent
        return next(member for member in self.members if member.name == agent.name)


def counters() -> Crew:
    """For figures of attempts that nothing can help: no checkpoint."""
    return Crew((Counter(), 1))


def usual(*, counters: int = 3) -> Crew:
    """So many counters for each marathon."""
    return Crew((Counter(), counters), (Marathon(2 * 2**20), 1))


def resuming(*, padding_bytes: int = 4 * 2**20, learns: bool = True) -> Crew:
    marathon = Marathon(padding_bytes, seeds=1)
    if not learns:
        return Crew((marathon, 1), queued=1)
    return Crew((marathon, 4), (Baseline(), 1), queued=1)


# ------------------------------------------------------------------------------ a table to learn


def tables() -> dict[str, str]:
    """Files of a competition with something to learn; always the same."""
    chance = random.Random(5)
    names = [f"x{number}" for number in range(COLUMNS)]

    def row() -> tuple[Sequence[float], float]:
        x = [chance.gauss(0, 1) for _ in names]
        told = 10 * math.sin(x[0]) + 5 * x[1] * x[2] + 3 * abs(x[3]) + x[4] + chance.gauss(0, 1)
        return x, told

    train, test = [f"id,{','.join(names)},price"], [f"id,{','.join(names)}"]
    sample, answers = ["id,price"], ["id,price"]
    for number in range(TRAIN_ROWS + TEST_ROWS):
        x, price = row()
        values = ",".join(f"{value:.4f}" for value in x)
        if number < TRAIN_ROWS:
            train.append(f"{number},{values},{price:.4f}")
        else:
            test.append(f"{number},{values}")
            sample.append(f"{number},0")
            answers.append(f"{number},{price:.4f}")
    files = {"train": train, "test": test, "sample_submission": sample}
    return {
        **{f"public/{name}.csv": "\n".join(lines) + "\n" for name, lines in files.items()},
        "private/test.csv": "\n".join(answers) + "\n",
        "public/description.md": "Predict the price, judged by the mean absolute error.\n",
    }
