"""Logs of an attempt: shipped from the host in segments, read from segments by page and API.

A segment is one object in Django storage and one row. The bytes of a source, in the order of
their rows, are its *stream*; all offsets here are offsets in it. Streams hold what a hostile
program wrote, byte by byte, less the secrets; decoding is the reader's business.

No byte is lost or doubled: the object is written first, then the row, whose transaction checks
that the stream still ends where the shipper believes. A supervisor that dies between the two
leaves an object without a row, and the next one ships those bytes again.
"""

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import structlog
from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.utils import timezone

from runs import ansi
from runs.core.redaction import redacted, spans_of, unfinished, usable
from runs.models import LogSegment
from runs.workspace import Refused, open_beneath

logger = structlog.get_logger(__name__)

KIB, MIB = 2**10, 2**20
# Bytes are shipped when there are this many or when they have waited this long.
SHIP_BYTES = 64 * KIB
SHIP_AFTER_SECONDS = 2.0
WINDOW_BYTES = 16 * MIB
BLOCK_BYTES = 4 * MIB
# The most that one segment takes when there is a backlog, and one call to ship().
READ_BYTES = MIB
CALL_BYTES = 8 * MIB
# Rows at the end that are shorter than a size, and together reach it, become one row. So a byte
# is rewritten at most once for each size, and a stream of 1 GiB has some 300 rows. Larger ones
# would cost memory in each supervisor, and time in each window.
MERGE_BYTES = (4 * KIB, 64 * KIB, 512 * KIB, 4 * MIB)
MERGE_ROWS = 16
LINE_BYTES = 4 * KIB
TRIES = 20


class LogStorageError(OSError):
    """The log's storage did not take or give an object."""


def _too_many(attempt_id: int, source: str) -> LogStorageError:
    return LogStorageError(f"The {source} log of attempt {attempt_id} is written by too many.")


def _stand_aside(number: int) -> None:
    """Let the others write: who only tries again can lose for ever. Longer with each try."""
    time.sleep(random.uniform(0, min(0.2, 0.002 * 2**number)))  # noqa: S311 - no secret


class _Moved(Exception):
    """The stream no longer ends where we believed: another shipper was first."""


# ---------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _End:
    """Where a stream ends, and where its shipper goes on in its file."""

    offset: int = 0
    line: int = 1
    file_end: int | None = None
    file_id: str = ""


def append(attempt_id: int, source: str, text: str) -> None:
    """Add lines of our own words, each with the time. Any process may, at any time.

    Raises LogStorageError when the storage does not take them.
    """
    stamp = timezone.now().strftime("[%Y-%m-%d %H:%M:%S] ")
    lines = text.rstrip("\n").split("\n")
    data = "".join(f"{stamp}{line}\n" for line in lines).encode(errors="replace")
    for number in range(TRIES):
        end = _end_of(attempt_id, source)
        try:
            _add(attempt_id, source, data, end, file_end=end.file_end, file_id=end.file_id)
        except _Moved:
            _stand_aside(number)
            continue
        _merge(attempt_id, source)
        return
    raise _too_many(attempt_id, source)


