"""One experiment: a row of the leaderboard, its run groups, and the time per dataset."""

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.safestring import SafeString
from django.views.decorators.http import require_GET

from mlebench_web.http import SignedInRequest
from runs.charts import bar
from runs.leaderboard import DatasetTime, time_per_dataset
from runs.models import Experiment
from runs.templatetags.show import duration
from runs.views.groups import rows_of, with_counts


@login_required
@require_GET
def experiment_page(request: SignedInRequest, pk: int) -> HttpResponse:
    experiment = get_object_or_404(Experiment.objects.select_related("agent", "created_by"), pk=pk)
    groups = with_counts(
        experiment.groups.select_related(
            "experiment", "agent", "split", "container_config", "created_by"
        )
    ).order_by("-created_at", "-pk")
    times = time_per_dataset(experiment)
    if request.GET.get("sort") == "time":
        times.sort(key=lambda each: -(each.median_seconds or -1))
    most = max((each.max_seconds or 0 for each in times), default=0)
    context = {
        "section": "leaderboard",
        "experiment": experiment,
        "rows": rows_of(groups),
        "times": [(each, _bar(each, most)) for each in times],
        "seeds": max((len(each.seeds) for each in times), default=0),
        "is_measured": any(each.median_seconds is not None for each in times),
        "most": most,
        "sort": request.GET.get("sort", ""),
        "may_add": request.user.has_perm("runs.add_group"),
    }
    return render(request, "runs/experiment.html", context)


def _bar(each: DatasetTime, most: float) -> SafeString:
    if each.median_seconds is None:
        return SafeString("")
    words = f"median {duration(each.median_seconds)}"
    return bar(each.median_seconds, most, label=words, css="f-bar", width=220)
