"""Logs of our own processes: structlog to standard error, one line an event.

Standard output belongs to a command's answer. Lines name the object and the act, never
environment, config or arguments wholesale.
"""

import logging
import sys

import structlog
from django.core.exceptions import PermissionDenied

_line = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])


def render(logger: object, name: str, event: structlog.typing.EventDict) -> str:
    """One line, and after it the traceback as Python prints it."""
    traceback = event.pop("exception", "")
    line = _line(logger, name, event)
    return f"{line}\n{traceback}" if traceback else line


class RefusalsAreNoFaults(logging.Filter):
    """A person who may not do something is told why on the page; the log needs no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, PermissionDenied):
            record.msg, record.args = f"{record.getMessage()}: {error}", ()
            record.exc_info = None
        return True


def configure(options: dict[str, str]) -> None:
    """Django calls this with settings.LOGGING; `level` is a name such as INFO."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    handler.addFilter(RefusalsAreNoFaults())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(options["level"])
    for noisy in ("urllib3", "docker", "asyncio", "kombu", "amqp", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
