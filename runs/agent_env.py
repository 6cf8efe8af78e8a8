"""What an agent is told in its environment: upstream's names, and ours (docs/agents.md)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from mlebench_web.accounts import placeholders
from mlebench_web.fleet.inventory import hardware_env, hardware_json
from mlebench_web.fleet.models import Gpu
from runs import queue
from runs.models import Attempt
from runs.step_timeouts import in_a_row

# What the product itself decides; an agent's or a group's own variables cannot replace it.
OURS = ("COMPETITION_ID", "MLE_", "TIME_LIMIT_SECS", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class AgentHardware:
    """What the agent is told that it has: its limits, not the host's machine."""

    cpus: float
    memory_bytes: int
    gpus: list[Gpu]
    shm_bytes: int | None
    disk_free_bytes: int | None

    def as_env(self) -> dict[str, str]:
        return hardware_env(**self.__dict__)

    def as_json(self) -> str:
        return hardware_json(**self.__dict__)


def environment(
    attempt: Attempt,
    hardware: AgentHardware,
    *,
    remaining_seconds: float,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment variables of the agent's container, all as text.

    `secrets` stand in for `${{ secrets.NAME }}`. Raises placeholders.Missing.
    """
    group = attempt.run.group
    remaining = max(1, int(remaining_seconds))
    theirs = placeholders.filled({**group.agent_env, **group.env}, secrets or {})
    ours: dict[str, str] = {
        "COMPETITION_ID": attempt.run.competition.name,
        "TIME_LIMIT_SECS": str(remaining),
        "MLE_RUN_ID": str(attempt.run.uuid),
        "MLE_ATTEMPT": str(attempt.number),
        # Whether a checkpoint is in its folder, and what ended the attempt that it is from.
        "MLE_RESUME": "1" if attempt.restored_checkpoint_id else "0",
        "MLE_RESUME_AFTER": attempt.resumed_from.cause if attempt.resumed_from else "",
        # Step timeouts so far with no finished step after them; the third ends the run.
        "MLE_STEP_TIMEOUTS": str(in_a_row(attempt)),
        "MLE_SEED": str(attempt.run.seed),
        "MLE_CHECKPOINT_DIR": "/home/ckpt",
        "MLE_EVENTS_FILE": "/home/logs/events.jsonl",
        "MLE_STEP_TIMEOUT_SECS": str(int(queue.step_timeout_of(attempt).total_seconds())),
        "MLE_DEADLINE_EPOCH": str(int(time.time()) + remaining),
        "MLE_VALIDATION_URL": "http://localhost:5000",
        **hardware.as_env(),
    }
    kept = {name: str(value) for name, value in theirs.items() if not name.startswith(OURS)}
    # nproc lies under a CPU quota, so thread pools are told; an agent may know better.
    kept.setdefault("OMP_NUM_THREADS", str(max(1, round(hardware.cpus))))
    return {**kept, **ours}


def agent_arguments(kwargs: Mapping[str, object], kwargs_type: str) -> tuple[str, ...]:
    """Arguments of start.sh as upstream renders them: argparse or omegaconf, str() of each value.

    An unknown kwargs_type passes nothing, as upstream.
    """
    if kwargs_type == "argparse":
        return tuple(part for key, value in kwargs.items() for part in (f"--{key}", str(value)))
    if kwargs_type == "omegaconf":
        return tuple(f"{key}={value}" for key, value in kwargs.items())
    return ()


def with_step_timeout(
    kwargs: Mapping[str, object], option: str, seconds: float
) -> dict[str, object]:
    """The agent's kwargs with its own option for the step timeout, last: the last one wins.

    `option` is "" where it has none. What the agent was given is kept where it is stricter.
    """
    given = kwargs.get(option)
    if not option or (isinstance(given, int | float) and 0 < given <= seconds):
        return dict(kwargs)
    return {**{key: value for key, value in kwargs.items() if key != option}, option: int(seconds)}
