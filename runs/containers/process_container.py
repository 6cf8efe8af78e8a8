"""Plays a container with plain processes: `process_container.py <folder>`.

Started by ProcessEngine with a folder that holds `spec.json`. It goes into a session of its own,
so that it outlives the worker, runs the validation relay and, once the file `start` appears, the
agent; it watches the agent's memory and stays until it is killed, as a container does. The
folder tells the engine about it: `lock` (held while it lives), `pid`, `exit` (its exit code when it
ended by itself), `memory_kills`, `memory_peak`, `log`.

This is no sandbox: the agent runs as the worker's user and can do what that user can.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

RELAY = Path(__file__).with_name("relay.py")
# Every process of a container has this in its environment, whatever session it has moved to.
MARK = "MLEBENCH_WEB_CONTAINER"
AGENT_MARK = "MLEBENCH_WEB_AGENT"
START_POLL = 0.02
WATCH_EVERY = 0.5
NICE = 5


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def members(mark: str, value: str) -> list[psutil.Process]:
    """Living processes whose environment says that they belong to it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(mark) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def detach(folder: Path) -> None:
    """Return in a child in a session of its own; the parent ends when that child is ready to go."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        said = os.read(reader, 4096)
        if said != b"ok":
            print(said.decode() or "it ended at once", file=sys.stderr)
        # No cleanup: buffers and exit handlers are the child's now.
        os._exit(0 if said == b"ok" else 1)
    os.close(reader)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Celery's children ignore them, and an agent that inherits this never hears its TERM.
        signal.signal(number, signal.SIG_DFL)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # It runs already: what was asked for is so.
        os.write(writer, b"ok")
        os._exit(0)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    write(folder / "pid", f"{os.getpid()} {psutil.Process().create_time()}")
    os.write(writer, b"ok")
    os.close(writer)


def start_relay(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    link = Path(spec["link"])
    (link / "ready").unlink(missing_ok=True)
    # Opened for appending, as an image's entrypoint does.
    with open(Path(spec["logs"]) / "entrypoint.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(RELAY), str(link), "127.0.0.1", "0"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={MARK: spec["name"]},
        )


def start_agent(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    port = (Path(spec["link"]) / "ready").read_text().strip()
    env = {
        **spec["env"],
        "MLE_VALIDATION_URL": f"http://127.0.0.1:{port}",
        MARK: spec["name"],
        AGENT_MARK: spec["name"],
    }
    return subprocess.Popen(
        ["nice", "-n", str(NICE), *spec["command"]],
        cwd=spec["cwd"],
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


class MemoryWatch:
    """The memory limit of a container without a kernel that keeps it: at most every 0.5 s."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.folder = folder
        self.name = spec["name"]
        self.limit = spec["memory_bytes"]
        self.peak = 0
        self.kills = 0

    def look(self) -> None:
        sizes: dict[psutil.Process, int] = {}
        for process in members(AGENT_MARK, self.name):
            with contextlib.suppress(psutil.Error):
                sizes[process] = process.memory_info().rss
        if sum(sizes.values()) > self.limit:
            # Pages that children share with their parent were counted for each: look closer.
            for process in list(sizes):
                with contextlib.suppress(psutil.Error):
                    full = process.memory_full_info()
                    sizes[process] = getattr(full, "pss", full.uss)
        used = sum(sizes.values())
        if used > self.peak:
            self.peak = used
            write(self.folder / "memory_peak", str(used))
        if used > self.limit:
            largest = max(sizes, key=lambda process: sizes[process])
            self.kills += 1
            write(self.folder / "memory_kills", str(self.kills))
            print(f"over {self.limit} bytes of memory: killing process {largest.pid}", flush=True)
            with contextlib.suppress(psutil.Error):
                largest.kill()


def run(folder: Path) -> int:
    spec = json.loads((folder / "spec.json").read_text())
    relay = start_relay(spec)
    write(folder / "memory_kills", "0")
    watch = MemoryWatch(folder, spec)
    agent: subprocess.Popen[bytes] | None = None
    while (code := relay.poll()) is None:
        if agent is not None:
            agent.poll()
            watch.look()
            time.sleep(WATCH_EVERY)
        elif (folder / "start").exists() and (Path(spec["link"]) / "ready").exists():
            agent = start_agent(spec)
        else:
            time.sleep(START_POLL)
    print(f"the validation relay ended with {code}", flush=True)
    return code if code >= 0 else 128 - code


def main() -> None:
    folder = Path(sys.argv[1])
    detach(folder)
    code = run(folder)
    write(folder / "exit", str(code))
    sys.exit(code)


if __name__ == "__main__":
    main()
