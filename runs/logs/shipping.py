"""Shipping: an attempt's log files, and lines of our own, become segments."""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import structlog
from django.conf import settings
from django.utils import timezone

from runs.core.redaction import redacted, spans_of, unfinished, usable
from runs.logs.segments import (
    KIB,
    MIB,
    End,
    LogStorageError,
    Moved,
    add,
    bytes_of,
    end_of,
    merge,
    rows_of,
)
from runs.workspace import Refused, open_beneath

logger = structlog.get_logger(__name__)

# Bytes are shipped when there are this many or when they have waited this long.
SHIP_BYTES = 64 * KIB
SHIP_AFTER_SECONDS = 2.0
# The most that one segment takes when there is a backlog, and one call to ship().
READ_BYTES = MIB
CALL_BYTES = 8 * MIB
TRIES = 20


def _too_many(attempt_id: int, source: str) -> LogStorageError:
    return LogStorageError(f"The {source} log of attempt {attempt_id} is written by too many.")


def _stand_aside(number: int) -> None:
    """Let the others write: who only tries again can lose for ever. Longer with each try."""
    time.sleep(random.uniform(0, min(0.2, 0.002 * 2**number)))  # noqa: S311 - no secret


def append(attempt_id: int, source: str, text: str) -> None:
    """Add lines of our own words, each with the time. Any process may, at any time.

    Raises LogStorageError when the storage does not take them.
    """
    stamp = timezone.now().strftime("[%Y-%m-%d %H:%M:%S] ")
    lines = text.rstrip("\n").split("\n")
    data = "".join(f"{stamp}{line}\n" for line in lines).encode(errors="replace")
    for number in range(TRIES):
        end = end_of(attempt_id, source)
        try:
            add(attempt_id, source, data, end, file_end=end.file_end, file_id=end.file_id)
        except Moved:
            _stand_aside(number)
            continue
        merge(attempt_id, source)
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
        self._end: End | None = None
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
            end = self._end = self._end or end_of(self.attempt_id, self.source)
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
            except Moved:
                self._end = None
                moved += 1
                if moved == TRIES:
                    raise _too_many(self.attempt_id, self.source) from None
                _stand_aside(moved)
                continue
            self._waiting_since = None if cut == len(data) and whole else time.monotonic()
            taken += cut
        if taken:
            merge(self.attempt_id, self.source)
        return taken

    def _grown(self, file: BinaryIO) -> int:
        """Bytes since the last look at a file that is too long to be shipped: a sign of life."""
        size = os.fstat(file.fileno()).st_size
        grown, self._size = max(0, size - self._size), size
        return grown

    def _position(self, file: BinaryIO, end: End) -> tuple[int, int, bytes]:
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

    def _add(self, data: bytes, end: End, file_end: int, file: BinaryIO) -> None:
        room = settings.LOG_MAX_BYTES - end.offset
        if len(data) > room:
            most = f"{settings.LOG_MAX_BYTES / 2**30:g} GiB"
            data = data[:room]
            data += b"" if data.endswith(b"\n") else b"\n"
            data += _own_line(f"the log has reached {most}; what follows is not kept here")
        file_id = _file_id(os.fstat(file.fileno()))
        self._end = add(self.attempt_id, self.source, data, end, file_end=file_end, file_id=file_id)

    def _say(self, words: str) -> None:
        """A line of ours in the stream, without reading the file."""
        end = end_of(self.attempt_id, self.source)
        data = self._note(words, end)
        try:
            add(
                self.attempt_id,
                self.source,
                data,
                end,
                file_end=end.file_end,
                file_id=end.file_id,
            )
        except Moved:
            self._refused = ""  # said at the next call
        self._end = None

    def _note(self, words: str, end: End) -> bytes:
        """A line of ours that begins on a line of its own."""
        last = b"\n"
        if end.offset:
            rows = rows_of(self.attempt_id, self.source)
            last = b"".join(bytes_of(rows, end.offset - 1, end.offset))
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
