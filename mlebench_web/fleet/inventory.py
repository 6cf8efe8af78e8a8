"""What this machine has, as values. No database."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil
from django.conf import settings

from mlebench_web import __version__
from mlebench_web.catalog import official_data
from mlebench_web.fleet import gpus
from mlebench_web.fleet.gpus import GpuReading

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
ML_MODULES = ("numpy", "pandas", "sklearn", "lightgbm", "PIL")


@dataclass(frozen=True)
class EngineFacts:
    """The host's container engine; `error` says why there is none."""

    engine_id: str = ""
    version: str = ""
    runtimes: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Inventory:
    """One description of a host. None: could not be measured."""

    boot_id: str
    slots: int
    cpus: float
    memory_bytes: int
    memory_reserve_bytes: int
    cpu_model: str
    disk_total_bytes: int | None
    disk_free_bytes: int | None
    ml_python_error: str = ""
    mlebench_error: str = ""
    version: str = __version__
    engine: EngineFacts = field(default_factory=EngineFacts)
    gpus: GpuReading = field(default_factory=GpuReading)


def describe(
    engine: EngineFacts | None = None, *, gpu_reading: GpuReading | None = None
) -> Inventory:
    """This machine now. Reads the GPUs itself when no reading is given.

    What attempts may have: less than the hardware where this process is confined (CPU affinity,
    cgroup limits of version 1 or 2).
    """
    total, free = disk()
    return Inventory(
        boot_id=boot_id(),
        slots=slots(),
        cpus=cpus(),
        memory_bytes=memory_bytes(),
        memory_reserve_bytes=settings.MEMORY_RESERVE_BYTES,
        cpu_model=cpu_model(),
        disk_total_bytes=total,
        disk_free_bytes=free,
        ml_python_error=ml_python_error(),
        mlebench_error=mlebench_error(),
        engine=engine or EngineFacts(error="No container engine was looked for."),
        gpus=gpus.read() if gpu_reading is None else gpu_reading,
    )


