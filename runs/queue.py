"""What a host does next: adopt an attempt without a live supervisor, else claim a queued one.

The database is the truth. The same code serves SQLite (BEGIN IMMEDIATE serialises) and PostgreSQL
(the host's row is locked, and of two hosts that want one attempt one updates no row).
"""

import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

import psutil
import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Avg, F, Prefetch, QuerySet
from django.db.models.functions import Now

from mlebench_web.catalog import data, images
from mlebench_web.catalog.models import Agent, AgentImage, ContainerConfig
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Gpu, Host, PreparedData
from mlebench_web.process_start import started
from runs import cut_short, graders, guards, layout
from runs.core import placement
from runs.core.container_config import limits_of
from runs.core.failures import Cause
from runs.core.isolation import is_root_on_host
from runs.core.limits import Reaping
from runs.core.placement import Need, Offer
from runs.core.states import HOLDING, SUPERVISED, Outcome, State, Verdict
from runs.models import Attempt, GpuLease, Installation, Replaced, RunGroup

logger = structlog.get_logger(__name__)

# A host looks at this many of the queue at a claim; more would only be sorted in vain.
LOOK_AT = 500


@dataclass(frozen=True)
class Lease:
    """An attempt and the token that fences every write about it."""

    attempt: Attempt
    token: uuid.UUID
    adopted: bool
    # When the supervisor before was last heard of, by the database's clock.
    last_watched: datetime | None = None


@cache
def _process_started(pid: int) -> float:
    return started(pid)


def this_supervisor() -> dict[str, object]:
    """Who supervises, as the attempt's row names it: this very process."""
    return {
        "supervisor_boot_id": hosts.boot_id(),
        "supervisor_pid": os.getpid(),
        "supervisor_started": _process_started(os.getpid()),
    }


def supervisor_is_live(attempt: Attempt) -> bool:
    """Whether the process that the row names still exists on this host under a valid lease.

    Only meaningful on the host that the row names.
    """
    if not guards.is_on(guards.Guard.ADOPTION):
        return False
    if attempt.supervisor_pid is None or attempt.supervisor_boot_id != hosts.boot_id():
        return False
    if attempt.lease_until is None or attempt.lease_until < hosts.now():
        return False
    try:
        process = psutil.Process(attempt.supervisor_pid)
        same = abs(started(process.pid) - (attempt.supervisor_started or 0)) < 0.02
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def take_work(host: Host) -> Lease | None:
    """The next attempt for this process to supervise; None when there is none."""
    return adopt_one(host) or adopt_grading(host) or claim(host)


def adopt_one(host: Host) -> Lease | None:
    """Take over an attempt of this host that has not ended and has no live supervisor."""
    for attempt in unwatched(host):
        try:
            return adopt(attempt)
        except Replaced:
            continue
    return None


def unwatched(host: Host) -> list[Attempt]:
    """Attempts of this host that have no live supervisor, oldest first."""
    rows = list(Attempt.objects.filter(host=host, state__in=SUPERVISED).order_by("id"))
    return [
        attempt
        for attempt in rows
        if not supervisor_is_live(attempt) and not is_graded_elsewhere(attempt)
    ]


def is_graded_elsewhere(attempt: Attempt) -> bool:
    """Whether another host took over its grading while this one was silent, and is at it."""
    return (
        attempt.state == State.GRADING
        and attempt.supervisor_boot_id not in ("", hosts.boot_id())
        and attempt.lease_until is not None
        and attempt.lease_until >= hosts.now()
    )


def abandoned_gradings() -> list[Attempt]:
    """Attempts in grading whose own host went silent: any host with what is needed goes on."""
    at = hosts.now()
    return [
        attempt
        for attempt in Attempt.objects.filter(state=State.GRADING, lease_until__lt=at)
        .select_related("host", "run__competition", "run__group")
        .order_by("id")
        if attempt.host and is_silent(attempt.host, at)
    ]


