"""People and a database with one of everything, for tests of pages."""

from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from mlebench_web.accounts.models import ApiToken, OneTimeLink, Role, User
from mlebench_web.accounts.people import set_role
from mlebench_web.catalog.models import Competition
from runs import logs
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, State
from runs.models import Run, RunGroup
from tests.factories import (
    lease_gpu,
    make_agent,
    make_attempt,
    make_competition,
    make_config,
    make_gpu,
    make_group,
    make_host,
    make_prepared,
    make_run,
    make_split,
    make_step,
    make_user,
)

GRADED = tuple(Result)
LIVE = tuple(state for state in State if state != State.ENDED)
FAILURES = (
    (Outcome.AGENT_FAILED, Cause.AGENT_CRASHED),
    (Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST),
    (Outcome.CANCELLED, Cause.CANCELLED),
)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@dataclass
class World:
    """A run group of alice's with a run in every state, and what stands around it."""

    alice: User
    admin: User
    group: RunGroup
    finished: RunGroup
    by_result: dict[Result, Run]
    by_state: dict[State, Run]
    by_outcome: dict[Outcome, Run]
    lost: Run
    retried: Run


@pytest.fixture
def world(db: None) -> World:
    alice = make_user("alice")
    admin = make_user("ada", role=Role.ADMIN)
    set_role(admin, Role.ADMIN)
    admin.save()
    host = make_host("box-1")
    gpus = make_host("box-2", gpu_driver="570.1")
    gpu = make_gpu(gpus)
    make_gpu(gpus, 1, fault="Lost.", utilisation=None, temperature_c=None)
    make_host(
        "box-3",
        worker_seen_at=timezone.now() - timedelta(hours=2),
        service_seen_at=timezone.now() - timedelta(hours=1),
        engine_error="no socket",
        gpu_error="NVML: driver mismatch",
        cpus=None,
        memory_bytes=None,
        disk_free_bytes=None,
        disk_total_bytes=None,
    )
    make_host("box-4", worker_seen_at=None, service_seen_at=None, is_draining=True)
    names = [f"demo-{word}" for word in ("one", "two", "three")]
    competitions: list[Competition] = [make_competition(name) for name in names]
    split = make_split("demo", competitions)
    make_prepared(host, competitions[0])
    make_prepared(host, competitions[1], "failed")
    make_prepared(host, competitions[2], "preparing")
    group = make_group(owner=alice, split=split, seeds=10, experiment="all states")
    where = {"host": host}
    numbers = iter(range(100))

    def run(**fields: object) -> Run:
        seed = next(numbers)
        return make_run(group, competition=competitions[seed % 3], seed=seed, **fields)

    by_result = {result: run(result=result, **where) for result in GRADED}
    by_state = {state: run(state=state, **where) for state in LIVE}
    by_outcome = {
        outcome: run(outcome=outcome, cause=cause, cause_detail="seen <b>so</b>", last_lines="x")
        for outcome, cause in FAILURES
    }
    lost = run(state=State.RUNNING, host=gpus, lease_until=timezone.now() - timedelta(minutes=5))
    lease_gpu(lost.newest_attempt(), gpu)
    retried = run(outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.DISK_FULL, **where)
    make_attempt(retried, outcome=Outcome.CONTINUED, cause=Cause.STEP_TIMEOUT, host=host)
    make_attempt(
        retried,
        result=Result.GOLD,
        host=host,
        artifacts=[{"path": "code/a b.py", "bytes": 3}],
        left_out=[{"path": "link", "why": "a symbolic link"}],
        timings={"prepare": 0.1, "start": 0.3, "grade": 0.2},
        usage={"cpu_seconds": 3.5, "memory_peak_bytes": 1000},
    )
    for attempt in (*retried.attempts.all(), by_state[State.RUNNING].newest_attempt()):
        make_step(
            attempt, 1, value=0.7, name="a very long name of a step without a space_" + "x" * 150
        )
        make_step(attempt, 2, "failed", error="ValueError: <b>")
        make_step(attempt, 3, "interrupted" if attempt.is_ended else "", value=0.9)
    logs.append(by_result[Result.GOLD].newest_attempt().pk, "run", "claimed")
    finished = make_group(owner=alice, split=split, seeds=1, experiment="done")
    make_run(finished, competition=competitions[0], result=Result.GOLD, host=host)
    process = make_group(
        owner=admin,
        agent=make_agent("dummy"),
        config=make_config("bare", runtime="process"),
        config_note="No host has an engine.",
        experiment="bare",
    )
    make_run(process, competition=competitions[0], result=Result.VALID, host=host)
    ApiToken.make(admin, name="script")
    OneTimeLink.make(OneTimeLink.Purpose.INVITE, lasts=timedelta(days=1), made_by=admin)
    return World(
        alice=alice,
        admin=admin,
        group=group,
        finished=finished,
        by_result=by_result,
        by_state=by_state,
        by_outcome=by_outcome,
        lost=lost,
        retried=retried,
    )
