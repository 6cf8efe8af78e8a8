"""mle-bench's JSON of Docker settings -> the limits of a container. Pure.

Upstream hands the JSON to docker-py as it stands, so a config could mount the host or add
capabilities. Here everybody may use the keys that say how much a container gets, admins alone some
that open a container up; all else is refused. What a config says is kept as it stands in any case.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", re.IGNORECASE)
# The engine refuses less.
LEAST_MEMORY = 6 * 2**20
# What fits into the engine's numbers, and what the kernel can count: more would be the engine's
# error, and be held against the host.
MOST_BYTES = 2**62
MOST_PIDS = 2**22
MOST_GPUS = 1024
SYSBOX = "sysbox-runc"

TAKEN = ("mem_limit", "shm_size", "nano_cpus", "gpus", "runtime", "network_mode", "pids_limit")
# Harmless, and decided by us: containers are killed, labelled and have no init of their own.
WITHOUT_EFFECT = ("labels", "init", "stop_signal")
# Handed to the engine as they stand, in runs that an admin starts.
ADMIN_KEYS: dict[str, str] = {
    "cap_add": "list",
    "cpuset_cpus": "text",
    "devices": "list",
    "dns": "list",
    "dns_search": "list",
    "extra_hosts": "mapping",
    "group_add": "list",
    "ipc_mode": "text",
    "sysctls": "mapping",
    "tmpfs": "mapping",
    "ulimits": "ulimits",
}
NETWORKS = {"none": "none", "bridge": "internet", "default": "internet"}


class ConfigRefused(Exception):
    """A config that cannot be used. `problems`: (key, what is wrong and what to write)."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {text}" for key, text in problems))
        self.problems = problems


@dataclass(frozen=True)
class Limits:
    """None: the config leaves it to the host's share (CPUs, memory) or to the engine (the rest)."""

    cpus: float | None = None
    memory_bytes: int | None = None
    shm_bytes: int | None = None
    # -1: all of the host's.
    gpus: int = 0
    runtime: str | None = None
    # "none" or "internet"; None: what the agent asks for.
    network: str | None = None
    pids_limit: int | None = None
    # Of ADMIN_KEYS; who starts a run with them is asked before (preflight).
    admin: Mapping[str, object] = field(default_factory=dict)


def admin_keys(settings: Mapping[str, object]) -> list[str]:
    """Keys of a config that only admins may start runs with."""
    return sorted(key for key in settings if key in ADMIN_KEYS and settings[key] is not None)


def limits_of(settings: Mapping[str, object]) -> Limits:
    """Limits from a container config's JSON. Raises ConfigRefused naming every bad key."""
    problems: list[tuple[str, str]] = []

    def take[T](key: str, read: Callable[[object], T]) -> T | None:
        value = settings.get(key)
        if value is None:
            return None
        try:
            return read(value)
        except ValueError as error:
            problems.append((key, str(error)))
            return None

    for key in settings:
        if key not in TAKEN and key not in WITHOUT_EFFECT and key not in ADMIN_KEYS:
            problems.append(
                (
                    key,
                    f"this key is not allowed; allowed are {', '.join(TAKEN)}, "
                    f"and for admins {', '.join(ADMIN_KEYS)}",
                )
            )
    admin = {key: take(key, _READERS[ADMIN_KEYS[key]]) for key in admin_keys(settings)}
    nano_cpus = take("nano_cpus", _number)
    if nano_cpus is not None and nano_cpus < 1e7:
        problems.append(("nano_cpus", "write billionths of a CPU: 4e9 is four CPUs"))
    memory = take("mem_limit", size_of)
    if memory is not None and memory < LEAST_MEMORY:
        problems.append(("mem_limit", 'the engine refuses less than 6 MB: write "4G"'))
    gpus = take("gpus", _whole) or 0
    if not -1 <= gpus <= MOST_GPUS:
        problems.append(("gpus", "write how many, or -1 for all"))
    pids = take("pids_limit", _whole)
    if pids is not None and not 64 <= pids <= MOST_PIDS:
        problems.append(("pids_limit", f"write a number from 64 to {MOST_PIDS}"))
    runtime = take("runtime", _text)
    if gpus and runtime == SYSBOX:
        problems.append(
            ("runtime", f"{SYSBOX} cannot give GPUs to a container: leave runtime out, or gpus")
        )
    network = take("network_mode", _network)
    limits = Limits(
        cpus=None if nano_cpus is None else nano_cpus / 1e9,
        memory_bytes=memory,
        shm_bytes=take("shm_size", size_of),
        gpus=gpus,
        runtime=runtime or None,
        network=network,
        pids_limit=pids,
        admin=admin,
    )
    if problems:
        raise ConfigRefused(problems)
    return limits


def size_of(value: object) -> int:
    """Bytes of "80G", "512m", 4e9. Letters are powers of 1024, as in Docker. Raises ValueError."""
    if isinstance(value, str):
        match = SIZE.fullmatch(value)
        if not match:
            raise ValueError(f'{value!r} is no size: write "4G", "512m" or a number of bytes')
        size = float(match[1]) * UNITS[match[2].lower()]
    else:
        size = _number(value)
    if size > MOST_BYTES:
        raise ValueError(f"{_short(value)} is more than any machine has")
    return int(size)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    # (A whole number in JSON may have thousands of digits, which no float holds.)
    if not abs(value) < MOST_BYTES * 1e9 or value < 0:
        raise ValueError(f"{_short(value)}: write a number of at least 0, of a size that exists")
    return value


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"{value!r} is no whole number")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    return value


def _network(value: object) -> str:
    if not isinstance(value, str) or value not in NETWORKS:
        raise ValueError(f'{value!r}: write "none", or "bridge" for the internet')
    return NETWORKS[value]


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f'{value!r}: write a list of texts, ["..."]')
    return value


def _mapping(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f'{value!r}: write texts by name, {{"name": "..."}}')
    return value


def _ulimits(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list) or not all(
        isinstance(each, dict)
        and isinstance(each.get("Name"), str)
        and all(_is_whole(each.get(key)) for key in ("Soft", "Hard"))
        for each in value
    ):
        raise ValueError(f'{value!r}: write [{{"Name": "nofile", "Soft": 1024, "Hard": 2048}}]')
    return value


def _is_whole(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


_READERS: dict[str, Callable[[object], object]] = {
    "list": _texts,
    "mapping": _mapping,
    "text": _text,
    "ulimits": _ulimits,
}
