"""Counts steps, numbers its lines, keeps checkpoints, and gets into trouble when it is told to.

In the environment:

    MARATHON_STEPS=20               how many steps
    MARATHON_STEP_SECONDS=1         how long each takes
    MARATHON_LINES=1                numbered lines a step
    MARATHON_CHECKPOINT_EVERY=1     a checkpoint after so many steps; 0: none
    MARATHON_CHECKPOINT_BYTES=0     as much more is in it, other bytes each time
    MARATHON_TROUBLE=crash@5        at step 5; hang, crash, memory or disk
    MARATHON_TROUBLE_ATTEMPTS=0     only in so many attempts of the run; 0: in all
    MARATHON_IGNORE_SIGTERM=0       1: SIGTERM does nothing
    MARATHON_STEP_PROCESS=0         1: each step is a process of its own, and may be killed

On SIGTERM it writes a checkpoint and ends. Standard library only, Python 3.11 or newer.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

DATA = Path(os.environ.get("DATA_DIR", "/home/data"))
SUBMISSION = Path(os.environ.get("SUBMISSION_DIR", "/home/submission")) / "submission.csv"
CHECKPOINT = Path(os.environ.get("MLE_CHECKPOINT_DIR", "/home/ckpt"))
EVENTS = os.environ.get("MLE_EVENTS_FILE", "")
TROUBLES = ("hang", "crash", "memory", "disk")
FILL_BYTES = 2**24


class ToldWrong(Exception):
    """A variable that cannot be followed; names it."""


def number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise ToldWrong(f"{name}={text!r}: write a number") from error
    if value < 0:
        raise ToldWrong(f"{name}={text!r}: write a number of at least 0")
    return value


def trouble() -> tuple[str, int]:
    """What, and at which step; ("", 0): none in this attempt."""
    text = os.environ.get("MARATHON_TROUBLE", "")
    if not text:
        return "", 0
    what, _, step = text.partition("@")
    if what not in TROUBLES or not step.isdigit():
        raise ToldWrong(f"MARATHON_TROUBLE={text!r}: write {', '.join(TROUBLES)} as crash@5")
    attempts = number("MARATHON_TROUBLE_ATTEMPTS", 0)
    if attempts and int(os.environ.get("MLE_ATTEMPT") or 1) > attempts:
        return "", 0
    return what, int(step)


def event(kind: str, **fields: object) -> None:
    if EVENTS:
        with open(EVENTS, "a") as file:
            file.write(json.dumps({"v": 1, "t": time.time(), "type": kind, **fields}) + "\n")


class Marathon:
    def __init__(self) -> None:
        self.steps = int(number("MARATHON_STEPS", 20))
        self.seconds = number("MARATHON_STEP_SECONDS", 1)
        self.lines_a_step = int(number("MARATHON_LINES", 1))
        self.every = int(number("MARATHON_CHECKPOINT_EVERY", 1))
        self.padding = int(number("MARATHON_CHECKPOINT_BYTES", 0))
        self.trouble, self.trouble_step = trouble()
        self.has_processes = number("MARATHON_STEP_PROCESS", 0) > 0
        self.done = 0
        self.lines = 0

    # ------------------------------------------------------------------ checkpoints

    def restore(self) -> None:
        """What an earlier attempt counted; nothing where there is none."""
        if os.environ.get("MLE_RESUME") != "1":
            return
        try:
            state = json.loads((CHECKPOINT / "state.json").read_text())
            self.done, self.lines = state["done"], state["lines"]
        except FileNotFoundError:
            print("There is no checkpoint: it counts from the beginning.", flush=True)
            return
        print(f"Going on after step {self.done} and line {self.lines}.", flush=True)

    def save(self) -> None:
        """Whole or not at all: written aside, flushed to the disk, renamed."""
        if self.padding:
            write(CHECKPOINT / "padding.bin", os.urandom(self.padding))
        state = {"done": self.done, "lines": self.lines}
        write(CHECKPOINT / "state.json", json.dumps(state).encode())
        event("checkpoint", step=self.done, path=str(CHECKPOINT))

    # ------------------------------------------------------------------ the road

    def run(self) -> None:
        self.restore()
        self.submit()
        while self.done < self.steps:
            self.step(self.done + 1)

    def submit(self) -> None:
        """The sample submission, where none is handed in yet."""
        found = sorted(DATA.glob("*ample*ubmission*.csv"))
        if found and not SUBMISSION.exists():
            shutil.copyfile(found[0], SUBMISSION)
            event("submission", path=str(SUBMISSION))

    def step(self, step: int) -> None:
        name = f"step {step}"
        event("step_started", step=step, total=self.steps, name=name)
        if step == self.trouble_step:
            self.get_into_trouble()
        was_killed = self.work()
        for _ in range(self.lines_a_step):
            self.lines += 1
            print(f"line {self.lines} of step {step}", flush=True)
        self.done = step
        metric = {"name": "share", "value": step / self.steps, "maximize": True}
        event(
            "step_finished",
            step=step,
            total=self.steps,
            name=name,
            **({"error": "killed"} if was_killed else {"metric": metric}),
        )
        if self.every and step % self.every == 0:
            self.save()

    def work(self) -> bool:
        """Whether the step's own process was killed."""
        if not self.has_processes:
            time.sleep(self.seconds)
            return False
        program = Path(__file__).with_name("marathon_step.py")
        done = subprocess.run([sys.executable, str(program), str(self.seconds)], check=False)
        if done.returncode:
            print(f"The step's process ended with {done.returncode}.", flush=True)
        return done.returncode != 0

    def get_into_trouble(self) -> None:
        print(f"Trouble at step {self.trouble_step}: {self.trouble}.", flush=True)
        match self.trouble:
            case "crash":
                raise RuntimeError("It was told to crash.")
            case "hang":
                while True:
                    time.sleep(3600)
            case "memory":
                held = []
                while True:
                    # Not zeros, which take no memory until they are changed.
                    held.append(bytearray(os.urandom(2**20)) * 16)
            case "disk":
                with (SUBMISSION.parent / "fill").open("wb") as file:
                    while True:
                        file.write(bytes(FILL_BYTES))
                        file.flush()


def write(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def main() -> None:
    marathon = Marathon()

    def end(_number: int, _frame: FrameType | None) -> None:
        print(f"SIGTERM after step {marathon.done}.", flush=True)
        if marathon.every:
            marathon.save()
        sys.exit(143)

    ignore = number("MARATHON_IGNORE_SIGTERM", 0) > 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else end)
    marathon.run()


if __name__ == "__main__":
    try:
        main()
    except ToldWrong as error:
        sys.exit(f"marathon: {error}")
