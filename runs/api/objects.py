"""What the API shows of each row. What was not reported is null, never 0."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import Count
from django.urls import reverse
from pydantic import BaseModel

from mlebench_web.accounts import placeholders
from mlebench_web.accounts.models import Secret
from mlebench_web.catalog import official_data
from mlebench_web.catalog.models import (
    Agent,
    AgentImage,
    Checkout,
    Competition,
    ContainerConfig,
    Split,
)
from mlebench_web.fleet.models import Gpu, Host, PreparedData
from runs import agent_manifest
from runs.core.container_config import admin_keys
from runs.core.group_state import group_state
from runs.core.states import RunState
from runs.models import Attempt, Checkpoint, Experiment, Run, RunGroup
from runs.submit import Plan

MEDALS = frozenset({"gold", "silver", "bronze"})


class Page[T](BaseModel):
    """A list. `count` is of all items, `next` the address of the next page."""

    items: list[T]
    count: int
    next: str | None = None


def whole[T](items: Sequence[T]) -> Page[T]:
    """A list for which pages make no sense."""
    return Page(items=list(items), count=len(items))


def finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def address(path: str) -> str:
    return f"{settings.PUBLIC_URL}{path}"


# ----------------------------------------------------------------------------------- catalog


class AgentObject(BaseModel):
    name: str
    state: str  # of its image: ready, building, failed, missing
    image_id: str | None
    image_error: str | None
    description: str
    is_builtin: bool
    privileged: bool
    network: str
    runs_as_process: bool
    resume_note: str
    checkout: str | None  # null: built in
    commit: str | None  # of the checkout, as the image was built from it
    code_changed: bool | None  # since that build; null: not known
    secrets: list[str]  # names that it asks for

    @classmethod
    def of(cls, agent: Agent) -> "AgentObject":
        from mlebench_web.catalog import images

        image = images.newest_image(agent)
        newest = images.all_of(agent).first()
        if image:
            state = "ready"
        elif images.is_building(agent):
            state = "building"
        else:
            state = "failed" if newest else "missing"
        return cls(
            name=agent.name,
            state=state,
            image_id=image.image_id if image else None,
            image_error=newest.error or None if newest else None,
            description=agent.description,
            is_builtin=agent.is_builtin,
            privileged=agent.privileged,
            network=agent.network,
            runs_as_process=agent.runs_as_process,
            resume_note=agent_manifest.of(agent).resume_note,
            checkout=agent.checkout.name if agent.checkout else None,
            commit=image.commit or None if image else None,
            code_changed=images.changed_since(agent, image)
            if image and image.source_digest and not agent.is_builtin
            else None,
            secrets=sorted(placeholders.names_in(agent.env_vars, agent.kwargs)),
        )


class ImageObject(BaseModel):
    id: int
    state: str  # wanted, building, ready, failed
    agent_folder: str
    tag: str | None
    image_id: str | None
    error: str | None
    log: str  # its last lines
    checkout: str | None
    commit: str | None
    branch: str | None
    is_dirty: bool | None
    host: str | None
    url: str

    @classmethod
    def of(cls, image: AgentImage) -> "ImageObject":
        return cls(
            id=image.pk,
            state=image.state,
            agent_folder=image.image_name,
            tag=image.tag or None,
            image_id=image.image_id or None,
            error=image.error or None,
            log=image.log,
            checkout=image.checkout_name or None,
            commit=image.commit or None,
            branch=image.branch or None,
            is_dirty=image.is_dirty,
            host=image.host_name or None,
            url=address(reverse("image", args=[image.pk])),
        )


class ProblemObject(BaseModel):
    file: str
    line: int | None
    message: str
    level: str  # error: left out; note


class CheckoutObject(BaseModel):
    name: str
    state: str  # ready, reading, failed
    path: str
    git_url: str | None
    ref: str | None
    commit: str | None
    branch: str | None
    is_dirty: bool | None
    error: str | None
    problems: list[ProblemObject]
    read_at: datetime | None

    @classmethod
    def of(cls, row: Checkout) -> "CheckoutObject":
        return cls(
            name=row.name,
            state="reading" if row.is_being_read else "failed" if row.error else "ready",
            path=row.path,
            git_url=row.url or None,
            ref=row.ref or None,
            commit=row.commit or None,
            branch=row.branch or None,
            is_dirty=row.is_dirty,
            error=row.error or None,
            problems=[ProblemObject(**problem) for problem in row.problems],
            read_at=row.read_at,
        )


class SecretObject(BaseModel):
    """Its value is nowhere: it can only be written."""

    name: str
    state: str  # stored
    team: str | None  # null: the caller's own
    made_at: datetime
    last_used_at: datetime | None

    @classmethod
    def of(cls, secret: Secret) -> "SecretObject":
        return cls(
            name=secret.name,
            state="stored",
            team=secret.team.name if secret.team else None,
            made_at=secret.made_at,
            last_used_at=secret.last_used_at,
        )


class DataObject(BaseModel):
    """A competition's data on a host."""

    host: str
    state: str  # wanted, preparing, waiting, ready, failed
    phase: str | None
    done_bytes: int | None
    waits_for: str | None  # rules, credentials, checksums
    link: str | None
    ignores_checksums: bool
    error: str | None

    @classmethod
    def of(cls, row: PreparedData) -> "DataObject":
        return cls(
            host=row.host.name,
            state=row.state,
            phase=row.phase or None,
            done_bytes=row.done_bytes,
            waits_for=row.waits_for or None,
            link=row.link or None,
            ignores_checksums=row.ignores_checksums,
            error=row.error or None,
        )


