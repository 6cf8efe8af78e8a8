"""What the control worker throws away, now and then."""

import time
from datetime import timedelta

import structlog
from django.db.models.functions import Now

from runs.models import IdempotencyKey

logger = structlog.get_logger(__name__)

# Nobody repeats a request after so long. docs/api.md names it.
KEYS_KEPT = timedelta(days=7)
# Rows of one statement: a lock on SQLite should be short.
AT_ONCE = 1000
EVERY_SECONDS = 3600.0

_last: float | None = None


def tidy() -> None:
    """Called at each tick; does something once an hour."""
    global _last
    now = time.monotonic()
    if _last is not None and now - _last < EVERY_SECONDS:
        return
    _last = now
    if gone := forget_old_keys():
        logger.info("idempotency_keys.forgotten", count=gone)


def forget_old_keys() -> int:
    """Remove keys that are older than KEYS_KEPT, by the database's clock; how many those were."""
    gone = 0
    while True:
        old = IdempotencyKey.objects.filter(created_at__lt=Now() - KEYS_KEPT)
        some = list(old.order_by("pk").values_list("pk", flat=True)[:AT_ONCE])
        if not some:
            return gone
        gone += IdempotencyKey.objects.filter(pk__in=some).delete()[0]
