"""MLAgentBench: each action of its trace is a step. It is written after each of them.

The trace lies in the agent's own log folder, which its manifest mounts; where it is not there, the
files that it leaves among the logs for each step are counted.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runs.core.probing import SeenStep
from runs.core.steps import as_number
from runs.probes.files import Found, JsonFile, Unread, names, record, rows, text

TRACE = "state/home-agent-logs/env_log/trace.json"
LOGS = "logs"
STEP_FILE = re.compile(r"agent_\d{1,9}_(\d{1,9})\.json")
# How an observation begins that says that the action went wrong.
ERRORS = ("EnvError:", "LLMError:")


class MlabProbe:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._trace = JsonFile(root, TRACE)
        self._has_trace = False
        self._counted = -1

    def look(self) -> Sequence[SeenStep] | None:
        found = self._trace.read()
        if found:
            self._has_trace = True
            return steps_of(found)
        # One that is half written has steps which an earlier supervisor may know already.
        return None if self._has_trace or self._is_there() else self._count()

    def _is_there(self) -> bool:
        folder, _, name = TRACE.rpartition("/")
        with suppress(Unread):
            return name in names(self.root, folder)
        return False

    def _count(self) -> Sequence[SeenStep] | None:
        matches = (STEP_FILE.fullmatch(name) for name in names(self.root, LOGS))
        count = len({match[1] for match in matches if match})
        if count == self._counted:
            return None
        self._counted = count
        return [*(SeenStep(number) for number in range(1, count + 1)), next_step(count)]


def next_step(ended: int, at: float | None = None) -> SeenStep:
    return SeenStep(ended + 1, began_at=at, is_running=True, is_assumed=True)


def steps_of(found: Found) -> list[SeenStep]:
    """An action's timestamp is taken when it had been done."""
    trace = rows(record(found.content).get("steps"))
    steps: list[SeenStep] = []
    ended_at: float | None = None
    for number, row in enumerate(trace, start=1):
        began_at, ended_at = ended_at, as_number(row.get("timestamp"))
        steps.append(
            SeenStep(
                number,
                name=_name(record(row.get("action"))),
                began_at=began_at,
                ended_at=ended_at,
                error=_error(text(row.get("observation"))),
            )
        )
    return [*steps, next_step(len(steps), ended_at)]


def _name(action: dict[str, object]) -> str:
    script = text(record(action.get("args")).get("script_name"))
    return f"{text(action.get('name'))} {script}".strip()


def _error(observation: str) -> str:
    return observation.partition("\n")[0] if observation.startswith(ERRORS) else ""
