"""What the product knows of an agent beyond mle-bench's config.yaml: probe, state, resume, steps.

An agent that ships with the product says it under `mlebench_web` in its config.yaml; what is known
of others is in agent_manifests.yaml, by the name of the agent's folder. A checkout is never asked:
the file is ours. An agent that nobody knows gets the defaults, and can still speak the protocol
(docs/checkpoints.md).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from django.core.exceptions import ImproperlyConfigured

from mlebench_web.catalog import folders
from mlebench_web.catalog.models import Agent

KNOWN = Path(__file__).with_name("agent_manifests.yaml")
RESUME_MODES = ("none", "native", "args")
STEP_TIMEOUTS = ("container", "native", "signal")
# Where a state folder may be: a mount elsewhere could hide what the contract needs.
STATE_BELOW = PurePosixPath("/home")
TAKEN = [PurePosixPath("/home") / name for name in ("data", "submission", "logs", "code", "ckpt")]


@dataclass(frozen=True)
class Resume:
    """How it goes on from a checkpoint.

    `none`: it begins again. `native`: it looks at MLE_RESUME and its checkpoint folder
    itself, and what is in that folder is whole at any moment.
    `args`: its start script gets these arguments too.
    """

    mode: str = "none"
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepTimeout:
    """What ends a step that takes too long.

    `container`: the container is stopped, and goes on from the last checkpoint. `native`: the agent
    ends it itself, told by MLE_STEP_TIMEOUT_SECS or by `kwarg=<seconds>`. `signal`: `step_process`
    gets a signal.
    """

    how: str = "container"
    kwarg: str = ""


@dataclass(frozen=True)
class AgentManifest:
    # Which reader of its files counts its steps; "events": it says them itself.
    probe: str = "events"
    # Folders of the container that belong to its state, beside /home/ckpt.
    state_mounts: tuple[str, ...] = ()
    resume: Resume = Resume()
    step_timeout: StepTimeout = StepTimeout()
    # A regular expression that the command line of the process that does a step begins with.
    step_process: str = ""
    # Saved this often; None: only at the agent's word.
    checkpoint_every: timedelta | None = None
    # What a resume restores and what it does not, for the form and the run's page.
    resume_note: str = (
        "Not known whether it can go on from a checkpoint: if it says that it made one, it is "
        "resumed from it, else it starts again from the beginning."
    )

    @property
    def can_resume(self) -> bool:
        """Whether it is known to; one that says `checkpoint` while it runs can as well."""
        return self.resume.mode != "none"

    @property
    def state_folders(self) -> dict[str, str]:
        """Folder below the attempt's own -> where the container has it."""
        return {f"state/{path.strip('/').replace('/', '-')}": path for path in self.state_mounts}

    @property
    def saved_folders(self) -> list[str]:
        return ["ckpt", *self.state_folders]


def of(agent: Agent | None) -> AgentManifest:
    """Of an agent of the catalog; the defaults for None (an imported run)."""
    if agent is None:
        return AgentManifest()
    if agent.is_builtin and agent.folder:
        folder = folders.resolve(agent.folder, folders.AGENTS)
        own = _builtin(str(folder), agent.name.removeprefix("builtin/"))
        return AgentManifest() if own is None else own
    return of_folder(agent.image_name)


def of_folder(name: str) -> AgentManifest:
    """By the name of an agent's folder; the first that matches."""
    for pattern, manifest in _known():
        if pattern.fullmatch(name):
            return manifest
    return AgentManifest()


@cache
def _known() -> list[tuple[re.Pattern[str], AgentManifest]]:
    rows = yaml.safe_load(KNOWN.read_text())
    return [
        (re.compile(row["match"]), read({**row, "match": None}, where=f"{KNOWN.name}: {number}"))
        for number, row in enumerate(rows, start=1)
    ]


@cache
def _builtin(folder: str, name: str) -> AgentManifest | None:
    path = Path(folder) / "config.yaml"
    if not path.exists():
        return None
    config = yaml.safe_load(path.read_text())
    own = config.get(name)
    return read(own.get("mlebench_web", {}), where=f"{path}: {name}") if own else None


def read(row: Mapping[str, Any], *, where: str) -> AgentManifest:
    """From its YAML. Keys of other parts of the product are left alone.

    Raises ImproperlyConfigured naming the place: the file is ours.
    """
    try:
        resume, step = row.get("resume") or {}, row.get("step_timeout") or {}
        minutes = row.get("checkpoint_every_minutes")
        values: dict[str, Any] = {
            "probe": row.get("probe"),
            "state_mounts": tuple(_state_mount(path) for path in row.get("state_mounts") or ()),
            "resume": Resume(
                _one_of(resume.get("mode", "none"), RESUME_MODES), tuple(resume.get("args") or ())
            ),
            "step_timeout": StepTimeout(
                _one_of(step.get("how", "container"), STEP_TIMEOUTS), step.get("kwarg") or ""
            ),
            "step_process": row.get("step_process"),
            "checkpoint_every": timedelta(minutes=minutes) if minutes else None,
            "resume_note": row.get("resume_note"),
        }
        re.compile(values["step_process"] or "")
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise ImproperlyConfigured(f"{where}: {error}") from error
    known = {field.name for field in fields(AgentManifest)}
    return AgentManifest(
        **{name: value for name, value in values.items() if name in known and value is not None}
    )


def _one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r}: write one of {', '.join(allowed)}")
    return value


def _state_mount(text: str) -> str:
    path = PurePosixPath(text)
    if str(path) != text or ".." in path.parts or STATE_BELOW not in path.parents:
        raise ValueError(f"state_mounts: {text!r} is no folder below {STATE_BELOW}")
    if any(path == taken or taken in path.parents for taken in TAKEN):
        raise ValueError(f"state_mounts: {text!r} is mounted already")
    return text