def is_silent(host: Host, at: datetime) -> bool:
    """Whether neither its worker nor its host service was heard of for HOST_LOST_AFTER."""
    if host.is_declared_lost():
        return True
    silence = host.silence(at)
    return silence is None or silence >= settings.HOST_LOST_AFTER


def adopt_grading(host: Host) -> Lease | None:
    """Grade for a silent host, where the answers and the collected files are here."""
    for attempt in abandoned_gradings():
        if attempt.host_id == host.pk:
            continue
        if not data.is_prepared(attempt.run.competition):
            continue
        if graders.missing_here(attempt.run.competition):
            continue
        if not layout.attempt_folder(attempt).is_dir():
            continue
        try:
            return adopt(attempt)
        except Replaced:
            continue
    return None


def adopt(attempt: Attempt) -> Lease:
    """Put the attempt under a new token held by this process. Raises Replaced if it moved on."""
    token = uuid.uuid4()
    lease_until = attempt.lease_until
    held = Attempt.objects.filter(pk=attempt.pk, lease_token=attempt.lease_token)
    if lease_until:
        # A lease that was renewed since it was read has a living supervisor after all.
        held = held.filter(lease_until__lte=lease_until)
    taken = held.exclude(state=State.ENDED).update(
        lease_token=token, lease_until=Now() + settings.LEASE_TTL, **this_supervisor()
    )
    if not taken:
        raise Replaced(f"{attempt} was adopted by another supervisor or has ended.")
    attempt.refresh_from_db()
    logger.info("attempt.adopted", attempt=attempt.pk, state=attempt.state)
    last_watched = lease_until - settings.LEASE_TTL if lease_until else None
    return Lease(attempt, token, adopted=True, last_watched=last_watched)


def claim(host: Host) -> Lease | None:
    """Queued -> starting for the best attempt that fits what is free here; None if none does."""
    if not Attempt.objects.claimable().exists():
        return None
    token = uuid.uuid4()
    with transaction.atomic():
        # The row is the lock of this host's resources: two pool children never count the same GPU.
        host = Host.objects.select_for_update().get(pk=host.pk)
        offer = offer_of(host)
        if offer.draining or offer.put_aside or offer.free_slots < 1:
            return None
        queued = queued_attempts()
        needs = needs_of(queued.values())
        for need in placement.in_order(expected(needs, queued), held_by_team()):
            if placement.not_now(need, offer):
                continue
            attempt = queued[need.attempt_id]
            got = placement.grant(need, offer)
            try:
                with transaction.atomic():
                    attempt.claim(
                        host,
                        token=token,
                        cpus=got.cpus,
                        memory_bytes=got.memory_bytes,
                        image_id=need.image_id,
                        **this_supervisor(),
                    )
                    lease_gpus(attempt, got.gpus)
                    pin_image(attempt)
            except Replaced:
                # Another host was first; the next best is as good.
                continue
            logger.info("attempt.claimed", attempt=attempt.pk, host=host.name)
            return Lease(attempt, token, adopted=False)
    return None


def could_claim(host: Host) -> set[int]:
    """Queued attempts that fit what is free here now; a worker that hears takes them at once."""
    if not Attempt.objects.claimable().exists():
        return set()
    offer = offer_of(host)
    return {
        need.attempt_id
        for need in needs_of(queued_attempts().values())
        if not placement.not_now(need, offer)
    }


def queued_attempts() -> dict[int, Attempt]:
    rows = (
        Attempt.objects.claimable()
        .select_related("run__competition", "run__group__agent", "run__group__image")
        .order_by("-run__group__priority", "id")[:LOOK_AT]
    )
    return {attempt.pk: attempt for attempt in rows}


def image_of(group: RunGroup) -> AgentImage | None:
    """The image that the group's runs start from; None while there is none, or none is needed."""
    if group.runtime != ContainerConfig.Runtime.DOCKER:
        return None
    return group.image or images.newest_image(agent_of(group))


def agent_of(group: RunGroup) -> Agent:
    """The agent of a group that runs here; only an imported group has none."""
    if group.agent is None:
        raise ValueError(f"{group} was imported and has nothing to run.")
    return group.agent


