"""Rows for tests, made directly in the database: no broker, engine or data needed.

`make_run(state=..., outcome=...)` gives a run whose newest attempt is in that state, as the
product would have left it: lease, host, times, report and the run's copy of the result.
"""

import itertools
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.utils import timezone

from mlebench_web.accounts.models import Role, Team, User
from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split
from mlebench_web.fleet.models import Gpu, Host, PreparedData
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, RunState, State, run_state
from runs.models import Attempt, Experiment, GpuLease, GradingReport, Move, Run, RunGroup, Step

PASSWORD = "correct horse battery"
_numbers = itertools.count(1)

IMAGE_ID = "sha256:" + "1" * 64
GIB = 2**30


def make_user(
    username: str = "alice", *, role: Role = Role.RESEARCHER, team: str | None = "vision"
) -> User:
    """An active user with PASSWORD; the same name gives the same user."""
    if user := User.objects.filter(username=username).first():
        return user
    user = User(username=username, email=f"{username}@example.org", role=role)
    if team:
        user.team, _ = Team.objects.get_or_create(name=team)
    user.set_password(PASSWORD)
    user.save()
    return user


def make_competition(name: str = "demo-diamond-prices", **fields: object) -> Competition:
    """Lower is better unless said; thresholds are those of a small reference ladder.

    One that is no demo has a folder, as those of a checkout: of facts alone none can be run.
    """
    defaults: dict[str, object] = {
        "title": name.replace("-", " ").capitalize(),
        "is_demo": name.startswith("demo-"),
        "metric": "RMSLE",
        "is_lower_better": True,
        "dataset_size_bytes": 3_000_000,
        "category": "Tabular",
        "folder": "" if name.startswith("demo-") else f"/nowhere/{name}",
        "gold_threshold": 0.085,
        "silver_threshold": 0.09,
        "bronze_threshold": 0.1,
        "median_threshold": 0.15,
    }
    competition, made = Competition.objects.get_or_create(
        name=name, defaults={**defaults, **fields}
    )
    if fields and not made:
        Competition.objects.filter(pk=competition.pk).update(**fields)
        competition.refresh_from_db()
    return competition


def make_split(
    name: str = "demo", competitions: Sequence[Competition] = (), *, position: int = 100
) -> Split:
    split, _ = Split.objects.get_or_create(
        name=name, defaults={"title": name.capitalize(), "position": position}
    )
    split.competitions.add(*competitions)
    return split


def make_agent(name: str = "baseline", **fields: object) -> Agent:
    defaults: dict[str, object] = {
        "image_name": name.split("/")[0],
        "folder": "",
        "start": "start.sh",
        "dockerfile": "Dockerfile",
        "is_builtin": True,
        "runs_as_process": True,
        "network": "none",
        "description": f"The {name} agent",
    }
    agent, _ = Agent.objects.get_or_create(name=name, defaults={**defaults, **fields})
    return agent


def make_image(agent: Agent, *, image_id: str = IMAGE_ID) -> AgentImage:
    image, _ = AgentImage.objects.get_or_create(
        folder=agent.folder,
        image_name=agent.image_name,
        image_id=image_id,
        defaults={"state": AgentImage.State.READY, "source_digest": "d" * 64},
    )
    return image


def make_config(name: str = "demo", **fields: object) -> ContainerConfig:
    defaults: dict[str, object] = {
        "description": "2 vCPU, 2 GB, no GPU",
        "settings": {"nano_cpus": 2_000_000_000, "mem_limit": "2G"},
        "is_builtin": True,
    }
    config, _ = ContainerConfig.objects.get_or_create(name=name, defaults={**defaults, **fields})
    return config


def make_host(name: str = "box-1", **fields: object) -> Host:
    """Online, with an engine that has IMAGE_ID, 8 CPUs, 32 GiB and no GPU."""
    now = timezone.now()
    defaults: dict[str, object] = {
        "worker_seen_at": now,
        "service_seen_at": now,
        "slots": 4,
        "cpus": 8,
        "memory_bytes": 32 * GIB,
        "memory_reserve_bytes": 2 * GIB,
        "cpu_model": "Example CPU",
        "disk_total_bytes": 500 * GIB,
        "disk_free_bytes": 300 * GIB,
        "engine_id": f"engine-{name}",
        "engine_version": "27.0.0",
        "engine_runtimes": ["runc"],
        "image_ids": [IMAGE_ID],
        "version": "0.1.0",
    }
    host, made = Host.objects.get_or_create(name=name, defaults={**defaults, **fields})
    if fields and not made:
        Host.objects.filter(pk=host.pk).update(**fields)
        host.refresh_from_db()
    return host


