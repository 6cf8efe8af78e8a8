"""Run groups: the list, a new one, one of them, cancel, re-run."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import condition, require_GET, require_http_methods, require_POST
from django.views.decorators.vary import vary_on_headers

from mlebench_web.accounts.rules import reason_against
from mlebench_web.catalog.models import Agent, Competition, ContainerConfig, Split
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from mlebench_web.http import SignedInRequest
from runs import overriding, queue, submit
from runs.charts import Part, stacked_bar
from runs.core.group_state import AT_WORK, group_state
from runs.core.overrides import Overrides
from runs.core.states import Result, RunState, State
from runs.forms import NewRunGroupForm
from runs.models import Attempt, Experiment, Move, Regrade, Run, RunGroup
from runs.request import FieldError, RequestInvalid
from runs.templatetags.show import count_of
from runs.views import marks
from runs.views.picture import ORDERS, hardware_words, picture_of

A_PAGE = 25
REGRADES_SHOWN = 5
# A poll is answered with 304 until something moved, or for this long: times on it go stale.
FRESH_FOR_S = 15


# ---------------------------------------------------------------------------- the list


def with_counts(groups: "QuerySet[RunGroup]") -> "QuerySet[RunGroup]":
    """How many runs are in each state and have each result; one query for the whole page."""
    counts: dict[str, Any] = {"n_runs": Count("runs")}
    for state in RunState:
        counts[f"n_{state}"] = Count("runs", filter=Q(runs__state=state))
    for result in Result:
        counts[f"n_{result}"] = Count(
            "runs", filter=Q(runs__result=result, runs__state=RunState.FINISHED)
        )
    return groups.annotate(**counts)


def state_of(group: Any) -> RunState:
    """The state of a group from `with_counts`."""
    return group_state({state: getattr(group, f"n_{state}") for state in RunState})


def bar_of(group: Any) -> object:
    parts = [
        Part(mark.fill, getattr(group, f"n_{result}"), mark.word)
        for result, mark in marks.RESULTS.items()
    ]
    parts += [
        Part("f-bad", group.n_failed, "failed"),
        Part("f-k", group.n_cancelled, "cancelled"),
        Part("f-run", sum(getattr(group, f"n_{state}") for state in AT_WORK), "running"),
        Part("f-q", group.n_queued, "queued"),
    ]
    words = ", ".join(f"{part.count} {part.label}" for part in parts if part.count)
    return stacked_bar(parts, label=words or "no runs")


def rows_of(groups: Any) -> list[dict[str, object]]:
    rows = []
    for group in groups:
        state = state_of(group)
        over = group.n_finished + group.n_failed + group.n_cancelled
        rows.append(
            {
                "group": group,
                "status": marks.GROUP_STATUS[state],
                "bar": bar_of(group),
                "over": over,
                "medals": group.n_gold + group.n_silver + group.n_bronze,
                "finished": group.n_finished,
            }
        )
    return rows


STATES: dict[str, tuple[str, Q]] = {
    "queued": ("Queued", Q(n_queued=F("n_runs"))),
    "running": (
        "Running",
        (Q(n_queued__gt=0) | Q(n_starting__gt=0) | Q(n_running__gt=0) | Q(n_grading__gt=0))
        & ~Q(n_queued=F("n_runs")),
    ),
    "failed": ("Some failed", Q(n_failed__gt=0)),
    "finished": ("Finished", Q(n_finished=F("n_runs"))),
    "cancelled": ("Some cancelled", Q(n_cancelled__gt=0)),
}


@login_required
@require_GET
def group_list(request: SignedInRequest) -> HttpResponse:
    asked = request.GET
    groups = with_counts(
        RunGroup.objects.select_related(
            "experiment", "agent", "split", "container_config", "created_by"
        )
    ).order_by("-created_at", "-pk")
    if asked.get("mine"):
        groups = groups.filter(created_by=request.user)
    if agent := asked.get("agent"):
        groups = groups.filter(agent__name=agent)
    if split := asked.get("split"):
        groups = groups.filter(split__name=split)
    if text := asked.get("q", "").strip():
        groups = groups.filter(
            Q(experiment__name__icontains=text)
            | Q(agent__name__icontains=text)
            | Q(created_by__username__icontains=text)
        )
    if asked.get("state") in STATES:
        groups = groups.filter(STATES[asked["state"]][1])
    page = Paginator(groups, A_PAGE).get_page(asked.get("page"))
    rows = rows_of(page)
    context = {
        "section": "runs",
        "page": page,
        "rows": rows,
        "is_live": any(row["status"][0] == "run" for row in rows),  # type: ignore[index]
        "states": [(name, title) for name, (title, _) in STATES.items()],
        "agents": Agent.objects.filter(groups__isnull=False).distinct(),
        "splits": Split.objects.filter(rungroup__isnull=False).distinct(),
        "is_filtered": any(asked.get(name) for name in ("mine", "agent", "split", "q", "state")),
        "may_add": request.user.has_perm("runs.add_group"),
    }
    template = "runs/groups.html#rows" if request.htmx else "runs/groups.html"
    return render(request, template, context)


# ---------------------------------------------------------------------------- a new one


@login_required
@require_http_methods(["GET", "POST"])
def new_group(request: SignedInRequest) -> HttpResponse:
    """GET prefills from the query (`?split=demo&agent=baseline`, `?clone=12`); POST starts."""
    refusal = reason_against(request.user, "runs.add_group")
    if request.method == "GET":
        return _form_page(request, _prefilled(request), refusal=refusal)
    if refusal:
        raise PermissionDenied(refusal)
    form = NewRunGroupForm(request.POST, by=request.user)
    if form.is_valid() and "check" not in request.POST:
        try:
            group = submit.create_run_group(form.asked(), by=request.user)
        except submit.RequestInvalid as invalid:
            form.add_refusals(invalid.errors)
        else:
            messages.success(request, f"{count_of(group.runs.count(), 'run')} queued.")
            return redirect(group)
    return _form_page(request, form, is_answer="check" not in request.POST)


@login_required
@require_POST
def preflight_panel(request: SignedInRequest) -> HttpResponse:
    """The panel alone, when a choice has changed. Changes nothing."""
    form = NewRunGroupForm(request.POST, by=request.user)
    form.is_valid()
    context = {"form": form, "refusal": reason_against(request.user, "runs.add_group")}
    return render(request, "runs/new.html#preflight", context)


def _prefilled(request: SignedInRequest) -> NewRunGroupForm:
    """A form that was checked as if it had been sent, but shows no errors at its fields yet."""
    initial = _initial(request.GET)
    form = NewRunGroupForm(by=request.user)
    data = QueryDict(mutable=True)
    for name in form.fields:
        value = initial.get(name, form.get_initial_for_field(form.fields[name], name))
        if isinstance(value, list):
            data.setlist(name, value)
        elif value is not None and value is not False:
            data[name] = f"{value:g}" if isinstance(value, float) else str(value)
    filled = NewRunGroupForm(data, by=request.user)
    filled.is_valid()
    return filled


def _initial(asked: QueryDict) -> dict[str, Any]:
    number = asked.get("clone", "")
    if number.isdecimal() and (group := RunGroup.objects.filter(pk=int(number)).first()):
        initial = _like(group)
    else:
        has_baseline = Agent.objects.filter(name="baseline", is_listed=True).exists()
        initial = {"split": "demo", "agent": "baseline" if has_baseline else None}
    for name in ("agent", "split", "container_config", "seeds", "experiment", "priority"):
        if name in asked:
            initial[name] = asked[name]
    if competitions := asked.getlist("competition"):
        initial |= {"competitions": competitions, "split": ""}
    return initial


def _like(group: RunGroup) -> dict[str, Any]:
    initial: dict[str, Any] = {
        "agent": group.agent.name if group.agent else None,
        "container_config": group.container_config.name if group.container_config else "",
        "seeds": group.seeds,
        "priority": group.priority,
        "experiment": group.experiment.name,
        "split": group.split.name if group.split else "",
    }
    for name, span in (("time_limit", group.time_limit), ("step_timeout", group.step_timeout)):
        if span is not None:
            initial[f"{name}_hours"] = round(span.total_seconds() / 3600, 4)
    if not group.split:
        names = Competition.objects.filter(runs__group=group).distinct()
        initial["competitions"] = list(names.values_list("name", flat=True))
    return initial


def _form_page(
    request: SignedInRequest, form: NewRunGroupForm, *, refusal: str = "", is_answer: bool = False
) -> HttpResponse:
    clone = request.GET.get("clone", "")
    context = {
        "section": "runs",
        "form": form,
        "refusal": refusal,
        # Errors stand at the fields once somebody has pressed Start.
        "is_answer": is_answer,
        "clone": RunGroup.objects.filter(pk=int(clone)).first() if clone.isdecimal() else None,
        "agents": Agent.objects.filter(is_listed=True),
        "splits": Split.objects.annotate(
            count=Count("competitions"), bytes=Sum("competitions__dataset_size_bytes")
        ).order_by("position", "name"),
        "configs": ContainerConfig.objects.all(),
        "competitions": Competition.objects.order_by("-is_demo", "name"),
        "experiments": Experiment.objects.values_list("name", flat=True),
        "picked": set(form["competitions"].value() or ()),
    }
    status = 422 if is_answer else 200
    return render(request, "runs/new.html", context, status=status)


# ---------------------------------------------------------------------------- one of them


def _tag(pk: int, user_pk: int | None, order: str) -> str:
    """Changes when an attempt of the group moves, when time passes, and with who looks."""
    newest = Move.objects.filter(attempt__run__group=pk).aggregate(pk=Max("pk"))["pk"]
    bucket = int(timezone.now().timestamp() / FRESH_FOR_S)
    parts = repr((pk, newest, user_pk, order, bucket))
    return f'"{hashlib.sha256(parts.encode()).hexdigest()[:20]}"'


def group_tag(request: HttpRequest, pk: int) -> str | None:
    if not request.headers.get("HX-Request"):
        return None
    return _tag(pk, request.user.pk, request.GET.get("order", "split"))


@login_required
@require_GET
@never_cache
@vary_on_headers("HX-Request")
@condition(etag_func=group_tag)
def group_page(request: SignedInRequest, pk: int) -> HttpResponse:
    group = get_object_or_404(
        RunGroup.objects.select_related(
            "experiment", "agent", "split", "container_config", "image", "created_by", "team"
        ),
        pk=pk,
    )
    order = request.GET.get("order", "split")
    order = order if order in ORDERS else "split"
    # Before the rows are read: what moves meanwhile is seen by the next poll.
    tag = _tag(pk, request.user.pk, request.GET.get("order", "split"))
    now = hosts.now()
    picture = picture_of(group, order=order, now=now)
    waiting = None
    if picture.state == RunState.QUEUED or (picture.figures.at_work == 0 and not picture.is_over):
        waiting = _why_waiting(group)
    context = {
        "section": "runs",
        "group": group,
        "picture": picture,
        "figures": picture.figures,
        "order": order,
        "orders": ORDERS.items(),
        "waiting": waiting,
        "now": now,
        "poll_headers": json.dumps({"If-None-Match": tag}),
        "asked_for": hardware_words(_asked(group)),
        "no_cancel": reason_against(request.user, "runs.cancel", group),
        "no_rerun": group.why_no_rerun or reason_against(request.user, "runs.rerun", group),
        "no_export": reason_against(request.user, "runs.download"),
        "no_regrade": reason_against(request.user, "runs.regrade", group),
        "regrades": Regrade.objects.filter(jobs__run__group=group).distinct()[:REGRADES_SHOWN],
        "host_names": list(Host.objects.values_list("name", flat=True)),
        # Boxes in the grid in place of links, to choose runs by hand; that page does not poll.
        "is_picking": "pick" in request.GET,
        "may_add": request.user.has_perm("runs.add_group"),
    }
    template = "runs/group.html#live" if request.htmx else "runs/group.html"
    return render(request, template, context)


def _asked(group: RunGroup) -> dict[str, Any]:
    """What the config asks for, in the shape of Attempt.hardware."""
    settings = group.container_settings
    asked: dict[str, Any] = {}
    if isinstance(cpus := settings.get("nano_cpus"), int | float):
        asked["cpus"] = cpus / 1e9
    if isinstance(gpus := settings.get("gpus"), int | float) and gpus:
        asked["gpus"] = [{"name": "GPU"}] * int(gpus) if gpus > 0 else [{"name": "all GPUs"}]
    return asked


def _why_waiting(group: RunGroup) -> str | None:
    attempt = (
        Attempt.objects.filter(run__group=group, state=State.QUEUED).order_by("queued_at").first()
    )
    return queue.why_waiting(attempt) if attempt else None


@require_POST
@login_required
def cancel(request: SignedInRequest, pk: int) -> HttpResponse:
    group = get_object_or_404(RunGroup, pk=pk)
    if refusal := reason_against(request.user, "runs.cancel", group):
        raise PermissionDenied(refusal)
    queued_only = request.POST.get("what") == "queued"
    count = submit.cancel_group(group, by=request.user, queued_only=queued_only)
    if count:
        messages.success(request, f"{count_of(count, 'run')} cancelled, or stopping now.")
    else:
        messages.info(request, "Nothing was left to cancel.")
    return redirect(group)


@require_POST
@login_required
def rerun(request: SignedInRequest, pk: int) -> HttpResponse:
    """Failed runs again: those of the causes that are ticked, or those that are ticked in the
    grid."""
    group = get_object_or_404(RunGroup, pk=pk)
    if refusal := reason_against(request.user, "runs.rerun", group):
        raise PermissionDenied(refusal)
    wanted = set(request.POST.getlist("cause"))
    picked = numbers(request.POST.getlist("run"))
    runs = [
        run
        for each in picture_of(group, now=hosts.now()).causes
        if each.cause in wanted
        for run in each.runs
    ]
    runs += group.runs.filter(pk__in=picked).select_related("competition", "group")
    return rerun_and_tell(request, runs, back_to=group)


def numbers(texts: Iterable[str]) -> set[int]:
    """Ids of a form; what no database could hold as one is left out."""
    return {int(each) for each in texts if each.isdecimal() and len(each) < 19}


def overrides_in(request: SignedInRequest, runs: list[Run]) -> Overrides:
    """What the dialog asks for in place of the groups' settings. Raises RequestInvalid."""
    asked: dict[str, object] = {
        name: request.POST.get(name, "").strip() or None for name in ("host", "gpu")
    }
    for field, name, unit in (
        ("time_limit_hours", "time_limit_s", 3600),
        ("step_timeout_hours", "step_timeout_s", 3600),
        ("memory_gib", "memory_bytes", 2**30),
    ):
        if text := request.POST.get(field, "").strip():
            try:
                asked[name] = round(float(text) * unit)
            except (ValueError, OverflowError) as error:
                raise RequestInvalid(
                    [FieldError(f"overrides.{name}", f"{text!r} is no number.")]
                ) from error
    return overriding.look_up(asked, runs)


def rerun_and_tell(
    request: SignedInRequest, runs: list[Run], *, back_to: RunGroup | Run
) -> HttpResponse:
    if not runs:
        messages.info(request, "Nothing was chosen that can be re-run.")
        return redirect(back_to)
    try:
        attempts = submit.rerun(
            runs,
            by=request.user,
            reason=request.POST.get("reason", ""),
            mode=request.POST.get("mode") or "restart",
            overrides=overrides_in(request, runs),
        )
    except submit.NotRerunnable as refused:
        messages.error(request, str(refused))
        return redirect(back_to)
    except RequestInvalid as invalid:
        for error in invalid.errors:
            messages.error(request, f"{error.field.removeprefix('overrides.')}: {error.message}")
        return redirect(back_to)
    if attempts:
        messages.success(request, f"{count_of(len(attempts), 'run')} queued again.")
    else:
        messages.info(request, "They are queued or at work already.")
    return redirect(back_to)
