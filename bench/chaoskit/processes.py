"""Processes of the fleet: started, killed, frozen and kept alive one by one."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from mlebench_web.launcher.processes import die_with_parent

# Like `./run`: a part that dies comes back after half a second.
RESTART_AFTER = 0.5


class Part:
    """One process that the fleet needs, with what it starts."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        env: dict[str, str],
        cwd: Path,
        log: Path,
        ready: Callable[[], bool] = lambda: True,
        identity: dict[str, object] | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.cwd = cwd
        self.log = log
        self.ready = ready
        self.identity = identity or {}
        self.process: subprocess.Popen[bytes] | None = None
        # Down on purpose: it is not started again until this is over.
        self.held = False
        self.deaths = 0
        # Ends that no fault of ours has caused.
        self.own_ends: list[str] = []
        self._expected = False
        self._died_at: float | None = None

    @property
    def pid(self) -> int:
        assert self.process, f"{self.name} was not started"
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # One thread only, in which every part is started: see die_with_parent.
                preexec_fn=die_with_parent,
                **self.identity,  # type: ignore[arg-type]
            )
        self._died_at = None
        self._expected = False

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tend(self) -> None:
        """Start it again when it has died. Call often."""
        if self.held or self.is_alive():
            return
        if self._died_at is None:
            self._died_at = time.monotonic()
            self.deaths += 1
            code = self.process.returncode if self.process else None
            if not self._expected:
                self.own_ends.append(f"{self.name} ended by itself with {code}")
        if time.monotonic() - self._died_at > RESTART_AFTER:
            self.start()

    # ------------------------------------------------------------------ faults

    def family(self) -> list[psutil.Process]:
        """The process and all below it."""
        if not self.is_alive():
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(self.pid)
            return [head, *head.children(recursive=True)]
        return []

    def children(self) -> list[psutil.Process]:
        return self.family()[1:]

    def kill(self, *, whole: bool = True) -> None:
        """kill -9: of all that it started, or of the first process alone."""
        self._expected = True
        send(self.family() if whole else self.family()[:1], signal.SIGKILL)
        self.reap(10)

    def terminate(self, within: float) -> float | None:
        """SIGTERM to the first process; seconds until its end, None when it had to be killed."""
        self._expected = True
        began = time.monotonic()
        send(self.family()[:1], signal.SIGTERM)
        if self.reap(within):
            return time.monotonic() - began
        self.kill()
        return None

    def reap(self, within: float) -> bool:
        if self.process is None:
            return True
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, within: float = 10) -> None:
        """Its end for good, and of all that it started."""
        self.held = True
        family = self.family()
        if self.is_alive():
            send(family, signal.SIGCONT)
            self.terminate(within)
        send(family, signal.SIGKILL)


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(process.pid, number)


def in_cgroup_of(container_pid: int) -> list[psutil.Process]:
    """All processes of a container, by its first one's pid as the engine tells it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(container_pid)
        shim = head.parent()
        # An exec is no child of the first process: both are the shim's.
        return shim.children(recursive=True) if shim else [head, *head.children(recursive=True)]
    return []


def alive(pid: int | None) -> bool:
    """Whether there is such a process, frozen or not, that is not only not buried."""
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