def make_gpu(host: Host, index: int = 0, **fields: object) -> Gpu:
    defaults: dict[str, object] = {
        "name": "NVIDIA A10",
        "memory_bytes": 24 * GIB,
        "memory_used_bytes": 2 * GIB,
        "utilisation": 40,
        "temperature_c": 51,
        "seen_at": timezone.now(),
    }
    return Gpu.objects.create(
        host=host, index=index, uuid=f"GPU-{uuid.uuid4()}", **{**defaults, **fields}
    )


def make_prepared(host: Host, competition: Competition, state: str = "ready") -> PreparedData:
    return PreparedData.objects.create(host=host, competition=competition, state=state)


def make_group(
    *,
    owner: User | None = None,
    agent: Agent | None = None,
    experiment: str | None = None,
    competitions: Sequence[Competition] | None = None,
    split: Split | None = None,
    config: ContainerConfig | None = None,
    seeds: int = 1,
    runs: bool = False,
    **fields: object,
) -> RunGroup:
    """A run group of alice's. With `runs`, also its runs, each with a queued first attempt."""
    owner = owner or make_user()
    agent = agent or make_agent()
    config = config or make_config()
    name = experiment or f"{agent.name} {next(_numbers)}"
    row, _ = Experiment.objects.get_or_create(
        name=name, defaults={"agent": agent, "created_by": owner}
    )
    defaults: dict[str, object] = {
        "image": make_image(agent) if config.runtime == "docker" else None,
        "container_settings": config.settings,
        "runtime": config.runtime,
        "time_limit": timedelta(hours=24),
        "step_timeout": timedelta(hours=9),
        "folder": f"2026-01-01T00-00-00-GMT_run-group_{agent.image_name}-{next(_numbers)}",
    }
    group = RunGroup.objects.create(
        experiment=row,
        agent=agent,
        split=split,
        container_config=config,
        seeds=seeds,
        created_by=owner,
        **{"team": owner.team, **defaults, **fields},
    )
    if runs:
        for competition in competitions or [make_competition()]:
            for seed in range(seeds):
                make_run(group, competition=competition, seed=seed)
    return group


def make_run(
    group: RunGroup | None = None,
    *,
    competition: Competition | None = None,
    seed: int | None = None,
    state: State = State.QUEUED,
    outcome: Outcome | None = None,
    result: Result | None = None,
    cause: Cause | None = None,
    **attempt_fields: object,
) -> Run:
    """A run with one attempt in this state. `result` alone means ended, graded, with a report."""
    group = group or make_group()
    competition = competition or make_competition()
    if seed is None:
        seed = group.runs.filter(competition=competition).count()
    run = Run.objects.create(group=group, competition=competition, seed=seed)
    make_attempt(run, state=state, outcome=outcome, result=result, cause=cause, **attempt_fields)
    run.refresh_from_db()
    return run


