"""The dashboard: what needs me now."""

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.views.decorators.http import require_GET

from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Gpu, Host, PreparedData
from mlebench_web.http import SignedInRequest
from runs.core.states import State
from runs.models import Attempt, RunGroup
from runs.views.groups import rows_of, with_counts

RECENT = 8
MOST_RUNNING = 20


@login_required
@require_GET
def home(request: SignedInRequest) -> HttpResponse:
    groups = with_counts(
        RunGroup.objects.select_related(
            "experiment", "agent", "split", "container_config", "created_by"
        )
    ).order_by("-created_at", "-pk")
    is_open = Q(n_queued__gt=0) | Q(n_starting__gt=0) | Q(n_running__gt=0) | Q(n_grading__gt=0)
    running = rows_of(groups.filter(is_open)[:MOST_RUNNING])
    ended = rows_of(groups.exclude(is_open)[:RECENT])
    now = hosts.now()
    context = {
        "section": "home",
        "running": running,
        "ended": ended,
        "failed": [
            row["group"]
            for row in (*running, *ended)
            if row["group"].n_failed and row["group"].created_by_id == request.user.pk  # type: ignore[attr-defined]
        ],
        "fleet": _fleet(now),
        "preparing": PreparedData.objects.exclude(state=PreparedData.State.READY).select_related(
            "host", "competition"
        ),
        "now": now,
        "may_add": request.user.has_perm("runs.add_group"),
    }
    template = "runs/home.html#live" if request.htmx else "runs/home.html"
    return render(request, template, context)


def _fleet(now: object) -> dict[str, object]:
    rows = list(Host.objects.all())
    gpus = Gpu.objects.filter(is_present=True, is_mig_parent=False).aggregate(
        all=Count("pk", distinct=True),
        busy=Count(
            "pk",
            distinct=True,
            filter=Q(leases__isnull=False, leases__released_at__isnull=True),
        ),
        faulty=Count("pk", distinct=True, filter=~Q(fault="")),
    )
    online = [host for host in rows if host.is_online(now)]  # type: ignore[arg-type]
    return {
        "hosts": rows,
        "online": len(online),
        "silent": [host for host in rows if host not in online],
        "slots": sum(host.slots for host in online),
        "at_work": Attempt.objects.holding().count(),
        "queued": Attempt.objects.filter(state=State.QUEUED).count(),
        "gpus": gpus,
    }


@require_GET
def favicon(request: HttpRequest) -> HttpResponse:
    """For pages that name no icon of their own, such as the Django admin's."""
    return redirect(static("icon.svg"))
