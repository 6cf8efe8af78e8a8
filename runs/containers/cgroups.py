"""What the kernel counts for a container, read from the host's cgroup files.

A file read costs microseconds where an exec in the container costs 60 ms and a process of its own.
Where the files are not to be seen (another layout, the worker in a container itself) every
function answers None, and the engine asks in another way.
"""

import functools
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Where Docker puts a container: cgroupfs driver, then systemd driver.
PLACES = ("docker/{id}", "system.slice/docker-{id}.scope")


@functools.lru_cache(maxsize=256)
def _find(controller: str, container_id: str) -> Path | None:
    """The container's folder of a controller: version 1, else the one folder of version 2."""
    for place in PLACES:
        below = place.format(id=container_id)
        for folder in (ROOT / controller / below, ROOT / below):
            if (folder / "cgroup.procs").exists():
                return folder
    return None


def folder_of(controller: str, container_id: str) -> Path | None:
    folder = _find(controller, container_id)
    if folder is None or not folder.exists():
        # It may come later (not started yet), or be gone for good.
        _find.cache_clear()
        return None
    return folder


def _text(folder: Path | None, *names: str) -> str | None:
    """The first of these files that can be read."""
    for name in names:
        if folder is not None:
            try:
                return (folder / name).read_text()
            except OSError:
                continue
    return None


def field(text: str, name: str) -> int | None:
    """A number from lines of `name value`."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def memory_kills(container_id: str) -> int | None:
    text = _text(folder_of("memory", container_id), "memory.events", "memory.oom_control")
    return None if text is None else field(text, "oom_kill")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def cpu_seconds(container_id: str) -> float | None:
    folder = folder_of("cpuacct", container_id)
    if (nanoseconds := _number(_text(folder, "cpuacct.usage"))) is not None:
        return nanoseconds / 1e9
    text = _text(folder, "cpu.stat")
    microseconds = None if text is None else field(text, "usage_usec")
    return None if microseconds is None else microseconds / 1e6


def memory_bytes(container_id: str) -> int | None:
    """In use without what the kernel can drop at once: what `docker stats` shows."""
    folder = folder_of("memory", container_id)
    used = _number(_text(folder, "memory.current", "memory.usage_in_bytes"))
    if used is None:
        return None
    stat = _text(folder, "memory.stat") or ""
    droppable = field(stat, "total_inactive_file")
    if droppable is None:
        droppable = field(stat, "inactive_file") or 0
    return max(0, used - droppable)


def memory_peak_bytes(container_id: str) -> int | None:
    folder = folder_of("memory", container_id)
    return _number(_text(folder, "memory.peak", "memory.max_usage_in_bytes"))


def users(container_id: str) -> set[int] | None:
    """User ids, as this host sees them, of the container's living processes but its first one's.
    (The kernel does not list the dead that nobody has buried.)

    None when the container's processes cannot be seen. The first process and what runs as its
    user (the relay) is the image's own; every other user is the agent.
    """
    folder = folder_of("memory", container_id) or folder_of("pids", container_id)
    text = _text(folder, "cgroup.procs")
    if text is None:
        return None
    found: set[int] = set()
    first_user: int | None = None
    for pid in text.split():
        try:
            owner, is_first = _process(pid)
        except (OSError, ValueError, KeyError):
            # It ended while we looked.
            continue
        if is_first:
            first_user = owner
        else:
            found.add(owner)
    if first_user is None:
        return None
    return found - {first_user}


def _process(pid: str) -> tuple[int, bool]:
    """Its user, and whether it is the first process of its container."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        lines = dict(line.rstrip("\n").partition(":\t")[::2] for line in file)
    inner = lines.get("NSpid", "").split()
    # The real user id: a start script that was started by setuid is still the agent's.
    return int(lines["Uid"].split()[0]), bool(inner) and inner[-1] == "1"
