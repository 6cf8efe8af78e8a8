"""What an agent is told in its environment: upstream's names, and ours (docs/agents.md)."""

import time
from collections.abc import Mapping

from mlebench_web.fleet.inventory import hardware_env
from mlebench_web.fleet.models import Gpu
from runs.models import Attempt

# What the product itself decides; an agent's or a group's own variables cannot replace it.
OURS = ("COMPETITION_ID", "MLE_", "TIME_LIMIT_SECS", "NVIDIA_VISIBLE_DEVICES")


def environment(
    attempt: Attempt,
    *,
    remaining_seconds: float,
    gpus: list[Gpu],
    shm_bytes: int | None,
    disk_free: int | None,
) -> dict[str, str]:
    """Environment variables of the agent's container, all as text."""
    group = attempt.run.group
    remaining = max(1, int(remaining_seconds))
    theirs = {**group.agent_env, **group.env}
    ours: dict[str, str] = {
        "COMPETITION_ID": attempt.run.competition.name,
        "TIME_LIMIT_SECS": str(remaining),
        "MLE_RUN_ID": str(attempt.run.uuid),
        "MLE_ATTEMPT": str(attempt.number),
        "MLE_RESUME": "0",
        "MLE_SEED": str(attempt.run.seed),
        "MLE_CHECKPOINT_DIR": "/home/ckpt",
        "MLE_EVENTS_FILE": "/home/logs/events.jsonl",
        "MLE_STEP_TIMEOUT_SECS": str(int(group.step_timeout.total_seconds())),
        "MLE_DEADLINE_EPOCH": str(int(time.time()) + remaining),
        "MLE_VALIDATION_URL": "http://localhost:5000",
        **hardware_env(
            cpus=attempt.cpus or 1,
            memory_bytes=attempt.memory_bytes or 0,
            gpus=gpus,
            shm_bytes=shm_bytes,
            disk_free_bytes=disk_free,
        ),
    }
    kept = {name: str(value) for name, value in theirs.items() if not name.startswith(OURS)}
    # nproc lies under a CPU quota, so thread pools are told; an agent may know better.
    kept.setdefault("OMP_NUM_THREADS", str(max(1, round(attempt.cpus or 1))))
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


def secret_values(env: Mapping[str, str]) -> list[str]:
    """Values that never stand in a log: those whose names say what they are."""
    words = ("KEY", "TOKEN", "SECRET", "PASSWORD")
    return [value for name, value in env.items() if any(word in name.upper() for word in words)]