class Shipper:
    """Ships one file of an attempt to one source; go on calling ship().

    A second shipper of the same file, in this or another process, does no harm: one of the two
    finds that the other was first.
    """

    def __init__(
        self,
        attempt_id: int,
        source: str,
        workspace_root: Path,
        relative: str,
        secrets: Sequence[str] = (),
    ) -> None:
        self.attempt_id = attempt_id
        self.source = source
        self.root = workspace_root
        self.relative = relative
        self.secrets = usable(secrets)
        self._end: _End | None = None
        self._waiting_since: float | None = None
        self._refused = ""
        self._size = 0

    def hide(self, secrets: Sequence[str]) -> None:
        """From now on these are taken out."""
        self.secrets = usable(secrets)

    def ship(self, *, final: bool = False) -> int:
        """Ship what the file has grown by; the number of its bytes that were taken.

        Above LOG_MAX_BYTES nothing is kept; the number still says by how much the file grew.

        Whole lines; a line without an end goes when it has waited for SHIP_AFTER_SECONDS. With
        `final` all that is there goes. A storage that fails costs nothing: the bytes are
        shipped by a later call. Only a final call raises LogStorageError.
        """
        try:
            with open_beneath(self.root, self.relative) as file:
                return self._ship(file, final=final)
        except FileNotFoundError:
            return 0
        except Refused as refusal:
            if str(refusal) != self._refused:
                self._refused = str(refusal)
                self._say(f"the log is not read: {refusal}")
            return 0
        except LogStorageError as error:
            if final:
                raise
            logger.warning("log.not_shipped", attempt=self.attempt_id, error=str(error))
            return 0

    def _ship(self, file: BinaryIO, *, final: bool) -> int:
        taken = moved = 0
        while final or taken < CALL_BYTES:
            end = self._end = self._end or _end_of(self.attempt_id, self.source)
            if end.offset > settings.LOG_MAX_BYTES:
                return taken or self._grown(file)
            size, at, note = self._position(file, end)
            if not self._is_due(size - at, final=final or bool(taken)):
                break
            file.seek(at)
            data = file.read(READ_BYTES)
            if not data:
                break
            whole = at + len(data) >= os.fstat(file.fileno()).st_size
            cut = _cut(data, self.secrets, is_end=final and whole, waited=self._has_waited())
            if not cut:
                break
            try:
                self._add(note + redacted(data[:cut], self.secrets), end, at + cut, file)
            except _Moved:
                self._end = None
                moved += 1
                if moved == TRIES:
                    raise _too_many(self.attempt_id, self.source) from None
                _stand_aside(moved)
                continue
            self._waiting_since = None if cut == len(data) and whole else time.monotonic()
            taken += cut
        if taken:
            _merge(self.attempt_id, self.source)
        return taken

    def _grown(self, file: BinaryIO) -> int:
        """Bytes since the last look at a file that is too long to be shipped: a sign of life."""
        size = os.fstat(file.fileno()).st_size
        grown, self._size = max(0, size - self._size), size
        return grown

    def _position(self, file: BinaryIO, end: _End) -> tuple[int, int, bytes]:
        """Size of the file, where to read on, and a line of ours when it is not the old file."""
        status = os.fstat(file.fileno())
        at = end.file_end or 0
        if not at or (end.file_id == _file_id(status) and status.st_size >= at):
            return status.st_size, at, b""
        words = "the file was cut or replaced; what follows is read from its start"
        return status.st_size, 0, self._note(words, end)

    def _is_due(self, waiting: int, *, final: bool) -> bool:
        if waiting <= 0:
            return False
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        return final or waiting >= SHIP_BYTES or self._has_waited()

    def _has_waited(self) -> bool:
        since = self._waiting_since
        return since is not None and time.monotonic() - since >= SHIP_AFTER_SECONDS

    def _add(self, data: bytes, end: _End, file_end: int, file: BinaryIO) -> None:
        room = settings.LOG_MAX_BYTES - end.offset
        if len(data) > room:
            most = f"{settings.LOG_MAX_BYTES / 2**30:g} GiB"
            data = data[:room]
            data += b"" if data.endswith(b"\n") else b"\n"
            data += _own_line(f"the log has reached {most}; what follows is not kept here")
        file_id = _file_id(os.fstat(file.fileno()))
        self._end = _add(
            self.attempt_id, self.source, data, end, file_end=file_end, file_id=file_id
        )

    def _say(self, words: str) -> None:
        """A line of ours in the stream, without reading the file."""
        end = _end_of(self.attempt_id, self.source)
        data = self._note(words, end)
        try:
            _add(
                self.attempt_id,
                self.source,
                data,
                end,
                file_end=end.file_end,
                file_id=end.file_id,
            )
        except _Moved:
            self._refused = ""  # said at the next call
        self._end = None

    def _note(self, words: str, end: _End) -> bytes:
        """A line of ours that begins on a line of its own."""
        last = b"\n"
        if end.offset:
            rows = _rows(self.attempt_id, self.source)
            last = b"".join(_read(rows, end.offset - 1, end.offset))
        return (b"" if last == b"\n" else b"\n") + _own_line(words)


def _own_line(words: str) -> bytes:
    return f"[mlebench-web: {words}]\n".encode(errors="replace")


def _file_id(status: os.stat_result) -> str:
    return str(status.st_ino)