def make_attempt(
    run: Run,
    *,
    state: State = State.QUEUED,
    outcome: Outcome | None = None,
    result: Result | None = None,
    cause: Cause | None = None,
    host: Host | None = None,
    began: datetime | None = None,
    lasted: timedelta = timedelta(minutes=2),
    **fields: object,
) -> Attempt:
    """The run's next attempt, and the run's copy of its state. Ends an older unended one never."""
    if result is not None:
        outcome = outcome or Outcome.GRADED
    if outcome is not None:
        state = State.ENDED
    began = began or timezone.now() - lasted - timedelta(seconds=5)
    values: dict[str, object] = {
        "queued_at": began - timedelta(seconds=3),
        "cause": cause or "",
        "outcome": outcome or "",
    }
    if state not in (State.QUEUED,) and outcome != Outcome.CANCELLED:
        host = host or make_host()
        values |= {
            "host": host,
            "lease_token": uuid.uuid4(),
            "lease_until": timezone.now() + timedelta(seconds=90),
            "claimed_at": began,
            "cpus": 2.0,
            "memory_bytes": 2 * GIB,
            "image_id": IMAGE_ID,
            "container_id": uuid.uuid4().hex,
            "hardware": {"cpus": 2.0, "memory_bytes": 2 * GIB, "gpus": []},
        }
    if state in (State.RUNNING, State.COLLECTING, State.GRADING, State.ENDED):
        values["agent_started_at"] = began + timedelta(seconds=1)
    if state in (State.COLLECTING, State.GRADING) or outcome in (
        Outcome.GRADED,
        Outcome.AGENT_FAILED,
    ):
        values |= {
            "agent_ended_at": began + lasted,
            "active_seconds": lasted.total_seconds(),
            "ended_by_itself": True,
            "exit_code": 1 if outcome == Outcome.AGENT_FAILED else 0,
        }
    if state == State.ENDED:
        values |= {"ended_at": began + lasted, "released_at": began + lasted}
    number = run.attempts.count() + 1
    attempt = Attempt.objects.create(run=run, number=number, state=state, **{**values, **fields})
    Move.objects.create(attempt=attempt, old="", new=State.QUEUED, by="test")
    if state != State.QUEUED:
        Move.objects.create(
            attempt=attempt,
            old=State.QUEUED,
            new=state,
            by="test",
            outcome=outcome or "",
            cause=cause or "",
        )
    if outcome in (Outcome.GRADED, Outcome.AGENT_FAILED):
        make_report(attempt, result=result or Result.NO_SUBMISSION)
        run.count(attempt)
    Run.objects.filter(pk=run.pk).update(
        state=RunState.QUEUED if outcome == Outcome.CONTINUED else run_state(state, outcome)
    )
    return attempt


def make_step(
    attempt: Attempt,
    number: int,
    end: str = "finished",
    *,
    value: float | None = None,
    maximize: bool | None = True,
    seconds: float = 10,
    **fields: object,
) -> Step:
    """A step of ten seconds, one after the other; `end` "": it runs. `value` is its AUC."""
    began = seconds * (number - 1)
    defaults: dict[str, object] = {
        "name": f"fold {number}",
        "end": end,
        "began_seconds": began,
        "ended_seconds": began + seconds if end else None,
        "began_at": timezone.now(),
    }
    if value is not None:
        defaults |= {"metric_name": "auc", "metric_value": value, "metric_maximize": maximize}
    return Step.objects.create(attempt=attempt, number=number, **{**defaults, **fields})


def make_report(
    attempt: Attempt, *, result: Result = Result.GOLD, score: float | None = None
) -> GradingReport:
    """The attempt's current report, as a submission of that result would give it."""
    competition = attempt.run.competition
    exists = result != Result.NO_SUBMISSION
    valid = exists and result != Result.INVALID
    marks = {
        Result.GOLD: competition.gold_threshold,
        Result.SILVER: competition.silver_threshold,
        Result.BRONZE: competition.bronze_threshold,
        Result.ABOVE_MEDIAN: competition.median_threshold,
    }
    if score is None and valid:
        # A valid one that is not above the median: a little worse than the worst threshold.
        worse = 1.2 if competition.is_lower_better else 0.8
        median = competition.median_threshold or 1.0
        score = marks.get(result) or median * worse
        if result == Result.ABOVE_MEDIAN:
            score = median * (0.99 if competition.is_lower_better else 1.01)
    medal = result in (Result.GOLD, Result.SILVER, Result.BRONZE)
    attempt.reports.update(is_current=False)
    return GradingReport.objects.create(
        attempt=attempt,
        score=score,
        gold_threshold=competition.gold_threshold,
        silver_threshold=competition.silver_threshold,
        bronze_threshold=competition.bronze_threshold,
        median_threshold=competition.median_threshold,
        any_medal=medal,
        gold_medal=result == Result.GOLD,
        silver_medal=result == Result.SILVER,
        bronze_medal=result == Result.BRONZE,
        above_median=medal or result == Result.ABOVE_MEDIAN,
        submission_exists=exists,
        valid_submission=valid,
        is_lower_better=competition.is_lower_better,
        submission_path="submission/submission.csv" if exists else "None",
        message="Wrong number of rows." if result == Result.INVALID else "",
        grader="mlebench-web 0.1.0",
        data_digest="e" * 64,
    )


def lease_gpu(attempt: Attempt, gpu: Gpu, *, released: bool = False) -> GpuLease:
    return GpuLease.objects.create(
        attempt=attempt, gpu=gpu, released_at=timezone.now() if released else None
    )
