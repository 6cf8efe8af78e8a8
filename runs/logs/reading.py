"""Reading: windows, searches and the whole of a stream, from its segments."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from runs import ansi
from runs.logs.segments import KIB, MIB, LogStorageError, bytes_of, load, rows_of
from runs.models import LogSegment

WINDOW_BYTES = 16 * MIB
BLOCK_BYTES = 4 * MIB
# What the last lines are looked for in.
LAST_BYTES = 64 * KIB
LINE_BYTES = 4 * KIB
TRIES = 20


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
    rows = rows_of(attempt_id, source)
    total = rows[-1].first_byte + rows[-1].length if rows else 0
    wanted = max(0, total - limit_bytes) if offset is None else min(max(0, offset), total)
    # One byte more in front tells whether a line begins here.
    before = max(0, wanted - 1)
    data = b"".join(bytes_of(rows, before, min(total, wanted + limit_bytes)))
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
    return b"".join(bytes_of(rows_of(attempt_id, source), offset, offset + MIB))


def last_lines(attempt_id: int, source: str, count: int) -> list[str]:
    """The last lines as plain text, without colours and control characters."""
    lines = window(attempt_id, source, limit_bytes=LAST_BYTES).lines
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
    rows = rows_of(attempt_id, source)
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
            rest += load(row, first, min(row.length, first + MIB))
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


def _line_at(rows: list[LogSegment], offset: int) -> int:
    """Number of the line that the byte at `offset` belongs to."""
    number = 1
    for row in rows:
        if row.first_byte + row.length > offset:
            if offset > row.first_byte:
                return row.first_line + load(row, 0, offset - row.first_byte).count(b"\n")
            return row.first_line
        number = row.first_line + row.line_count
    return number
