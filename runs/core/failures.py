"""Causes: the closed list of why an attempt ended as it did. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    # The agent's own.
    AGENT_CRASHED = "agent_crashed"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"
    STEP_TIMEOUT = "step_timeout"
    STALLED = "stalled"
    OUTPUT_QUOTA = "output_quota"
    NO_SUBMISSION = "no_submission"
    # The infrastructure's.
    IMAGE_MISSING = "image_missing"
    IMAGE_UNFIT = "image_unfit"
    RUNTIME_MISSING = "runtime_missing"
    PRIVILEGED_REFUSED = "privileged_refused"
    ENGINE_UNREACHABLE = "engine_unreachable"
    ENGINE_ERROR = "engine_error"
    START_LIMIT = "start_limit"
    CONTAINER_EXITED = "container_exited"
    CONTAINER_KILLED = "container_killed"
    CONTAINER_REMOVED = "container_removed"
    RELAY_FAILED = "relay_failed"
    GPU_TOOLKIT_MISSING = "gpu_toolkit_missing"
    GPU_UNKNOWN = "gpu_unknown"
    GPU_LOST = "gpu_lost"
    DISK_FULL = "disk_full"
    DATA_MISSING = "data_missing"
    SECRET_MISSING = "secret_missing"  # noqa: S105 - the name of a cause
    NETWORK = "network"
    GRADER_FAILED = "grader_failed"
    HOST_LOST = "host_lost"
    PRODUCT_ERROR = "product_error"
    # A person's.
    CANCELLED = "cancelled"
    MOVED = "moved"


AGENTS_OWN = frozenset(
    {
        Cause.AGENT_CRASHED,
        Cause.OUT_OF_MEMORY,
        Cause.TIME_LIMIT,
        Cause.STEP_TIMEOUT,
        Cause.STALLED,
        Cause.OUTPUT_QUOTA,
        Cause.NO_SUBMISSION,
    }
)


def is_infrastructure(cause: Cause) -> bool:
    return cause not in AGENTS_OWN and cause not in (Cause.CANCELLED, Cause.MOVED)


# A sentence for people, and what to do about it.
EXPLAINED: dict[Cause, tuple[str, str]] = {
    Cause.AGENT_CRASHED: ("The agent crashed.", "Read the last lines of its log."),
    Cause.OUT_OF_MEMORY: (
        "The agent used more memory than its limit.",
        "Give the container config a higher mem_limit, or run fewer at once on the host.",
    ),
    Cause.TIME_LIMIT: ("The time limit was reached.", "Raise the time limit of the run group."),
    Cause.STEP_TIMEOUT: (
        "A step took longer than allowed.",
        "Raise the step timeout, of the run group or of this run when it is run again.",
    ),
    Cause.STALLED: ("The agent gave no sign of life.", "Read where its log stops."),
    Cause.OUTPUT_QUOTA: ("The agent wrote more than allowed.", "Raise OUTPUT_QUOTA_GIB."),
    Cause.NO_SUBMISSION: ("The agent ended without a submission.", "Read its log."),
    Cause.IMAGE_MISSING: (
        "The agent's image is not on the host.",
        "Build it: manage.py build_agent, or copy it there with docker save and docker load.",
    ),
    Cause.IMAGE_UNFIT: (
        "The image does not keep the container contract.",
        "It needs /entrypoint.sh, /home/agent/start.sh and the user nonroot.",
    ),
    Cause.RUNTIME_MISSING: (
        "The engine has no such container runtime.",
        "Install it on the host, or use a container config without it.",
    ),
    Cause.PRIVILEGED_REFUSED: (
        "The host does not accept privileged containers.",
        "Use a container config with sysbox-runc, or set I_ACCEPT_RUNNING_PRIVILEGED_CONTAINERS on "
        "a host on which an agent may be root.",
    ),
    Cause.ENGINE_UNREACHABLE: ("The container engine did not answer.", "Look at the host."),
    Cause.ENGINE_ERROR: ("The container engine refused.", "Read its message."),
    Cause.START_LIMIT: (
        "The container was not ready within the start-up limit.",
        "Read the container's log; START_LIMIT_MINUTES sets the limit.",
    ),
    Cause.CONTAINER_EXITED: (
        "The container ended before the agent did.",
        "Read the container's log: its entrypoint must stay in the foreground.",
    ),
    Cause.CONTAINER_KILLED: ("The container was killed from outside.", "It is tried again."),
    Cause.CONTAINER_REMOVED: ("The container was removed from outside.", "It is tried again."),
    Cause.RELAY_FAILED: (
        "The validation relay inside the container ended.",
        "Read the container's log; a memory limit under 64 MB is too small for it.",
    ),
    Cause.GPU_TOOLKIT_MISSING: (
        "The engine cannot give GPUs to containers.",
        "Install the NVIDIA container toolkit on the host.",
    ),
    Cause.GPU_UNKNOWN: ("The engine does not know the leased GPU.", "Look at the host's GPUs."),
    Cause.GPU_LOST: ("A GPU of this run was lost.", "Look at the host's GPUs."),
    Cause.DISK_FULL: ("The host's disk is full.", "Free space on the host."),
    Cause.DATA_MISSING: ("The competition's data is not on the host.", "Prepare it."),
    Cause.SECRET_MISSING: (
        "A secret that the agent needs is not stored.",
        "Store it under that name, then run it again.",
    ),
    Cause.NETWORK: ("The network failed.", "Look at the host's network."),
    Cause.GRADER_FAILED: ("The grader itself failed.", "Read the grader's log, then grade again."),
    Cause.HOST_LOST: ("The host was lost.", "Look at the host."),
    Cause.PRODUCT_ERROR: ("mlebench-web itself failed.", "Read the worker's log and report it."),
    Cause.CANCELLED: ("It was cancelled.", ""),
    Cause.MOVED: ("It was moved to another host.", "It goes on from its checkpoint."),
}


# ---------------------------------------------------------------------------- evidence -> cause
# What Docker Engines say, in lower case, first match wins. Seen on 20.10 unless marked; only the
# engine's own words are read here, never an agent's log, which may say anything.
_ENGINE_WORDS: tuple[tuple[Cause, tuple[str, ...]], ...] = (
    (Cause.DISK_FULL, ("no space left on device", "disk quota exceeded")),
    (
        Cause.RUNTIME_MISSING,
        (
            "unknown runtime specified",
            # Engine 23 and newer.
            "unknown or invalid runtime name",
        ),
    ),
    (Cause.GPU_UNKNOWN, ("unknown device", "unresolvable cdi devices")),
    (
        Cause.GPU_TOOLKIT_MISSING,
        ("could not select device driver", "nvidia-container-cli", "nvidia-container-runtime"),
    ),
    (
        Cause.IMAGE_MISSING,
        (
            "no such image",
            "pull access denied",
            "manifest unknown",
            "manifest for",
            "unable to find image",
        ),
    ),
    (Cause.CONTAINER_REMOVED, ("no such container",)),
    (Cause.DATA_MISSING, ("bind source path does not exist",)),
    (
        Cause.IMAGE_UNFIT,
        (
            "unable to start container process: exec:",
            "no command specified",
            "unable to find user",
            "exec format error",
        ),
    ),
    (Cause.CONTAINER_EXITED, ("is not running",)),
    (
        Cause.ENGINE_UNREACHABLE,
        (
            "cannot connect to the docker daemon",
            "connection refused",
            "connection aborted",
            "connection reset by peer",
            "remote end closed connection",
            "read timed out",
            "error while fetching server api version",
        ),
    ),
    (
        Cause.NETWORK,
        (
            "no such host",
            "i/o timeout",
            "tls handshake timeout",
            "could not find an available, non-overlapping ipv4 address pool",
            "failed to create endpoint",
            "failed to set up container networking",
        ),
    ),
)
_NETWORK_GONE = re.compile(r"network \S+ (not found|is ambiguous)")


def cause_of_engine_error(text: str) -> Cause:
    """What a container engine's error message means; ENGINE_ERROR when it says nothing known."""
    words = text.lower()
    for cause, marks in _ENGINE_WORDS:
        if any(mark in words for mark in marks):
            return cause
    return Cause.NETWORK if _NETWORK_GONE.search(words) else Cause.ENGINE_ERROR


