"""Segments: one object in Django storage and one row each; in their rows' order, a stream.

No byte is lost or doubled: the object is written first, then the row, whose transaction checks
that the stream still ends where the shipper believes. A supervisor that dies between the two
leaves an object without a row, and the next one ships those bytes again.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import takewhile

import structlog
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.utils import timezone

from runs.models import LogSegment

logger = structlog.get_logger(__name__)

KIB, MIB = 2**10, 2**20
# Rows at the end that are shorter than a size, and together reach it, become one row. So a byte
# is rewritten at most once for each size, and a stream of 1 GiB has some 300 rows. Larger ones
# would cost memory in each supervisor, and time in each window.
MERGE_BYTES = (4 * KIB, 64 * KIB, 512 * KIB, 4 * MIB)
MERGE_ROWS = 16


class LogStorageError(OSError):
    """The log's storage did not take or give an object."""


class Moved(Exception):
    """The stream no longer ends where we believed: another shipper was first."""


@dataclass(frozen=True)
class End:
    """Where a stream ends, and where its shipper goes on in its file."""

    offset: int = 0
    line: int = 1
    file_end: int | None = None
    file_id: str = ""


def end_of(attempt_id: int, source: str) -> End:
    segments = LogSegment.objects.filter(attempt_id=attempt_id, source=source)
    last = segments.order_by("-first_byte").first()
    return after(last) if last else End()


def after(row: LogSegment) -> End:
    return End(
        offset=row.first_byte + row.length,
        line=row.first_line + row.line_count,
        file_end=row.file_end,
        file_id=row.file_id,
    )


def add(
    attempt_id: int, source: str, data: bytes, end: End, *, file_end: int | None, file_id: str
) -> End:
    """Add a segment at `end`; the new end. Raises Moved when the stream ends elsewhere."""
    path = store(attempt_id, source, end.offset, data)
    try:
        with transaction.atomic():
            last = (
                LogSegment.objects.select_for_update()
                .filter(attempt_id=attempt_id, source=source)
                .order_by("-first_byte")
                .first()
            )
            # A row at the same byte is refused by the constraint, but another shipper's may
            # have been merged into the one before.
            if (after(last) if last else End()) != end:
                raise Moved
            row = LogSegment.objects.create(
                attempt_id=attempt_id,
                source=source,
                first_byte=end.offset,
                length=len(data),
                first_line=end.line,
                line_count=data.count(b"\n"),
                path=path,
                file_end=file_end,
                file_id=file_id,
            )
    except (Moved, IntegrityError) as error:
        forget([path])
        if isinstance(error, IntegrityError) and end_of(attempt_id, source) == end:
            raise  # not a race: the attempt is gone, say
        raise Moved from error
    return after(row)


def merge(attempt_id: int, source: str) -> None:
    """Keep the number of rows small: join short ones at the end of the stream."""
    rows = LogSegment.objects.filter(attempt_id=attempt_id, source=source)
    # More than the sizes leave standing: sixteen of each.
    newest_first = rows.order_by("-first_byte")[: (len(MERGE_BYTES) + 1) * MERGE_ROWS]
    while (short := short_ones(list(newest_first.all())[::-1])) and join(short):
        pass


def short_ones(rows: list[LogSegment]) -> list[LogSegment]:
    """The rows at the end that should be one, oldest first; [] if all is well."""
    for size in MERGE_BYTES:
        count = len(list(takewhile(lambda row: row.length < size, reversed(rows))))  # noqa: B023
        short = rows[len(rows) - count :]
        is_many = size == MERGE_BYTES[0] and count >= MERGE_ROWS
        if count > 1 and (is_many or sum(row.length for row in short) >= size):
            return short
    return []


def join(rows: list[LogSegment]) -> bool:
    """Put rows that follow each other into the first one; False if somebody else just did."""
    first, last = rows[0], rows[-1]
    try:
        data = b"".join(load(row) for row in rows)
    except FileNotFoundError:
        return False
    path = store(first.attempt_id, first.source, first.first_byte, data)
    others = LogSegment.objects.filter(pk__in=[row.pk for row in rows[1:]])
    try:
        with transaction.atomic():
            # The old path is the lock: of two that merge, one updates no row.
            joined = LogSegment.objects.filter(pk=first.pk, path=first.path).update(
                path=path,
                length=len(data),
                line_count=sum(row.line_count for row in rows),
                file_end=last.file_end,
                file_id=last.file_id,
                shipped_at=last.shipped_at,
            )
            # Rows of the others may have been joined among themselves: nothing, or all.
            if not joined or others.delete()[0] != len(rows) - 1:
                raise Moved
            transaction.on_commit(lambda: forget([row.path for row in rows]))
    except Moved:
        forget([path])
        return False
    return True


def folder_of(attempt_id: int, source: str) -> str:
    return f"logs/{attempt_id}/{source}"


def store(attempt_id: int, source: str, first_byte: int, data: bytes) -> str:
    """Write an object under a name that nobody else uses; the name."""
    name = f"{folder_of(attempt_id, source)}/{first_byte:012d}-{uuid.uuid4().hex[:8]}.log"
    try:
        return str(default_storage.save(name, ContentFile(data)))
    except Exception as error:  # each storage has errors of its own
        raise LogStorageError(f"The log could not be stored: {error}") from error


def load(row: LogSegment, first: int = 0, last: int | None = None) -> bytes:
    """Bytes of a segment from `first` up to `last`. Raises FileNotFoundError when it is gone."""
    last = row.length if last is None else last
    with default_storage.open(row.path) as file:
        file.seek(first)
        data: bytes = file.read(last - first)
    if len(data) < last - first:
        raise LogStorageError(f"{row.path} in the storage is shorter than it was.")
    return data


def forget(paths: list[str]) -> None:
    """Delete objects that no row names. One that stays is only in the way."""
    for path in paths:
        try:
            default_storage.delete(path)
        except Exception as error:  # noqa: BLE001 - see store; remove_orphans tries again
            logger.warning("log.object_not_deleted", path=path, error=str(error))


def remove_orphans(attempt_id: int, *, older_than: timedelta = timedelta(hours=1)) -> int:
    """Delete objects of an attempt that no row names: what dead shippers left. How many."""
    removed = 0
    for source in LogSegment.Source.values:
        folder = folder_of(attempt_id, source)
        try:
            names = default_storage.listdir(folder)[1]
        except FileNotFoundError:
            continue
        rows = LogSegment.objects.filter(attempt_id=attempt_id, source=source)
        used = set(rows.values_list("path", flat=True))
        for path in (f"{folder}/{name}" for name in names):
            # A young one may be about to get its row.
            young = default_storage.get_modified_time(path) > timezone.now() - older_than
            if path not in used and not young:
                forget([path])
                removed += 1
    return removed


# ---------------------------------------------------------------------------- reading them


def rows_of(attempt_id: int, source: str) -> list[LogSegment]:
    return list(
        LogSegment.objects.filter(attempt_id=attempt_id, source=source).order_by("first_byte")
    )


def bytes_of(rows: list[LogSegment], first: int, last: int) -> Iterator[bytes]:
    """Bytes `first` up to `last` of the stream."""
    for row in rows:
        stop = row.first_byte + row.length
        if row.first_byte < last and stop > first:
            start = max(first, row.first_byte) - row.first_byte
            yield load(row, start, min(last, stop) - row.first_byte)
