"""Experiments, run groups and what a submission would start."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from django.db.models import Count
from pydantic import BaseModel

from runs.api.objects.base import address
from runs.core.group_state import group_state
from runs.core.states import RunState
from runs.models import Experiment, Run, RunGroup
from runs.submit import Plan

RELATED = ("experiment", "agent", "split", "container_config", "image", "created_by")


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
    imported_from: str | None  # the file or folder that it came from; null: it was run here
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
                sandboxed=not group.why_unsandboxed if group.runtime else None,
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
                imported_from=group.imported_from or None,
                url=address(group.get_absolute_url()),
            )
            for group in groups
        ]


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
            sandboxed=not plan.why_unsandboxed,
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