def _cut(data: bytes, secrets: list[bytes], *, is_end: bool, waited: bool) -> int:
    """How many of `data` can go now: whole lines, and no piece of a secret."""
    if is_end:
        return len(data)
    cut = data.rfind(b"\n") + 1
    # A line without an end, such as a progress bar, goes once it has waited; so does one that is
    # longer than a segment.
    if not cut and (waited or len(data) >= SHIP_BYTES):
        cut = len(data)
    spans = spans_of(data, secrets)
    # A line end inside a secret: on to the secret's end, or its line would wait for ever.
    cut = next((stop for start, stop in spans if start < cut < stop), cut)
    # What may be the first part of a secret waits for the rest, and so does a secret that a
    # second one may overlap.
    cut = min(cut, len(data) - unfinished(data, secrets))
    return next((start for start, stop in spans if start < cut < stop), cut)


# ---------------------------------------------------------------------------- segments


def _end_of(attempt_id: int, source: str) -> _End:
    segments = LogSegment.objects.filter(attempt_id=attempt_id, source=source)
    last = segments.order_by("-first_byte").first()
    return _after(last) if last else _End()


def _after(row: LogSegment) -> _End:
    return _End(
        offset=row.first_byte + row.length,
        line=row.first_line + row.line_count,
        file_end=row.file_end,
        file_id=row.file_id,
    )


def _add(
    attempt_id: int, source: str, data: bytes, end: _End, *, file_end: int | None, file_id: str
) -> _End:
    """Add a segment at `end`; the new end. Raises _Moved when the stream ends elsewhere."""
    path = _store(attempt_id, source, end.offset, data)
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
            if (_after(last) if last else _End()) != end:
                raise _Moved
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
    except (_Moved, IntegrityError) as error:
        _forget([path])
        if isinstance(error, IntegrityError) and _end_of(attempt_id, source) == end:
            raise  # not a race: the attempt is gone, say
        raise _Moved from error
    return _after(row)


def _merge(attempt_id: int, source: str) -> None:
    """Keep the number of rows small: join short ones at the end of the stream."""
    rows = LogSegment.objects.filter(attempt_id=attempt_id, source=source)
    # More than the sizes leave standing: sixteen of each.
    newest_first = rows.order_by("-first_byte")[: (len(MERGE_BYTES) + 1) * MERGE_ROWS]
    while (short := _short_ones(list(newest_first.all())[::-1])) and _join(short):
        pass


def _short_ones(rows: list[LogSegment]) -> list[LogSegment]:
    """The rows at the end that should be one, oldest first; [] if all is well."""
    for size in MERGE_BYTES:
        count = len(list(takewhile(lambda row: row.length < size, reversed(rows))))  # noqa: B023
        short = rows[len(rows) - count :]
        is_many = size == MERGE_BYTES[0] and count >= MERGE_ROWS
        if count > 1 and (is_many or sum(row.length for row in short) >= size):
            return short
    return []


def _join(rows: list[LogSegment]) -> bool:
    """Put rows that follow each other into the first one; False if somebody else just did."""
    first, last = rows[0], rows[-1]
    try:
        data = b"".join(_load(row) for row in rows)
    except FileNotFoundError:
        return False
    path = _store(first.attempt_id, first.source, first.first_byte, data)
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
                raise _Moved
            transaction.on_commit(lambda: _forget([row.path for row in rows]))
    except _Moved:
        _forget([path])
        return False
    return True


def _folder(attempt_id: int, source: str) -> str:
    return f"logs/{attempt_id}/{source}"


def _store(attempt_id: int, source: str, first_byte: int, data: bytes) -> str:
    """Write an object under a name that nobody else uses; the name."""
    name = f"{_folder(attempt_id, source)}/{first_byte:012d}-{uuid.uuid4().hex[:8]}.log"
    try:
        return str(default_storage.save(name, ContentFile(data)))
    except Exception as error:  # each storage has errors of its own
        raise LogStorageError(f"The log could not be stored: {error}") from error


def _load(row: LogSegment, first: int = 0, last: int | None = None) -> bytes:
    """Bytes of a segment from `first` up to `last`. Raises FileNotFoundError when it is gone."""
    last = row.length if last is None else last
    with default_storage.open(row.path) as file:
        file.seek(first)
        data: bytes = file.read(last - first)
    if len(data) < last - first:
        raise LogStorageError(f"{row.path} in the storage is shorter than it was.")
    return data