def slots() -> int:
    """How many runs at once at most: SLOTS, else one per two CPUs, from two to eight.

    An upper bound and the share of a config that names no limits; what fits decides below it.
    """
    if settings.SLOTS:
        return int(settings.SLOTS)
    return max(2, min(8, int(cpus() // 2)))


def cpus(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """CPUs that this process may use."""
    usable = float(psutil.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        usable = float(len(os.sched_getaffinity(0)))
    return min([usable, *_cpu_quotas(proc, cgroups)])


def memory_bytes(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Memory that this process and its neighbours in the same cgroup may use.

    Version 1 says "no limit" by a number that is larger than any machine.
    """
    return min([psutil.virtual_memory().total, *_memory_limits(proc, cgroups)])


def _cpu_quotas(proc: Path, cgroups: Path) -> list[float]:
    quotas = []
    for folder in _cgroup_folders("cpu", proc, cgroups):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(int(quota) / int(period))
    return quotas


def _memory_limits(proc: Path, cgroups: Path) -> list[int]:
    limits = []
    for folder in _cgroup_folders("memory", proc, cgroups):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if limit.isdigit() and int(limit):
            limits.append(int(limit))
    return limits


def _cgroup_folders(controller: str, proc: Path, cgroups: Path) -> list[Path]:
    """This process's cgroup and all above it, in the trees that have the controller.

    Inside a container the path may name a folder of the host that cannot be seen from here; the
    root of the mounted tree, which is then the container's own group, is always among them.
    """
    folders = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers == "":
            mounts = [cgroups, cgroups / "unified"]
        elif controller in names:
            mounts = [cgroups / controllers, cgroups / controller]
        else:
            continue
        group = Path(path.lstrip("/"))
        for mount in mounts:
            folders += [mount / group, *(mount / above for above in group.parents)]
    return folders


def _read(path: Path) -> str:
    """The text of a small system file, "" where it is not there."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def cpu_model(*, proc: Path = PROC) -> str:
    """As the system names it, "" where it does not."""
    for line in _read(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor()


def disk() -> tuple[int | None, int | None]:
    """Total and free bytes of the disk that runs write to: the fuller one of the data folder's
    and the attempts' folder's, should they differ."""
    usages = []
    for folder in (settings.DATA_DIR, settings.ATTEMPTS_DIR):
        try:
            usages.append(psutil.disk_usage(str(folder)))
        except OSError:
            continue  # not made yet, or its disk does not answer
    if not usages:
        return None, None
    fullest = min(usages, key=lambda usage: usage.free)
    return fullest.total, fullest.free


def boot_id(*, proc: Path = PROC) -> str:
    """Changes with every boot: a process id means nothing across one."""
    return _read(proc / "sys/kernel/random/boot_id") or f"booted-{int(psutil.boot_time())}"


def ml_python_error() -> str:
    """Why this host can neither grade nor run agents without a container; "" if it can."""
    python = Path(settings.ML_PYTHON)
    if not os.access(python, os.X_OK):
        return f"There is no Python at ML_PYTHON={python}. ./run setup makes it."
    return _missing_modules(python, python.stat().st_mtime)


def mlebench_error() -> str:
    """Why this host cannot grade competitions of an mle-bench checkout; "" if it can."""
    return official_data.cannot_grade()


@cache
def _missing_modules(python: Path, changed: float) -> str:
    """Asked once for each state of the interpreter; finding modules is cheap, importing is not."""
    question = (
        "import importlib.util as u, sys;"
        "print(' '.join(m for m in sys.argv[1:] if u.find_spec(m) is None))"
    )
    try:
        answer = subprocess.run(
            [python, "-c", question, *ML_MODULES],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"ML_PYTHON={python} does not work: {error}"
    missing = answer.stdout.strip()
    if missing:
        return f"ML_PYTHON={python} lacks {missing}. ./run setup installs requirements/ml.txt."
    return ""


class HasGpuName(Protocol):
    """A row or a reading of a GPU."""

    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def memory_bytes(self) -> int | None: ...


def hardware_env(
    *,
    cpus: float,
    memory_bytes: int,
    gpus: Sequence[HasGpuName] = (),
    shm_bytes: int | None = None,
    disk_free_bytes: int | None = None,
) -> dict[str, str]:
    """What an agent is told of its own hardware, as variables MLE_*.

    Inside a container `nproc` and `free` show the whole machine. What is not known is left out.
    Names and memories of several GPUs are separated by commas, in the same order.
    """
    env = {
        "MLE_CPUS": f"{cpus:g}",
        "MLE_MEM_BYTES": str(memory_bytes),
        "MLE_GPU_COUNT": str(len(gpus)),
    }
    if gpus:
        env["MLE_GPU_NAMES"] = ",".join(gpu.name.replace(",", " ") for gpu in gpus)
        env["MLE_GPU_MEM_BYTES"] = ",".join(
            "" if gpu.memory_bytes is None else str(gpu.memory_bytes) for gpu in gpus
        )
    if shm_bytes is not None:
        env["MLE_SHM_BYTES"] = str(shm_bytes)
    if disk_free_bytes is not None:
        env["MLE_DISK_FREE_BYTES"] = str(disk_free_bytes)
    return env


def hardware_json(
    *,
    cpus: float,
    memory_bytes: int,
    gpus: Sequence[HasGpuName] = (),
    shm_bytes: int | None = None,
    disk_free_bytes: int | None = None,
) -> str:
    """The same as the content of /home/hardware.json. What is not known is null."""
    facts = {
        "cpus": cpus,
        "memory_bytes": memory_bytes,
        "gpus": [
            {"uuid": gpu.uuid, "name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in gpus
        ],
        "shm_bytes": shm_bytes,
        "disk_free_bytes": disk_free_bytes,
    }
    return json.dumps(facts, indent=2) + "\n"
