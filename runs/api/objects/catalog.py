"""Agents, images, checkouts, secrets, competitions, splits and container configs."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

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
from mlebench_web.fleet.models import PreparedData
from runs import agent_manifest, sandbox
from runs.api.objects.base import address
from runs.core.container_config import admin_keys


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
            sandboxed=not sandbox.why_not(config.runtime, config.settings, None),
            settings=config.settings,
            version=config.version,
            admin_keys=admin_keys(config.settings),
        )
