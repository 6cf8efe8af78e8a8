"""Containers as the worker sees them: one protocol, two engines.

`docker` speaks to a Docker Engine, `process` plays a container with plain processes on a machine
without an engine (unsandboxed; built-in agents only). Every call has a time limit, and every
failure is an EngineFailure that names its cause.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runs.core.failures import Cause
from runs.core.step_processes import AgentProcess

if TYPE_CHECKING:
    from runs.workspace import Workspace

LABEL = "mlebench-web"
INSTALL_LABEL = f"{LABEL}.install"
RUN_LABEL = f"{LABEL}.run"
ATTEMPT_LABEL = f"{LABEL}.attempt"
HOST_LABEL = f"{LABEL}.host"
GPUS_LABEL = f"{LABEL}.gpus"

# Who runs the agent inside every image that keeps mle-bench's contract.
AGENT_USER = "nonroot"

# What is listed of an agent's processes, and of the command line of each.
PROCESSES_AT_MOST = 500
COMMAND_AT_MOST = 1000

# What the agent runs below: `bash -c SCRIPT <logs folder> <start script> <arguments>`. A second one
# ends at the mkdir. The shell outlives SIGTERM (a trap is not inherited, so the agent does get it),
# and the exit code appears whole or not at all.
AGENT_SCRIPT = """\
mkdir "$0/.started" || exit
trap : TERM
bash "$@" > "$0/agent.stdout" 2>&1 < /dev/null
echo $? > "$0/agent.rc.tmp" && mv "$0/agent.rc.tmp" "$0/agent.rc"
"""


@dataclass(frozen=True)
class ContainerSpec:
    """All that a container is made of."""

    name: str
    labels: Mapping[str, str]
    image_id: str
    workspace: "Workspace"
    # prepared/public of the competition, mounted read-only at /home/data.
    data_dir: Path
    env: Mapping[str, str]
    cpus: float
    memory_bytes: int
    shm_bytes: int | None
    pids_limit: int
    gpu_uuids: tuple[str, ...] = ()
    # "none", or "internet": a network of this installation's own.
    network: str = "none"
    # The engine's runtime ("sysbox-runc"); None: its default.
    runtime: str | None = None
    privileged: bool = False
    # The engine's own settings by docker-py's names: those of an admin's container config.
    engine_settings: Mapping[str, object] = field(default_factory=dict)
    agent_args: tuple[str, ...] = ()
    start: str = "/home/agent/start.sh"
    # `process` runtime only: the agent's folder on this machine, with start.sh.
    agent_folder: Path | None = None
    # Folders of the agent's own state, by their path in the container; writable.
    state_mounts: Mapping[str, Path] = field(default_factory=dict)
    # What the agent may know of its hardware, mounted read-only at /home/hardware.json.
    hardware_file: Path | None = None


class ContainerState(StrEnum):
    MISSING = "missing"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


@dataclass(frozen=True)
class Look:
    state: ContainerState
    exit_code: int | None = None
    # The kernel killed the container's first process for memory.
    oom_killed: bool = False
    # Why a start failed, in the engine's words.
    error: str = ""
    # Somebody asked for its removal, and it is still there for a moment.
    is_being_removed: bool = False


@dataclass(frozen=True)
class Usage:
    """What a container has used. None: not readable."""

    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    # Of the whole container, page cache included: what the kernel counts against the limit.
    memory_peak_bytes: int | None = None


@dataclass(frozen=True)
class OwnContainer:
    id: str
    name: str
    attempt_id: int
    state: ContainerState


@dataclass(frozen=True)
class EngineInfo:
    engine_id: str
    version: str
    runtimes: list[str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)


class EngineFailure(Exception):
    """The engine refused or did not answer. `text` is what it said."""

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause = cause
        self.text = text


class Engine(Protocol):
    """All calls may be repeated: what is already so is no error."""

    kind: str

    def create(self, spec: ContainerSpec) -> str:
        """The id of the new container, or of the one that has this name already."""

    def start(self, container_id: str) -> None:
        """On failure the container stays, for the caller to remove."""

    def look(self, container_id: str) -> Look:
        """MISSING when it is gone; raises EngineFailure when the engine does not answer."""

    def start_agent(self, container_id: str, spec: ContainerSpec) -> None:
        """Start the agent and come back. A second call does not start it again."""

    def agent_is_alive(self, container_id: str) -> bool:
        """Whether any process of the agent's user is left."""

    def signal_agent(self, container_id: str, signal: str) -> None:
        """Send TERM or KILL to every process of the agent's user."""

    def agent_processes(self, container_id: str) -> list[AgentProcess]:
        """Those of the agent's user that live, some hundred at most; [] when it is gone."""

    def signal_processes(
        self, container_id: str, processes: Sequence[AgentProcess], signal: str
    ) -> int:
        """Send INT or KILL to those that are still the same, and never to one that is not the
        agent's; to how many it was sent."""

    def memory_kills(self, container_id: str) -> int | None:
        """Processes of the container that the kernel has killed for memory; None: not readable."""

    def usage(self, container_id: str) -> Usage: ...

    def pause(self, container_id: str) -> None: ...

    def unpause(self, container_id: str) -> None: ...

    def kill(self, container_id: str) -> None: ...

    def remove(self, container_id: str) -> None:
        """Kill it when it runs, and come back when it is gone."""

    def log_tail(self, container_id: str, lines: int) -> str:
        """The engine's own last lines of the container; empty when it is gone."""

    def own_containers(self, install: str, host: str) -> list[OwnContainer]: ...

    def has_image(self, image_id: str) -> bool: ...

    def info(self) -> EngineInfo: ...

    def remove_folder(self, path: Path, image_id: str) -> None:
        """Remove a folder whose files may belong to other users. Gone already is no error."""

    def make_readable(self, path: Path, image_id: str) -> None:
        """Let everybody read what is below, whoever it belongs to; links are not followed."""


@functools.cache
def engine_of(runtime: str) -> Engine:
    """The engine of a container config's runtime: "docker" or "process". Connects lazily."""
    if runtime == "docker":
        from runs.containers.docker import DockerEngine

        return DockerEngine()
    if runtime == "process":
        from runs.containers.process import ProcessEngine

        return ProcessEngine()
    raise ValueError(f"There is no runtime {runtime!r}: write docker or process.")
