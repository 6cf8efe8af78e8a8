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
    MARATHON_SIGINT=                it names the process of each step in its events, and SIGINT:
                                    catch: ends the step; ignore: does nothing

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


class StepEnded(Exception):
    """SIGINT in the middle of a step."""


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


def sigint() -> str:
    told = os.environ.get("MARATHON_SIGINT", "")
    if told not in ("", "catch", "ignore"):
        raise ToldWrong(f"MARATHON_SIGINT={told!r}: write catch or ignore")
    return told


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
        self.sigint = sigint()
        self.is_in_step = False
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
        name = f"lap {step}"
        self.is_in_step = True
        try:
            process = self.begin(step, name)
            error = self.work(process)
        except StepEnded:
            error = "interrupted"
        self.is_in_step = False
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
            **({"error": error} if error else {"metric": metric}),
        )
        if self.every and step % self.every == 0:
            self.save()

    def begin(self, step: int, name: str) -> "subprocess.Popen[bytes] | None":
        """The step's own process, where it has one. In trouble this may not come back."""
        is_in_trouble = step == self.trouble_step
        hangs = is_in_trouble and self.trouble == "hang" and self.has_processes
        process = None
        if self.has_processes:
            program = Path(__file__).with_name("marathon_step.py")
            seconds = 3600 if hangs else self.seconds
            words = [sys.executable, str(program), str(seconds), self.sigint]
            process = subprocess.Popen(words)
        named = {"pid": process.pid if process else os.getpid()} if self.sigint else {}
        event("step_started", step=step, total=self.steps, name=name, **named)
        if is_in_trouble:
            print(f"Trouble at step {step}: {self.trouble}.", flush=True)
            if not hangs:
                self.get_into_trouble()
        return process

    def work(self, process: "subprocess.Popen[bytes] | None") -> str:
        """What went wrong, or ""."""
        if process is None:
            time.sleep(self.seconds)
        elif code := process.wait():
            print(f"The step's process ended with {code}.", flush=True)
            return "killed"
        return ""

    def get_into_trouble(self) -> None:
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

    def end_step(_number: int, _frame: FrameType | None) -> None:
        if marathon.is_in_step:
            raise StepEnded

    ignore = number("MARATHON_IGNORE_SIGTERM", 0) > 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else end)
    if marathon.sigint:
        catches = marathon.sigint == "catch"
        signal.signal(signal.SIGINT, end_step if catches else signal.SIG_IGN)
    marathon.run()


if __name__ == "__main__":
    try:
        main()
    except ToldWrong as error:
        sys.exit(f"marathon: {error}")
