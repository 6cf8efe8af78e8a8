"""What a machine has, as far as its cgroups let us use it."""

import json
import os
from pathlib import Path

import psutil
import pytest
from pytest_django import Settings

from mlebench_web.fleet import inventory
from mlebench_web.fleet.gpus import GpuFacts, GpuReading
from mlebench_web.fleet.inventory import EngineFacts

GIB = 2**30


class Tree:
    """A /proc and a /sys/fs/cgroup of files."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)

    def put(self, path: str, text: str) -> None:
        file = self.cgroups / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def group(self, text: str) -> None:
        (self.proc / "self" / "cgroup").write_text(text + "\n")

    def cpus(self) -> float:
        return inventory.cpus(proc=self.proc, cgroups=self.cgroups)

    def memory(self) -> int:
        return inventory.memory_bytes(proc=self.proc, cgroups=self.cgroups)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_version_2_limits_count_at_every_level(tree: Tree) -> None:
    tree.group("0::/system.slice/worker.service")
    tree.put("system.slice/worker.service/cpu.max", "max 100000")
    tree.put("system.slice/cpu.max", "50000 100000")
    tree.put("system.slice/worker.service/memory.max", "1073741824")
    tree.put("system.slice/memory.max", "max")

    assert tree.cpus() == 0.5
    assert tree.memory() == GIB


def test_version_1_limits_count(tree: Tree) -> None:
    tree.group("4:memory:/user\n3:cpu,cpuacct:/user\n0::/")
    tree.put("cpu,cpuacct/user/cpu.cfs_quota_us", "25000")
    tree.put("cpu,cpuacct/user/cpu.cfs_period_us", "100000")
    tree.put("memory/user/memory.limit_in_bytes", str(GIB))

    assert tree.cpus() == 0.25
    assert tree.memory() == GIB


def test_version_1_says_no_limit_by_a_huge_number(tree: Tree) -> None:
    tree.group("4:memory:/\n3:cpu:/")
    tree.put("memory/memory.limit_in_bytes", "9223372036854771712")
    tree.put("cpu/cpu.cfs_quota_us", "-1")
    tree.put("cpu/cpu.cfs_period_us", "100000")

    assert tree.memory() == psutil.virtual_memory().total
    assert tree.cpus() == len(os.sched_getaffinity(0))


def test_inside_a_container_the_mounted_root_is_our_own_group(tree: Tree) -> None:
    """The path names a folder of the host that is not there."""
    tree.group("4:memory:/docker/0123abcd")
    tree.put("memory/memory.limit_in_bytes", str(GIB))

    assert tree.memory() == GIB


def test_without_cgroups_the_machine_counts(tree: Tree) -> None:
    assert tree.cpus() == len(os.sched_getaffinity(0))
    assert tree.memory() == psutil.virtual_memory().total


@pytest.mark.parametrize(("cpus", "slots"), [(1, 2), (2, 2), (6, 3), (64, 8)])
def test_slots_follow_the_cpus(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, cpus: int, slots: int
) -> None:
    settings.SLOTS = 0
    monkeypatch.setattr(inventory, "cpus", lambda: cpus)

    assert inventory.slots() == slots


def test_slots_that_were_set_are_taken(settings: Settings) -> None:
    settings.SLOTS = 12

    assert inventory.slots() == 12


def test_this_machine_is_described() -> None:
    found = inventory.describe(
        EngineFacts(engine_id="E", version="27.0"), gpu_reading=GpuReading(driver="1")
    )

    assert found.cpus > 0
    assert found.memory_bytes > GIB // 4
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.disk_total_bytes
    assert found.disk_free_bytes is not None
    assert found.disk_total_bytes >= found.disk_free_bytes
    assert found.engine.engine_id == "E"
    assert found.gpus.driver == "1"
    assert found.version


def test_a_host_that_was_not_asked_for_an_engine_says_so() -> None:
    assert inventory.describe(gpu_reading=GpuReading()).engine.error


def test_the_fuller_disk_counts(settings: Settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    settings.ATTEMPTS_DIR = Path("/dev/shm")  # another file system
    frees = [psutil.disk_usage(str(path)).free for path in (tmp_path, Path("/dev/shm"))]

    _, free = inventory.disk()

    assert free == pytest.approx(min(frees), rel=0.05)


def test_a_disk_that_cannot_be_asked_is_none(settings: Settings, tmp_path: Path) -> None:
    settings.DATA_DIR = settings.ATTEMPTS_DIR = tmp_path / "gone"

    assert inventory.disk() == (None, None)


def test_a_missing_ml_python_is_said(settings: Settings, tmp_path: Path) -> None:
    settings.ML_PYTHON = tmp_path / "python"

    assert "./run setup" in inventory.ml_python_error()


def test_an_ml_python_without_its_libraries_is_said(settings: Settings, tmp_path: Path) -> None:
    """A Python that has numpy only, by a stand-in that answers as it would."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho pandas sklearn\n")
    python.chmod(0o755)
    settings.ML_PYTHON = python

    assert "lacks pandas sklearn" in inventory.ml_python_error()


# ---------------------------------------------------------------------------- for the agent

GPUS = [
    GpuFacts(uuid="GPU-a", index=0, name="NVIDIA A10", memory_bytes=24 * GIB),
    GpuFacts(uuid="GPU-b", index=1, name="NVIDIA, odd", memory_bytes=None),
]


def test_an_agent_is_told_its_hardware() -> None:
    env = inventory.hardware_env(
        cpus=1.5, memory_bytes=GIB, gpus=GPUS, shm_bytes=64, disk_free_bytes=5 * GIB
    )

    assert env == {
        "MLE_CPUS": "1.5",
        "MLE_MEM_BYTES": str(GIB),
        "MLE_GPU_COUNT": "2",
        "MLE_GPU_NAMES": "NVIDIA A10,NVIDIA  odd",
        "MLE_GPU_MEM_BYTES": f"{24 * GIB},",
        "MLE_SHM_BYTES": "64",
        "MLE_DISK_FREE_BYTES": str(5 * GIB),
    }


def test_what_is_not_known_is_left_out_of_the_variables_and_null_in_the_file() -> None:
    env = inventory.hardware_env(cpus=2.0, memory_bytes=GIB)
    file = json.loads(inventory.hardware_json(cpus=2.0, memory_bytes=GIB, gpus=GPUS))

    assert env == {"MLE_CPUS": "2", "MLE_MEM_BYTES": str(GIB), "MLE_GPU_COUNT": "0"}
    assert file["shm_bytes"] is None
    assert file["gpus"][1] == {"uuid": "GPU-b", "name": "NVIDIA, odd", "memory_bytes": None}
