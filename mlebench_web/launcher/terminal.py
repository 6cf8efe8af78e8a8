"""What `./run` says: finished lines, and on a terminal one live line of what is under way."""

import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass
class Activity:
    """Something slow that is under way."""

    title: str
    detail: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


class Terminal:
    def __init__(self, out: TextIO = sys.stdout) -> None:
        self.out = out
        self.is_tty = out.isatty()
        self.quiet = False
        self._activities: list[Activity] = []
        self._drawn = False
        self._turn = 0

    def say(self, text: str = "") -> None:
        self._clear()
        print(text, file=self.out, flush=True)

    def begin(self, title: str) -> Activity:
        activity = Activity(title)
        self._activities.append(activity)
        if not self.is_tty:
            self.say(f"· {title} …")
        return activity

    def end(self, activity: Activity, *, failed: bool = False) -> None:
        self._activities.remove(activity)
        mark = "✗" if failed else "✓"
        self.say(f"{mark} {activity.title} ({activity.seconds:.1f} s)")

    def draw(self) -> None:
        """Redraw the live line; nothing on anything but a terminal."""
        if not self.is_tty or self.quiet:
            return
        self._clear()
        if not self._activities:
            return
        self._turn += 1
        words = " | ".join(
            f"{each.title} {each.seconds:.0f} s{': ' + each.detail if each.detail else ''}"
            for each in self._activities
        )
        width = max(20, shutil.get_terminal_size().columns - 4)
        self.out.write(f"{SPINNER[self._turn % len(SPINNER)]} {words[:width]}")
        self.out.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self.out.write("\r\x1b[2K")
            self._drawn = False
