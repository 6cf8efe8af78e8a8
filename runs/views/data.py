"""Data of a competition on a host: asked for, gone on with."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required, permission_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from mlebench_web.catalog.models import Competition
from mlebench_web.fleet.models import Host
from mlebench_web.http import SignedInRequest
from runs import data_jobs


@require_POST
@login_required
@permission_required("fleet.prepare", raise_exception=True)
def prepare(request: SignedInRequest, name: str) -> HttpResponse:
    competition = get_object_or_404(Competition, name=name)
    host = Host.objects.filter(name=request.POST.get("host", "")).first()
    if host is None:
        messages.error(request, "Choose a host.")
        return redirect("competition", name=competition.name)
    try:
        data_jobs.ask(
            competition,
            host,
            by=request.user,
            ignore_checksums="ignore_checksums" in request.POST,
        )
    except data_jobs.NotPreparable as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{host} prepares {competition.name}.")
    return redirect("competition", name=competition.name)