def needs_of(attempts: Iterable[Attempt]) -> list[Need]:
    """What queued attempts ask for; one query for each agent whose image is being built."""
    known: dict[int, AgentImage | None] = {}
    needs = []
    for attempt in attempts:
        group = attempt.run.group
        if group.pk not in known:
            known[group.pk] = image_of(group)
        needs.append(need_of(attempt, known[group.pk]))
    return needs


def need_of(attempt: Attempt, image: AgentImage | None) -> Need:
    """What an attempt asks for: its group's container config, and what a re-run asked for."""
    group = attempt.run.group
    limits = limits_of(group.container_settings)
    asked = attempt.asked
    return Need(
        attempt_id=attempt.pk,
        runtime=group.runtime,
        competition=attempt.run.competition.name,
        cpus=limits.cpus,
        memory_bytes=asked.memory_bytes or limits.memory_bytes,
        gpus=limits.gpus,
        host=asked.host or "",
        gpu_class=asked.gpu or "",
        engine_runtime=limits.runtime,
        privileged=is_root_on_host(
            privileged=bool(group.agent and group.agent.privileged), engine_runtime=limits.runtime
        ),
        image_id=image.image_id if image else "",
        priority=group.priority,
        team=group.team_id,
        expected_seconds=time_limit_of(attempt).total_seconds(),
        queued_at=attempt.queued_at.timestamp(),
    )


def time_limit_of(attempt: Attempt) -> timedelta:
    """Of active agent time. Null only in imported groups, which have nothing to run."""
    if attempt.asked.time_limit_s:
        return timedelta(seconds=attempt.asked.time_limit_s)
    return attempt.run.group.time_limit or settings.DEFAULT_TIME_LIMIT


def step_timeout_of(attempt: Attempt) -> timedelta:
    """Of active agent time."""
    if attempt.asked.step_timeout_s:
        return timedelta(seconds=attempt.asked.step_timeout_s)
    return attempt.run.group.step_timeout or settings.DEFAULT_STEP_TIMEOUT


def expected(needs: Iterable[Need], queued: dict[int, Attempt]) -> list[Need]:
    """The needs with what earlier runs of the same agent on the same competition took."""
    agents = {attempt.run.group.agent_id for attempt in queued.values()}
    history = {
        (agent, competition): seconds
        for agent, competition, seconds in Attempt.objects.filter(
            outcome=Outcome.GRADED, run__group__agent__in=agents
        )
        .values_list("run__group__agent", "run__competition__name")
        .annotate(seconds=Avg("active_seconds"))
    }
    result = []
    for need in needs:
        group = queued[need.attempt_id].run.group
        seconds = history.get((group.agent_id, need.competition))
        result.append(need if seconds is None else replace(need, expected_seconds=seconds))
    return result


def held_by_team() -> dict[int | None, float]:
    """Share of the fleet that each team's attempts hold: GPUs weigh as much as 8 CPUs."""
    held: dict[int | None, float] = defaultdict(float)
    for team, cpus in Attempt.objects.filter(state__in=HOLDING).values_list(
        "run__group__team", "cpus"
    ):
        held[team] += cpus or 0
    for (team,) in GpuLease.objects.filter(released_at__isnull=True).values_list(
        "attempt__run__group__team"
    ):
        held[team] += 8
    return held


def lease_gpus(attempt: Attempt, uuids: Iterable[str]) -> None:
    """The unique constraint refuses a second live lease, whatever a count says."""
    for uuid_ in uuids:
        GpuLease.objects.create(attempt=attempt, gpu=Gpu.objects.get(uuid=uuid_))


def pin_image(attempt: Attempt) -> None:
    """The group's first claim decides its image: a later build changes no seed of it."""
    group = attempt.run.group
    if group.image_id is None and image_of(group):
        RunGroup.objects.filter(pk=group.pk, image__isnull=True).update(image=image_of(group))