class Thresholds(BaseModel):
    gold: float | None
    silver: float | None
    bronze: float | None
    median: float | None


class CompetitionObject(BaseModel):
    name: str
    state: str  # of its data: prepared, preparing, waiting (for a person), failed, not_prepared
    title: str
    is_demo: bool
    category: str
    metric: str
    is_lower_better: bool | None
    dataset_size_bytes: int | None
    thresholds: Thresholds
    splits: list[str]
    prepared_on: list[str]  # hosts
    data: list[DataObject]  # on each host that has or prepares it
    disk_needed_bytes: int | None  # at most, while it is prepared
    thresholds_from: str | None  # facts, or leaderboard
    thresholds_note: str | None  # why not from the checkout's leaderboard
    error: str | None  # why its data could not be prepared
    known_issue: str

    @classmethod
    def all(cls) -> "list[CompetitionObject]":
        rows = Competition.objects.prefetch_related("splits", "prepared__host")
        return [cls.of(row) for row in rows]

    @classmethod
    def of(cls, row: Competition) -> "CompetitionObject":
        prepared = list(row.prepared.all())
        return cls(
            name=row.name,
            state=data_state(prepared),
            title=row.title,
            is_demo=row.is_demo,
            category=row.category,
            metric=row.metric,
            is_lower_better=row.is_lower_better,
            dataset_size_bytes=row.dataset_size_bytes,
            thresholds=Thresholds(
                gold=row.gold_threshold,
                silver=row.silver_threshold,
                bronze=row.bronze_threshold,
                median=row.median_threshold,
            ),
            splits=[split.name for split in row.splits.all()],
            prepared_on=sorted(
                each.host.name for each in prepared if each.state == PreparedData.State.READY
            ),
            data=[DataObject.of(each) for each in prepared],
            disk_needed_bytes=official_data.disk_needed(row) if row.checkout_id else None,
            thresholds_from=row.threshold_source or None,
            thresholds_note=row.threshold_note or None,
            error=next((each.error for each in prepared if each.error), None),
            known_issue=row.known_issue,
        )


def data_state(prepared: Iterable[PreparedData]) -> str:
    """Of a competition's data, over all hosts: the best that one of them has."""
    states = {each.state for each in prepared}
    if PreparedData.State.READY in states:
        return "prepared"
    if states & {PreparedData.State.PREPARING, PreparedData.State.WANTED}:
        return "preparing"
    if PreparedData.State.WAITING in states:
        return "waiting"
    return "failed" if states else "not_prepared"


