"""When a process started, by a clock that nobody sets: with its id, what it is known by.

psutil's `create_time()` is an epoch that moves with every step of the machine's clock, so after one
each living process would be taken for another.
"""

import os
from pathlib import Path

import psutil

PROC = Path("/proc")


def started(pid: int) -> float:
    """Seconds from the boot to the process's start on Linux, elsewhere since the epoch.

    Raises psutil.NoSuchProcess.
    """
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # Gone, or a system without /proc: psutil tells which.
        return psutil.Process(pid).create_time()
    # The name in parentheses may hold anything. Field 22, counted from 1, in clock ticks.
    return float(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
