"""Child processes of the supervisor: parts that are meant to stay, and jobs that end."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# A part that ran this long was well; its next restart is quick again.
WELL_AFTER = 60.0
LOG_MAX_BYTES = 50_000_000
PR_SET_PDEATHSIG = 1
# What a job's line starts with that answers its caller.
RESULT = "RESULT "

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """In the child, before exec: get SIGTERM when the supervisor is gone, also by SIGKILL."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1 and os.getpid() != 1:
            # It was gone before the line above. (A supervisor is 1 only in a container.)
            os._exit(1)


def spawn(
    command: list[str],
    *,
    env: dict[str, str],
    cwd: Path,
    out: int | None,
    err: int | None = subprocess.STDOUT,
) -> "subprocess.Popen[bytes]":
    """A child in a session of its own, so that the terminal's Ctrl-C reaches only us."""
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
        # Safe: the supervisor has one thread.
        preexec_fn=die_with_parent,
    )


def signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Also what the process started. Nothing when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class Log:
    """The file that a part writes to; the one of the start before is kept as `.1`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_name(path.name + ".1"))

    def open(self) -> int:
        # Appending: after `cut` the writer goes on at the new end.
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def cut(self) -> None:
        """Move what is there to `.1` when it has grown too large; the writer keeps its file."""
        if self.path.exists() and self.path.stat().st_size > LOG_MAX_BYTES:
            self.path.with_name(self.path.name + ".1").write_bytes(self.path.read_bytes())
            os.truncate(self.path, 0)

    def last_line(self) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1].strip()[:300] if lines else ""


@dataclass
class Part:
    """A process that must run as long as the product does."""

    name: str
    command: list[str]
    log: Log
    process: "subprocess.Popen[bytes] | None" = None
    begun: float = 0.0
    restarts: int = 0
    pause: float = FIRST_PAUSE
    due: float | None = None
    last_end: str = ""

    def start(self, *, env: dict[str, str], cwd: Path) -> None:
        out = self.log.open()
        try:
            self.process = spawn(self.command, env=env, cwd=cwd, out=out)
        finally:
            os.close(out)
        self.begun = time.monotonic()
        self.due = None

    def ended(self, at: float) -> float:
        """Plan the next start, later and later when it keeps dying; the seconds until then."""
        code = self.process.returncode if self.process else 0
        self.last_end = f"signal {-code}" if code < 0 else f"exit status {code}"
        if at - self.begun > WELL_AFTER:
            self.pause = FIRST_PAUSE
        pause = self.pause
        self.process = None
        self.due = at + pause
        self.pause = min(LONGEST_PAUSE, pause * 2)
        self.restarts += 1
        return pause


@dataclass
class Job:
    """A process that does one thing and ends; its output is read line by line."""

    name: str
    process: "subprocess.Popen[bytes]"
    out: int
    log: Path
    lines: list[str] = field(default_factory=list)
    all_read: bool = False
    _rest: bytes = b""

    def read(self) -> bool:
        """Take in what was written; False at the end of the output."""
        data = os.read(self.out, 65536)
        if not data:
            self.all_read = True
            return False
        # Tools that draw progress bars end a state with \r.
        *whole, self._rest = (self._rest + data.replace(b"\r", b"\n")).split(b"\n")
        lines = [line.decode(errors="replace").rstrip() for line in whole if line.strip()]
        self.lines += lines
        with self.log.open("a") as file:
            # A result is for us alone: it may hold a link that signs somebody in.
            file.writelines(f"{line}\n" for line in lines if not line.startswith(RESULT))
        return True

    @property
    def last_line(self) -> str:
        return self.lines[-1] if self.lines else ""