class SplitObject(BaseModel):
    name: str
    state: str  # prepared, or not_prepared when the data of one competition is missing
    title: str
    competitions: list[str]

    @classmethod
    def of(cls, split: Split, states: dict[str, str]) -> "SplitObject":
        names = sorted(competition.name for competition in split.competitions.all())
        is_prepared = all(states.get(name) == "prepared" for name in names)
        return cls(
            name=split.name,
            state="prepared" if is_prepared else "not_prepared",
            title=split.title,
            competitions=names,
        )


class ContainerConfigObject(BaseModel):
    name: str
    state: str  # fits: a host could run it; unfit: none could
    reason: str | None  # why it does not fit
    description: str
    runtime: str
    sandboxed: bool
    settings: dict[str, Any]
    version: int
    admin_keys: list[str]  # only admins may start runs with these

    @classmethod
    def of(cls, config: ContainerConfig, reason: str) -> "ContainerConfigObject":
        return cls(
            name=config.name,
            state="unfit" if reason else "fits",
            reason=reason or None,
            description=config.description,
            runtime=config.runtime,
            sandboxed=config.is_sandboxed,
            settings=config.settings,
            version=config.version,
            admin_keys=admin_keys(config.settings),
        )


# ------------------------------------------------------------------------------------- fleet


class GpuObject(BaseModel):
    uuid: str
    index: int
    name: str
    memory_bytes: int | None
    memory_used_bytes: int | None
    utilisation: int | None
    temperature_c: int | None
    fault: str | None
    run: int | None  # that holds it

    @classmethod
    def of(cls, gpu: Gpu) -> "GpuObject":
        lease = next((each for each in gpu.leases.all() if each.released_at is None), None)
        return cls(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            memory_bytes=gpu.memory_bytes,
            memory_used_bytes=gpu.memory_used_bytes,
            utilisation=gpu.utilisation,
            temperature_c=gpu.temperature_c,
            fault=gpu.fault or None,
            run=lease.attempt.run_id if lease else None,
        )


class HostObject(BaseModel):
    name: str
    state: str  # online, draining, put_aside, offline
    put_aside: str | None
    failing: str | None  # as put aside, but the last host that can be used
    declared_lost_at: datetime | None
    is_draining: bool
    worker_seen_at: datetime | None
    service_seen_at: datetime | None
    slots: int
    attempts: int  # that have not ended
    cpus: float | None
    cpu_model: str | None
    memory_bytes: int | None
    disk_total_bytes: int | None
    disk_free_bytes: int | None
    engine_version: str | None
    engine_runtimes: list[str]
    engine_error: str | None
    gpu_driver: str | None
    gpu_error: str | None
    gpus: list[GpuObject]
    prepared: list[str]

    @classmethod
    def of(cls, host: Host, at: datetime) -> "HostObject":
        return cls(
            name=host.name,
            state=host_state(host, at),
            put_aside=host.put_aside or None,
            failing=host.failing or None,
            declared_lost_at=host.declared_lost_at if host.is_declared_lost() else None,
            is_draining=host.is_draining,
            worker_seen_at=host.worker_seen_at,
            service_seen_at=host.service_seen_at,
            slots=host.slots,
            attempts=Attempt.objects.unended().filter(host=host).count(),
            cpus=host.cpus,
            cpu_model=host.cpu_model or None,
            memory_bytes=host.memory_bytes,
            disk_total_bytes=host.disk_total_bytes,
            disk_free_bytes=host.disk_free_bytes,
            engine_version=host.engine_version or None,
            engine_runtimes=host.engine_runtimes,
            engine_error=host.engine_error or None,
            gpu_driver=host.gpu_driver or None,
            gpu_error=host.gpu_error or None,
            gpus=[GpuObject.of(gpu) for gpu in host.gpus.all() if gpu.is_present],
            prepared=sorted(
                each.competition.name
                for each in host.prepared.all()
                if each.state == PreparedData.State.READY
            ),
        )


class HostLost(HostObject):
    lost: list[int]  # runs whose attempts ended with it


def host_state(host: Host, at: datetime) -> str:
    """`at`: now, by the database's clock."""
    if not host.is_online(at):
        return "offline"
    if host.put_aside:
        return "put_aside"
    return "draining" if host.is_draining else "online"


# -------------------------------------------------------------------------------- experiments


