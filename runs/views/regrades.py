"""Grading again: one press and what came of it; the buttons of a run and of a run group."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from mlebench_web.accounts.rules import reason_against
from mlebench_web.http import SignedInRequest
from runs import regrading
from runs.models import Regrade, RegradeJob, Run, RunGroup
from runs.request import RequestInvalid
from runs.views import marks

STATUS = {
    RegradeJob.State.WANTED: ("idle", "waiting"),
    RegradeJob.State.GRADING: ("run", "grading"),
    RegradeJob.State.DONE: ("ok", "graded"),
    RegradeJob.State.FAILED: ("bad", "failed"),
    RegradeJob.State.VOID: ("idle", "left alone"),
}


@login_required
@require_GET
@never_cache
def regrade_page(request: SignedInRequest, pk: int) -> HttpResponse:
    regrade = get_object_or_404(Regrade, pk=pk)
    changes = regrading.changes(regrade)
    states = [change.job.state for change in changes]
    over = sum(change.job.is_over for change in changes)
    context = {
        "section": "runs",
        "regrade": regrade,
        "rows": [_row(change) for change in changes],
        "total": len(changes),
        "over": over,
        "failed": states.count(RegradeJob.State.FAILED),
        "changed": sum(change.has_changed for change in changes),
        "other_medals": sum(change.has_other_medal for change in changes),
        # The ranks are compared a moment after the last job.
        "is_over": regrade.ended_at is not None,
        "waiting": _waiting(changes),
    }
    template = "runs/regrade.html#live" if request.htmx else "runs/regrade.html"
    return render(request, template, context)


def _row(change: regrading.Change) -> dict[str, object]:
    status, word = STATUS[RegradeJob.State(change.job.state)]
    return {
        "change": change,
        "status": status,
        "word": word,
        "was": marks.RESULTS.get(change.before.result) if change.before else None,
        "now": marks.RESULTS.get(change.after.result) if change.after else None,
    }


def _waiting(changes: list[regrading.Change]) -> str:
    """Why the first job that nobody has taken waits."""
    for change in changes:
        if change.job.state == RegradeJob.State.WANTED:
            return regrading.why_waiting(change.job)
    return ""


@require_POST
@login_required
def regrade_run(request: SignedInRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(Run.objects.select_related("group"), pk=pk)
    if refusal := reason_against(request.user, "runs.regrade", run):
        raise PermissionDenied(refusal)
    return ask_and_tell(request, [run], back_to=run)


@require_POST
@login_required
def regrade_group(request: SignedInRequest, pk: int) -> HttpResponse:
    group = get_object_or_404(RunGroup, pk=pk)
    if refusal := reason_against(request.user, "runs.regrade", group):
        raise PermissionDenied(refusal)
    return ask_and_tell(request, regrading.chosen(group, "all"), back_to=group)


def ask_and_tell(
    request: SignedInRequest, runs: list[Run], *, back_to: Run | RunGroup
) -> HttpResponse:
    try:
        asked = regrading.ask(runs, by=request.user, reason=request.POST.get("reason", ""))
    except regrading.NothingToGrade as nothing:
        messages.info(request, str(nothing))
        return redirect(back_to)
    except RequestInvalid as invalid:
        for error in invalid.errors:
            messages.error(request, error.message)
        return redirect(back_to)
    if not asked.jobs:
        messages.info(request, "They are being graded again already.")
    else:
        left = f" {len(asked.skipped)} are left alone." if asked.skipped else ""
        messages.success(request, f"Runs to grade again: {len(asked.jobs)}.{left}")
    return redirect(asked.regrade)
