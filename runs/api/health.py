"""Whether web, database and broker answer: for probes, without a token."""

import structlog
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from mlebench_web.celery import app

logger = structlog.get_logger(__name__)

# A probe wants an answer, also from a frozen broker.
BROKER_SECONDS = 1


def database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except DatabaseError as error:
        logger.warning("health.database", error=str(error))
        return False
    return True


def broker_answers() -> bool:
    """A ping over a connection of its own; never `inspect`, which takes its whole timeout."""
    options = {
        "socket_timeout": BROKER_SECONDS,
        "socket_connect_timeout": BROKER_SECONDS,
        "max_retries": 0,
    }
    broker = app.connection_for_write(
        transport_options={**app.conf.broker_transport_options, **options},
        connect_timeout=BROKER_SECONDS,
    )
    try:
        # Opens the connection and pings, once: `ensure_connection` would go on trying.
        broker.transport.establish_connection()
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("health.broker", error=str(error))
        return False
    finally:
        broker.release()
    return True


@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """200 when all answer, else 503; `failing` names what does not."""
    parts = {"web": True, "database": database_answers(), "broker": broker_answers()}
    failing = [name for name, answers in parts.items() if not answers]
    return JsonResponse(
        {
            "state": "failing" if failing else "ok",
            "failing": failing,
            "parts": {name: "ok" if answers else "failing" for name, answers in parts.items()},
            "detail": f"No answer from: {', '.join(failing)}." if failing else "",
        },
        status=503 if failing else 200,
    )
