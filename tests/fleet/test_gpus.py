"""Readings of GPUs: the real pynvml over a stand-in driver library."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from mlebench_web.fleet import gpus
from mlebench_web.fleet.gpus import GpuFacts, GpuReader, owner_of_processes
from tests.conftest import FakeNvml

A10 = {
    "gpu0.uuid": "GPU-aaa",
    "gpu0.name": "NVIDIA A10",
    "gpu0.total": 24 * 2**30,
    "gpu0.used": 2**30,
    "gpu0.util": 37,
    "gpu0.temp": 61,
    "gpu0.power_mw": 123456,
    "gpu0.cc": "8.6",
}
SECOND = {"gpu1.uuid": "GPU-bbb", "gpu1.name": "NVIDIA A10"}


class Driver(FakeNvml):
    """Keeps what was said before."""

    lines: dict[str, object]

    def say(self, **lines: object) -> None:
        self.lines |= {name.replace("__", "."): value for name, value in lines.items()}
        self.write(self.lines)


@pytest.fixture
def driver(fake_nvml: FakeNvml) -> Driver:
    """Two healthy GPUs."""
    # By path: pynvml's own search is then answered with this library, here and with any driver.
    ctypes.CDLL(str(fake_nvml.library))
    driver = Driver(fake_nvml.library, fake_nvml.state)
    driver.lines = {"count": 2, **A10, **SECOND}
    driver.say()
    return driver


@pytest.fixture
def reader() -> Iterator[GpuReader]:
    reader = GpuReader(reopen_after_seconds=0)
    yield reader
    reader.close()


def test_a_gpu_is_described_in_full(driver: Driver, reader: GpuReader) -> None:
    reading = reader.read()

    assert (reading.driver, reading.fault) == ("580.95.05", "")
    assert reading.gpus[0] == GpuFacts(
        uuid="GPU-aaa",
        index=0,
        name="NVIDIA A10",
        memory_bytes=24 * 2**30,
        memory_used_bytes=2**30,
        utilisation=37,
        temperature_c=61,
        power_w=123.456,
        compute_capability="8.6",
    )
    assert reading.gpus[1].uuid == "GPU-bbb"


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetMemoryInfo", "memory_bytes"),
        ("nvmlDeviceGetMemoryInfo", "memory_used_bytes"),
        ("nvmlDeviceGetUtilizationRates", "utilisation"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
    ],
)
@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION]
)
def test_what_the_card_does_not_report_is_none(
    driver: Driver, reader: GpuReader, function: str, field: str, error: int
) -> None:
    driver.say(**{f"fail.{function}": error})

    gpu = reader.read().gpus[0]

    assert getattr(gpu, field) is None
    assert gpu.fault == ""


def test_an_old_driver_has_the_old_temperature_only(driver: Driver, reader: GpuReader) -> None:
    driver.say(**{"fail.nvmlDeviceGetTemperatureV": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})

    assert reader.read().gpus[0].temperature_c == 61


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Reboot the host"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_a_broken_driver_is_said_with_what_to_do_and_its_repair_is_noticed(
    driver: Driver, reader: GpuReader, error: int, advice: str
) -> None:
    driver.say(init_error=error)
    broken = reader.read()
    assert advice in broken.fault
    assert broken.gpus == ()

    driver.say(init_error=0)

    assert reader.read().fault == ""
    assert len(reader.read().gpus) == 2


@pytest.mark.parametrize(
    ("key", "words"), [("lost", "fallen off the bus"), ("reset", "--gpu-reset")]
)
def test_a_lost_gpu_is_marked_and_the_others_go_on(
    driver: Driver, reader: GpuReader, key: str, words: str
) -> None:
    reader.read()
    driver.say(**{f"gpu1.{key}": 1})

    reading = reader.read()

    healthy, lost = reading.gpus
    assert (healthy.uuid, healthy.fault) == ("GPU-aaa", "")
    assert lost.uuid == "GPU-bbb"
    assert words in lost.fault
    assert gpus.is_loss(lost.fault)
    assert lost.utilisation is None
    assert reading.fault == ""

    driver.say(**{f"gpu1.{key}": 0})
    assert [gpu.fault for gpu in reader.read().gpus] == ["", ""]


def test_a_gpu_that_was_lost_before_the_first_reading_is_a_fault_of_the_host(
    driver: Driver, reader: GpuReader
) -> None:
    driver.say(gpu1__lost=1)

    reading = reader.read()

    assert [gpu.uuid for gpu in reading.gpus] == ["GPU-aaa"]
    assert reading.fault.startswith("GPU at index 1: The GPU is lost")


def test_a_gpu_that_is_lost_between_two_questions_is_marked(
    driver: Driver, reader: GpuReader
) -> None:
    driver.say(**{"fail.nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_GPU_IS_LOST})

    assert all(gpus.is_loss(gpu.fault) for gpu in reader.read().gpus)


def test_a_session_is_opened_once_and_anew_only_after_a_loss(
    driver: Driver, reader: GpuReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_NVML_LOG", str(tmp_path / "calls"))

    def opened() -> int:
        return (tmp_path / "calls").read_text().split().count("nvmlInitWithFlags")

    reader.read()
    reader.read()
    assert opened() == 1

    driver.say(gpu1__lost=1)
    reader.read()
    reader.read()

    assert opened() == 2


def test_a_lasting_loss_does_not_reopen_the_session_at_every_reading(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_NVML_LOG", str(tmp_path / "calls"))
    driver.say(gpu1__lost=1)
    patient = GpuReader(reopen_after_seconds=3600)

    for _ in range(3):
        patient.read()
    patient.close()

    assert (tmp_path / "calls").read_text().split().count("nvmlInitWithFlags") == 1


def test_a_forked_child_opens_a_session_of_its_own(
    driver: Driver, reader: GpuReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader.read()
    monkeypatch.setenv("FAKE_NVML_LOG", str(tmp_path / "calls"))

    child = os.fork()
    if not child:
        reading = reader.read()
        os._exit(0 if len(reading.gpus) == 2 else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert "nvmlInitWithFlags" in (tmp_path / "calls").read_text()


def test_slices_are_listed_with_their_parent(driver: Driver, reader: GpuReader) -> None:
    driver.say(
        gpu0__mig=1,
        gpu0__migs=2,
        gpu0__mig0__uuid="MIG-a",
        gpu0__mig1__uuid="MIG-b",
        gpu0__mig1__total=5 * 2**30,
    )

    parent, first, second, other = reader.read().gpus

    assert (parent.is_mig_parent, parent.utilisation, parent.fault) == (True, None, "")
    assert (first.uuid, first.parent_uuid) == ("MIG-a", "GPU-aaa")
    assert (second.uuid, second.memory_bytes) == ("MIG-b", 5 * 2**30)
    assert not first.is_mig_parent
    assert (other.uuid, other.is_mig_parent) == ("GPU-bbb", False)


def test_a_mig_parent_without_slices_says_so(driver: Driver, reader: GpuReader) -> None:
    driver.say(gpu0__mig=1, gpu0__migs=0)

    assert "has no slices" in reader.read().gpus[0].fault


def test_a_lost_parent_loses_its_slices(driver: Driver, reader: GpuReader) -> None:
    driver.say(gpu0__mig=1, gpu0__migs=1, gpu0__mig0__uuid="MIG-a")
    reader.read()
    driver.say(gpu0__lost=1)

    faults = {gpu.uuid: gpus.is_loss(gpu.fault) for gpu in reader.read().gpus}

    assert faults == {"GPU-aaa": True, "MIG-a": True, "GPU-bbb": False}


@pytest.mark.parametrize(
    ("answer", "is_fault"),
    [
        pytest.param(False, True, id="foreign"),
        pytest.param(True, False, id="ours"),
        pytest.param(None, False, id="unknown"),
    ],
)
def test_only_a_process_that_is_surely_foreign_is_a_fault(
    driver: Driver, reader: GpuReader, answer: bool | None, is_fault: bool
) -> None:
    driver.say(gpu0__procs="4242:1073741824")

    first, second = reader.read(is_ours=lambda pid: answer).gpus

    assert (first.fault != "") == is_fault
    assert ("pid 4242" in first.fault) == is_fault
    assert not gpus.is_loss(first.fault)
    assert second.fault == ""
    assert reader.read().gpus[0].fault == ""  # nobody to judge


# ---------------------------------------------------------------------------- whose process


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with one process that is as old as this one."""
    folder = tmp_path / "proc" / str(os.getpid())
    folder.mkdir(parents=True)
    (folder / "cgroup").write_text("4:memory:/docker/abc123\n0::/\n")
    (folder / "environ").write_bytes(b"HOME=/root\0PATH=/bin\0")
    return tmp_path / "proc"


