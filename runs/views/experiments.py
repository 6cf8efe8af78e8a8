"""One experiment: a row of the leaderboard, and what stands behind it."""

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from mlebench_web.http import SignedInRequest
from runs.models import Experiment
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
    return render(
        request,
        "runs/experiment.html",
        {"section": "leaderboard", "experiment": experiment, "rows": rows_of(groups)},
    )
