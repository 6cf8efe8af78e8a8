"""Checkpoints of a running attempt, and the start of another one from them.

A save runs in a thread beside the watch: the files are copied aside (the agent stands still only
where it keeps changing them), then stored from the copy.
"""

from runs.checkpoints.part import AGAIN_AFTER, CheckpointPart, save_now, save_soon
from runs.checkpoints.restoring import begin_from
from runs.checkpoints.saving import drop_old
from runs.checkpoints.tidying import tidy

__all__ = [
    "AGAIN_AFTER",
    "CheckpointPart",
    "begin_from",
    "drop_old",
    "save_now",
    "save_soon",
    "tidy",
]
