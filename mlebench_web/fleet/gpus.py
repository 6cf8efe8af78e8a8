"""GPUs of this machine, read through NVIDIA's NVML. Errors are values: a reading never raises.

The module `pynvml` comes from the package nvidia-ml-py. Devices are known by their NVML UUID
only: the index differs from CUDA's and changes when a device dies. docs/gpus.md tells an
administrator what each fault means.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pynvml

# Whether a process belongs to an attempt of this installation; None: cannot be told.
IsOurs = Callable[[int], bool | None]

LOST = "The GPU is lost"
RESET = "The GPU requires a reset"

ADVICE: dict[int, str] = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "The NVIDIA driver is not loaded. Load it (modprobe nvidia) or install it again for the "
        "running kernel."
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "The NVIDIA driver was upgraded without a reboot: the loaded kernel module and the "
        "library have different versions. Reboot the host."
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "No permission to talk to the NVIDIA driver. Let the user of the host service read and "
        "write /dev/nvidia*."
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        f"{LOST}: it has fallen off the bus. Reboot the host; if it comes back lost, check power, "
        "cooling and seat of the card."
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: (
        f"{RESET}. Run nvidia-smi --gpu-reset -i <UUID> as root, or reboot the host."
    ),
}
# After these the session is opened again, to notice a host that was repaired.
BROKEN_SESSION = frozenset(
    {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)
NO_SLICES = (
    "MIG mode is on, but the GPU has no slices. Make some (nvidia-smi mig -cgi ... -C) or turn MIG "
    "mode off."
)


@dataclass(frozen=True)
class GpuFacts:
    """One device, or one MIG slice of a device. None: the card does not report it."""

    uuid: str
    index: int
    name: str
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    # "": healthy; otherwise why it must not be leased, and what to do.
    fault: str = ""
    # Slices are leased in place of their parent, never beside it.
    parent_uuid: str = ""
    is_mig_parent: bool = False
    compute_capability: str = ""


@dataclass(frozen=True)
class GpuReading:
    """`fault` "" and no GPUs: a machine without a driver, which is normal.

    A fault of the whole host says what to do. GPUs may be listed beside it: those that answered.
    """

    driver: str = ""
    fault: str = ""
    gpus: tuple[GpuFacts, ...] = ()


def is_loss(fault: str) -> bool:
    """Whether this fault takes the GPU away from the run that holds it."""
    return fault.startswith((LOST, RESET))


def read(*, is_ours: IsOurs | None = None) -> GpuReading:
    """A reading through this process's own session. May block while the driver does."""
    return _reader.read(is_ours=is_ours)