class ExperimentObject(BaseModel):
    name: str
    state: str
    agent: str | None
    description: str
    run_groups: list[int]
    counts: dict[str, int]  # runs by state
    created_at: datetime
    url: str

    @classmethod
    def page(cls, rows: Sequence[Experiment]) -> "list[ExperimentObject]":
        counts = _counts("group__experiment", [row.pk for row in rows])
        groups: dict[int, list[int]] = defaultdict(list)
        for experiment, group in RunGroup.objects.filter(experiment__in=rows).values_list(
            "experiment", "pk"
        ):
            groups[experiment].append(group)
        return [
            cls(
                name=row.name,
                state=group_state(counts[row.pk]),
                agent=row.agent.name if row.agent else None,
                description=row.description,
                run_groups=sorted(groups[row.pk]),
                counts=by_name(counts[row.pk]),
                created_at=row.created_at,
                url=address(row.get_absolute_url()),
            )
            for row in rows
        ]


def _counts(by: str, keys: Sequence[int]) -> dict[int, dict[RunState, int]]:
    """Runs by state, for each experiment or run group. One query."""
    counts: dict[int, dict[RunState, int]] = defaultdict(dict)
    rows = Run.objects.filter(**{f"{by}__in": keys}).order_by().values_list(by, "state")
    for key, state, count in rows.annotate(number=Count("pk")):
        counts[key][RunState(state)] = count
    return counts


def by_name(counts: dict[RunState, int]) -> dict[str, int]:
    return {state.value: count for state, count in counts.items()}


# --------------------------------------------------------------------------------- run groups


class RunGroupObject(BaseModel):
    id: int
    state: str
    experiment: str
    agent: str | None
    split: str | None
    competitions: list[str]
    container_config: str | None
    container_config_note: str | None  # why this one, where nobody asked for it by name
    runtime: str | None
    sandboxed: bool | None
    image_id: str | None  # null: still being built, or no image is needed
    seeds: int
    time_limit_s: float | None
    step_timeout_s: float | None
    priority: int
    env: dict[str, str]
    acknowledge_no_gpu: bool
    run_count: int
    counts: dict[str, int]  # runs by state
    results: dict[str, int]  # runs that have a report, by result
    created_by: str | None
    created_at: datetime
    folder: str
    url: str

    @classmethod
    def of(cls, group: RunGroup) -> "RunGroupObject":
        return cls.page([group])[0]

    @classmethod
    def page(cls, groups: Sequence[RunGroup]) -> "list[RunGroupObject]":
        """Three queries, however many groups; `groups` come with `RELATED` selected."""
        keys = [group.pk for group in groups]
        counts = _counts("group", keys)
        competitions: dict[int, list[str]] = defaultdict(list)
        results: dict[int, dict[str, int]] = defaultdict(dict)
        runs = Run.objects.filter(group__in=keys)
        for key, name in (
            runs.order_by("competition__name").values_list("group", "competition__name").distinct()
        ):
            competitions[key].append(name)
        for key, result, count in (
            runs.exclude(result="")
            .order_by()
            .values_list("group", "result")
            .annotate(number=Count("pk"))
        ):
            results[key][result] = count
        return [
            cls(
                id=group.pk,
                state=group_state(counts[group.pk]),
                experiment=group.experiment.name,
                agent=group.agent.name if group.agent else None,
                split=group.split.name if group.split else None,
                competitions=competitions[group.pk],
                container_config=group.container_config.name if group.container_config else None,
                container_config_note=group.config_note or None,
                runtime=group.runtime or None,
                sandboxed=group.runtime == ContainerConfig.Runtime.DOCKER
                if group.runtime
                else None,
                image_id=group.image.image_id if group.image else None,
                seeds=group.seeds,
                time_limit_s=group.time_limit.total_seconds() if group.time_limit else None,
                step_timeout_s=group.step_timeout.total_seconds() if group.step_timeout else None,
                priority=group.priority,
                env=group.env,
                acknowledge_no_gpu=group.acknowledged_no_gpu,
                run_count=sum(counts[group.pk].values()),
                counts=by_name(counts[group.pk]),
                results=results[group.pk],
                created_by=group.created_by.get_username() if group.created_by else None,
                created_at=group.created_at,
                folder=group.folder,
                url=address(group.get_absolute_url()),
            )
            for group in groups
        ]


