"""The warm grader processes from the outside: start, stop, have one submission graded.

runs/grader/server.py is the process itself; it knows no Django. There are two kinds: one under
ML_PYTHON for competitions of ours, one under MLEBENCH_PYTHON for those of mle-bench checkouts.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings

from mlebench_web.catalog import official_data
from runs.core.grader_verdict import Ended, Phase

logger = structlog.get_logger(__name__)

SERVER = Path(__file__).resolve().parent / "grader" / "server.py"
# Importing pandas and scikit-learn: 2 s on a warm machine, much more on a cold one.
START_LIMIT_SECONDS = 120
TICK_SECONDS = 0.5
# Folders of graders of one supervisor, while the host's own does not answer.
PRIVATE = "g-"
REPLY_LIMIT = 64 * 1024
ALREADY_RUNNING = 3


class GraderUnreachable(Exception):
    """The grader process is not there, or went away in the middle of a request."""


class Kind(StrEnum):
    """Whose competitions a grader process grades, and so which Python runs it."""

    OURS = "ours"
    OFFICIAL = "official"

    @property
    def socket(self) -> Path:
        name = "grader" if self is Kind.OURS else "official"
        return Path(settings.SOCKETS_DIR) / name

    @property
    def python(self) -> Path:
        return Path(settings.ML_PYTHON if self is Kind.OURS else settings.MLEBENCH_PYTHON)

    @property
    def missing(self) -> str:
        """Why no process of this kind can start here; "" when its Python is there."""
        if self is Kind.OFFICIAL:
            return official_data.cannot_grade()
        if self.python.exists():
            return ""
        return (
            f"There is no Python with the ML libraries at {self.python}: "
            "run ./run setup, or set ML_PYTHON."
        )


class GraderProcess:
    """A warm process behind a socket. The host service keeps one a kind; it ends with its owner."""

    def __init__(self, path: Path | None = None, *, kind: Kind = Kind.OURS) -> None:
        self.kind = kind
        self.path = path or kind.socket
        self._process: subprocess.Popen[bytes] | None = None
        self._last_words = ""

    def answers(self) -> bool:
        """Whether a grader process answers on the socket, ours or another's."""
        try:
            with connected(self.path, timeout=2) as connection:
                connection.sendall(b'{"op": "ping"}\n')
                return bool(connection.recv(REPLY_LIMIT))
        except OSError:
            return False

    def ensure(self) -> None:
        """Start the process unless one answers. Raises GraderUnreachable when it cannot."""
        if not self.answers():
            self.stop()
            self.start()

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Start it and wait until it answers. Raises GraderUnreachable when it does not."""
        if missing := self.kind.missing:
            raise GraderUnreachable(missing)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [str(self.kind.python), "-I", "-B", str(SERVER), str(self.path), str(self.kind)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd="/",
        )
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while not self.answers():
            tick()
            try:
                status = self._process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                status = None
            if status not in (None, ALREADY_RUNNING) or time.monotonic() > deadline:
                self.stop()
                raise GraderUnreachable(f"The grader process did not start: {self._last_words}")
        logger.info("grader.started", socket=str(self.path))

    def stop(self) -> None:
        """End the process if it is ours. Safe to repeat."""
        process, self._process = self._process, None
        self._last_words = "no answer in time."
        if process is None:
            return
        process.terminate()
        try:
            _, errors = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        if lines := errors.decode(errors="replace").strip().splitlines():
            self._last_words = lines[-1]


def environment() -> dict[str, str]:
    """What the grader process sees: nothing of ours, one thread for each numeric library."""
    # Threads of a parent do not survive a fork, and each child counts as one CPU.
    one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": tempfile.gettempdir(),
        **dict.fromkeys(one_thread, "1"),
    }


@contextlib.contextmanager
def connected(path: Path, *, timeout: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        yield connection


@dataclass(frozen=True)
class Request:
    """What to grade with, and within which limits.

    Of a checkout's competition `function` is "module:function"; of ours, a name in grade.py.
    """

    folder: Path
    answers: Path
    function: str = "grade"
    checkout: Path | None = None
    memory_bytes: int = 8 * 2**30
    limit_seconds: float = 1800

    @property
    def kind(self) -> Kind:
        return Kind.OFFICIAL if self.checkout else Kind.OURS

    def as_json(self) -> bytes:
        return (
            json.dumps(
                {
                    "op": "grade",
                    "folder": str(self.folder),
                    "checkout": str(self.checkout or ""),
                    "function": self.function,
                    "answers": str(self.answers),
                    "memory_bytes": self.memory_bytes,
                    # The clock of the CPU stands still while the child waits: a second fence.
                    "cpu_seconds": int(self.limit_seconds) + 1,
                }
            ).encode()
            + b"\n"
        )


def ask(request: Request, submission: int, *, tick: Callable[[], None], path: Path) -> Ended:
    """Have the open file `submission` graded by the process at `path`.

    Calls `tick` at least once a second. At the time limit it hangs up, which ends the child.
    Raises GraderUnreachable when the process is not there or goes away.
    """
    deadline = time.monotonic() + request.limit_seconds
    seen: dict[str, Any] = {"phase": Phase.LOAD}
    try:
        with connected(path, timeout=10) as connection:
            socket.send_fds(connection, [request.as_json()], [submission])
            for message in messages(connection, deadline, tick):
                if "ended" in message:
                    return ending(seen, signal=message["ended"]["signal"])
                seen.update(message)
                if "score" in message or "exception" in message:
                    # All is said; hanging up ends the child, its exit need not be waited for.
                    return ending(seen)
    except TimeLimit:
        return ending(seen, over_time=True)
    except OSError as error:
        raise GraderUnreachable(f"The grader process does not answer: {error}") from error
    raise GraderUnreachable("The grader process went away.")


class TimeLimit(Exception):
    pass


def messages(
    connection: socket.socket, deadline: float, tick: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Lines of JSON until the other side hangs up. Raises TimeLimit at the deadline."""
    received = b""
    while True:
        tick()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeLimit
        connection.settimeout(min(TICK_SECONDS, left))
        try:
            data = connection.recv(REPLY_LIMIT)
        except TimeoutError:
            continue
        if not data:
            return
        *lines, received = (received + data).split(b"\n")
        if len(received) > REPLY_LIMIT:
            raise OSError("a line of its reply has no end")
        yield from (json.loads(line) for line in lines)