class GpuReader:
    """Holds the NVML session of one process.

    Opened at the first reading, never at import: NVML does not survive a fork. After an error
    of the driver or of a device it is opened anew, at most every `reopen_after_seconds`, since
    only that notices a repair. Not safe for two threads at once.
    """

    def __init__(self, *, reopen_after_seconds: float = 60) -> None:
        self.reopen_after_seconds = reopen_after_seconds
        self._opened_by: int | None = None
        self._reopen_at: float | None = None
        # What answered before: a lost device tells its UUID no more.
        self._known: dict[str, GpuFacts] = {}

    def read(self, *, is_ours: IsOurs | None = None) -> GpuReading:
        """All GPUs of the host. `is_ours` judges processes on them; without it none is foreign."""
        if self._reopen_at is not None and time.monotonic() >= self._reopen_at:
            self.close()
        try:
            self._open()
            driver = str(pynvml.nvmlSystemGetDriverVersion())
            count = int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError_LibraryNotFound:
            return GpuReading()
        except pynvml.NVMLError as error:
            self.close()
            return GpuReading(fault=_explain(error))
        gpus: list[GpuFacts] = []
        silent: list[str] = []
        for index in range(count):
            try:
                gpus += self._read_device(index, is_ours)
            except pynvml.NVMLError as error:
                self._note(error)
                silent.append(f"GPU at index {index}: {_explain(error)}")
        return self._complete(driver, gpus, silent)

    def close(self) -> None:
        """End the session, if this process opened it."""
        if self._opened_by == os.getpid():
            # A broken driver cannot even say goodbye; the next opening starts afresh.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self._opened_by = self._reopen_at = None

    def _open(self) -> None:
        # A forked child has a session that is not its own.
        if self._opened_by != os.getpid():
            pynvml.nvmlInit()
            self._opened_by = os.getpid()
            self._reopen_at = None

    def _note(self, error: pynvml.NVMLError) -> None:
        if error.value in BROKEN_SESSION and self._reopen_at is None:
            self._reopen_at = time.monotonic() + self.reopen_after_seconds

    def _complete(self, driver: str, gpus: list[GpuFacts], silent: list[str]) -> GpuReading:
        """Add the known devices that were silent, with the reason; name those never known."""
        answered = {gpu.uuid for gpu in gpus}
        missing = [gpu for uuid, gpu in self._known.items() if uuid not in answered]
        if not silent:
            self._known = {gpu.uuid: gpu for gpu in gpus}
            return GpuReading(driver=driver, gpus=tuple(gpus))
        # A device that is silent by index is one of those that answered before.
        reason = silent[0].partition(": ")[2]
        gpus += [_without_readings(gpu, fault=reason) for gpu in missing]
        self._known = {gpu.uuid: gpu for gpu in gpus}
        devices = sum(1 for gpu in missing if not gpu.parent_uuid)
        fault = "" if devices >= len(silent) else " ".join(silent)
        return GpuReading(driver=driver, fault=fault, gpus=tuple(gpus))

    def _read_device(self, index: int, is_ours: IsOurs | None) -> list[GpuFacts]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        device = self._facts(handle, uuid, index, is_ours)
        if is_loss(device.fault):
            return self._lost_with_its_slices(device)
        mode = self._ask(lambda: pynvml.nvmlDeviceGetMigMode(handle))
        if not mode or not mode[0]:
            return [device]
        slices = self._slices(handle, device, is_ours)
        fault = device.fault or ("" if slices else NO_SLICES)
        return [replace(device, is_mig_parent=True, fault=fault), *slices]

    def _lost_with_its_slices(self, device: GpuFacts) -> list[GpuFacts]:
        slices = [
            _without_readings(gpu, fault=device.fault)
            for gpu in self._known.values()
            if gpu.parent_uuid == device.uuid
        ]
        return [replace(device, is_mig_parent=bool(slices)), *slices]

    def _slices(self, handle: object, parent: GpuFacts, is_ours: IsOurs | None) -> list[GpuFacts]:
        found = []
        for number in range(self._ask(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
            try:
                slice_handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                uuid = str(pynvml.nvmlDeviceGetUUID(slice_handle))
            except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
                continue  # gaps are normal
            facts = self._facts(slice_handle, uuid, parent.index, is_ours)
            found.append(replace(facts, parent_uuid=parent.uuid))
        return found

    def _facts(self, handle: object, uuid: str, index: int, is_ours: IsOurs | None) -> GpuFacts:
        losses: list[str] = []
        memory = self._ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle), losses)
        load = self._ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle), losses)
        power = self._ask(lambda: pynvml.nvmlDeviceGetPowerUsage(handle), losses)
        version = self._ask(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle), losses)
        processes = self._ask(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle), losses)
        foreign = [p.pid for p in processes or () if is_ours and is_ours(p.pid) is False]
        return GpuFacts(
            uuid=uuid,
            index=index,
            name=str(self._ask(lambda: pynvml.nvmlDeviceGetName(handle), losses) or "GPU"),
            memory_bytes=memory.total if memory else None,
            memory_used_bytes=memory.used if memory else None,
            utilisation=load.gpu if load else None,
            temperature_c=self._temperature(handle, losses),
            power_w=power / 1000 if power is not None else None,
            fault=losses[0] if losses else _foreign_use(foreign),
            compute_capability=f"{version[0]}.{version[1]}" if version else "",
        )

    def _temperature(self, handle: object, losses: list[str]) -> int | None:
        sensor = pynvml.NVML_TEMPERATURE_GPU
        # The first is new, the second deprecated; old drivers have the second only.
        new = self._ask(lambda: pynvml.nvmlDeviceGetTemperatureV(handle, sensor), losses)
        if new is not None:
            return int(new)
        return self._ask(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, sensor)), losses)

    def _ask[Value](
        self, question: Callable[[], Value], losses: list[str] | None = None
    ) -> Value | None:
        """The answer, or None where this card or driver has none.

        With `losses`, a device that is lost or wants a reset adds its explanation there;
        without, that is raised.
        """
        try:
            return question()
        except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired) as error:
            if losses is None:
                raise
            self._note(error)
            losses.append(_explain(error))
        except pynvml.NVMLError as error:
            self._note(error)
        return None


_reader = GpuReader()


def _explain(error: pynvml.NVMLError) -> str:
    return ADVICE.get(error.value) or f"The NVIDIA driver answered: {error}."


def _without_readings(gpu: GpuFacts, *, fault: str) -> GpuFacts:
    """What is known for good of a device that no longer answers."""
    return replace(
        gpu,
        fault=fault,
        memory_used_bytes=None,
        utilisation=None,
        temperature_c=None,
        power_w=None,
    )


def _foreign_use(pids: list[int]) -> str:
    if not pids:
        return ""
    named = ", ".join(str(pid) for pid in pids[:5]) + (" and more" if len(pids) > 5 else "")
    return f"In use by a process outside mlebench-web (pid {named}). End it to free the GPU."


def owner_of_processes(
    container_ids: Collection[str],
    *,
    settled_after_seconds: float = 30,
    proc: Path = Path("/proc"),
) -> IsOurs:
    """Tells whether a process runs in one of these containers, or in a `process` run.

    Conservative: a process that cannot be looked at (another pid namespace, just gone) or that
    has just started (its container may be newer than the list) is None, not foreign.
    """

    def is_ours(pid: int) -> bool | None:
        try:
            groups = (proc / str(pid) / "cgroup").read_text()
        except OSError:
            return None
        if any(container_id in groups for container_id in container_ids):
            return True
        try:
            # Agents of the `process` runtime have this in their environment and our own uid, so
            # that a refusal here means another user's process.
            if b"MLE_RUN_ID=" in (proc / str(pid) / "environ").read_bytes():
                return True
            age_seconds = time.time() - psutil.Process(pid).create_time()
        except PermissionError:
            return False
        except (OSError, psutil.Error):
            return None
        return False if age_seconds >= settled_after_seconds else None

    return is_ours
