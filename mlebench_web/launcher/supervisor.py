"""Keeps the parts alive: one thread that waits for signals, output and the time to restart."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from mlebench_web.launcher import runfile
from mlebench_web.launcher.environment import BASE_DIR
from mlebench_web.launcher.processes import Job, Log, Part, signal_group, spawn
from mlebench_web.launcher.terminal import Terminal

# A worker lets go of its attempts and a web server of its readers in less; then they are killed.
STOP_TAKES = 10.0
TICK = 0.2


class Stopped(Exception):
    """Somebody asked for the end: Ctrl-C, SIGTERM, or a closed terminal."""


class Supervisor:
    def __init__(
        self, data: Path, env: dict[str, str], terminal: Terminal, info: dict[str, Any]
    ) -> None:
        self.data = data
        self.env = env
        self.terminal = terminal
        self.info = info
        self.parts: dict[str, Part] = {}
        self.jobs: list[Job] = []
        self._attached: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = 0
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._listen_to_signals()

    # ---------------------------------------------------------------- signals

    def _listen_to_signals(self) -> None:
        """Any signal wakes the wait in `pump`, through a pipe."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._wakeup = read
        self._selector.register(read, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup sets SIGHUP to be ignored, and means it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop += 1

    # ---------------------------------------------------------------- the loop

    def pump(self, seconds: float = TICK) -> None:
        """Wait at most so long for something to happen, and deal with it. Raises Stopped."""
        for key, _ in self._selector.select(timeout=seconds):
            if key.fd == self._wakeup:
                os.read(self._wakeup, 4096)
            elif isinstance(key.data, Job) and not key.data.read():
                self._selector.unregister(key.fileobj)
        for part in self.parts.values():
            if part.process is not None and part.process.poll() is not None:
                self._part_ended(part)
            elif part.due is not None and part.due <= time.monotonic() and not self._stopping:
                self._restart(part)
        self.terminal.draw()
        if self._asked_to_stop and not self._stopping:
            raise Stopped

    def until(self, condition: Callable[[], bool], *, within: float | None = None) -> bool:
        """Keep everything going until `condition` holds; False when that took too long."""
        end = time.monotonic() + within if within is not None else None
        while not condition():
            if end is not None and time.monotonic() > end:
                return False
            self.pump()
        return True

    def forever(self) -> None:
        while True:
            self.pump(seconds=5 if not self.jobs and self._is_calm() else TICK)
            for part in self.parts.values():
                part.log.cut()

    def _is_calm(self) -> bool:
        return all(part.due is None for part in self.parts.values())

    # ---------------------------------------------------------------- parts

    def start(self, name: str, command: list[str]) -> None:
        part = Part(name, command, Log(self.data / "logs" / f"{name}.log"))
        self.parts[name] = part
        part.start(env=self.env, cwd=BASE_DIR)
        self.write_info()

    def _part_ended(self, part: Part) -> None:
        pause = part.ended(time.monotonic())
        if self._stopping:
            return
        self.terminal.say(
            f"! {part.name} ended ({part.last_end}); it starts again in {pause:.1f} s. "
            f"Its log: {part.log.path}"
        )
        if line := part.log.last_line():
            self.terminal.say(f"    {line}")
        self.write_info()

    def _restart(self, part: Part) -> None:
        part.start(env=self.env, cwd=BASE_DIR)
        self.terminal.say(f"✓ {part.name} runs again")
        self.write_info()

    def last_words(self, name: str) -> str:
        log = self.parts[name].log
        return f"{log.last_line()}\nIts log: {log.path}"

    def write_info(self, **more: object) -> None:
        """run.json: how scripts and a second `./run` find this one."""
        self.info |= more
        parts = {
            part.name: {
                **(runfile.identity(part.process.pid) if part.process else {"pid": None}),
                "restarts": part.restarts,
                "last_end": part.last_end,
                "log": str(part.log.path),
            }
            for part in self.parts.values()
        }
        pids = {name: part["pid"] for name, part in parts.items()}
        runfile.write(self.data, self.info | {"pids": pids, "parts": parts})

    # ---------------------------------------------------------------- jobs

    def job(self, name: str, command: list[str]) -> Job:
        """Start something that ends. `finish` waits for it."""
        log = Log(self.data / "logs" / f"{name}.log").path
        out, theirs = os.pipe()
        try:
            process = spawn(command, env=self.env, cwd=BASE_DIR, out=theirs)
        finally:
            os.close(theirs)
        job = Job(name, process, out, log)
        self.jobs.append(job)
        self._selector.register(out, selectors.EVENT_READ, job)
        return job

    def is_over(self, job: Job) -> bool:
        """Whether it has ended and all that it wrote was read."""
        return job.process.poll() is not None and job.all_read

    def finish(self, job: Job) -> int:
        """Wait for the job; its exit status."""
        self.until(lambda: self.is_over(job))
        return self.forget(job)

    def forget(self, job: Job) -> int:
        self.jobs.remove(job)
        os.close(job.out)
        return int(job.process.returncode)

    def attached(self, command: list[str]) -> int:
        """Run something that writes to our terminal itself; its exit status."""
        self.terminal.quiet = True
        process = spawn(command, env=self.env, cwd=BASE_DIR, out=None, err=None)
        self._attached = process
        try:
            self.until(lambda: process.poll() is not None)
        finally:
            self.terminal.quiet = False
        return int(process.returncode)

    # ---------------------------------------------------------------- the end

    def stop(self) -> None:
        """End everything: what asks first, what is asked last. A second Ctrl-C does not wait."""
        self._stopping = True
        asked_before = self._asked_to_stop
        broker = self.parts.get("broker")
        first = [job.process for job in self.jobs]
        if self._attached is not None and self._attached.poll() is None:
            first.append(self._attached)
        first += [p.process for p in self.parts.values() if p.process and p is not broker]
        for group in (first, [broker.process] if broker and broker.process else []):
            for process in group:
                signal_group(process, signal.SIGTERM)
            end = time.monotonic() + STOP_TAKES
            while any(process.poll() is None for process in group):
                impatient = self._asked_to_stop > max(1, asked_before)
                if impatient or time.monotonic() > end:
                    for process in group:
                        if process.poll() is None:
                            signal_group(process, signal.SIGKILL)
                    for process in group:
                        process.wait()
                self.pump(0.05)
        signal.set_wakeup_fd(-1)
