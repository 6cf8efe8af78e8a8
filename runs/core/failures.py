"""Causes: the closed list of why an attempt ended as it did. Pure."""

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
    NETWORK = "network"
    GRADER_FAILED = "grader_failed"
    HOST_LOST = "host_lost"
    PRODUCT_ERROR = "product_error"
    # A person's.
    CANCELLED = "cancelled"


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
    return cause not in AGENTS_OWN and cause != Cause.CANCELLED


# A sentence for people, and what to do about it.
EXPLAINED: dict[Cause, tuple[str, str]] = {
    Cause.AGENT_CRASHED: ("The agent crashed.", "Read the last lines of its log."),
    Cause.OUT_OF_MEMORY: (
        "The agent used more memory than its limit.",
        "Give the container config a higher mem_limit, or run fewer at once on the host.",
    ),
    Cause.TIME_LIMIT: ("The time limit was reached.", "Raise the time limit of the run group."),
    Cause.STEP_TIMEOUT: ("A step took longer than allowed.", "Raise the step timeout."),
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
    Cause.NETWORK: ("The network failed.", "Look at the host's network."),
    Cause.GRADER_FAILED: ("The grader itself failed.", "Read the grader's log, then grade again."),
    Cause.HOST_LOST: ("The host was lost.", "Look at the host."),
    Cause.PRODUCT_ERROR: ("mlebench-web itself failed.", "Read the worker's log and report it."),
    Cause.CANCELLED: ("It was cancelled.", ""),
}