def offer_of(host: Host) -> Offer:
    """What a host has and what of it is free. A fixed number of queries."""
    holding = list(
        Attempt.objects.filter(host=host)
        .exclude(state=State.QUEUED)
        .filter(released_at__isnull=True)
        .values_list("cpus", "memory_bytes")
    )
    busy = Attempt.objects.filter(host=host, state__in=SUPERVISED).count()
    leased = set(
        GpuLease.objects.filter(gpu__host=host, released_at__isnull=True).values_list(
            "gpu__uuid", flat=True
        )
    )
    gpus = list(
        Gpu.objects.filter(host=host, is_present=True, fault="", is_mig_parent=False).order_by(
            "index"
        )
    )
    cpus = host.cpus or 0.0
    memory = max(0, (host.memory_bytes or 0) - host.memory_reserve_bytes)
    ready = list(
        PreparedData.objects.filter(host=host, state=PreparedData.State.READY).values_list(
            "competition__name", "competition__checkout"
        )
    )
    official = {name for name, checkout in ready if checkout is not None}
    return Offer(
        host=host.name,
        slots=max(1, host.slots),
        cpus=cpus,
        memory_bytes=memory,
        engine=bool(host.engine_id) and not host.engine_error,
        engine_runtimes=frozenset(host.engine_runtimes),
        process_ready=not host.ml_python_error,
        prepared=frozenset(name for name, _ in ready),
        ungradable=frozenset(official) if host.mlebench_error else frozenset(),
        why_ungradable=host.mlebench_error,
        image_ids=frozenset(host.image_ids),
        elsewhere_image_ids=frozenset(
            image
            for (ids,) in Host.objects.exclude(pk=host.pk).values_list("image_ids")
            for image in ids
        ),
        gpus=len(gpus),
        gpu_models={gpu.uuid: gpu.name for gpu in gpus},
        free_slots=max(0, host.slots - busy),
        free_cpus=cpus - sum(held or 0 for held, _ in holding),
        free_memory_bytes=memory - sum(held or 0 for _, held in holding),
        free_gpus=tuple(gpu.uuid for gpu in gpus if gpu.uuid not in leased),
        draining=host.is_draining,
        put_aside=host.put_aside,
        accepts_privileged=host.accepts_privileged,
    )


def online_offers() -> list[Offer]:
    at = hosts.now()
    return [offer_of(host) for host in Host.objects.all() if host.is_online(at)]


def why_waiting(attempt: Attempt) -> str:
    """One sentence: why this queued attempt has not started."""
    at = hosts.now()
    if attempt.not_before and attempt.not_before > at:
        last = attempt.run.attempts.filter(number__lt=attempt.number).order_by("-number").first()
        wait = (attempt.not_before - at).total_seconds()
        because = f" {last.cause_sentence}" if last and last.cause else ""
        return f"Back-off after a failure: it is tried again in {wait:.0f} s.{because}"
    [need] = needs_of([attempt])
    return placement.why_waiting(need, online_offers())


# -------------------------------------------------------------------------------- the reaper

_reaping = Reaping(
    ttl=settings.LEASE_TTL.total_seconds(), lost_after=settings.HOST_LOST_AFTER.total_seconds()
)


def reap(patience: Reaping = _reaping) -> list[Attempt]:
    """Seal what only a silent host could have gone on with. Returns the attempts sealed.

    While a host's worker or host service answers, that host alone seals its attempts. With one
    worker host there is no relaunch by time: losing sight of a healthy container is no reason to
    start it anew. Grading is never lost: see `adopt_grading`.
    """
    prove_that_it_takes_writes()
    at = hosts.now()
    patience.tick(database=at.timestamp(), monotonic=time.monotonic())
    say_when_leases_count(patience, at)
    if guards.is_on(guards.Guard.GRACE) and not patience.may_lose_hosts():
        return []
    sealed = []
    for attempt in _expired():
        host = attempt.host
        if host is None or not is_silent(host, at):
            continue
        if not attempt.cancel_requested_at and not another_host_could_take(attempt):
            continue
        said = f"{host.name} was silent for {host.silence(at)}."
        if seal_lost(attempt, by="control worker", detail=said):
            sealed.append(attempt)
    return sealed


