"""The disk that an attempt writes to: whether it is full, and whose fault that is."""

import errno
import shutil
from collections.abc import Callable

import structlog
from django.conf import settings

from runs.core.failures import Cause
from runs.workspace import Workspace

logger = structlog.get_logger(__name__)

# Below this the disk is full for every practical purpose.
FULL_BELOW_BYTES = 64 * 2**20


class AttemptDisk:
    def __init__(self, workspace: Workspace, *, tick: Callable[[], None]) -> None:
        """`tick` is called while a large output is counted."""
        self.workspace = workspace
        self.tick = tick

    def is_full(self) -> bool:
        try:
            return shutil.disk_usage(settings.ATTEMPTS_DIR).free < FULL_BELOW_BYTES
        except OSError as error:
            # Whether it answers at all is the next write's business.
            logger.warning("disk.not_read", attempt=self.workspace.attempt_id, error=str(error))
            return False

    def used_bytes(self) -> int:
        """What the attempt holds; 0 when that cannot be counted, which ends no run."""
        try:
            return self.workspace.used_bytes(tick=self.tick)
        except OSError as error:
            logger.warning(
                "output.not_counted", attempt=self.workspace.attempt_id, error=str(error)
            )
            return 0

    def cause_when_full(self) -> Cause:
        """The host's fault only while the attempt itself is within its quota."""
        used = self.used_bytes()
        return Cause.OUTPUT_QUOTA if used > settings.OUTPUT_QUOTA_BYTES else Cause.DISK_FULL

    def cause_of(self, error: OSError) -> Cause:
        """Why something could not be written: the host's disk, or the one that all hosts share."""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) or self.is_full()
        return self.cause_when_full() if is_full else Cause.PRODUCT_ERROR
