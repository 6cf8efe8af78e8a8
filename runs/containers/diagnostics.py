"""Evidence at the moment of death: what can still be seen of a container that went wrong.

It runs on error paths, so nothing here hides the error that it explains: what cannot be read is
left empty.
"""

import os
import shutil

import structlog

from runs.containers import ContainerState, Engine, EngineFailure
from runs.core.failures import Evidence
from runs.workspace import Refused, Workspace, open_beneath

logger = structlog.get_logger(__name__)

LINES = 40
TAIL_BYTES = 16 * 1024


def evidence(engine: Engine, container_id: str, workspace: Workspace) -> Evidence:
    """What the engine, the kernel and the log files say now.

    Raises EngineFailure only when the engine cannot even say whether the container exists.
    """
    look = engine.look(container_id)
    exists = look.state != ContainerState.MISSING and not look.is_being_removed
    kills: int | None = None
    own_log = ""
    if exists:
        try:
            own_log = engine.log_tail(container_id, LINES)
            if look.state == ContainerState.RUNNING:
                kills = engine.memory_kills(container_id)
        except EngineFailure as failure:
            logger.warning("diagnostics.partial", container=container_id, error=str(failure))
    logs = [tail(workspace, "entrypoint.log"), own_log]
    return Evidence(
        exists=exists,
        is_running=look.state in (ContainerState.RUNNING, ContainerState.PAUSED),
        exit_code=look.exit_code,
        oom_killed=look.oom_killed,
        memory_kills=kills,
        engine_error=look.error,
        last_lines="\n".join(text.strip() for text in logs if text.strip()),
        disk_free_bytes=_disk_free(workspace),
    )


def tail(workspace: Workspace, name: str, lines: int = LINES) -> str:
    """The last lines of a log that a hostile program may have replaced; empty when unreadable."""
    try:
        with open_beneath(workspace.logs, name) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except (OSError, Refused):
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _disk_free(workspace: Workspace) -> int | None:
    try:
        return shutil.disk_usage(workspace.root).free
    except OSError:
        return None