def prove_that_it_takes_writes() -> None:
    """A database that only answers questions is an outage too: no host could renew a lease.

    So it is when a process that stands still holds SQLite's lock. Raises OperationalError, and the
    reaper misses its tick.
    """
    Installation.this()
    Installation.objects.update(trust_leases_from=F("trust_leases_from"))


def say_when_leases_count(patience: Reaping, at: datetime) -> None:
    """For pages: until then an expired lease says nothing about the host."""
    wait = patience.seconds_until_leases_count()
    if wait > 0:
        Installation.objects.update(trust_leases_from=at + timedelta(seconds=wait))


def seal_lost(attempt: Attempt, *, by: str, detail: str) -> bool:
    """Seal an attempt of a host that is gone; False when somebody holds it after all.

    Its container may still run there: the host offers nothing until its janitor has swept.
    """
    if attempt.cancel_requested_at:
        outcome = Verdict(Outcome.CANCELLED, Cause.CANCELLED)
    else:
        outcome = Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST)
    try:
        with transaction.atomic():
            # Looked at again under the lock: a heartbeat may have come since it was read.
            if not Attempt.objects.select_for_update().filter(
                pk=attempt.pk, state__in=HOLDING, lease_until__lt=Now()
            ):
                return False
            attempt.seal(
                outcome, token=attempt.lease_token, by=by, release=False, cause_detail=detail
            )
            cut_short.ask_for(attempt)
    except Replaced:
        return False
    logger.warning("attempt.host_lost", attempt=attempt.pk, by=by)
    return True


def declare_lost(host: Host, *, by: str) -> list[Attempt]:
    """An admin says that it is gone: its attempts are sealed at once. Returns those."""
    sealed = []
    for attempt in Attempt.objects.filter(host=host, state__in=HOLDING).order_by("id"):
        if seal_lost(attempt, by=by, detail=f"{by} said that {host.name} is gone."):
            sealed.append(attempt)
    return sealed


def _expired() -> QuerySet[Attempt]:
    return (
        Attempt.objects.filter(state__in=HOLDING, lease_until__lt=Now())
        .select_related("host", "run__competition", "run__group__agent", "run__group__image")
        .order_by("id")
    )


def another_host_could_take(attempt: Attempt) -> bool:
    """Whether a host that is online could run it, were it idle. Costs three queries."""
    [need] = needs_of([attempt])
    # What was asked for a host that is gone does not bind: see Attempt.overrides_for_the_next.
    need = replace(need, host="")
    return any(
        not placement.never_fits(need, offer)
        for offer in bare_offers()
        if offer.host != (attempt.host.name if attempt.host else "")
    )


def bare_offers() -> list[Offer]:
    """What online hosts have when idle; draining ones and those put aside take nothing."""
    at = hosts.now()
    rows = Host.objects.filter(is_draining=False, put_aside="").prefetch_related(
        Prefetch("gpus", Gpu.objects.filter(is_present=True, fault="", is_mig_parent=False))
    )
    return [idle_offer(host) for host in rows if host.is_online(at)]


def idle_offer(host: Host) -> Offer:
    """What a host has, from its row and its prefetched GPUs."""
    models = {gpu.uuid: gpu.name for gpu in host.gpus.all()}
    return Offer(
        host=host.name,
        slots=max(1, host.slots),
        cpus=host.cpus or 0.0,
        memory_bytes=max(0, (host.memory_bytes or 0) - host.memory_reserve_bytes),
        engine=bool(host.engine_id) and not host.engine_error,
        engine_runtimes=frozenset(host.engine_runtimes),
        process_ready=not host.ml_python_error,
        prepared=frozenset(),
        image_ids=frozenset(host.image_ids),
        gpus=len(models),
        gpu_models=models,
        accepts_privileged=host.accepts_privileged,
    )
