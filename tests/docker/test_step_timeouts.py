"""Steps that take too long, with real containers: what is ended, what goes on, and when it is over.

`marathon` hangs at its third step and is told how to behave. Figures of the ladder are made short;
its rule has its own table in tests/core/test_step_limits.py.
"""

from collections.abc import Iterator
from datetime import timedelta

import docker
import pytest

from mlebench_web.fleet.models import Host
from runs import queue, submit, worker
from runs.core import step_limits
from runs.core.failures import Cause
from runs.core.states import Outcome, State
from runs.core.steps import StepEnd
from runs.models import Attempt, Run, RunGroup
from runs.step_timeouts import StepTimeoutPart
from runs.steps import StepPart
from runs.watching import Watch
from tests.docker.conftest import wait_for
from tests.docker.road import Killed, die_at
from tests.docker.test_resume import FILES, MARATHON, Track, derived

# Agents that take their time, in containers.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

# Long enough for an honest step on a slow machine.
TIMEOUT = timedelta(seconds=4)
STEPS = 5
HANGS_AT = 3
OVER = "took longer than 4 s."


@pytest.fixture(scope="session")
def marathon_image(engine: docker.DockerClient, contract_image: str) -> str:
    files = {name: (MARATHON / name).read_text() for name in FILES}
    return derived(engine, contract_image, "marathon", "COPY . /home/agent", files)


class HangingTrack(Track):
    def entered(self, **told: object) -> Attempt:
        defaults = {
            "STEPS": STEPS,
            "STEP_SECONDS": 0.1,
            "TROUBLE": f"hang@{HANGS_AT}",
            "TROUBLE_ATTEMPTS": 1,
        }
        attempt = super().entered(**{**defaults, **told})
        RunGroup.objects.update(step_timeout=TIMEOUT)
        return Attempt.objects.get(pk=attempt.pk)

    def driven(self, **told: object) -> list[Attempt]:
        """The run's attempts, all of them ended."""
        attempt = self.entered(**told)
        for _ in range(4):
            self.supervise()
            if attempt.run.newest_attempt().is_ended:
                break
        return list(attempt.run.attempts.order_by("number"))

    def adopted(self) -> None:
        """By the next supervisor of this host: the process that the row names is gone."""
        Attempt.objects.update(supervisor_pid=2**22 + 1)
        lease = queue.take_work(Host.objects.get(pk=self.host.pk))
        assert lease
        assert lease.adopted
        worker.supervise(lease)


@pytest.fixture
def track(marathon_image: str, settings: object) -> Iterator[HangingTrack]:
    settings.STOP_GRACE = timedelta(seconds=2)  # type: ignore[attr-defined]
    track = HangingTrack(marathon_image)
    yield track
    for attempt in Attempt.objects.all():
        if attempt.container_id:
            track.engine.remove(attempt.container_id)
    for thread in track.threads:
        thread.join(30)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, told: dict[str, object]) -> None:
    """Where a process ignores the first signal, the second comes soon."""
    if told.get("SIGINT") == "ignore":
        monkeypatch.setattr(step_limits, "INTERRUPT_GRACE", 1.0)


def ends(attempt: Attempt) -> dict[int, str]:
    return dict(attempt.steps.in_order().values_list("number", "end"))


FINISHED, TIMED_OUT = StepEnd.FINISHED, StepEnd.TIMED_OUT
ALL_BUT_THE_THIRD = {1: FINISHED, 2: FINISHED, 3: TIMED_OUT, 4: FINISHED, 5: FINISHED}


# ------------------------------------------------------------------------------ a signal is enough


