"""Results that were made elsewhere: the asks to import them, and the rows that they become."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import OuterRef, Q, Subquery
from django.db.models.functions import Now
from django.urls import reverse

from mlebench_web.accounts.models import User
from mlebench_web.catalog.models import Competition
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, State, run_state
from runs.models.attempts import Attempt, Run
from runs.models.groups import RunGroup
from runs.models.history import Move
from runs.models.results import GradingReport


class Import(models.Model):
    """One ask to import an archive, some reports or a folder; docs/states.md has its states."""

    class State(models.TextChoices):
        # A host service takes it.
        WAITING = "waiting"
        AT_WORK = "at_work", "at work"
        DONE = "done"
        REFUSED = "refused"

    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    # The uploaded file's name or the folder; for people.
    source = models.CharField(max_length=300)
    # Exactly one: a file in Django storage, or a folder or file of the server. Both are emptied
    # once the upload is gone.
    upload = models.CharField(max_length=300, blank=True)
    folder = models.CharField(max_length=1000, blank=True)
    size = models.BigIntegerField(default=0, help_text="bytes of the upload")
    experiment = models.CharField(max_length=200, blank=True)
    is_dry_run = models.BooleanField(default=False)
    phase = models.CharField(max_length=200, blank=True)
    # What was made, or would be: see runs.importing.Plan.as_json.
    answer = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True)
    asked_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    asked_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, blank=True)
    # Fencing, as for attempts: who works on it, and until when that is believed.
    token = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"import {self.pk} of {self.source}"

    def get_absolute_url(self) -> str:
        return reverse("import", args=[self.pk])

    @property
    def is_over(self) -> bool:
        return self.state in (self.State.DONE, self.State.REFUSED)

    @classmethod
    def take_one(cls) -> "Import | None":
        """The oldest that waits, or whose worker is gone, under a new token; None: none."""
        free = Q(state=cls.State.WAITING) | Q(state=cls.State.AT_WORK, lease_until__lt=Now())
        for row in cls.objects.filter(free).order_by("pk"):
            token = uuid.uuid4()
            taken = cls.objects.filter(free, pk=row.pk).update(
                state=cls.State.AT_WORK,
                token=token,
                lease_until=Now() + settings.LEASE_TTL,
                phase="reading",
            )
            if taken:
                row.refresh_from_db()
                return row
        return None

    def beat(self, phase: str) -> bool:
        """Say how far it is, and keep the lease; False: somebody else works on it now."""
        return bool(
            Import.objects.filter(pk=self.pk, state=self.State.AT_WORK, token=self.token).update(
                phase=phase[:200], lease_until=Now() + settings.LEASE_TTL
            )
        )

    def end(self, state: "Import.State", **fields: object) -> bool:
        """Done or refused, once; False: somebody else works on it now."""
        moved = Import.objects.filter(
            pk=self.pk, state__in=[self.State.WAITING, self.State.AT_WORK], token=self.token
        ).update(state=state, phase="", ended_at=Now(), **fields)
        if moved:
            self.refresh_from_db()
        return bool(moved)


@dataclass(frozen=True)
class SealedRun:
    """A run that ended elsewhere, as rows. `reports` are the oldest first; the last one counts."""

    competition: Competition
    seed: int
    uuid: uuid.UUID
    outcome: Outcome
    cause: Cause | None
    is_cut_short: bool
    reports: Sequence[GradingReport]
    attempt: Mapping[str, Any] = field(default_factory=dict)


def seal_imported(
    group: RunGroup, rows: Sequence[SealedRun], *, by: str, at: datetime
) -> list[Attempt]:
    """Each run with its one attempt, ended from its first moment, in some six statements.

    `at`: when it is said to have been queued, for want of a better word.
    """
    with transaction.atomic():
        runs = Run.objects.bulk_create(Run(group=group, **_run_fields(row)) for row in rows)
        attempts = Attempt.objects.bulk_create(
            Attempt(
                run=run,
                number=1,
                state=State.ENDED,
                outcome=row.outcome,
                cause=row.cause or "",
                queued_at=at,
                **row.attempt,
            )
            for run, row in zip(runs, rows, strict=True)
        )
        Move.objects.bulk_create(
            Move(
                attempt=attempt,
                old="",
                new=State.ENDED,
                outcome=attempt.outcome,
                cause=attempt.cause,
                by=by,
            )
            for attempt in attempts
        )
        GradingReport.objects.bulk_create(
            _with(report, attempt, is_current=report is row.reports[-1])
            for attempt, row in zip(attempts, rows, strict=True)
            for report in row.reports
        )
        own = Attempt.objects.filter(
            run=OuterRef("pk"), outcome__in=[Outcome.GRADED, Outcome.AGENT_FAILED]
        )
        Run.objects.filter(group=group).update(counted=Subquery(own.values("pk")[:1]))
    return attempts


def _run_fields(row: SealedRun) -> dict[str, Any]:
    counts = row.outcome in (Outcome.GRADED, Outcome.AGENT_FAILED)
    report = row.reports[-1] if row.reports else None
    result = (report.result if report else Result.NO_SUBMISSION) if counts else ""
    return {
        "competition": row.competition,
        "seed": row.seed,
        "uuid": row.uuid,
        "state": run_state(State.ENDED, row.outcome),
        "result": result,
        "score": report.score if report else None,
        "is_cut_short": row.is_cut_short,
    }


def _with(report: GradingReport, attempt: Attempt, *, is_current: bool) -> GradingReport:
    report.attempt = attempt
    report.is_current = is_current
    return report