def _forget(paths: list[str]) -> None:
    """Delete objects that no row names. One that stays is only in the way."""
    for path in paths:
        try:
            default_storage.delete(path)
        except Exception as error:  # noqa: BLE001 - see _store; remove_orphans tries again
            logger.warning("log.object_not_deleted", path=path, error=str(error))


def remove_orphans(attempt_id: int, *, older_than: timedelta = timedelta(hours=1)) -> int:
    """Delete objects of an attempt that no row names: what dead shippers left. How many."""
    removed = 0
    for source in LogSegment.Source.values:
        folder = _folder(attempt_id, source)
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
                _forget([path])
                removed += 1
    return removed


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Line:
    """One line for display. `cut`: its end was left out; `bytes` is its whole length."""

    number: int
    text: str
    start: int
    bytes: int
    cut: bool = False


@dataclass(frozen=True)
class Window:
    """Part of a stream. `end` is the offset to ask for next; `total` where the stream ends now."""

    text: str
    start: int
    end: int
    total: int
    first_line: int
    # Its first line goes on with a line that began before `start`.
    continues: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Found:
    """`count` lines hold the text; `lines` has the first of them. Not `complete`: time was up,
    and there may be more."""

    count: int
    lines: tuple[Line, ...]
    complete: bool
    total_lines: int


def window(
    attempt_id: int, source: str, *, offset: int | None = None, limit_bytes: int = 256 * KIB
) -> Window:
    """Up to `limit_bytes` from `offset`, or the tail; whole lines where lines are short enough.

    Costs one query, and reads only the segments that it shows. Raises LogStorageError.
    """
    limit_bytes = min(max(1, limit_bytes), WINDOW_BYTES)
    return _retrying(lambda: _window(attempt_id, source, offset, limit_bytes))


def _window(attempt_id: int, source: str, offset: int | None, limit_bytes: int) -> Window:
    rows = _rows(attempt_id, source)
    total = rows[-1].first_byte + rows[-1].length if rows else 0
    wanted = max(0, total - limit_bytes) if offset is None else min(max(0, offset), total)
    # One byte more in front tells whether a line begins here.
    before = max(0, wanted - 1)
    data = b"".join(_read(rows, before, min(total, wanted + limit_bytes)))
    start = wanted
    begins = wanted == before or data.startswith(b"\n")
    data = data[wanted - before :]
    if offset is None and not begins:
        cut = data.find(b"\n") + 1
        start, data, begins = start + cut, data[cut:], bool(cut)
    data = data[: _readable_length(data, is_end=start + len(data) == total)]
    first_line = _line_at(rows, start)
    return Window(
        text=data.decode("utf-8", "replace"),
        start=start,
        end=start + len(data),
        total=total,
        first_line=first_line,
        continues=not begins,
        lines=tuple(_lines(data, first_line, start)),
    )


def _readable_length(data: bytes, *, is_end: bool) -> int:
    """Up to the last line end, or else character; at the stream's end, up to its last character.

    Never 0: bytes that end no character are shown as such when nothing else is left.
    """
    if not is_end and (cut := data.rfind(b"\n") + 1):
        return cut
    for back in range(1, min(4, len(data))):
        byte = data[-back]
        if byte >= 0xC0:  # the first byte of a character of two to four bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if length > back and len(data) > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def _lines(data: bytes, number: int, start: int) -> Iterator[Line]:
    at = 0
    while at < len(data):
        stop = data.find(b"\n", at)
        stop = len(data) if stop < 0 else stop
        shown = data[at : min(stop, at + LINE_BYTES)]
        is_cut = stop - at > LINE_BYTES
        if is_cut:
            shown = shown[: _readable_length(shown, is_end=True)]
        text = shown.decode("utf-8", "replace")
        yield Line(number=number, text=text, start=start + at, bytes=stop - at, cut=is_cut)
        number += 1
        at = stop + 1


def raw(attempt_id: int, source: str) -> Iterator[bytes]:
    """The whole stream, byte by byte as it was stored, in pieces. Raises LogStorageError."""
    offset = 0
    while data := _retrying(partial(_raw_piece, attempt_id, source, offset)):
        yield data
        offset += len(data)


