"""Grading again: ask for runs or a group, and see what changed."""

from datetime import datetime
from typing import Any

from django.http import Http404
from ninja import Router
from ninja.responses import Status
from pydantic import BaseModel

from runs import regrading
from runs.api.app import ApiRequest, demand
from runs.api.asked import LARGEST_ID, Regrade, RegradeOfGroup
from runs.api.objects import address, finite
from runs.api.once import once
from runs.models import GradingReport, Run, RunGroup
from runs.models import Regrade as RegradeRow

router = Router(tags=["re-grades"])


class ReportObject(BaseModel):
    """A grading report, and what made it. Upstream's 16 keys are at `runs/{id}/report`."""

    attempt: int
    is_current: bool
    result: str
    score: float | None
    message: str | None
    grader: str | None
    grader_commit: str | None
    files_digest: str | None
    data_digest: str | None
    created_at: datetime

    @classmethod
    def of(cls, report: GradingReport) -> "ReportObject":
        return cls(
            attempt=report.attempt_id,
            is_current=report.is_current,
            result=report.result,
            score=finite(report.score),
            message=report.message or None,
            grader=report.grader or None,
            grader_commit=report.grader_commit or None,
            files_digest=report.files_digest or None,
            data_digest=report.data_digest or None,
            created_at=report.created_at,
        )


class Reports(BaseModel):
    items: list[ReportObject]
    count: int


class RegradeJobObject(BaseModel):
    run: int
    competition: str
    seed: int
    state: str
    error: str | None
    has_changed: bool
    before: ReportObject | None
    after: ReportObject | None


class SkippedRun(BaseModel):
    run: int
    why: str


class RegradeObject(BaseModel):
    """`moved`: rows of the leaderboard that it changed, once all its jobs have ended."""

    id: int
    state: str
    by: str
    reason: str | None
    at: datetime
    ended_at: datetime | None
    jobs: list[RegradeJobObject]
    changed: int
    moved: list[dict[str, Any]] | None
    # Only in the answer to the request: runs that were left alone.
    skipped: list[SkippedRun] = []
    url: str

    @classmethod
    def of(cls, row: RegradeRow, skipped: list[regrading.Skipped] | None = None) -> "RegradeObject":
        changes = regrading.changes(row)
        return cls(
            id=row.pk,
            state="ended" if row.ended_at else "at work",
            by=row.by_name,
            reason=row.reason or None,
            at=row.at,
            ended_at=row.ended_at,
            jobs=[
                RegradeJobObject(
                    run=change.job.run_id,
                    competition=change.job.run.competition.name,
                    seed=change.job.run.seed,
                    state=change.job.state,
                    error=change.job.error or None,
                    has_changed=change.has_changed,
                    before=ReportObject.of(change.before) if change.before else None,
                    after=ReportObject.of(change.after) if change.after else None,
                )
                for change in changes
            ],
            changed=sum(change.has_changed for change in changes),
            moved=row.moved if row.ended_at else None,
            skipped=[SkippedRun(run=each.run.pk, why=each.why) for each in skipped or ()],
            url=address(row.get_absolute_url()),
        )


@router.get("/runs/{int:pk}/reports", response=Reports)
def reports(request: ApiRequest, pk: int) -> Reports:
    """Every report that the run ever had, newest first."""
    items = [ReportObject.of(report) for report in regrading.history_of(_run(pk))]
    return Reports(items=items, count=len(items))


@router.post("/runs/{int:pk}/regrade", response=RegradeObject)
def regrade_run(request: ApiRequest, pk: int, body: Regrade | None = None) -> Status:
    """Grade what it handed in again; 409 when it has not ended or has nothing to grade."""
    row = _run(pk)
    demand(request.auth, "runs.regrade", row)
    return _ask(request, [row], body or Regrade())


@router.post("/run-groups/{int:pk}/regrade", response=RegradeObject)
def regrade_group(request: ApiRequest, pk: int, body: RegradeOfGroup | None = None) -> Status:
    """All runs of the group that have ended, or those that are named."""
    group = RunGroup.objects.filter(pk=pk).first() if pk <= LARGEST_ID else None
    if group is None:
        raise Http404(f"There is no run group {pk}.")
    demand(request.auth, "runs.regrade", group)
    asked = body or RegradeOfGroup()
    return _ask(request, regrading.chosen(group, asked.which), asked)


@router.get("/regrades/{int:pk}", response=RegradeObject)
def regrade(request: ApiRequest, pk: int) -> RegradeObject:
    row = RegradeRow.objects.filter(pk=pk).first() if pk <= LARGEST_ID else None
    if row is None:
        raise Http404(f"There is no re-grade {pk}.")
    return RegradeObject.of(row)


def _ask(request: ApiRequest, runs: list[Run], body: Regrade) -> Status:
    def act() -> RegradeObject:
        asked = regrading.ask(runs, by=request.auth, reason=body.reason)
        return RegradeObject.of(asked.regrade, asked.skipped)

    return once(request, request.auth, act, status=200)


def _run(pk: int) -> Run:
    row = Run.objects.select_related("group").filter(pk=pk).first() if pk <= LARGEST_ID else None
    if row is None:
        raise Http404(f"There is no run {pk}.")
    return row
