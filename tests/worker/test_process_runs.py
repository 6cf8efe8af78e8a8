"""Runs in the process runtime, taken through the claim and the supervisor: steps and resume."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import connection

from mlebench_web.catalog import folders
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import logs, queue, resuming, worker
from runs.containers import engine_of
from runs.core import step_limits
from runs.core.failures import Cause
from runs.core.states import Outcome
from runs.core.steps import StepEnd
from runs.models import Attempt, Run, RunGroup
from tests import factories
from tests.support import small_competition
from tests.worker.test_process_engine import wait_for

pytestmark = pytest.mark.django_db(transaction=True)

FINISHED, TIMED_OUT = StepEnd.FINISHED, StepEnd.TIMED_OUT


class Machine:
    """A host without an engine, on which marathons run as processes."""

    def __init__(self) -> None:
        self.engine = engine_of("process")
        self.competition = small_competition.make()
        self.host = factories.make_host(
            django_settings.HOST_NAME,
            slots=4,
            boot_id=hosts.boot_id(),
            engine_id="",
            engine_error="none here",
            image_ids=[],
        )
        factories.make_prepared(self.host, self.competition)
        self.threads: list[threading.Thread] = []

    def entered(self, *, step_timeout: float = 3600, **told: object) -> Attempt:
        agent = factories.make_agent("marathon", folder=folders.builtin("marathon"))
        config = factories.make_config(
            "test processes", runtime="process", settings={"nano_cpus": 5e8, "mem_limit": "256m"}
        )
        defaults = {"STEPS": 5, "STEP_SECONDS": 0.1, "TROUBLE": "hang@3", "TROUBLE_ATTEMPTS": 1}
        group = factories.make_group(
            agent=agent,
            config=config,
            env={f"MARATHON_{name}": str(value) for name, value in {**defaults, **told}.items()},
            time_limit=timedelta(minutes=5),
            step_timeout=timedelta(seconds=step_timeout),
        )
        return factories.make_run(group, competition=self.competition).newest_attempt()

    def supervise(self) -> None:
        lease = queue.take_work(Host.objects.get(pk=self.host.pk))
        assert lease is not None
        worker.supervise(lease)

    def in_the_background(self) -> threading.Thread:
        def work() -> None:
            try:
                self.supervise()
            finally:
                connection.close()

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        return self.threads[-1]


@pytest.fixture
def machine(settings: object) -> Iterator[Machine]:
    settings.STOP_GRACE = timedelta(seconds=2)  # type: ignore[attr-defined]
    machine = Machine()
    yield machine
    for attempt in Attempt.objects.exclude(container_id=""):
        machine.engine.remove(attempt.container_id)
    for thread in machine.threads:
        thread.join(30)


def ends(attempt: Attempt) -> dict[int, str]:
    return dict(attempt.steps.in_order().values_list("number", "end"))


def said(attempt: Attempt, source: str = "agent") -> str:
    return "\n".join(logs.last_lines(attempt.pk, source, 1000))


def test_a_run_whose_processes_are_killed_goes_on_after_its_last_checkpoint(
    machine: Machine,
) -> None:
    first = machine.entered()
    thread = machine.in_the_background()
    wait_for(lambda: "Trouble at step 3" in said(first), seconds=60)
    wait_for(lambda: resuming.ask_checkpoint(Run.objects.get(pk=first.run_id), by=None))
    wait_for(lambda: first.checkpoints.filter(step=2).exists(), seconds=60)
    first.refresh_from_db()
    machine.engine.kill(first.container_id)
    thread.join(60)

    first.refresh_from_db()
    assert (first.outcome, first.cause) == (Outcome.INFRASTRUCTURE_FAILED, Cause.CONTAINER_KILLED)
    machine.supervise()

    second = first.run.newest_attempt()
    assert (second.number, second.outcome) == (2, Outcome.GRADED)
    assert ends(second) == {3: FINISHED, 4: FINISHED, 5: FINISHED}
    assert "Going on after step 2" in said(second)
    assert second.charged_seconds == second.restored_checkpoint.active_seconds  # type: ignore[union-attr]
    assert not list(Path(django_settings.ATTEMPTS_DIR).glob("*"))


@pytest.mark.parametrize(
    ("told", "signals"),
    [
        pytest.param({"STEP_PROCESS": 1}, 1, id="its process alone is ended"),
        pytest.param({"STEP_PROCESS": 1, "SIGINT": "ignore"}, 2, id="its process ignores it"),
        pytest.param({"SIGINT": "catch"}, 1, id="the agent catches it"),
    ],
)
def test_a_step_is_ended_by_a_signal_and_its_agent_goes_on(
    machine: Machine, told: dict[str, object], signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told.get("SIGINT") == "ignore":
        monkeypatch.setattr(step_limits, "INTERRUPT_GRACE", 1.0)
    attempt = machine.entered(step_timeout=4, **told)

    machine.supervise()

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.exit_code) == (Outcome.GRADED, 0)
    assert ends(attempt) == {1: FINISHED, 2: FINISHED, 3: TIMED_OUT, 4: FINISHED, 5: FINISHED}
    assert said(attempt, "run").count("in its container") == signals


def test_three_step_timeouts_in_a_row_end_the_run(machine: Machine) -> None:
    attempt = machine.entered(step_timeout=4, TROUBLE_ATTEMPTS=0)

    for _ in range(3):
        machine.supervise()

    attempts = list(Run.objects.get(pk=attempt.run_id).attempts.order_by("number"))
    assert [(each.outcome, each.cause) for each in attempts] == [
        (Outcome.CONTINUED, Cause.STEP_TIMEOUT),
        (Outcome.CONTINUED, Cause.STEP_TIMEOUT),
        (Outcome.GRADED, Cause.STEP_TIMEOUT),
    ]
    assert [ends(each)[3] for each in attempts] == [TIMED_OUT] * 3
    assert RunGroup.objects.get().is_over()