def _raw_piece(attempt_id: int, source: str, offset: int) -> bytes:
    # Rows are asked for each piece: a slow reader outlives the segments that it began with.
    return b"".join(_read(_rows(attempt_id, source), offset, offset + MIB))


def last_lines(attempt_id: int, source: str, count: int) -> list[str]:
    """The last lines as plain text, without colours and control characters."""
    lines = window(attempt_id, source, limit_bytes=SHIP_BYTES).lines
    return [ansi.plain(line.text) for line in lines[-count:]] if count else []


def search(
    attempt_id: int,
    source: str,
    text: str,
    *,
    limit: int = 1000,
    seconds: float = 3.0,
) -> Found:
    """Lines of the whole stream that hold `text`, upper and lower case (of ASCII) alike."""
    if not text:
        return Found(count=0, lines=(), complete=True, total_lines=0)
    return _retrying(lambda: _search(attempt_id, source, text.encode(), limit, seconds))


def _search(attempt_id: int, source: str, text: bytes, limit: int, seconds: float) -> Found:
    rows = _rows(attempt_id, source)
    last = rows[-1] if rows else None
    until = time.monotonic() + seconds
    wanted = text.lower()
    count, complete, last_number = 0, True, 0
    found: list[Line] = []
    for block, number, start in _blocks(rows):
        if time.monotonic() > until:
            complete = False
            break
        lower, seen = block.lower(), 0
        at = lower.find(wanted)
        while at >= 0:
            number += block.count(b"\n", seen, at)
            line_start = block.rfind(b"\n", 0, at) + 1
            line_end = block.find(b"\n", at)
            line_end = len(block) if line_end < 0 else line_end
            # A line that is longer than a block comes in pieces, and counts once.
            if number != last_number:
                count, last_number = count + 1, number
                if len(found) < limit:
                    found += _lines(block[line_start:line_end], number, start + line_start)
            seen = at
            at = lower.find(wanted, line_end)
    return Found(
        count=count,
        lines=tuple(found),
        complete=complete,
        total_lines=last.first_line + last.line_count - 1 if last else 0,
    )


def _blocks(rows: list[LogSegment]) -> Iterator[tuple[bytes, int, int]]:
    """The stream in blocks of whole lines, each with its first line's number and offset.

    A line longer than BLOCK_BYTES comes in pieces.
    """
    rest, number, start = b"", 1, 0
    for row in rows:
        for first in range(0, row.length, MIB):
            rest += _load(row, first, min(row.length, first + MIB))
            cut = rest.rfind(b"\n") + 1
            if not cut and len(rest) >= BLOCK_BYTES:
                cut = len(rest)
            if cut:
                yield rest[:cut], number, start
                number += rest.count(b"\n", 0, cut)
                rest, start = rest[cut:], start + cut
    if rest:
        yield rest, number, start


def _retrying[Value](read: Callable[[], Value]) -> Value:
    """`read` again when a segment was merged away between its row and its object."""
    for _ in range(TRIES):
        try:
            return read()
        except FileNotFoundError as error:
            gone = error
    raise LogStorageError(f"A part of the log is missing in the storage: {gone}") from gone


def _rows(attempt_id: int, source: str) -> list[LogSegment]:
    return list(
        LogSegment.objects.filter(attempt_id=attempt_id, source=source).order_by("first_byte")
    )


def _read(rows: list[LogSegment], first: int, last: int) -> Iterator[bytes]:
    """Bytes `first` up to `last` of the stream."""
    for row in rows:
        stop = row.first_byte + row.length
        if row.first_byte < last and stop > first:
            start = max(first, row.first_byte) - row.first_byte
            yield _load(row, start, min(last, stop) - row.first_byte)


def _line_at(rows: list[LogSegment], offset: int) -> int:
    """Number of the line that the byte at `offset` belongs to."""
    number = 1
    for row in rows:
        if row.first_byte + row.length > offset:
            if offset > row.first_byte:
                return row.first_line + _load(row, 0, offset - row.first_byte).count(b"\n")
            return row.first_line
        number = row.first_line + row.line_count
    return number
