"""Celery's own signals: a worker's sign of life, its first bell, and its end."""

import signal
import time

import structlog
from celery.signals import heartbeat_sent, worker_ready
from django.conf import settings
from django.db import InterfaceError, OperationalError, connections

from mlebench_web.fleet import hosts
from runs import bell, worker_guard

logger = structlog.get_logger(__name__)

# None: this process is no host's worker (the control worker, a shell command).
_host_worker_beat_at: float | None = None


@worker_ready.connect
def ring_at_start(sender: object, **_: object) -> None:
    """Whatever this host left behind is adopted at once."""
    global _host_worker_beat_at
    queues = sender.app.amqp.queues.consume_from  # type: ignore[attr-defined]
    if bell.queue_of(settings.HOST_NAME) in queues:
        host = hosts.this_host()
        hosts.worker_beat(host)
        worker_guard.write_identity(host.name)
        _host_worker_beat_at = time.monotonic()
        bell.ring(only=host)


@worker_ready.connect
def end_on_ctrl_c_as_on_sigterm(**_: object) -> None:
    """Celery's first Ctrl-C waits for its tasks, which would be for the longest run's end."""
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))


@heartbeat_sent.connect
def say_alive(**_: object) -> None:
    """The worker's main loop turns and reaches the broker: that is what online means."""
    global _host_worker_beat_at
    now = time.monotonic()
    if _host_worker_beat_at is None or now - _host_worker_beat_at < _every_seconds():
        return
    _host_worker_beat_at = now
    try:
        hosts.worker_beat(hosts.this_host())
    except (OperationalError, InterfaceError) as error:
        logger.warning("worker.database_silent", error=str(error))
        connections.close_all()


def _every_seconds() -> float:
    return settings.HEARTBEAT.total_seconds() / 3
