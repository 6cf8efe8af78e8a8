"""`run.json` and `run.lock`: who runs on a data folder, and where it can be reached."""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from mlebench_web.process_start import started

# How long the parts of a killed `./run` may take to end by themselves.
LEFTOVERS_MAY_TAKE = 10.0


class AlreadyRunning(Exception):
    """Another `./run` holds the data folder; `info` is what its run.json says."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        super().__init__(info.get("address", ""))


def read(data: Path) -> dict[str, Any]:
    """What run.json says; empty when there is none."""
    try:
        return dict(json.loads((data / "run.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def write(data: Path, info: dict[str, Any]) -> None:
    new = data / "run.json.new"
    new.write_text(json.dumps(info, indent=2) + "\n")
    # By rename: a script that polls the file never reads half of it.
    new.replace(data / "run.json")


@contextlib.contextmanager
def hold(data: Path) -> Iterator[None]:
    """Be the only `./run` on this data folder. Raises AlreadyRunning.

    The kernel gives the lock back when its holder dies, however it dies, so a stale one cannot
    be. Processes that a killed `./run` left are waited for, then ended.
    """
    with (data / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(read(data)) from None
        end_leftovers(read(data))
        (data / "run.json").unlink(missing_ok=True)
        try:
            yield
        finally:
            (data / "run.json").unlink(missing_ok=True)


def identity(pid: int) -> dict[str, Any]:
    """A process id and when that process started: ids are used again, the pair is not."""
    try:
        return {"pid": pid, "started": started(pid)}
    except psutil.NoSuchProcess:
        return {"pid": pid, "started": 0.0}


def end_leftovers(info: dict[str, Any]) -> None:
    """End what is left of the parts that a dead `./run` named; foreign processes are left alone."""
    left = [process for part in info.get("parts", {}).values() if (process := find(part))]
    _, alive = psutil.wait_procs(left, timeout=LEFTOVERS_MAY_TAKE) if left else ([], [])
    for process in alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Each part leads a group of its own.
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)


def find(part: dict[str, Any]) -> psutil.Process | None:
    """The process that run.json names, if it is still that one."""
    try:
        process = psutil.Process(int(part["pid"]))
        same = abs(started(process.pid) - float(part["started"])) < 0.02
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return None
    return process if same else None


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
