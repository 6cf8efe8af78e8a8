"""Worker hosts and their GPUs; drain and undrain."""

from collections import defaultdict
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Prefetch, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from mlebench_web.accounts.rules import reason_against
from mlebench_web.catalog.models import Checkout
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Gpu, Host
from mlebench_web.http import SignedInRequest
from runs import aside, contact, draining, resuming
from runs.charts import bar
from runs.core.states import SUPERVISED
from runs.models import Attempt, GpuLease
from runs.templatetags.fleet import disk_share
from runs.templatetags.show import count_of, duration, gib
from runs.templatetags.show import size as in_bytes

RECENT = 25


def _live_leases() -> Any:
    leases = GpuLease.objects.filter(released_at__isnull=True).select_related(
        "attempt__run__competition"
    )
    return Prefetch("leases", leases, to_attr="live")


def _gpu_row(gpu: Gpu) -> dict[str, object]:
    lease = gpu.live[0] if gpu.live else None  # type: ignore[attr-defined]
    memory = ""
    if gpu.memory_bytes:
        used = gib(gpu.memory_used_bytes) if gpu.memory_used_bytes is not None else "n/a"
        memory = f"{used} of {gib(gpu.memory_bytes)}"
    return {
        "gpu": gpu,
        "run": lease.attempt.run if lease else None,
        "memory": memory,
        "bar": bar(gpu.utilisation, 100, label=f"{gpu.utilisation} percent busy", width=90)
        if gpu.utilisation is not None
        else "",
    }


def _disk(host: Host) -> dict[str, object]:
    share = disk_share(host)
    words = f"{in_bytes(host.disk_free_bytes)} free of {in_bytes(host.disk_total_bytes)}"
    css = "f-warn" if share > 0.9 else "f-run"
    return {"bar": bar(100 * share, 100, label=words, css=css, width=90), "words": words}


@login_required
@require_GET
def fleet(request: SignedInRequest) -> HttpResponse:
    gpus = Gpu.objects.order_by("index").prefetch_related(_live_leases())
    now = hosts.now()
    lost = lost_by_host(now)
    held = Q(attempts__released_at__isnull=True, attempts__state__in=SUPERVISED)
    rows = []
    found = list(
        Host.objects.annotate(at_work=Count("attempts", filter=held)).prefetch_related(
            Prefetch("gpus", gpus)
        )
    )
    left = draining.longest_left_by_host(found)
    for host in found:
        present = [gpu for gpu in host.gpus.all() if gpu.is_present]
        rows.append(
            {
                "host": host,
                "gpus": [_gpu_row(gpu) for gpu in present],
                # Known from before: a driver that broke must not look like a host without GPUs.
                "gpus_gone": len(host.gpus.all()) - len(present),
                "slots": bar(
                    host.at_work,
                    host.slots,
                    label=f"{host.at_work} of {host.slots} slots",
                    width=90,
                ),
                "disk": _disk(host),
                # When the leases of its runs expired, the longest first.
                "lost": lost[host.pk],
                "left": left.get(host.pk),
            }
        )
    context = {
        "section": "fleet",
        "rows": rows,
        "now": now,
        "no_drain": reason_against(request.user, "fleet.drain"),
    }
    template = "fleet/fleet.html#live" if request.htmx else "fleet/fleet.html"
    return render(request, template, context)


@login_required
@require_GET
def host_page(request: SignedInRequest, name: str) -> HttpResponse:
    host = get_object_or_404(Host, name=name)
    attempts = Attempt.objects.filter(host=host).select_related(
        "run__competition", "run__group__experiment", "run__group__agent"
    )
    gpus = host.gpus.order_by("-is_present", "index").prefetch_related(_live_leases())
    now = hosts.now()
    at_work = list(attempts.filter(state__in=SUPERVISED).order_by("claimed_at"))
    looked = contact.as_of(now)
    for attempt in at_work:
        since = attempt.lease_until if attempt.has_lost_contact(looked) else None
        attempt.lost_since = since  # type: ignore[attr-defined]
    silence = host.silence(now)
    context = {
        "section": "fleet",
        "host": host,
        "now": now,
        "is_silent": silence is not None and silence >= settings.LEASE_TTL,
        "disk": _disk(host),
        "gpus": [_gpu_row(gpu) for gpu in gpus],
        # containerd names its own shims as runtimes too; nobody chooses among those.
        "runtimes": [name for name in host.engine_runtimes if not name.startswith("io.")],
        "at_work": at_work,
        "left": draining.longest_left(host),
        "recent": attempts.exclude(state__in=SUPERVISED).order_by("-ended_at")[:RECENT],
        "prepared": host.prepared.select_related("competition").order_by("competition__name"),
        "no_drain": reason_against(request.user, "fleet.drain"),
        "has_checkout": Checkout.objects.filter(is_listed=True).exists(),
    }
    template = "fleet/host.html#live" if request.htmx else "fleet/host.html"
    return render(request, template, context)


@require_POST
@login_required
def drain(request: SignedInRequest, name: str) -> HttpResponse:
    host = _host_to_change(request, name)
    move = bool(request.POST.get("move"))
    if draining.drain(host, by=request.user, move=move):
        messages.success(request, f"{host} takes no new runs. {_what_follows(host, move=move)}")
    else:
        messages.info(request, f"{host} is draining already.")
    if move and (refused := resuming.not_moved(host)):
        messages.warning(request, resuming.words_of_not_moved(refused))
    return redirect("host", name)


def _what_follows(host: Host, *, move: bool) -> str:
    """What becomes of the runs of a host that drains, and when it is empty at the latest."""
    left = draining.longest_left(host)
    if left is None:
        return "No agent is at work on it."
    rest = "What can go on elsewhere is saved and moved; the rest" if move else "What it has"
    return f"{rest} is finished after at most {duration(left)} of agent time."


@require_POST
@login_required
def undrain(request: SignedInRequest, name: str) -> HttpResponse:
    host = _host_to_change(request, name)
    if draining.undrain(host, by=request.user):
        messages.success(request, f"{host} takes new runs again.")
    else:
        messages.info(request, f"{host} was not draining.")
    return redirect("host", name)


@require_POST
@login_required
def use_again(request: SignedInRequest, name: str) -> HttpResponse:
    host = _host_to_change(request, name)
    if aside.use_again(host, by=request.user):
        messages.success(request, f"{host} takes runs again. What failed before is forgiven.")
    else:
        messages.info(request, f"{host} was in use.")
    return redirect("host", name)


@require_POST
@login_required
def lost(request: SignedInRequest, name: str) -> HttpResponse:
    host = _host_to_change(request, name)
    try:
        sealed = aside.declare_lost(host, by=request.user)
    except aside.HostAnswers as refused:
        messages.error(request, str(refused))
    else:
        messages.success(request, f"{host} is gone. {count_of(len(sealed), 'run')} ended there.")
    return redirect("host", name)


def lost_by_host(now: datetime) -> dict[int | None, list[datetime]]:
    """When leases expired of runs that have lost contact, the longest first. Two queries."""
    found: dict[int | None, list[datetime]] = defaultdict(list)
    rows = Attempt.objects.filter(
        state__in=SUPERVISED, lease_until__lt=contact.as_of(now)
    ).order_by("lease_until")
    for host, since in rows.values_list("host", "lease_until"):
        if since is not None:
            found[host].append(since)
    return found


def _host_to_change(request: SignedInRequest, name: str) -> Host:
    if refusal := reason_against(request.user, "fleet.drain"):
        raise PermissionDenied(refusal)
    return get_object_or_404(Host, name=name)
