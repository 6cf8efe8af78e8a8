"""Step timeouts in a row over a run's attempts, and what an agent is told of its limit."""

from datetime import timedelta

import pytest
from django.conf import settings as django_settings

from mlebench_web.catalog import folders
from runs import agent_manifest, queue, specification
from runs.agent_env import with_step_timeout
from runs.containers import engine_of
from runs.core.states import Outcome, State
from runs.core.steps import StepEnd
from runs.models import Attempt, Run, Step
from runs.step_timeouts import in_a_row, span
from runs.worker import Supervisor
from tests import factories
from tests.support import small_competition

pytestmark = pytest.mark.django_db

FINISHED, FAILED, TIMED_OUT = StepEnd.FINISHED, StepEnd.FAILED, StepEnd.TIMED_OUT
INTERRUPTED = StepEnd.INTERRUPTED


def with_steps(attempt: Attempt, *ends: StepEnd) -> Attempt:
    for number, end in enumerate(ends, start=1):
        Step.objects.create(attempt=attempt, number=number, end=end)
    return attempt


@pytest.mark.parametrize(
    ("before", "now", "count"),
    [
        pytest.param([], [TIMED_OUT, TIMED_OUT], 2, id="in one attempt"),
        pytest.param([], [TIMED_OUT, FAILED, TIMED_OUT], 2, id="a failed step between"),
        pytest.param([], [TIMED_OUT, FINISHED, TIMED_OUT], 1, id="a finished step between"),
        pytest.param(
            [(Outcome.CONTINUED, [FINISHED, TIMED_OUT])], [TIMED_OUT], 2, id="over two attempts"
        ),
        pytest.param(
            [
                (Outcome.CONTINUED, [TIMED_OUT]),
                (Outcome.INFRASTRUCTURE_FAILED, [INTERRUPTED]),
                (Outcome.CONTINUED, [TIMED_OUT]),
            ],
            [TIMED_OUT],
            3,
            id="a lost host between",
        ),
        pytest.param(
            [(Outcome.CONTINUED, [TIMED_OUT]), (Outcome.CONTINUED, [FINISHED, TIMED_OUT])],
            [],
            1,
            id="finished in an attempt before",
        ),
        pytest.param(
            [
                (Outcome.CONTINUED, [TIMED_OUT]),
                (Outcome.CONTINUED, [TIMED_OUT]),
                (Outcome.AGENT_FAILED, [TIMED_OUT]),
            ],
            [TIMED_OUT],
            1,
            id="a person has run it again",
        ),
        pytest.param(
            [(Outcome.CANCELLED, [TIMED_OUT])], [], 0, id="a person has run it again after a cancel"
        ),
    ],
)
def test_step_timeouts_in_a_row(
    before: list[tuple[Outcome, list[StepEnd]]], now: list[StepEnd], count: int
) -> None:
    run = Run.objects.create(
        group=factories.make_group(), competition=factories.make_competition(), seed=0
    )
    for outcome, ends in before:
        with_steps(factories.make_attempt(run, outcome=outcome), *ends)

    assert in_a_row(with_steps(factories.make_attempt(run), *now)) == count


def test_another_runs_steps_are_not_counted() -> None:
    group = factories.make_group()
    with_steps(factories.make_run(group).newest_attempt(), TIMED_OUT)

    assert in_a_row(factories.make_run(group).newest_attempt()) == 0


@pytest.mark.parametrize(
    ("given", "option", "told"),
    [
        pytest.param({"a": 1}, "", {"a": 1}, id="it has no option"),
        pytest.param({"a": 1}, "exec.timeout", {"a": 1, "exec.timeout": 60}, id="said last"),
        pytest.param(
            {"exec.timeout": 32400, "a": 1},
            "exec.timeout",
            {"a": 1, "exec.timeout": 60},
            id="in place of its longer one",
        ),
        pytest.param(
            {"exec.timeout": 30, "a": 1},
            "exec.timeout",
            {"exec.timeout": 30, "a": 1},
            id="its own is stricter",
        ),
        pytest.param(
            {"exec.timeout": "soon"}, "exec.timeout", {"exec.timeout": 60}, id="its own is nonsense"
        ),
    ],
)
def test_an_agent_with_an_option_for_it_gets_the_step_timeout(
    given: dict[str, object], option: str, told: dict[str, object]
) -> None:
    assert list(with_step_timeout(given, option, 60).items()) == list(told.items())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4, "4 s"), (119, "119 s"), (120, "2 min"), (5400, "90 min"), (32400, "9 h"), (9000, "2.5 h")],
)
def test_a_limit_is_said_in_a_unit_that_fits(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_aide_is_known_to_have_one() -> None:
    assert agent_manifest.of_folder("aide").step_timeout.kwarg == "exec.timeout"
    assert agent_manifest.of_folder("dummy").step_timeout.kwarg == ""


def test_a_re_run_may_have_another_step_timeout_than_its_group() -> None:
    run = factories.make_run()
    attempt = run.newest_attempt()
    assert queue.step_timeout_of(attempt) == run.group.step_timeout

    attempt.overrides = {"step_timeout_s": 90}

    assert queue.step_timeout_of(attempt).total_seconds() == 90


def test_the_manifest_of_marathon_knows_the_process_of_its_step() -> None:
    agent = factories.make_agent("marathon", folder=folders.builtin("marathon"))

    assert "marathon_step" in agent_manifest.of(agent).step_process


def test_the_option_is_among_the_arguments_of_the_agents_start_script() -> None:
    agent = factories.make_agent(
        "aide", image_name="aide", is_builtin=False, kwargs_type="omegaconf"
    )
    group = factories.make_group(
        agent=agent,
        agent_kwargs={"exec.timeout": 32400, "agent.steps": 5},
        step_timeout=timedelta(minutes=10),
    )
    competition = small_competition.make()
    host = factories.make_host(django_settings.HOST_NAME)
    factories.make_prepared(host, competition)
    attempt = factories.make_run(
        group, competition=competition, state=State.STARTING, host=host
    ).newest_attempt()
    assert attempt.lease_token
    lease = queue.Lease(attempt, attempt.lease_token, adopted=False)
    supervisor = Supervisor(lease, engine_of("docker"))
    supervisor.workspace.make()

    spec = specification.container_of(attempt, supervisor.workspace, supervisor.manifest)

    assert spec.agent_args == ("agent.steps=5", "exec.timeout=600")
    assert (spec.env["MLE_STEP_TIMEOUT_SECS"], spec.env["MLE_STEP_TIMEOUTS"]) == ("600", "0")
