"""Experiment > RunGroup > Run (competition x seed) > Attempt, and the one door for state.

Only this package writes a state (tests/test_layers.py holds that).
"""

from runs.models.attempts import Attempt, AttemptQuerySet, Run
from runs.models.base import Replaced, choices_of
from runs.models.checkpoints import Checkpoint, CheckpointQuerySet
from runs.models.groups import Experiment, IdempotencyKey, Installation, RunGroup
from runs.models.history import Move, Requeue
from runs.models.imports import Import, SealedRun, seal_imported
from runs.models.leases import GpuLease
from runs.models.logs import LogSegment
from runs.models.regrades import Regrade, RegradeJob, RegradeJobQuerySet
from runs.models.results import GradingReport, SubmissionSnapshot
from runs.models.steps import Step, StepQuerySet

__all__ = [
    "Attempt",
    "AttemptQuerySet",
    "Checkpoint",
    "CheckpointQuerySet",
    "Experiment",
    "GpuLease",
    "GradingReport",
    "IdempotencyKey",
    "Import",
    "Installation",
    "LogSegment",
    "Move",
    "Regrade",
    "RegradeJob",
    "RegradeJobQuerySet",
    "Replaced",
    "Requeue",
    "Run",
    "RunGroup",
    "SealedRun",
    "Step",
    "StepQuerySet",
    "SubmissionSnapshot",
    "choices_of",
    "seal_imported",
]
