"""What can be run, and where: agents, splits, container configs, competitions, hosts."""

from typing import Any

from django.db.models import Prefetch, QuerySet
from django.http import Http404
from ninja import Router
from ninja.responses import Status

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import Team, User
from mlebench_web.catalog import documents
from mlebench_web.catalog.models import (
    Agent,
    AgentImage,
    Checkout,
    Competition,
    ContainerConfig,
    Split,
)
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import aside, catalog_verbs, data_jobs, draining, preflight, resuming
from runs.api.app import ApiRequest, demand
from runs.api.asked import LARGEST_ID, Asked, Drain, Limit, Nothing, Offset, Text
from runs.api.objects import (
    AgentObject,
    CheckoutObject,
    CompetitionObject,
    ContainerConfigObject,
    DataObject,
    HostDrained,
    HostLost,
    HostObject,
    ImageObject,
    NotMoved,
    Page,
    SecretObject,
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
    return whole([AgentObject.of(agent) for agent in _agents()])


def _agents() -> QuerySet[Agent]:
    return Agent.objects.filter(is_listed=True).select_related("checkout")


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
            for config in ContainerConfig.objects.filter(is_listed=True)
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


class ConfigAsked(Asked):
    settings: dict[str, Any]
    description: Text = ""


@router.put("/container-configs/{path:name}", response=ContainerConfigObject, tags=["catalog"])
def put_container_config(request: ApiRequest, name: str, body: ConfigAsked) -> Status:
    """Make one, or a new version of it: mle-bench's JSON as `settings`."""
    demand(request.auth, "catalog.edit_config")

    def act() -> ContainerConfigObject:
        try:
            settings = {key: documents.plain(value) for key, value in body.settings.items()}
        except documents.Unreadable as error:
            raise catalog_verbs.refused("settings", error.message) from error
        config = catalog_verbs.save_config(
            name, settings, description=body.description, by=request.auth
        )
        return ContainerConfigObject.of(config, _why_unfit(config, preflight.fleet_now()))

    return once(request, request.auth, act, status=200)


# ------------------------------------------------------------------------ checkouts and images


@router.get("/checkouts", response=Page[CheckoutObject], tags=["catalog"])
def checkouts(request: ApiRequest) -> Page[CheckoutObject]:
    """Checkouts of mle-bench, and what is broken in them."""
    return whole([CheckoutObject.of(row) for row in Checkout.objects.filter(is_listed=True)])


@router.post("/checkouts/refresh", response={202: Page[CheckoutObject]}, tags=["catalog"])
def refresh_checkouts(request: ApiRequest, body: Nothing | None = None) -> Status:
    """Have all of them read again; `state` is `reading` until that is done."""
    demand(request.auth, "catalog.refresh")

    def act() -> Page[CheckoutObject]:
        catalog_verbs.refresh(by=request.auth)
        return whole([CheckoutObject.of(row) for row in Checkout.objects.filter(is_listed=True)])

    return once(request, request.auth, act, status=202)


class BuildAsked(Asked):
    tag: Text = ""
    host: Text = ""


@router.post("/agents/{path:name}/build", response={202: ImageObject}, tags=["catalog"])
def build_agent(request: ApiRequest, name: str, body: BuildAsked | None = None) -> Status:
    """Have a host build its image, or take the existing image `tag`. See `images/{id}`."""
    demand(request.auth, "catalog.build")
    agent = _agents().filter(name=name).first()
    if agent is None:
        raise Http404(f"There is no agent {name!r}.")
    asked = body or BuildAsked()

    def act() -> ImageObject:
        return ImageObject.of(
            catalog_verbs.build(agent, by=request.auth, tag=asked.tag, host=asked.host)
        )

    return once(request, request.auth, act, status=202)


@router.get("/images/{image_id}", response=ImageObject, tags=["catalog"])
def image(request: ApiRequest, image_id: int) -> ImageObject:
    """A build, with the last lines of its log."""
    row = AgentImage.objects.filter(pk=image_id).first() if image_id <= LARGEST_ID else None
    if row is None:
        raise Http404(f"There is no image {image_id}.")
    return ImageObject.of(row)


# ------------------------------------------------------------------------------- data, secrets


class PrepareAsked(Asked):
    host: Text
    ignore_checksums: bool = False


@router.post("/competitions/{name}/prepare", response={202: DataObject}, tags=["catalog"])
def prepare_data(request: ApiRequest, name: str, body: PrepareAsked) -> Status:
    """Have a host download and prepare its data, or go on after a person did what it waits for."""
    demand(request.auth, "fleet.prepare")
    competition = Competition.objects.filter(name=name).first()
    if competition is None:
        raise Http404(f"There is no competition {name!r}.")
    host = Host.objects.filter(name=body.host).first()
    if host is None:
        names = list(Host.objects.values_list("name", flat=True))
        raise catalog_verbs.refused("host", f"There is no host {body.host!r}.", names)

    def act() -> DataObject:
        try:
            row = data_jobs.ask(
                competition, host, by=request.auth, ignore_checksums=body.ignore_checksums
            )
        except data_jobs.NotPreparable as error:
            raise catalog_verbs.refused("competition", str(error)) from error
        return DataObject.of(row)

    return once(request, request.auth, act, status=202)


class SecretAsked(Asked):
    value: Text
    team: Text | None = None


@router.get("/secrets", response=Page[SecretObject], tags=["secrets"])
def secrets(request: ApiRequest) -> Page[SecretObject]:
    """Names of the caller's secrets and of their team's. Values cannot be read."""
    return whole([SecretObject.of(secret) for secret in vault.listed(request.auth)])


@router.put("/secrets/{name}", response=SecretObject, tags=["secrets"])
def put_secret(request: ApiRequest, name: str, body: SecretAsked) -> SecretObject:
    """Store or replace one, for the caller or for a team. Its value can never be read again."""
    team = _team(request.auth, body.team)
    demand(request.auth, "accounts.keep_secret", team)
    try:
        secret = vault.put(name, body.value, owner=team or request.auth, by=request.auth)
    except vault.SecretInvalid as error:
        raise catalog_verbs.refused(error.field, str(error)) from error
    return SecretObject.of(secret)


@router.delete("/secrets/{name}", response={204: None}, tags=["secrets"])
def delete_secret(request: ApiRequest, name: str, team: str | None = None) -> Status:
    owner = _team(request.auth, team)
    demand(request.auth, "accounts.keep_secret", owner)
    found = vault.listed(request.auth).filter(name=name, team=owner)
    secret = found.filter(user=None if owner else request.auth).first()
    if secret is None:
        raise Http404(f"There is no secret {name!r}.")
    vault.forget(secret, by=request.auth)
    return Status(204, None)


def _team(user: User, name: str | None) -> Team | None:
    if name is None:
        return None
    team = Team.objects.filter(name=name).first()
    if team is None or not user.has_perm("accounts.keep_secret", team):
        raise catalog_verbs.refused("team", f"{name!r} is no team whose secrets you may write.")
    return team


# --------------------------------------------------------------------------------------- hosts


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


@router.post("/hosts/{name}/drain", response=HostDrained, tags=["fleet"])
def drain(request: ApiRequest, name: str, body: Drain | None = None) -> Status:
    """It takes no new runs, and finishes what it has; `move`: gives it to other hosts."""
    demand(request.auth, "fleet.drain")
    move = bool(body and body.move)

    def act() -> HostDrained:
        draining.drain(_host(name), by=request.auth, move=move)
        row = _host(name)
        shown, left = HostObject.of(row, hosts.now()), draining.longest_left(row)
        seconds = None if left is None else left.total_seconds()
        return HostDrained(
            **shown.model_dump(),
            longest_left_seconds=seconds,
            not_moved=[
                NotMoved(run=run.pk, why=why)
                for run, why in (resuming.not_moved(row) if move else ())
            ],
        )

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
