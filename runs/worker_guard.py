"""The host service's eye on its worker: one that is alive but deaf is restarted.

A message that was lost on a broken connection, a main process that was stopped, a pool whose
children all hang: the worker runs, and nothing starts any more. SIGTERM makes it let go of its
attempts within seconds, whoever started it starts it again, and the new one adopts them.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from django.conf import settings

from mlebench_web.fleet.models import Host
from mlebench_web.process_start import started
from runs import queue
from runs.api.health import broker_answers
from runs.core.deafness import Deafness

logger = structlog.get_logger(__name__)

# After SIGTERM a worker that hears ends within five seconds; one that is stopped never does.
TERM_TAKES = 10.0


@dataclass(frozen=True)
class Identity:
    """The worker's main process; a pid alone may belong to somebody else by now."""

    pid: int
    started: float

    def process(self) -> psutil.Process | None:
        """None when it has ended."""
        try:
            process = psutil.Process(self.pid)
            is_it = abs(started(self.pid) - self.started) < 0.02
            return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def path_of(host_name: str) -> Path:
    return settings.SOCKETS_DIR / f"worker-{host_name}.json"


def write_identity(host_name: str) -> None:
    """By the worker's main process, once it hears."""
    path = path_of(host_name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "started": started(os.getpid())}))
    temporary.replace(path)


def read_identity(host_name: str) -> Identity | None:
    """None before the first worker of this host was ready."""
    try:
        said = json.loads(path_of(host_name).read_text())
        return Identity(int(said["pid"]), float(said["started"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("worker_guard.unreadable", file=str(path_of(host_name)), error=str(error))
        return None


class WorkerGuard:
    def __init__(self, host: Host) -> None:
        self.host = host
        self._rule = Deafness(after=settings.WORKER_DEAF_AFTER.total_seconds())
        self._told: tuple[Identity, float] | None = None

    def look(self) -> None:
        """One look; the caller comes again every few seconds.

        Raises OperationalError when the database takes no writes: no worker could renew a lease.
        """
        worker = read_identity(self.host.name)
        process = worker.process() if worker else None
        if worker is None or process is None:
            # Whoever started it starts it again.
            self._told = None
            return
        now = time.monotonic()
        if self._told and self._told[0] == worker:
            if now - self._told[1] > TERM_TAKES:
                self._kill(process)
            return
        queue.prove_that_it_takes_writes()
        self.host.refresh_from_db()
        unclaimed = queue.could_claim(self.host)
        unwatched = {attempt.pk for attempt in queue.unwatched(self.host)}
        reason = self._rule.look(
            # Not the time before the questions: a network that was away for minutes holds them up,
            # and what they then find has only been so since the answer.
            now=time.monotonic(),
            worker=worker,
            unclaimed=unclaimed,
            unwatched=unwatched,
        )
        if not reason:
            return
        if not broker_answers():
            # Nobody can hear a bell, and a new worker would adopt nothing.
            return
        logger.error("worker.deaf", host=self.host.name, pid=worker.pid, reason=reason)
        self._told = (worker, now)
        self._signal(process)

    def _signal(self, process: psutil.Process) -> None:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            return

    def _kill(self, process: psutil.Process) -> None:
        """It does not hear SIGTERM either. Its children supervise; their attempts are adopted."""
        logger.error("worker.killed", host=self.host.name, pid=process.pid)
        try:
            family = [*process.children(recursive=True), process]
        except psutil.NoSuchProcess:
            return
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