def ending(seen: dict[str, Any], *, signal: int | None = None, over_time: bool = False) -> Ended:
    return Ended(
        phase=Phase(seen["phase"]),
        has_score="score" in seen,
        score=seen.get("score"),
        exception=seen.get("exception", ""),
        text=seen.get("text", ""),
        declared_invalid=seen.get("declared_invalid", False),
        detail=seen.get("detail", ""),
        signal=signal,
        over_time=over_time,
        libraries=seen.get("libraries", ""),
    )


def clear_private() -> None:
    """Remove the folders of private graders whose owner was killed. Repeatable."""
    for folder in Path(settings.SOCKETS_DIR).glob(f"{PRIVATE}*"):
        with contextlib.suppress(FileNotFoundError):
            # One that is only starting does not answer yet.
            is_old = time.time() - folder.stat().st_mtime > START_LIMIT_SECONDS
            if is_old and not GraderProcess(folder / "g").answers():
                shutil.rmtree(folder)


@contextlib.contextmanager
def private(tick: Callable[[], None], kind: Kind = Kind.OURS) -> Iterator[Path]:
    """A grader process for one use, where the host service's does not answer."""
    # Among the other sockets: elsewhere the path may be too long for one.
    settings.SOCKETS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=PRIVATE, dir=settings.SOCKETS_DIR) as folder:
        process = GraderProcess(Path(folder) / "g", kind=kind)
        try:
            process.start(tick)
            yield process.path
        finally:
            process.stop()