RELATED = ("experiment", "agent", "split", "container_config", "image", "created_by")


class CancelledGroup(RunGroupObject):
    cancelled: int  # runs that this request cancelled or asked to stop


class CheckObject(BaseModel):
    level: str  # block, acknowledge, inform
    field: str
    message: str
    fix: str


class PlanObject(BaseModel):
    """What a run group would be; nothing was made."""

    dry_run: bool = True
    agent: str
    experiment: str
    split: str | None
    competitions: list[str]
    seeds: int
    run_count: int
    container_config: str
    container_config_note: str | None
    runtime: str
    sandboxed: bool
    image_id: str | None
    time_limit_s: float
    step_timeout_s: float
    checks: list[CheckObject]

    @classmethod
    def of(cls, plan: Plan) -> "PlanObject":
        wanted = plan.wanted
        return cls(
            agent=wanted.agent.name,
            experiment=wanted.experiment_name,
            split=wanted.split.name if wanted.split else None,
            competitions=[competition.name for competition in wanted.competitions],
            seeds=wanted.request.seeds,
            run_count=plan.run_count,
            container_config=plan.config.name,
            container_config_note=plan.config_note or None,
            runtime=plan.config.runtime,
            sandboxed=plan.config.is_sandboxed,
            image_id=wanted.image.image_id if wanted.image and plan.config.is_sandboxed else None,
            time_limit_s=wanted.time_limit.total_seconds(),
            step_timeout_s=wanted.step_timeout.total_seconds(),
            checks=[
                CheckObject(
                    level=check.level, field=check.field, message=check.message, fix=check.fix
                )
                for check in plan.checks
            ],
        )


# --------------------------------------------------------------------------------------- runs


class AttemptObject(BaseModel):
    id: int
    run: int
    number: int
    state: str
    outcome: str | None
    cause: str | None
    cause_text: str | None
    cause_detail: str | None
    last_lines: str | None
    exit_code: int | None
    host: str | None
    hardware: dict[str, Any] | None
    usage: dict[str, Any] | None
    has_lost_contact: bool
    lost_contact_since: datetime | None
    engine_silent_since: datetime | None
    not_before: datetime | None  # back-off after a failure
    overrides: dict[str, Any]  # what a re-run asked for
    cancel_requested_at: datetime | None
    queued_at: datetime
    claimed_at: datetime | None
    agent_started_at: datetime | None
    agent_ended_at: datetime | None
    ended_at: datetime | None
    active_seconds: float | None
    paused_seconds: float | None
    down_seconds: float | None  # its container had ended while no worker watched
    wall_seconds: float | None
    validations: int
    image_id: str | None
    resumed_from: int | None
    # Of active_seconds, what was used up to the checkpoint that it began with.
    charged_seconds: float
    checkpoint_asked_at: datetime | None
    checkpoint_problem: str | None  # why the last one was not saved
    move_asked_at: datetime | None

    @classmethod
    def of(cls, attempt: Attempt, at: datetime) -> "AttemptObject":
        return cls(
            id=attempt.pk,
            run=attempt.run_id,
            number=attempt.number,
            state=attempt.state,
            outcome=attempt.outcome or None,
            cause=attempt.cause or None,
            cause_text=attempt.cause_sentence or None,
            cause_detail=attempt.cause_detail or None,
            last_lines=attempt.last_lines or None,
            exit_code=attempt.exit_code,
            host=attempt.host.name if attempt.host else None,
            hardware=attempt.hardware or None,
            usage=attempt.usage or None,
            has_lost_contact=(lost := attempt.has_lost_contact(at)),
            lost_contact_since=attempt.lease_until if lost else None,
            engine_silent_since=attempt.engine_silent_since,
            not_before=attempt.not_before,
            overrides=attempt.overrides,
            cancel_requested_at=attempt.cancel_requested_at,
            queued_at=attempt.queued_at,
            claimed_at=attempt.claimed_at,
            agent_started_at=attempt.agent_started_at,
            agent_ended_at=attempt.agent_ended_at,
            ended_at=attempt.ended_at,
            active_seconds=active_seconds(attempt),
            charged_seconds=attempt.charged_seconds,
            checkpoint_asked_at=attempt.checkpoint_asked_at,
            checkpoint_problem=attempt.checkpoint_problem or None,
            move_asked_at=attempt.move_asked_at,
            paused_seconds=attempt.paused_seconds if attempt.agent_started_at else None,
            down_seconds=attempt.down_seconds if attempt.agent_started_at else None,
            wall_seconds=attempt.wall_seconds,
            validations=attempt.validations,
            image_id=attempt.image_id or None,
            resumed_from=attempt.resumed_from_id,
        )


