"""OpenHands: each action of its conversation is a step; one file for each event, written once.

The folder is its persistence folder, which is kept in /home/ckpt (docs/checkpoints.md). An action
without an observation runs.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runs.core.probing import SeenStep
from runs.probes.files import JsonFile, names, record, text

CONVERSATIONS = "ckpt/openhands/conversations"
EVENT_FILE = re.compile(r"event-(\d{1,9})-[\w-]{1,64}\.json")
# Version 0 of it, whose file store is in /home/ckpt/fs.
SESSIONS = "ckpt/fs/sessions"
SESSION_EVENT_FILE = re.compile(r"(\d{1,9})\.json")
ENDS = ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation")
# What version 0 calls an action without doing anything.
NO_STEP = ("system", "message", "change_agent_state", "recall")
# Read in one look; a conversation that was long already is caught up with in some looks.
READ_AT_ONCE = 500


class OpenHandsProbe:
    def __init__(self, root: Path) -> None:
        self.root = root
        # Those that are read, by folder and number: they are written once.
        self._read: set[tuple[str, int]] = set()
        self._steps: list[SeenStep] = []
        # The event that a running step waits for: by its id or number.
        self._waits: dict[str, int] = {}

    def look(self) -> Sequence[SeenStep] | None:
        before = len(self._read)
        for folder, pattern in self._folders():
            self._read_events(folder, pattern)
        return list(self._steps) if len(self._read) > before else None

    def _folders(self) -> list[tuple[str, re.Pattern[str]]]:
        found = []
        for parent, pattern in ((CONVERSATIONS, EVENT_FILE), (SESSIONS, SESSION_EVENT_FILE)):
            # One conversation for a run; a hostile agent must not make a look endless.
            for name in names(self.root, parent)[:10]:
                found.append((f"{parent}/{name}/events", pattern))
        return found

    def _read_events(self, folder: str, pattern: re.Pattern[str]) -> None:
        matches = (pattern.fullmatch(name) for name in names(self.root, folder))
        numbered = sorted((int(match[1]), match[0]) for match in matches if match)
        new = [each for each in numbered if (folder, each[0]) not in self._read]
        for number, name in new[:READ_AT_ONCE]:
            found = JsonFile(self.root, f"{folder}/{name}").read()
            if found is None:
                # Half written; and none behind it, so that the order holds.
                return
            self._read.add((folder, number))
            self._take(record(found.content), number, found.written_at)

    def _take(self, event: dict[str, object], number: int, at: float) -> None:
        if event.get("kind") == "ActionEvent":
            self._begin(text(event.get("id")), action_name(event), at)
        elif event.get("kind") in ENDS:
            key = text(event.get("action_id")) or self._last_waiting()
            self._end(key, text(event.get("error")), at)
        elif event.get("source") == "agent" and text(event.get("action")) not in ("", *NO_STEP):
            name = text(record(event.get("args")).get("thought")) or text(event.get("action"))
            self._begin(str(event.get("id", number)), name, at)
        elif "observation" in event and "cause" in event:
            error = text(event.get("message")) if event.get("observation") == "error" else ""
            self._end(str(event.get("cause")), error, at)

    def _last_waiting(self) -> str:
        return next(reversed(self._waits), "")

    def _begin(self, key: str, name: str, at: float) -> None:
        self._waits[key] = len(self._steps)
        number = len(self._steps) + 1
        self._steps.append(SeenStep(number, name=name, began_at=at, is_running=True))

    def _end(self, key: str, error: str, at: float) -> None:
        place = self._waits.pop(key, None)
        if place is not None:
            step = self._steps[place]
            self._steps[place] = replace(step, is_running=False, ended_at=at, error=error)


def action_name(event: dict[str, object]) -> str:
    """What the model says that it does, else the tool and its command."""
    command = text(record(event.get("action")).get("command"))
    return text(event.get("summary")) or f"{text(event.get('tool_name'))} {command}".strip()
