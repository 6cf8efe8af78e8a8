"""Step timeouts in a row over a run's attempts, and what an agent is told of its limit."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from mlebench_web.accounts.models import User
from mlebench_web.catalog import folders
from runs import agent_manifest, checkpoints, event_file, queue, specification, submit
from runs.agent_env import with_step_timeout
from runs.containers import engine_of
from runs.core.states import Outcome, State
from runs.core.step_limits import IN_A_ROW
from runs.core.steps import StepEnd
from runs.models import Attempt, Run
from runs.step_timeouts import StepTimeoutPart, in_a_row, span
from runs.steps import Feed
from runs.watching import Ending, Watch
from runs.worker import Supervisor
from tests import factories
from tests.support import small_competition
from tests.support.speaker import running_attempt
from tests.worker.test_steps import Seat, adopted, finished, rows, started

pytestmark = pytest.mark.django_db

FINISHED, FAILED, TIMED_OUT = StepEnd.FINISHED, StepEnd.FAILED, StepEnd.TIMED_OUT
INTERRUPTED = StepEnd.INTERRUPTED


def with_steps(attempt: Attempt, *ends: StepEnd) -> Attempt:
    feed = Feed()
    for end in ends:
        if end == FINISHED:
            feed.timeouts, feed.has_finished = 0, True
        feed.timeouts += end == TIMED_OUT
    attempt.step_feed = feed.as_json()
    attempt.save()
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


def test_a_person_who_runs_it_again_after_the_last_try_begins_anew(alice: User) -> None:
    """What comes of a failure of the infrastructure looks the same, whoever queued the next."""
    run = Run.objects.create(
        group=factories.make_group(), competition=factories.make_competition(), seed=0
    )
    for outcome in (Outcome.CONTINUED, Outcome.CONTINUED, Outcome.INFRASTRUCTURE_FAILED):
        with_steps(factories.make_attempt(run, outcome=outcome), TIMED_OUT)

    [again] = submit.rerun([run], by=alice)

    assert in_a_row(again) == 0
    # From here on they follow each other again.
    again.state, again.outcome = State.ENDED, Outcome.INFRASTRUCTURE_FAILED
    with_steps(again, TIMED_OUT)
    assert in_a_row(with_steps(factories.make_attempt(run), TIMED_OUT)) == 2


# ------------------------------------------------------------------------------ the watch's part


class Overdue(Seat):
    """A watch over a step that is over its time at once; it stops nothing, and says what it did."""

    def __init__(self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(attempt)
        self.timeouts = StepTimeoutPart(self.supervisor)
        self.timeouts.limit = 0
        self.stopped: list[str] = []
        self.ending = Ending()

        def stop(watch: Watch, cause: object, detail: str) -> Ending:
            self.stopped.append(detail)
            return self.ending

        monkeypatch.setattr(Watch, "stop", stop)


@pytest.fixture
def attempt() -> Attempt:
    return running_attempt()


@pytest.fixture
def overdue(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> Overdue:
    return Overdue(attempt, monkeypatch)


@pytest.mark.parametrize("numbers", [(3, 3, 3), (3, 2, 1), (1, 2, 3)])
def test_the_third_in_a_row_ends_the_run_whatever_its_number(
    overdue: Overdue, attempt: Attempt, numbers: tuple[int, ...]
) -> None:
    overdue.look(started(9), finished(9))
    for number in numbers[:-1]:
        overdue.look(started(number))
        overdue.part.time_out(overdue.watch)
        overdue.look(finished(number, error="killed"))
    overdue.look(started(numbers[-1]))

    assert overdue.timeouts.look(overdue.watch) is overdue.ending

    assert "It is the third step timeout in a row." in overdue.stopped[0]
    attempt.refresh_from_db()
    assert in_a_row(attempt) == IN_A_ROW


def test_an_adopting_supervisor_counts_on(attempt: Attempt) -> None:
    seat = Seat(attempt)
    seat.look(started(3))
    seat.part.time_out(seat.watch)
    seat.look(started(3))

    other = adopted(attempt)
    other.part.time_out(other.watch)

    attempt.refresh_from_db()
    assert in_a_row(attempt) == 2


def test_a_step_whose_end_is_not_yet_read_is_left_alone(
    overdue: Overdue, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_file, "READ_BYTES", 500)
    # There is no save after which all would be looked at again.
    monkeypatch.setattr(Attempt, "can_go_on", lambda attempt: True)
    overdue.look(started(1), *({"type": "heartbeat"} for _ in range(100)), finished(1))
    assert overdue.part.running is not None

    assert overdue.timeouts.look(overdue.watch) is None

    assert not overdue.stopped
    assert rows(attempt) == [(1, "fold 1", "finished")]


def ends_by_itself(seat: Seat) -> None:
    (seat.supervisor.workspace.logs / "agent.rc").write_text("0")


def is_cancelled(seat: Seat) -> None:
    Attempt.objects.filter(pk=seat.watch.attempt.pk).update(cancel_requested_at=timezone.now())


def goes_on(seat: Seat) -> None:
    seat.say(finished(1), started(2))


def says_a_metric(seat: Seat) -> None:
    seat.say({"type": "metric", "metric": {"name": "auc", "value": 0.5}})


@pytest.mark.parametrize(
    ("meanwhile", "is_stopped"),
    [
        pytest.param(ends_by_itself, False, id="the agent ended by itself"),
        pytest.param(is_cancelled, False, id="somebody cancelled"),
        pytest.param(goes_on, False, id="the step finished"),
        pytest.param(says_a_metric, True, id="the same step runs on"),
    ],
)
def test_what_has_happened_during_the_save_is_seen(
    overdue: Overdue,
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Seat], None],
    is_stopped: bool,
) -> None:
    monkeypatch.setattr(checkpoints, "save_now", lambda watch: meanwhile(overdue))
    overdue.look(started(1))

    assert overdue.timeouts.look(overdue.watch) == (overdue.ending if is_stopped else None)

    assert bool(overdue.stopped) == is_stopped
    assert attempt.steps.filter(end=TIMED_OUT).exists() == is_stopped


# ------------------------------------------------------------------------------ what it is told


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
