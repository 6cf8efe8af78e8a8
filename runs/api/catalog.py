"""What can be run, and where: agents, splits, container configs, competitions, hosts."""

from django.db.models import Prefetch, QuerySet
from django.http import Http404
from ninja import Router
from ninja.responses import Status

from mlebench_web.catalog.models import Agent, ContainerConfig, Split
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import aside, draining, preflight
from runs.api.app import ApiRequest, demand
from runs.api.asked import Limit, Nothing, Offset
from runs.api.objects import (
    AgentObject,
    CompetitionObject,
    ContainerConfigObject,
    HostLost,
    HostObject,
    Page,
    SplitObject,
    whole,
)
from runs.api.once import once
from runs.api.pages import page
from runs.core import placement
from runs.core.container_config import ConfigRefused
from runs.models import GpuLease
from runs.preflight import Fleet

router = Router()


@router.get("/agents", response=Page[AgentObject], tags=["catalog"])
def agents(request: ApiRequest) -> Page[AgentObject]:
    return whole([AgentObject.of(agent) for agent in Agent.objects.filter(is_listed=True)])


@router.get("/splits", response=Page[SplitObject], tags=["catalog"])
def splits(request: ApiRequest) -> Page[SplitObject]:
    states = {competition.name: competition.state for competition in CompetitionObject.all()}
    rows = Split.objects.prefetch_related("competitions")
    return whole([SplitObject.of(split, states) for split in rows])


@router.get("/competitions", response=Page[CompetitionObject], tags=["catalog"])
def competitions(request: ApiRequest) -> Page[CompetitionObject]:
    return whole(CompetitionObject.all())


@router.get("/container-configs", response=Page[ContainerConfigObject], tags=["catalog"])
def container_configs(request: ApiRequest) -> Page[ContainerConfigObject]:
    """`state` says whether a host could run it: one that is online, if any is."""
    fleet = preflight.fleet_now()
    return whole(
        [
            ContainerConfigObject.of(config, _why_unfit(config, fleet))
            for config in ContainerConfig.objects.all()
        ]
    )


def _why_unfit(config: ContainerConfig, fleet: Fleet) -> str:
    try:
        need = preflight.need_of(config)
    except ConfigRefused as refused:
        return str(refused)
    reasons = {offer.host: placement.never_fits(need, offer) for offer in fleet.offers}
    if not all(reasons.values()):
        return ""
    return "; ".join(f"{host}: {why}" for host, why in reasons.items()) or "There is no host."


@router.get("/hosts", response=Page[HostObject], tags=["fleet"])
def list_hosts(request: ApiRequest, limit: Limit, offset: Offset) -> Page[HostObject]:
    at = hosts.now()
    return page(
        request,
        _hosts(),
        lambda rows: [HostObject.of(host, at) for host in rows],
        limit=limit,
        offset=offset,
    )


@router.get("/hosts/{name}", response=HostObject, tags=["fleet"])
def host(request: ApiRequest, name: str) -> HostObject:
    return HostObject.of(_host(name), hosts.now())


@router.post("/hosts/{name}/drain", response=HostObject, tags=["fleet"])
def drain(request: ApiRequest, name: str, body: Nothing | None = None) -> Status:
    """It takes no new runs, and finishes what it has."""
    demand(request.auth, "fleet.drain")

    def act() -> HostObject:
        draining.drain(_host(name), by=request.auth)
        return HostObject.of(_host(name), hosts.now())

    return once(request, request.auth, act, status=200)


@router.post("/hosts/{name}/undrain", response=HostObject, tags=["fleet"])
def undrain(request: ApiRequest, name: str, body: Nothing | None = None) -> Status:
    """It takes new runs again."""
    demand(request.auth, "fleet.drain")

    def act() -> HostObject:
        draining.undrain(_host(name), by=request.auth)
        return HostObject.of(_host(name), hosts.now())

    return once(request, request.auth, act, status=200)


@router.post("/hosts/{name}/use-again", response=HostObject, tags=["fleet"])
def use_again(request: ApiRequest, name: str, body: Nothing | None = None) -> Status:
    """A host that was put aside takes runs again; what failed before is forgiven."""
    demand(request.auth, "fleet.drain")

    def act() -> HostObject:
        aside.use_again(_host(name), by=request.auth)
        return HostObject.of(_host(name), hosts.now())

    return once(request, request.auth, act, status=200)


@router.post("/hosts/{name}/lost", response=HostLost, tags=["fleet"])
def lost(request: ApiRequest, name: str, body: Nothing | None = None) -> Status:
    """It is gone: its runs are queued again at once. 409 while it answers."""
    demand(request.auth, "fleet.drain")

    def act() -> HostLost:
        sealed = aside.declare_lost(_host(name), by=request.auth)
        shown = HostObject.of(_host(name), hosts.now())
        return HostLost(**shown.model_dump(), lost=[attempt.run_id for attempt in sealed])

    return once(request, request.auth, act, status=200)


def _hosts() -> QuerySet[Host]:
    leases = GpuLease.objects.filter(released_at__isnull=True).select_related("attempt")
    return Host.objects.prefetch_related(
        "gpus", Prefetch("gpus__leases", queryset=leases), "prepared__competition"
    )


def _host(name: str) -> Host:
    row = _hosts().filter(name=name).first()
    if row is None:
        raise Http404(f"There is no host {name!r}.")
    return row