def active_seconds(attempt: Attempt) -> float | None:
    """Null until its agent has started."""
    return attempt.active_seconds if attempt.agent_started_at else None


class RunObject(BaseModel):
    """Host, hardware and times are those of the attempt that counts, else of the newest."""

    id: int
    uuid: str
    run_group: int
    competition: str
    seed: int
    state: str
    result: str | None
    score: float | None
    medal: str | None
    is_cut_short: bool
    waiting: str | None  # why a queued run has not started; only on the run itself
    cause: str | None
    cause_text: str | None
    host: str | None
    hardware: dict[str, Any] | None
    active_seconds: float | None
    wall_seconds: float | None
    attempts: list[AttemptObject]
    url: str

    @classmethod
    def of(cls, run: Run, at: datetime, *, waiting: str | None = None) -> "RunObject":
        """`run` comes with its attempts and their hosts prefetched, as `with_attempts` does."""
        attempts = sorted(run.attempts.all(), key=lambda attempt: attempt.number)
        newest = attempts[-1]
        counted = next((each for each in attempts if each.pk == run.counted_id), newest)
        return cls(
            id=run.pk,
            uuid=str(run.uuid),
            run_group=run.group_id,
            competition=run.competition.name,
            seed=run.seed,
            state=run.state,
            result=run.result or None,
            score=finite(run.score),
            medal=run.result if run.result in MEDALS else None,
            is_cut_short=run.is_cut_short,
            waiting=waiting,
            cause=newest.cause or None,
            cause_text=newest.cause_sentence or None,
            host=counted.host.name if counted.host else None,
            hardware=counted.hardware or None,
            active_seconds=active_seconds(counted),
            wall_seconds=counted.wall_seconds,
            attempts=[AttemptObject.of(attempt, at) for attempt in attempts],
            url=address(run.get_absolute_url()),
        )


def with_attempts(runs: Any) -> Any:
    """A query set of runs with all that `RunObject.of` reads. Three queries."""
    return runs.select_related("competition").prefetch_related("attempts__host")


class Requeued(Page[AttemptObject]):
    """The new attempts, and the runs that were left alone since they have not ended."""

    skipped: list[int]


class CheckpointObject(BaseModel):
    id: int
    attempt: int  # its number
    number: int
    state: str  # kept, dropped, corrupt
    fault: str | None
    created_at: datetime
    step: int | None
    active_seconds: float
    files: int
    bytes: int
    added_bytes: int
    pause_seconds: float

    @classmethod
    def of(cls, row: Checkpoint) -> "CheckpointObject":
        return cls(
            id=row.pk,
            attempt=row.attempt.number,
            number=row.number,
            state="corrupt" if row.fault else "kept" if row.path else "dropped",
            fault=row.fault or None,
            created_at=row.created_at,
            step=row.step,
            active_seconds=row.active_seconds,
            files=row.files,
            bytes=row.size,
            added_bytes=row.added_bytes,
            pause_seconds=row.pause_seconds,
        )


class LogWindow(BaseModel):
    """Some of a log. Ask on with `offset=next_offset`; at `total` there is no more for now."""

    run: int
    attempt: int  # its number
    source: str
    text: str
    offset: int
    next_offset: int
    total: int
    first_line: int


class ArtifactObject(BaseModel):
    path: str
    bytes: int | None
    url: str


class Artifacts(Page[ArtifactObject]):
    left_out: list[dict[str, Any]]  # what was not kept, and why
