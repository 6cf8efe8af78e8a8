"""Results of elsewhere come in, and run groups go out as a tar."""

from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from mlebench_web.accounts.rules import reason_against
from mlebench_web.http import SignedInRequest
from runs import exporting, imports
from runs.importing import ImportRefused
from runs.imports import Upload
from runs.models import Experiment, Import, RunGroup
from runs.views.streaming import streamed

SHOWN = 30


class ImportForm(forms.Form):
    """The files themselves are read from the request: one field may bring several."""

    folder = forms.CharField(
        required=False,
        max_length=1000,
        label="or a folder or archive of the server",
        help_text="Its whole path, as <code>/srv/mle-bench/runs</code>. A host service reads it.",
        widget=forms.TextInput({"spellcheck": "false"}),
    )
    experiment = forms.CharField(
        required=False,
        max_length=200,
        help_text="Of all that comes in. Left out: what <code>run_group_experiments.csv</code> or "
        "<code>harness.json</code> says, else the name of each run group.",
        widget=forms.TextInput({"list": "experiments", "spellcheck": "false"}),
    )


@login_required
@require_http_methods(["GET", "POST"])
def import_list(request: SignedInRequest) -> HttpResponse:
    """What was imported, and the form. `what` of the press: a dry run, or all of it."""
    refusal = reason_against(request.user, "runs.import")
    form = ImportForm(request.POST or None)
    if request.method == "POST":
        if refusal:
            raise PermissionDenied(refusal)
        if form.is_valid():
            try:
                return redirect(ask(request, form.cleaned_data))
            except ImportRefused as error:
                form.add_error(None, str(error))
    context = {
        "section": "runs",
        "form": form,
        "refusal": refusal,
        "may_name_folder": request.user.has_perm("runs.import_folder"),
        "rows": Import.objects.select_related("asked_by")[:SHOWN],
        "experiments": Experiment.objects.values_list("name", flat=True),
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "runs/imports.html", context, status=status)


def ask(request: SignedInRequest, asked: dict[str, Any]) -> Import:
    """Raises ImportRefused, and PermissionDenied for a folder of the server."""
    is_dry_run = request.POST.get("what") != "import"
    if path := asked["folder"].strip():
        if refusal := reason_against(request.user, "runs.import_folder"):
            raise PermissionDenied(refusal)
        return imports.ask_folder(
            path, experiment=asked["experiment"], is_dry_run=is_dry_run, by=request.user
        )
    files = request.FILES.getlist("file")
    uploads = [Upload(each.name or "", each.size or 0, each) for each in files]
    return imports.ask_upload(
        uploads, experiment=asked["experiment"], is_dry_run=is_dry_run, by=request.user
    )


@login_required
@require_GET
@never_cache
def import_page(request: SignedInRequest, pk: int) -> HttpResponse:
    """One import: how far it is, what it made or would make, what it left out and why."""
    row = get_object_or_404(Import.objects.select_related("asked_by"), pk=pk)
    answer = row.answer
    context = {
        "section": "runs",
        "row": row,
        "answer": answer,
        "groups": answer.get("groups", []),
        "skipped": answer.get("skipped", []),
        "warnings": answer.get("warnings", []),
    }
    template = "runs/import.html#live" if request.htmx else "runs/import.html"
    return render(request, template, context)


@login_required
@require_GET
def export(request: SignedInRequest, pk: int) -> HttpResponseBase:
    """A run group in mle-bench's layout."""
    group = get_object_or_404(
        RunGroup.objects.select_related("experiment", "agent", "split", "container_config"), pk=pk
    )
    if refusal := reason_against(request.user, "runs.download"):
        raise PermissionDenied(refusal)
    prepared = exporting.prepare(group)
    return streamed(
        request,
        exporting.tar_of([prepared]),
        content_type="application/x-tar",
        filename=f"{prepared.name}.tar",
    )
