"""Probes: what agents that do not speak show of their steps in files of their own.

A probe is named in an agent's manifest (runs/agent_manifest.py) and reads on the host, below the
attempt's folder. It never trusts what it reads: no link is followed, sizes are limited, and what
is half written keeps the last reading. Which files: docs/checkpoints.md.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from runs.core.probing import SeenStep
from runs.probes.aide import AideProbe
from runs.probes.files import Unread
from runs.probes.mlab import MlabProbe
from runs.probes.openhands import OpenHandsProbe

__all__ = ["PROBES", "Probe", "SeenStep", "Unread", "of"]


class Probe(Protocol):
    def look(self) -> Sequence[SeenStep] | None:
        """All steps that the files show now; None when nothing has changed or it is half written.

        Raises Unread with words for the run's log.
        """


PROBES: dict[str, Callable[[Path], Probe]] = {
    "aide": AideProbe,
    "mlab": MlabProbe,
    "openhands": OpenHandsProbe,
}
# Names in a manifest that stand for no reader: the agent says it itself, or nobody can tell.
SILENT = ("events", "none")


def of(name: str, root: Path) -> Probe | None:
    """The probe of this name for an attempt's folder; None: the agent's own events are all."""
    return None if name in SILENT else PROBES[name](root)
