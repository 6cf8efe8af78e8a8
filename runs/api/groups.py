"""Run groups and experiments: start, look, cancel, re-run."""

from django.http import Http404
from django.http.response import HttpResponseBase
from ninja import Query, Router
from ninja.responses import Status

from mlebench_web.fleet import hosts
from runs import contact, exporting, overriding, submit
from runs.api.app import ApiRequest, demand
from runs.api.asked import (
    LARGEST_ID,
    CancelGroup,
    Limit,
    NewRunGroup,
    Offset,
    Rerun,
    RerunOfGroup,
)
from runs.api.objects import (
    RELATED,
    AttemptObject,
    CancelledGroup,
    ExperimentObject,
    Page,
    PlanObject,
    Requeued,
    RunGroupObject,
    RunObject,
    with_attempts,
)
from runs.api.once import once
from runs.api.pages import page
from runs.core.states import RunState
from runs.models import Experiment, Run, RunGroup
from runs.request import RequestInvalid
from runs.views.streaming import streamed

router = Router()


@router.get("/experiments", response=Page[ExperimentObject], tags=["experiments"])
def experiments(request: ApiRequest, limit: Limit, offset: Offset) -> Page[ExperimentObject]:
    rows = Experiment.objects.select_related("agent")
    return page(request, rows, ExperimentObject.page, limit=limit, offset=offset)


@router.post("/run-groups", response={201: RunGroupObject, 200: PlanObject}, tags=["run groups"])
def start(
    request: ApiRequest,
    body: NewRunGroup,
    dry_run: bool = Query(False, description="1: say what would be made, and make nothing"),
) -> Status:
    """Start a run group: 201. With `dry_run=1`: 200, and nothing is made; the same errors."""
    demand(request.auth, "runs.add_group")
    if dry_run:
        plan = submit.plan(body.request(), by=request.auth)
        if plan.refusals:
            raise RequestInvalid(plan.refusals)
        return Status(200, PlanObject.of(plan))
    return once(
        request,
        request.auth,
        lambda: RunGroupObject.of(submit.create_run_group(body.request(), by=request.auth)),
        status=201,
    )


@router.get("/run-groups", response=Page[RunGroupObject], tags=["run groups"])
def list_groups(
    request: ApiRequest,
    limit: Limit,
    offset: Offset,
    experiment: str | None = None,
    agent: str | None = None,
) -> Page[RunGroupObject]:
    """Newest first."""
    rows = RunGroup.objects.select_related(*RELATED).order_by("-pk")
    if experiment is not None:
        rows = rows.filter(experiment__name=experiment)
    if agent is not None:
        rows = rows.filter(agent__name=agent)
    return page(request, rows, RunGroupObject.page, limit=limit, offset=offset)


@router.get("/run-groups/{int:pk}", response=RunGroupObject, tags=["run groups"])
def group(request: ApiRequest, pk: int) -> RunGroupObject:
    return RunGroupObject.of(_group(pk))


@router.get("/run-groups/{int:pk}/runs", response=Page[RunObject], tags=["run groups"])
def group_runs(
    request: ApiRequest, pk: int, limit: Limit, offset: Offset, state: RunState | None = None
) -> Page[RunObject]:
    """By competition, then seed."""
    rows = with_attempts(_group(pk).runs.order_by("competition__name", "seed"))
    if state is not None:
        rows = rows.filter(state=state)
    at = contact.as_of(hosts.now())
    return page(
        request,
        rows,
        lambda runs: [RunObject.of(run, at) for run in runs],
        limit=limit,
        offset=offset,
    )


@router.get("/run-groups/{int:pk}/export", response={200: bytes}, tags=["run groups"])
def export(request: ApiRequest, pk: int) -> HttpResponseBase:
    """A tar in mle-bench's layout: of each run the attempt that counts. Made while it is sent."""
    demand(request.auth, "runs.download")
    prepared = exporting.prepare(_group(pk))
    return streamed(
        request,
        exporting.tar_of([prepared]),
        content_type="application/x-tar",
        filename=f"{prepared.name}.tar",
    )


@router.post("/run-groups/{int:pk}/cancel", response=CancelledGroup, tags=["run groups"])
def cancel(request: ApiRequest, pk: int, body: CancelGroup | None = None) -> Status:
    """Cancel all that can be. Runs whose agent has ended are left alone."""
    row = _group(pk)
    demand(request.auth, "runs.cancel", row)

    def act() -> CancelledGroup:
        count = submit.cancel_group(
            row, by=request.auth, queued_only=bool(body and body.queued_only)
        )
        return CancelledGroup(**RunGroupObject.of(row).model_dump(), cancelled=count)

    return once(request, request.auth, act, status=200)


@router.post("/run-groups/{int:pk}/rerun", response=Requeued, tags=["run groups"])
def rerun(request: ApiRequest, pk: int, body: RerunOfGroup) -> Status:
    """Queue a new attempt for each chosen run. Runs that have not ended are skipped."""
    row = _group(pk)
    demand(request.auth, "runs.rerun", row)
    return once(
        request,
        request.auth,
        lambda: requeue(submit.chosen(row, body.which), request, body),
        status=200,
    )


def requeue(runs: list[Run], request: ApiRequest, asked: Rerun) -> Requeued:
    attempts = submit.rerun(
        runs,
        by=request.auth,
        reason=asked.reason,
        mode=asked.mode,
        overrides=overriding.look_up(asked.overrides, runs),
    )
    at = contact.as_of(hosts.now())
    queued = {attempt.run_id for attempt in attempts}
    return Requeued(
        items=[AttemptObject.of(attempt, at) for attempt in attempts],
        count=len(attempts),
        skipped=[run.pk for run in runs if run.pk not in queued],
    )


def _group(pk: int) -> RunGroup:
    row = (
        RunGroup.objects.select_related(*RELATED).filter(pk=pk).first()
        if pk <= LARGEST_ID
        else None
    )
    if row is None:
        raise Http404(f"There is no run group {pk}.")
    return row