# Less is "full": the engine and the entrypoint could write no file.
DISK_FULL_BELOW_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Evidence:
    """What was seen of a container that did not end as it should."""

    exists: bool
    is_running: bool = False
    exit_code: int | None = None
    oom_killed: bool = False
    # Processes killed for memory in the container; None: not readable any more.
    memory_kills: int | None = None
    # Why its start failed, in the engine's words.
    engine_error: str = ""
    # Last lines of the entrypoint's log and of the engine's own: shown, never interpreted.
    last_lines: str = ""
    disk_free_bytes: int | None = None


def cause_of_end(
    seen: Evidence, *, agent_started: bool, earlier_memory_kills: int = 0
) -> tuple[Cause, str]:
    """Why a container that we did not stop is no longer of use, and the sentence that says so.

    Before the agent started, a memory kill hit the relay, which is ours. After that the limit is
    the agent's own, whichever of its container's processes the kernel picked.

    `earlier_memory_kills`: those after which the container was still seen alive. The engine keeps
    its mark of a memory kill for good, so then it does not say what ended the container.
    """
    if not seen.exists:
        return Cause.CONTAINER_REMOVED, "The container is gone; nobody here removed it."
    if seen.engine_error:
        return cause_of_engine_error(seen.engine_error), seen.engine_error
    ended = "runs" if seen.is_running else f"ended with exit code {seen.exit_code}"
    was_killed_for_memory = seen.oom_killed and not earlier_memory_kills
    if was_killed_for_memory or (seen.memory_kills or 0) > earlier_memory_kills:
        if agent_started:
            return (
                Cause.OUT_OF_MEMORY,
                f"The kernel killed a process for memory; the container {ended}.",
            )
        return (
            Cause.RELAY_FAILED,
            f"The kernel killed the validation relay for memory before the agent started; "
            f"the container {ended}.",
        )
    if seen.disk_free_bytes is not None and seen.disk_free_bytes < DISK_FULL_BELOW_BYTES:
        return (
            Cause.DISK_FULL,
            f"The host has {seen.disk_free_bytes} bytes free; the container {ended}.",
        )
    if seen.is_running:
        return Cause.RELAY_FAILED, "The container runs, but its validation relay does not answer."
    if seen.exit_code in (137, 143, 255):
        # 255: the engine or the machine went down under it.
        return (
            Cause.CONTAINER_KILLED,
            f"Somebody killed the container (exit code {seen.exit_code}).",
        )
    return Cause.CONTAINER_EXITED, f"The container ended by itself with exit code {seen.exit_code}."
