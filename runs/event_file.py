"""The events file of a running agent, followed from the host as it grows.

It belongs to a hostile program: no link is followed, only whole lines are taken, a line without an
end costs no memory, and a file that was cut or replaced is read from its start.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from runs.core.steps import MAX_LINE_BYTES
from runs.workspace import Refused, open_beneath

# Below an attempt's folder; in the container it is MLE_EVENTS_FILE.
EVENTS = "logs/events.jsonl"
# The most that one look takes: what comes quicker waits, and no honest agent says so much.
READ_BYTES = 2**18


@dataclass
class Place:
    """How far a file was read; saved with what its lines said, so that none is lost or doubled."""

    offset: int = 0
    # Which file: a new one under the same name differs.
    file: str = ""
    # In the middle of a line that is too long: up to its end nothing is taken.
    is_skipping: bool = False


@dataclass
class Lines:
    """What one look found."""

    lines: list[bytes] = field(default_factory=list)
    fault: str = ""
    # There was more than one look takes.
    is_behind: bool = False


class Tail:
    def __init__(self, root: Path, relative: str = EVENTS, place: Place | None = None) -> None:
        self.root = root
        self.relative = relative
        self.place = place or Place()
        self._refused = ""

    def read(self) -> Lines:
        """The whole lines since the last look; `place` is then behind them."""
        try:
            with open_beneath(self.root, self.relative) as file:
                return self._read(file)
        except FileNotFoundError:
            return Lines()
        except (Refused, OSError) as error:
            words = str(error) if isinstance(error, Refused) else os.strerror(error.errno or 0)
            # Told once, not at each look.
            fault = f"the file is not read: {words}" if words != self._refused else ""
            self._refused = words
            return Lines(fault=fault)

    def _read(self, file: BinaryIO) -> Lines:
        status = os.fstat(file.fileno())
        place, fault = self.place, ""
        if place.offset and (place.file != str(status.st_ino) or status.st_size < place.offset):
            place.offset, place.is_skipping = 0, False
            fault = "the file was cut or replaced"
        place.file = str(status.st_ino)
        file.seek(place.offset)
        data = file.read(READ_BYTES)
        start = 0
        if place.is_skipping:
            start = data.find(b"\n") + 1
            place.is_skipping = not start
            start = start or len(data)
        cut = max(data.rfind(b"\n") + 1, start)
        lines = [line for line in data[start:cut].split(b"\n") if line.strip()]
        if len(data) - cut > MAX_LINE_BYTES:
            place.is_skipping = True
            fault, cut = "a line is too long", len(data)
        place.offset += cut
        return Lines(lines, fault, is_behind=len(data) == READ_BYTES)
