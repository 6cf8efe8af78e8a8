"""Failed runs of all groups: find them, queue many again after a dry run, and take that back."""

from datetime import datetime, time, timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.views.decorators.http import require_GET, require_POST

from mlebench_web.accounts.rules import reason_against
from mlebench_web.catalog.models import Agent
from mlebench_web.fleet.models import Host
from mlebench_web.http import SignedInRequest
from runs import mass_rerun, submit
from runs.core.failures import Cause
from runs.mass_rerun import Filters
from runs.models import Requeue
from runs.request import RequestInvalid
from runs.templatetags.show import count_of
from runs.views.groups import numbers, overrides_in

A_PAGE = 100
LISTED_IN_PLAN = 50


def _demand(request: SignedInRequest) -> None:
    if refusal := reason_against(request.user, "runs.rerun_all"):
        raise PermissionDenied(refusal)


def filters_in(asked: QueryDict) -> Filters:
    """What does not name anything is left out: an old link shows more, never an error."""
    return Filters(
        causes=tuple(each for each in asked.getlist("cause") if each in set(Cause)),
        host=asked.get("host", "")[:100].replace("\0", ""),
        agent=asked.get("agent", "")[:200].replace("\0", ""),
        since=_day(asked.get("since", "")),
        until=_day(asked.get("until", ""), days=1),
    )


def _day(text: str, *, days: int = 0) -> datetime | None:
    """Midnight of a day written as 2026-11-20, `days` later; None where there is none."""
    try:
        day = parse_date(text)
    except ValueError:
        return None
    if day is None:
        return None
    try:
        return timezone.make_aware(datetime.combine(day, time()) + timedelta(days=days))
    except OverflowError:
        return None


@login_required
@require_GET
def failed_runs(request: SignedInRequest) -> HttpResponse:
    _demand(request)
    filters = filters_in(request.GET)
    page = Paginator(mass_rerun.matching(filters), A_PAGE).get_page(request.GET.get("page"))
    every = mass_rerun.by_cause(Filters())
    context = {
        "section": "runs",
        "causes": mass_rerun.by_cause(filters),
        "page": page,
        "total": page.paginator.count,
        "filters": filters,
        "is_filtered": filters != Filters(),
        "known_causes": sorted(every, key=lambda each: each.sentence),
        "hosts": Host.objects.values_list("name", flat=True),
        "agents": Agent.objects.values_list("name", flat=True),
        "recent": mass_rerun.recent(),
    }
    return render(request, "runs/ops_rerun.html", context)


@require_POST
@login_required
def plan(request: SignedInRequest) -> HttpResponse:
    """The dry run: how many, how long, who needs a reason. Changes nothing."""
    _demand(request)
    ids = _chosen(request.POST)
    if not ids:
        messages.info(request, "Tick the runs to re-run.")
        return redirect("failed_runs")
    try:
        made = mass_rerun.plan(ids)
    except mass_rerun.TooMany as refused:
        messages.error(request, str(refused))
        return redirect("failed_runs")
    context: dict[str, Any] = {
        "section": "runs",
        "plan": made,
        "no_resume": made.no_resume,
        "resume_note": _resume_note(made),
        "ids": ",".join(str(run.pk) for run in made.runs),
        "listed": made.runs[:LISTED_IN_PLAN],
        "more": max(0, len(made.runs) - LISTED_IN_PLAN),
        "host_names": list(Host.objects.values_list("name", flat=True)),
    }
    return render(request, "runs/ops_plan.html", context)


def _resume_note(made: mass_rerun.Plan) -> str:
    """How many of them a resume takes up, and what becomes of the others."""
    note = f"{made.resumable} of {count_of(len(made.runs), 'run')} can be resumed now"
    if made.used_up:
        note += f", {made.used_up} more within a larger time limit"
    return f"{note}; what cannot be resumed is restarted from zero."


def _chosen(asked: QueryDict) -> set[int]:
    """The ticked ones, or all that match the filters where that was chosen."""
    if asked.get("all") == "1":
        # From the filters, not from the page: a list of thousands is never sent.
        return set(mass_rerun.matching(filters_in(asked)).order_by().values_list("pk", flat=True))
    return numbers(asked.getlist("run"))


@require_POST
@login_required
def start(request: SignedInRequest) -> HttpResponse:
    _demand(request)
    try:
        made = mass_rerun.plan(numbers(request.POST.get("ids", "").split(",")))
        overrides = overrides_in(request, list(made.runs))
        requeue = mass_rerun.rerun(
            made.runs,
            by=request.user,
            reason=request.POST.get("reason", ""),
            mode=request.POST.get("mode") or "restart",
            overrides=overrides,
        )
    except (mass_rerun.TooMany, submit.NotRerunnable) as refused:
        messages.error(request, str(refused))
    except RequestInvalid as invalid:
        for error in invalid.errors:
            messages.error(request, f"{error.field.removeprefix('overrides.')}: {error.message}")
    else:
        if requeue:
            messages.success(
                request,
                f"{count_of(len(requeue.tries_before), 'run')} queued again{_resumed(requeue)}. "
                "While they wait it can be undone, below.",
            )
        else:
            messages.info(request, "They are queued or at work already.")
    return redirect("failed_runs")


def _resumed(requeue: Requeue) -> str:
    count = requeue.attempts.filter(resumed_from__isnull=False).count()
    return f", {count} of them from a checkpoint" if count else ""


@require_POST
@login_required
def undo(request: SignedInRequest, pk: int) -> HttpResponse:
    _demand(request)
    undone = mass_rerun.undo(get_object_or_404(Requeue, pk=pk), by=request.user)
    left = f" {undone.left} had started or were cancelled, and stay." if undone.left else ""
    if undone.withdrawn:
        messages.success(
            request, f"{count_of(undone.withdrawn, 'run')} taken back, and failed as before.{left}"
        )
    else:
        messages.info(request, f"Nothing was left to take back.{left}")
    return redirect("failed_runs")
