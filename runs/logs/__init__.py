"""Logs of an attempt: shipped from the host in segments, read from segments by page and API.

A segment is one object in Django storage and one row. The bytes of a source, in the order of
their rows, are its *stream*; all offsets here are offsets in it. Streams hold what a hostile
program wrote, byte by byte, less the secrets; decoding is the reader's business.
"""

from runs.logs.reading import Found, Line, Window, last_lines, raw, search, window
from runs.logs.segments import LogStorageError, remove_orphans
from runs.logs.shipping import SHIP_AFTER_SECONDS, Shipper, append

__all__ = [
    "SHIP_AFTER_SECONDS",
    "Found",
    "Line",
    "LogStorageError",
    "Shipper",
    "Window",
    "append",
    "last_lines",
    "raw",
    "remove_orphans",
    "search",
    "window",
]
