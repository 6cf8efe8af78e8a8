"""Competitions: what they are, where their data is, and how our runs did."""

from statistics import median

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Prefetch, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from mlebench_web.accounts.rules import reason_against
from mlebench_web.catalog import data, official_data
from mlebench_web.catalog.models import Competition, Split
from mlebench_web.fleet.models import Host, PreparedData
from mlebench_web.http import SignedInRequest
from runs.charts import Thresholds, number_line
from runs.core.states import Result, RunState
from runs.models import Run
from runs.views import marks
from runs.views.picture import hardware_words

RESULTS_SHOWN = 50
DESCRIPTION_BYTES = 200_000
MEDALS = (Result.GOLD, Result.SILVER, Result.BRONZE)
SORTS = {
    "name": "name",
    "size": "dataset_size_bytes",
    "runs": "n_runs",
    "category": "category",
}


# As each worker wrote down of what it ran.
UNSANDBOXED = Q(runs__group__runtime="process") | Q(runs__counted__hardware__sandboxed=False)


@login_required
@require_GET
def competition_list(request: SignedInRequest) -> HttpResponse:
    finished = Q(runs__state=RunState.FINISHED)
    competitions = Competition.objects.annotate(
        n_runs=Count("runs", filter=finished, distinct=True),
        n_medals=Count("runs", filter=finished & Q(runs__result__in=MEDALS), distinct=True),
        n_unsandboxed=Count("runs", filter=finished & UNSANDBOXED, distinct=True),
    ).prefetch_related(
        "splits",
        Prefetch("prepared", PreparedData.objects.select_related("host")),
    )
    if split := request.GET.get("split"):
        competitions = competitions.filter(splits__name=split)
    if text := request.GET.get("q", "").strip():
        competitions = competitions.filter(Q(name__icontains=text) | Q(category__icontains=text))
    asked = request.GET.get("sort", "")
    key = SORTS.get(asked.lstrip("-"))
    order = [f"{'-' if asked.startswith('-') else ''}{key}"] if key else ["-is_demo", "name"]
    context = {
        "section": "competitions",
        "competitions": competitions.order_by(*order, "name"),
        "splits": Split.objects.all(),
        "sort": asked,
    }
    return render(request, "catalog/competitions.html", context)


@login_required
@require_GET
def competition_page(request: SignedInRequest, name: str) -> HttpResponse:
    competition = get_object_or_404(Competition.objects.prefetch_related("splits"), name=name)
    runs = (
        Run.objects.filter(competition=competition, counted__isnull=False)
        .select_related("group__experiment", "group__agent", "counted__host")
        .order_by("-counted__ended_at", "-pk")
    )
    results = [
        {
            "run": run,
            "mark": marks.mark_of(run, outcome=run.counted.outcome if run.counted else ""),
            "hardware": hardware_words(run.counted.hardware) if run.counted else "",
        }
        for run in runs[:RESULTS_SHOWN]
    ]
    seconds = [value for value in runs.values_list("counted__active_seconds", flat=True) if value]
    scores = [value for value in runs.values_list("score", flat=True) if value is not None]
    best = None
    if scores and competition.is_lower_better is not None:
        best = min(scores) if competition.is_lower_better else max(scores)
    context = {
        "section": "competitions",
        "competition": competition,
        "description": _description(competition),
        "line": number_line(
            Thresholds(
                competition.gold_threshold,
                competition.silver_threshold,
                competition.bronze_threshold,
                competition.median_threshold,
                competition.is_lower_better,
            ),
            best,
        ),
        "best": best,
        "results": results,
        "result_count": len(scores),
        "median_seconds": median(seconds) if seconds else None,
        "prepared": competition.prepared.select_related("host").order_by("host__name"),
        "hosts_without": Host.objects.exclude(
            prepared__in=competition.prepared.exclude(state=PreparedData.State.FAILED)
        ),
        "cannot_grade": _cannot_grade(competition),
        "disk_needed": official_data.disk_needed(competition) if competition.checkout_id else None,
        "no_prepare": reason_against(request.user, "fleet.prepare"),
        "may_add": request.user.has_perm("runs.add_group"),
    }
    return render(request, "catalog/competition.html", context)


def _cannot_grade(competition: Competition) -> str:
    """What is missing for its grading on every host, and how to get it; "" when one can."""
    if competition.is_demo:
        return ""
    if not competition.folder:
        return (
            "Only facts of it are known here. Its grader comes with a checkout of mle-bench: clone "
            "https://github.com/openai/mle-bench and set MLEBENCH_DIR to the folder."
        )
    hosts = list(Host.objects.all()) if official_data.is_official(competition) else []
    if not hosts or any(not host.mlebench_error for host in hosts):
        return ""
    return f"{hosts[0].name}: {hosts[0].mlebench_error}"


def _description(competition: Competition) -> str:
    """The text of description.md; empty where only facts are known."""
    folder = data.folder_of(competition)
    if folder is None:
        return ""
    try:
        with (folder / "description.md").open(encoding="utf-8", errors="replace") as file:
            return file.read(DESCRIPTION_BYTES)
    except FileNotFoundError:
        return ""
