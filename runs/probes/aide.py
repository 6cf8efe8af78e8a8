"""AIDE: each node of its journal is a step. The file is rewritten in place after each of them.

mle-bench's start script links AIDE's log folder to /home/logs, so the journal stands at its top;
an AIDE that was installed otherwise writes it one folder below.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runs.core.probing import SeenStep
from runs.core.steps import Metric, as_number
from runs.probes.files import Found, JsonFile, Unread, names, record, rows, text

LOGS = "logs"
JOURNAL = "journal.json"
MOST_FOLDERS = 100


class AideProbe:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._journal: JsonFile | None = None
        self._has_looked = False

    def look(self) -> Sequence[SeenStep] | None:
        found = self._find()
        is_first, self._has_looked = not self._has_looked, True
        if found is None:
            # Its first step begins with it. A journal that is half written has other steps, which
            # an earlier supervisor may know already.
            return [first_step()] if is_first and not self._has_journal() else None
        return steps_of(found)

    def _has_journal(self) -> bool:
        """Whether one is there, whole or not."""
        here = names(self.root, LOGS)
        return JOURNAL in here or any(self._is_in(name) for name in here[:MOST_FOLDERS])

    def _is_in(self, name: str) -> bool:
        # Most of what lies there is no folder.
        with suppress(Unread):
            return JOURNAL in names(self.root, f"{LOGS}/{name}")
        return False

    def _find(self) -> Found | None:
        if self._journal:
            return self._journal.read()
        journal = JsonFile(self.root, f"{LOGS}/{JOURNAL}")
        found = journal.read()
        for name in [] if found else names(self.root, LOGS)[:MOST_FOLDERS]:
            journal = JsonFile(self.root, f"{LOGS}/{name}/{JOURNAL}")
            # Most of what lies there is no folder.
            with suppress(Unread):
                found = journal.read()
            if found:
                break
        if found:
            self._journal = journal
        return found


def first_step() -> SeenStep:
    return SeenStep(1, is_running=True, is_assumed=True)


def steps_of(found: Found) -> list[SeenStep]:
    """Each node is a step that has ended; the next one has begun when the last one had ended."""
    nodes = rows(record(found.content).get("nodes"))
    steps: list[SeenStep] = []
    ended_at: float | None = None
    for number, node in enumerate(nodes, start=1):
        began_at, ended_at = ended_at, _ended_at(node, found, is_last=number == len(nodes))
        steps.append(
            SeenStep(
                number,
                name=text(node.get("plan")),
                began_at=began_at,
                ended_at=ended_at,
                metric=_metric(node),
                error=_error(node),
            )
        )
    return [
        *steps,
        SeenStep(len(nodes) + 1, began_at=ended_at, is_running=True, is_assumed=True),
    ]


def _ended_at(node: dict[str, object], found: Found, *, is_last: bool) -> float | None:
    """The journal is written when a step has ended; of earlier ones, when its code had run."""
    if is_last:
        return found.written_at
    made, took = as_number(node.get("ctime")), as_number(node.get("exec_time"))
    return None if made is None or took is None else made + took


def _metric(node: dict[str, object]) -> Metric | None:
    metric = record(node.get("metric"))
    value, maximize = as_number(metric.get("value")), metric.get("maximize")
    if value is None or node.get("is_buggy"):
        return None
    return Metric("validation", value, maximize if isinstance(maximize, bool) else None)


def _error(node: dict[str, object]) -> str:
    if not node.get("is_buggy"):
        return ""
    return text(node.get("exc_type")) or "buggy"
