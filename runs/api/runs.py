"""One run: state, log, report, artifacts; cancel and re-run."""

from typing import Annotated
from urllib.parse import quote

from django.http import FileResponse, Http404
from ninja import Query, Router
from ninja.responses import Status

from mlebench_web.fleet import hosts
from runs import contact, layout, logs, queue, resuming, submit
from runs.api.app import ApiRequest, demand
from runs.api.asked import LARGEST_ID, Limit, Nothing, Offset, Rerun
from runs.api.groups import requeue
from runs.api.objects import (
    ArtifactObject,
    Artifacts,
    CheckpointObject,
    LogWindow,
    Page,
    Requeued,
    RunObject,
    StepObject,
    finite,
    whole,
    with_attempts,
)
from runs.api.once import once
from runs.api.pages import page
from runs.core.states import State
from runs.models import Attempt, Checkpoint, LogSegment, Run, Step
from runs.workspace import Refused, open_beneath

router = Router(tags=["runs"])


@router.get("/runs/{int:pk}", response=RunObject)
def run(request: ApiRequest, pk: int) -> RunObject:
    return _shown(pk)


@router.get("/runs/{int:pk}/log", response=LogWindow)
def log(
    request: ApiRequest,
    pk: int,
    source: LogSegment.Source = LogSegment.Source.AGENT,
    offset: Annotated[
        int | None, Query(ge=0, le=LARGEST_ID, description="byte; left out: the end of the log")
    ] = None,
    limit_bytes: Annotated[int, Query(ge=1, le=2**20)] = 2**18,
    attempt: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="number; left out: the newest")
    ] = None,
) -> LogWindow:
    """Whole lines. To follow it, ask again with `offset` = `next_offset`."""
    chosen = _attempt(_run(pk), attempt)
    window = logs.window(chosen.pk, source, offset=offset, limit_bytes=limit_bytes)
    return LogWindow(
        run=pk,
        attempt=chosen.number,
        source=source,
        text=window.text,
        offset=window.start,
        next_offset=window.end,
        total=window.total,
        first_line=window.first_line,
    )


@router.get("/runs/{int:pk}/steps", response=Page[StepObject])
def steps(
    request: ApiRequest, pk: int, limit: Limit, offset: Offset, attempt: int | None = None
) -> Page[StepObject]:
    """Of all its attempts, or of one, in their order. Of very many the older are thinned out."""
    row = _run(pk)
    rows = Step.objects.filter(attempt__run=row).select_related("attempt").in_order()
    if attempt is not None:
        rows = rows.filter(attempt=_attempt(row, attempt))
    return page(
        request,
        rows,
        lambda found: [StepObject.of(each) for each in found],
        limit=limit,
        offset=offset,
    )


@router.get("/runs/{int:pk}/report")
def report(request: ApiRequest, pk: int) -> dict[str, object]:
    """Upstream's 16 keys, of the attempt that counts; 404 while there is none."""
    row = _run(pk)
    found = row.counted.reports.filter(is_current=True).first() if row.counted else None
    if found is None:
        raise Http404(f"Run {pk} has no grading report ({row.get_state_display()}).")
    return {**found.as_upstream(), "score": finite(found.score)}


@router.get("/runs/{int:pk}/artifacts", response=Artifacts)
def artifacts(request: ApiRequest, pk: int, attempt: int | None = None) -> Artifacts:
    """Files that an attempt left and that were kept."""
    chosen = _attempt(_run(pk), attempt)
    base = request.build_absolute_uri(request.path)
    items = [
        ArtifactObject(
            path=str(each["path"]),
            bytes=each.get("bytes"),
            url=f"{base}/{quote(str(each['path']))}?attempt={chosen.number}",
        )
        for each in chosen.artifacts
    ]
    return Artifacts(items=items, count=len(items), left_out=chosen.left_out)


@router.get("/runs/{int:pk}/artifacts/{path:path}", response={200: bytes})
def artifact(request: ApiRequest, pk: int, path: str, attempt: int | None = None) -> FileResponse:
    """One of them, as a download: a hostile program wrote it."""
    row = _run(pk)
    demand(request.auth, "runs.download", row)
    chosen = _attempt(row, attempt)
    try:
        file = open_beneath(layout.attempt_folder(chosen), path)
    except (FileNotFoundError, Refused, ValueError) as error:
        raise Http404(f"Attempt {chosen.number} of run {pk} kept no file {path!r}.") from error
    response = FileResponse(
        file,
        as_attachment=True,
        filename=path.rsplit("/", 1)[-1],
        content_type="application/octet-stream",
    )
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "sandbox"
    return response


@router.post("/runs/{int:pk}/cancel", response=RunObject)
def cancel(request: ApiRequest, pk: int, body: Nothing | None = None) -> Status:
    """409 when its agent has ended. A run that is queued ends at once; others stop with grace."""
    row = _run(pk)
    demand(request.auth, "runs.cancel", row)

    def act() -> RunObject:
        submit.cancel_run(row, by=request.auth)
        return _shown(pk)

    return once(request, request.auth, act, status=200)


@router.get("/runs/{int:pk}/checkpoints", response=Page[CheckpointObject])
def checkpoints(request: ApiRequest, pk: int) -> Page[CheckpointObject]:
    """Of all its attempts, newest first; two are kept."""
    rows = Checkpoint.objects.filter(attempt__run=_run(pk)).select_related("attempt")
    return whole([CheckpointObject.of(row) for row in rows.order_by("-id")])


@router.post("/runs/{int:pk}/checkpoint", response=RunObject)
def checkpoint(request: ApiRequest, pk: int, body: Nothing | None = None) -> Status:
    """Save one now, within seconds; 409 when its agent does not run, or cannot go on from one."""
    row = _run(pk)
    demand(request.auth, "runs.rerun", row)

    def act() -> RunObject:
        resuming.ask_checkpoint(row, by=request.auth)
        return _shown(pk)

    return once(request, request.auth, act, status=200)


@router.post("/runs/{int:pk}/rerun", response=Requeued)
def rerun(request: ApiRequest, pk: int, body: Rerun | None = None) -> Status:
    """Queue a new attempt; a run that has not ended is skipped."""
    row = _run(pk)
    demand(request.auth, "runs.rerun", row)
    asked = body or Rerun()
    return once(request, request.auth, lambda: requeue([row], request, asked), status=200)


def _run(pk: int) -> Run:
    row = (
        Run.objects.select_related("group", "competition", "counted").filter(pk=pk).first()
        if pk <= LARGEST_ID
        else None
    )
    if row is None:
        raise Http404(f"There is no run {pk}.")
    return row


def _shown(pk: int) -> RunObject:
    row = with_attempts(Run.objects.filter(pk=_run(pk).pk)).get()
    newest = row.newest_attempt()
    waiting = queue.why_waiting(newest) if newest.state == State.QUEUED else None
    return RunObject.of(row, contact.as_of(hosts.now()), waiting=waiting)


def _attempt(run: Run, number: int | None) -> Attempt:
    if number is None:
        return run.newest_attempt()
    found = run.attempts.filter(number=number).first() if 0 < number < 2**31 else None
    if found is None:
        raise Http404(f"Run {run.pk} has no attempt {number}.")
    return found
