"""Celery entry points. Each is one call; a message carries no run."""

from celery import shared_task

from runs import bell as bells
from runs import queue, signals, tidying, worker

# Imported for its receivers: a Celery worker loads this module and no other.
__all__ = ["bell", "signals", "tick"]


@shared_task(ignore_result=True)
def bell() -> None:
    """Somebody may have work for this host: adopt, else claim, and supervise it."""
    worker.work_while_there_is_some()


@shared_task(ignore_result=True)
def tick() -> None:
    """The control worker's pulse: reap what silent hosts left, ring again, and tidy up."""
    queue.reap()
    bells.ring()
    tidying.tidy()
