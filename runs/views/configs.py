"""Container configs: mle-bench's JSON, edited or uploaded in the browser, every version kept."""

import json
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from mlebench_web.accounts.rules import reason_against
from mlebench_web.catalog import documents
from mlebench_web.catalog.documents import Unreadable
from mlebench_web.catalog.models import ContainerConfig
from mlebench_web.http import SignedInRequest
from runs import catalog_verbs, preflight, sandbox
from runs.core import placement
from runs.core.container_config import ConfigRefused, admin_keys
from runs.preflight import Fleet
from runs.request import RequestInvalid


class ConfigForm(forms.Form):
    name = forms.CharField(max_length=catalog_verbs.LONGEST_NAME)
    description = forms.CharField(max_length=300, required=False)
    settings = forms.CharField(
        required=False,
        strip=False,
        max_length=documents.LARGEST_BYTES,
        widget=forms.Textarea({"rows": 12, "spellcheck": "false", "class": "mono"}),
        help_text="mle-bench's JSON: <code>mem_limit</code>, <code>shm_size</code>, "
        "<code>nano_cpus</code>, <code>gpus</code>, <code>runtime</code>.",
    )
    file = forms.FileField(required=False, label="or a .json file in place of the text")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        upload = cleaned.get("file")
        field = "file" if upload else "settings"
        try:
            text = _text_of(upload) if upload else cleaned.get("settings", "")
            if not text.strip():
                raise Unreadable("write the settings, or choose a file")
            cleaned["parsed"] = documents.json_mapping(text)
        except Unreadable as error:
            place = f"Line {error.line}: " if error.line else ""
            self.add_error(field, f"{place}{error.message}.")
        return cleaned

    def add_refusals(self, invalid: RequestInvalid) -> None:
        for error in invalid.errors:
            self.add_error(error.field if error.field in self.fields else None, error.message)


def _text_of(upload: Any) -> str:
    if upload.size > documents.LARGEST_BYTES:
        raise Unreadable(f"is larger than {documents.LARGEST_BYTES // 1024} KB")
    try:
        return str(upload.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable("is no UTF-8 text") from error


def shown(settings: dict[str, Any]) -> str:
    """As people write it: 4e9 that came as a float is a whole number."""
    plain = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in settings.items()
    }
    return json.dumps(plain, indent=2, ensure_ascii=False)


def _why_unfit(config: ContainerConfig, fleet: Fleet) -> str:
    try:
        need = preflight.need_of(config)
    except ConfigRefused as refused:
        return str(refused)
    reasons = {offer.host: placement.never_fits(need, offer) for offer in fleet.offers}
    if not all(reasons.values()):
        return ""
    return "; ".join(f"{host}: {why}" for host, why in reasons.items())


@login_required
@require_GET
def config_list(request: SignedInRequest) -> HttpResponse:
    fleet = preflight.fleet_now()
    rows = [
        {
            "config": config,
            "text": shown(config.settings),
            "unfit": _why_unfit(config, fleet),
            "admin_keys": admin_keys(config.settings),
            "why_unsandboxed": sandbox.why_not(config.runtime, config.settings, None),
        }
        for config in ContainerConfig.objects.filter(is_listed=True).select_related("checkout")
    ]
    context = {
        "section": "agents",
        "rows": rows,
        "no_edit": reason_against(request.user, "catalog.edit_config"),
    }
    return render(request, "catalog/configs.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def new_config(request: SignedInRequest) -> HttpResponse:
    return _edit(request, None)


@login_required
@require_http_methods(["GET", "POST"])
def config_page(request: SignedInRequest, name: str) -> HttpResponse:
    return _edit(request, get_object_or_404(ContainerConfig, name=name))


def _edit(request: SignedInRequest, config: ContainerConfig | None) -> HttpResponse:
    refusal = reason_against(request.user, "catalog.edit_config")
    versions = list(config.versions.all()) if config else []
    if request.method == "POST":
        if refusal:
            raise PermissionDenied(refusal)
        data = request.POST.copy()
        if config:
            data["name"] = config.name
        form = ConfigForm(data, request.FILES)
        if form.is_valid():
            try:
                saved = catalog_verbs.save_config(
                    form.cleaned_data["name"],
                    form.cleaned_data["parsed"],
                    description=form.cleaned_data["description"],
                    by=request.user,
                )
            except RequestInvalid as invalid:
                form.add_refusals(invalid)
            else:
                messages.success(request, f"{saved} is saved as version {saved.version}.")
                return redirect("config", name=saved.name)
    else:
        form = ConfigForm(initial=_initial(request, config))
    context = {
        "section": "agents",
        "config": config,
        "form": form,
        "versions": [{"version": each, "text": shown(each.settings)} for each in versions],
        "refusal": refusal
        or (
            "The demo stands on it: copy it under another name."
            if config and config.name in catalog_verbs.FIXED
            else ""
        ),
    }
    status = 422 if form.is_bound and form.errors else 200
    return render(request, "catalog/config.html", context, status=status)


def _initial(request: SignedInRequest, config: ContainerConfig | None) -> dict[str, str]:
    """What the fields begin with: the config, one of its versions, or a config to copy."""
    if config is None:
        source = ContainerConfig.objects.filter(name=request.GET.get("copy", "")).first()
        return {"settings": shown(source.settings if source else {"mem_limit": "4G"})}
    number = request.GET.get("version", "")
    version = config.versions.filter(number=int(number)).first() if number.isdecimal() else None
    source_ = version or config
    return {
        "name": config.name,
        "description": source_.description,
        "settings": shown(source_.settings),
    }