def test_a_process_in_a_container_of_ours_is_ours(proc: Path) -> None:
    assert owner_of_processes(["abc123"], proc=proc)(os.getpid()) is True


def test_a_settled_process_elsewhere_is_foreign(proc: Path) -> None:
    judge = owner_of_processes(["def456"], proc=proc, settled_after_seconds=0)

    assert judge(os.getpid()) is False


def test_a_process_that_has_just_started_is_not_judged(proc: Path) -> None:
    """Its container may be newer than our list of containers."""
    judge = owner_of_processes([], proc=proc, settled_after_seconds=time.time())

    assert judge(os.getpid()) is None


def test_a_process_that_cannot_be_looked_at_is_not_judged(proc: Path) -> None:
    assert owner_of_processes([], proc=proc, settled_after_seconds=0)(1) is None


def test_an_agent_without_a_container_is_ours(proc: Path) -> None:
    (proc / str(os.getpid()) / "environ").write_bytes(b"MLE_RUN_ID=1\0")

    assert owner_of_processes([], proc=proc, settled_after_seconds=0)(os.getpid()) is True


# ---------------------------------------------------------------------------- without a driver


def test_a_machine_without_a_driver_has_no_gpus_and_no_fault() -> None:
    """In a process of its own: a library that was once loaded stays."""
    script = (
        "import json, ctypes\n"
        "real = ctypes.CDLL\n"
        "def none(name, *args, **more):\n"
        "    if name and 'nvidia-ml' in str(name): raise OSError('no such file')\n"
        "    return real(name, *args, **more)\n"
        "ctypes.CDLL = none\n"
        "import pynvml; pynvml.CDLL = none\n"
        "from mlebench_web.fleet import gpus\n"
        "reading = gpus.read()\n"
        "print(json.dumps([reading.driver, reading.fault, len(reading.gpus)]))\n"
    )

    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )

    assert json.loads(answer.stdout) == ["", "", 0]


def test_the_driver_is_not_touched_by_an_import(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    subprocess.run(
        [sys.executable, "-c", "import mlebench_web.fleet.gpus"],
        env={**os.environ, **fake_nvml.env(), "FAKE_NVML_LOG": str(calls)},
        check=True,
        timeout=60,
    )

    assert not calls.exists()
