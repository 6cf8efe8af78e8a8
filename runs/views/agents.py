"""Agents and the checkouts that they come from; builds with their logs."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required, permission_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from mlebench_web.accounts import placeholders, vault
from mlebench_web.accounts.rules import reason_against
from mlebench_web.catalog import images
from mlebench_web.catalog.checkout import Problem
from mlebench_web.catalog.models import Agent, AgentImage, Checkout
from mlebench_web.fleet.models import Host
from mlebench_web.http import SignedInRequest
from runs import catalog_verbs
from runs.request import RequestInvalid

LOG_SHOWN = 400
IMAGES_SHOWN = 20


def _image_state(agent: Agent) -> dict[str, object]:
    image = images.newest_image(agent)
    newest = images.all_of(agent).first()
    return {
        "image": image,
        "newest": newest,
        "is_building": images.is_building(agent),
        # Built-in agents are built again at each start of the product.
        "has_changed": bool(image and not agent.is_builtin and images.changed_since(agent, image)),
    }


@login_required
@require_GET
def agent_list(request: SignedInRequest) -> HttpResponse:
    known = vault.names_of(request.user, request.user.team)
    rows = []
    for agent in Agent.objects.filter(is_listed=True).select_related("checkout"):
        names = placeholders.names_in(agent.env_vars, agent.kwargs)
        rows.append(
            {
                "agent": agent,
                "secrets": sorted(names),
                "missing": sorted(names - known),
                **_image_state(agent),
            }
        )
    sources = [
        {"row": row, "problems": [Problem(**each) for each in row.problems]}
        for row in Checkout.objects.filter(is_listed=True)
    ]
    context = {
        "section": "agents",
        "rows": rows,
        "sources": sources,
        "is_reading": Checkout.objects.filter(is_listed=True, asked_at__isnull=False).exists(),
        "no_refresh": reason_against(request.user, "catalog.refresh"),
        "no_change": reason_against(request.user, "catalog.change_checkouts"),
    }
    return render(request, "catalog/agents.html", context)


@login_required
@require_GET
def agent_page(request: SignedInRequest, name: str) -> HttpResponse:
    agent = get_object_or_404(Agent.objects.select_related("checkout"), name=name)
    names = placeholders.names_in(agent.env_vars, agent.kwargs)
    known = vault.names_of(request.user, request.user.team)
    context = {
        "section": "agents",
        "agent": agent,
        **_image_state(agent),
        "builds": images.all_of(agent)[:IMAGES_SHOWN],
        "secrets": [(each, each in known) for each in sorted(names)],
        "hosts": Host.objects.exclude(engine_id="").order_by("name"),
        "contexts": Agent.BuildContext.choices,
        "no_build": reason_against(request.user, "catalog.build"),
        "no_change": reason_against(request.user, "catalog.change_checkouts"),
        "may_add": request.user.has_perm("runs.add_group"),
    }
    return render(request, "catalog/agent.html", context)


@login_required
@require_GET
@never_cache
def image_page(request: SignedInRequest, pk: int) -> HttpResponse:
    """One build: its state and its log, which grows while it lasts."""
    image = get_object_or_404(AgentImage, pk=pk)
    lines = image.log.splitlines()
    context = {
        "section": "agents",
        "image": image,
        "agent": Agent.objects.filter(folder=image.folder, image_name=image.image_name).first(),
        "is_live": image.state in images.UNFINISHED,
        "lines": lines[-LOG_SHOWN:],
        "left_out": max(0, len(lines) - LOG_SHOWN),
    }
    template = "catalog/image.html#live" if request.htmx else "catalog/image.html"
    return render(request, template, context)


@require_POST
@login_required
@permission_required("catalog.build", raise_exception=True)
def build(request: SignedInRequest, name: str) -> HttpResponse:
    agent = get_object_or_404(Agent, name=name, is_listed=True)
    try:
        image = catalog_verbs.build(
            agent,
            by=request.user,
            tag=request.POST.get("tag", ""),
            host=request.POST.get("host", ""),
        )
    except RequestInvalid as invalid:
        messages.error(request, str(invalid))
        return redirect("agent", name=agent.name)
    return redirect("image", pk=image.pk)


@require_POST
@login_required
@permission_required("catalog.change_checkouts", raise_exception=True)
def choose_context(request: SignedInRequest, name: str) -> HttpResponse:
    agent = get_object_or_404(Agent, name=name, is_listed=True, checkout__isnull=False)
    try:
        catalog_verbs.choose_context(agent, request.POST.get("build_context", ""), by=request.user)
    except RequestInvalid as invalid:
        messages.error(request, str(invalid))
    else:
        messages.success(request, "The next build uses it.")
    return redirect("agent", name=agent.name)


# ---------------------------------------------------------------------------- checkouts


@require_POST
@login_required
@permission_required("catalog.refresh", raise_exception=True)
def refresh(request: SignedInRequest) -> HttpResponse:
    rows = catalog_verbs.refresh(by=request.user)
    if rows:
        messages.success(request, "The checkouts are read again; that takes some seconds.")
    else:
        messages.info(request, "There is no checkout. Set MLEBENCH_DIR, or add a git URL.")
    return redirect("agents")


@require_POST
@login_required
@permission_required("catalog.change_checkouts", raise_exception=True)
def add_checkout(request: SignedInRequest) -> HttpResponse:
    asked = request.POST
    try:
        row = catalog_verbs.add_checkout(
            asked.get("url", "").strip(),
            asked.get("ref", "").strip(),
            asked.get("name", "").strip(),
            by=request.user,
        )
    except RequestInvalid as invalid:
        messages.error(request, str(invalid))
    else:
        messages.success(request, f"{row} is being cloned.")
    return redirect("agents")


@require_POST
@login_required
@permission_required("catalog.change_checkouts", raise_exception=True)
def change_checkout(request: SignedInRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Checkout, pk=pk, is_listed=True)
    try:
        if "remove" in request.POST:
            catalog_verbs.remove_checkout(row, by=request.user)
            messages.success(request, f"{row} is off the lists.")
        else:
            catalog_verbs.change_checkout(
                row,
                env_image=request.POST.get("env_image", "")[:200],
                installs_heavy="installs_heavy" in request.POST,
                by=request.user,
            )
            messages.success(request, f"The next build of an agent of {row} uses it.")
    except RequestInvalid as invalid:
        messages.error(request, str(invalid))
    return redirect("agents")
