"""How a result's conditions differ from mle-bench's official ones. Pure.

Official: 24 h, 36 vCPUs, 440 GB of memory, one A10 with 24 GB, at least 3 seeds.
"""

import re
from dataclasses import dataclass

OFFICIAL_HOURS = 24
OFFICIAL_CPUS = 36
OFFICIAL_MEMORY_GB = 440
OFFICIAL_SEEDS = 3
# 440 GB may be meant as 440 GiB (472 GB), and a host keeps some for itself.
MEMORY_TOLERANCE = 0.1
# "A10" alone: the A100, A10G and A1000 are other cards.
OFFICIAL_GPU = re.compile(r"\bA10\b")


@dataclass(frozen=True)
class Hardware:
    """What one run had, as measured on its host; None: not measured."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpu_names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """ "1 x NVIDIA A10, 4 CPUs, 16 GiB"; empty when nothing was measured."""
        parts = []
        if self.gpu_names is not None:
            parts.append(gpus_in_words(self.gpu_names))
        if self.cpus is not None:
            parts.append(f"{self.cpus:g} CPU" + ("" if self.cpus == 1 else "s"))
        if self.memory_bytes is not None:
            parts.append(gibibytes(self.memory_bytes))
        return ", ".join(parts)


@dataclass(frozen=True)
class Difference:
    """`name` is short and stable (time, vCPU, RAM, GPU, seeds); `text` is for people."""

    name: str
    text: str


def gibibytes(size_bytes: float) -> str:
    """ "440 GiB", "1.5 GiB"."""
    return f"{size_bytes / 2**30:.1f}".removesuffix(".0") + " GiB"


def gpus_in_words(names: tuple[str, ...]) -> str:
    if not names:
        return "no GPU"
    counted = {name: names.count(name) for name in dict.fromkeys(names)}
    return " + ".join(f"{count} x {name}" for name, count in counted.items())


def differences(*, hours: float | None, hardware: Hardware, seeds: int) -> tuple[Difference, ...]:
    """Each way in which these conditions are not the official ones, or are not known."""
    found = []
    if hours is None:
        found.append(Difference("time", "time limit not reported"))
    elif hours != OFFICIAL_HOURS:
        found.append(Difference("time", f"{hours:g} h, not {OFFICIAL_HOURS} h"))
    if hardware.cpus is None:
        found.append(Difference("vCPU", "CPUs not reported"))
    elif hardware.cpus != OFFICIAL_CPUS:
        found.append(Difference("vCPU", f"{hardware.cpus:g} vCPUs, not {OFFICIAL_CPUS}"))
    if hardware.memory_bytes is None:
        found.append(Difference("RAM", "memory not reported"))
    elif abs(hardware.memory_bytes / 1e9 - OFFICIAL_MEMORY_GB) > (
        MEMORY_TOLERANCE * OFFICIAL_MEMORY_GB
    ):
        found.append(
            Difference(
                "RAM",
                f"{gibibytes(hardware.memory_bytes)} of memory, not {OFFICIAL_MEMORY_GB} GB",
            )
        )
    if hardware.gpu_names is None:
        found.append(Difference("GPU", "GPU not reported"))
    elif len(hardware.gpu_names) != 1 or not OFFICIAL_GPU.search(hardware.gpu_names[0]):
        found.append(Difference("GPU", f"{gpus_in_words(hardware.gpu_names)}, not one A10"))
    if seeds < OFFICIAL_SEEDS:
        found.append(Difference("seeds", f"{seeds} complete seeds of {OFFICIAL_SEEDS}"))
    return tuple(found)