@pytest.mark.parametrize(
    ("told", "signals"),
    [
        pytest.param({"STEP_PROCESS": 1}, ["Interrupted"], id="its process alone is ended"),
        pytest.param(
            {"STEP_PROCESS": 1, "SIGINT": "ignore"},
            ["Interrupted", "Killed"],
            id="its process ignores the first signal",
        ),
        pytest.param({"SIGINT": "catch"}, ["Interrupted"], id="the agent catches it"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_step_is_ended_by_a_signal_and_its_agent_goes_on(
    track: HangingTrack, told: dict[str, object], signals: list[str]
) -> None:
    [attempt] = track.driven(**told)

    assert (attempt.outcome, attempt.cause, attempt.exit_code) == (Outcome.GRADED, "", 0)
    assert ends(attempt) == ALL_BUT_THE_THIRD
    third = attempt.steps.get(number=HANGS_AT)
    assert third.seconds
    assert third.seconds >= TIMEOUT.total_seconds()
    said = track.text(attempt, "run")
    assert [word for word in ("Interrupted", "Killed") if word in said] == signals
    assert OVER in said
    # The agent ran all the time, and that is charged.
    assert attempt.charged_seconds == 0
    assert attempt.active_seconds > TIMEOUT.total_seconds()
    track.nothing_is_left()


# ------------------------------------------------------------------------------ it goes on


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({}, id="no process is known"),
        pytest.param({"IGNORE_SIGTERM": 1}, id="it does not listen"),
        pytest.param({"SIGINT": "ignore"}, id="the agent itself is killed as the process it named"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_step_that_no_signal_ends_goes_on_from_the_last_checkpoint(
    track: HangingTrack, told: dict[str, object]
) -> None:
    first, second = track.driven(**told)

    assert (first.outcome, first.cause) == (Outcome.CONTINUED, Cause.STEP_TIMEOUT)
    assert OVER in first.cause_detail
    assert ends(first) == {1: FINISHED, 2: FINISHED, 3: TIMED_OUT}
    assert (second.outcome, second.resumed_from) == (Outcome.GRADED, first)
    # The steps before it are not done again, and it is tried again.
    assert ends(second) == {3: FINISHED, 4: FINISHED, 5: FINISHED}
    # It hung by its own doing: the time is charged, not only up to the checkpoint.
    assert second.restored_checkpoint
    assert second.charged_seconds >= first.active_seconds - 0.01
    assert first.active_seconds > TIMEOUT.total_seconds()
    assert second.active_seconds > second.charged_seconds
    run = Run.objects.get(pk=first.run_id)
    assert run.tries_used == 0, "no try of the infrastructure"
    track.nothing_is_left()


def test_the_next_attempt_is_told_what_ended_the_one_before(track: HangingTrack) -> None:
    first = track.entered()
    track.supervise()
    second = first.run.newest_attempt()
    thread = track.in_the_background()
    wait_for(lambda: Attempt.objects.get(pk=second.pk).state == State.RUNNING, what="a start")
    second.refresh_from_db()
    found = docker.APIClient().inspect_container(second.container_id)["Config"]["Env"]
    thread.join(60)

    env = dict(line.split("=", 1) for line in found)
    assert (env["MLE_RESUME"], env["MLE_RESUME_AFTER"]) == ("1", "step_timeout")
    assert (env["MLE_STEP_TIMEOUT_SECS"], env["MLE_STEP_TIMEOUTS"]) == ("4", "1")
    assert int(env["TIME_LIMIT_SECS"]) == int(300 - second.charged_seconds)


# ------------------------------------------------------------------------------ it is over


def test_the_third_in_a_row_ends_the_run_and_what_is_there_is_graded(track: HangingTrack) -> None:
    attempts = track.driven(TROUBLE_ATTEMPTS=0)

    assert [(each.outcome, each.cause) for each in attempts] == [
        (Outcome.CONTINUED, Cause.STEP_TIMEOUT),
        (Outcome.CONTINUED, Cause.STEP_TIMEOUT),
        (Outcome.GRADED, Cause.STEP_TIMEOUT),
    ]
    assert ends(attempts[2]) == {3: TIMED_OUT}
    assert "third step timeout in a row" in attempts[2].cause_detail
    # The sample submission was handed in.
    assert attempts[2].reports.get().valid_submission
    charged = [each.charged_seconds for each in attempts]
    assert charged == sorted(charged)
    assert charged[2] > 2 * TIMEOUT.total_seconds()
    track.nothing_is_left()


def test_without_a_checkpoint_the_first_that_needs_a_stop_ends_the_run(
    track: HangingTrack,
) -> None:
    [attempt] = track.driven(CHECKPOINT_EVERY=0)

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.STEP_TIMEOUT)
    assert "There is no checkpoint to go on from." in attempt.cause_detail
    track.nothing_is_left()


# ------------------------------------------------------------------------------ meanwhile


@pytest.mark.parametrize(
    ("told", "owner", "name", "after"),
    [
        pytest.param({"STEP_PROCESS": 1}, StepPart, "time_out", True, id="marked, not signalled"),
        pytest.param({"STEP_PROCESS": 1}, StepTimeoutPart, "_send", True, id="signalled"),
        pytest.param({}, StepPart, "time_out", False, id="not yet marked"),
        pytest.param({}, StepPart, "time_out", True, id="marked, not stopped"),
        pytest.param({}, Watch, "stop", False, id="goes_on written, not stopped"),
        pytest.param({}, Watch, "stop", True, id="stopped, not collected"),
    ],
)
def test_a_supervisor_that_dies_at_a_rung_is_followed_by_one_that_goes_on_there(
    track: HangingTrack,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, object],
    owner: type,
    name: str,
    after: bool,
) -> None:
    if not told:
        # Who adopts does not know that nothing was signalled: it waits as if it had been.
        monkeypatch.setattr(step_limits, "INTERRUPT_GRACE", 1.0)
        monkeypatch.setattr(step_limits, "AFTER_KILL", 1.0)
    attempt = track.entered(**told)
    die_at(monkeypatch, owner, name, after=after)

    with pytest.raises(Killed):
        track.supervise()
    track.adopted()

    attempt.refresh_from_db()
    assert ends(attempt)[HANGS_AT] == TIMED_OUT
    if told:
        assert ends(attempt) == ALL_BUT_THE_THIRD
        assert (attempt.outcome, attempt.run.attempts.count()) == (Outcome.GRADED, 1)
        return
    assert (attempt.outcome, attempt.cause) == (Outcome.CONTINUED, Cause.STEP_TIMEOUT)
    track.supervise()
    assert ends(attempt.run.newest_attempt()) == {3: FINISHED, 4: FINISHED, 5: FINISHED}


def test_a_cancel_beats_the_ladder(track: HangingTrack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_limits, "INTERRUPT_GRACE", 600.0)
    attempt = track.entered(STEP_PROCESS=1, SIGINT="ignore")
    thread = track.in_the_background()
    wait_for(lambda: "Interrupted" in track.text(attempt, "run"), seconds=60, what="the signal")

    submit.cancel_run(Run.objects.get(pk=attempt.run_id), by=None)
    thread.join(60)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.CANCELLED, Cause.CANCELLED)
    assert attempt.run.attempts.count() == 1


def test_the_runs_own_limit_ends_it_on_any_rung(
    track: HangingTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_limits, "INTERRUPT_GRACE", 600.0)
    attempt = track.entered(STEP_PROCESS=1, SIGINT="ignore")
    RunGroup.objects.update(time_limit=timedelta(seconds=15))

    track.supervise()

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.TIME_LIMIT)
    assert ends(attempt)[HANGS_AT] == TIMED_OUT
    assert attempt.run.attempts.count() == 1


def test_a_step_that_ends_at_the_last_moment_is_left_alone(
    track: HangingTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is in the file, and not yet read when it is found over its limit."""
    real = StepTimeoutPart._is_over
    found_over: list[bool] = []

    def is_over(part: StepTimeoutPart, watch: Watch, steps: StepPart) -> bool:
        found = real(part, watch, steps)
        if found and not found_over:
            # The agent ends its step now, and says so.
            [process] = [
                each
                for each in watch.engine.agent_processes(watch.container)
                if "marathon_step" in each.command
            ]
            watch.engine.signal_processes(watch.container, [process], "KILL")
            events = watch.workspace.logs / "events.jsonl"
            told = '"type": "step_finished", "step": 3'
            wait_for(lambda: told in events.read_text(), what="the event")
        found_over.extend([found] * found)
        return found

    monkeypatch.setattr(StepTimeoutPart, "_is_over", is_over)

    [attempt] = track.driven(STEP_PROCESS=1)

    assert found_over == [True]
    assert ends(attempt)[HANGS_AT] == StepEnd.FAILED
    assert "took longer" not in track.text(attempt, "run")
