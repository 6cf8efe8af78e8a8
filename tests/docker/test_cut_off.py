"""A supervisor that loses the database or the engine: real containers, outages at the edges."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import docker
import pytest
from django.db import OperationalError
from django.utils import timezone

from mlebench_web.fleet.models import Host
from runs import queue, worker
from runs.containers import ContainerState, EngineFailure
from runs.containers.docker import DockerEngine
from runs.core.failures import Cause
from runs.core.interruptions import Kind, read
from runs.core.states import Outcome, State
from runs.host_service import HostService
from runs.models import Attempt
from runs.pausing import MARKER
from runs.watching import Ending, Watch
from runs.workspace import Workspace
from tests import factories
from tests.docker.conftest import wait_for
from tests.docker.road import PERFECT, START_SH, Killed, Road, derived, die_at, has_said

# Agents that take their time, in containers.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="session")
def script_image(engine: docker.DockerClient, contract_image: str) -> str:
    line = "COPY start.sh /home/agent/start.sh"
    return derived(engine, contract_image, "script", line, {"start.sh": START_SH})


@pytest.fixture
def road(script_image: str, settings: object) -> Iterator[Road]:
    settings.HEARTBEAT = timedelta(seconds=0.2)  # type: ignore[attr-defined]
    settings.LEASE_TTL = timedelta(seconds=2)  # type: ignore[attr-defined]
    settings.HOST_LOST_AFTER = timedelta(seconds=3)  # type: ignore[attr-defined]
    settings.MAX_TRIES = 1  # type: ignore[attr-defined]
    road = Road(script_image)
    yield road
    for attempt in Attempt.objects.all():
        if attempt.container_id:
            road.engine.remove(attempt.container_id)


class Outage:
    """While it lasts, no heartbeat reaches the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lasts = threading.Event()
        real = worker.Supervisor.beat

        def beat(supervisor: worker.Supervisor) -> bool:
            if self._lasts.is_set():
                raise OperationalError("the database does not answer")
            return real(supervisor)

        monkeypatch.setattr(worker.Supervisor, "beat", beat)

    def begin(self) -> None:
        self._lasts.set()

    def end(self) -> None:
        self._lasts.clear()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def another_host(image: str) -> Host:
    later = timezone.now() + timedelta(hours=1)
    return factories.make_host("other", image_ids=[image], worker_seen_at=later)


def state_of(road: Road, attempt: Attempt) -> ContainerState:
    attempt.refresh_from_db()
    return road.engine.look(attempt.container_id).state


# -------------------------------------------------------------------------------- cut off


def test_a_cut_off_supervisor_pauses_and_goes_on_when_it_was_not_replaced(
    road: Road, outage: Outage
) -> None:
    another_host(road.image)
    attempt = road.queued(f"echo begun; sleep 6; {PERFECT}")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")

    outage.begin()
    wait_for(lambda: state_of(road, attempt) == ContainerState.PAUSED, what="the pause")
    marker = Workspace.for_attempt(attempt.pk).root / MARKER
    assert marker.exists(), "written before the pause"
    outage.end()
    wait_for(lambda: state_of(road, attempt) != ContainerState.PAUSED, what="the end of the pause")
    thread.join(timeout=60)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, "")
    assert attempt.run.attempts.count() == 1
    [pause] = read(attempt.interruptions)
    assert pause.kind == Kind.PAUSED
    assert attempt.paused_seconds == pytest.approx(pause.seconds)
    assert pause.seconds > 0.1
    assert attempt.agent_started_at
    assert attempt.agent_ended_at
    wall = (attempt.agent_ended_at - attempt.agent_started_at).total_seconds()
    assert attempt.active_seconds + attempt.paused_seconds <= wall + 0.1
    assert attempt.active_seconds + attempt.paused_seconds > wall - 3
    road.nothing_is_left()


def test_a_cut_off_supervisor_that_was_replaced_stops_its_container(
    road: Road, outage: Outage
) -> None:
    another_host(road.image)
    attempt = road.queued(f"{PERFECT}; echo begun; sleep 1000")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")
    outage.begin()
    wait_for(lambda: state_of(road, attempt) == ContainerState.PAUSED, what="the pause")
    # As the control worker finds it: the lease has expired.
    Attempt.objects.filter(pk=attempt.pk).update(lease_until=timezone.now() - timedelta(minutes=1))
    assert queue.seal_lost(Attempt.objects.get(pk=attempt.pk), by="test", detail="silent")

    outage.end()
    thread.join(timeout=30)

    assert not thread.is_alive()
    assert state_of(road, attempt) == ContainerState.EXITED, "never unpaused"
    HostService().sweep()
    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST)
    assert road.kept(attempt, "submission/submission.csv"), "its outputs are kept"
    road.nothing_is_left()


def test_where_no_other_host_could_take_the_run_nothing_is_paused(
    road: Road, outage: Outage
) -> None:
    attempt = road.queued(f"echo begun; sleep 6; {PERFECT}")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")

    outage.begin()
    wait_for(lambda: not thread.is_alive(), seconds=60, what="the end")

    attempt.refresh_from_db()
    assert attempt.outcome == Outcome.GRADED
    assert (attempt.paused_seconds, attempt.interruptions) == (0, [])


def test_a_pause_outlives_its_supervisor_and_is_not_charged(
    road: Road, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_host(road.image)
    attempt = road.queued(f"echo begun; sleep 12; {PERFECT}; echo done")

    def supervise() -> None:
        with pytest.raises(Killed):
            road.supervise()

    thread = threading.Thread(target=supervise)
    thread.start()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")
    outage.begin()
    wait_for(lambda: state_of(road, attempt) == ContainerState.PAUSED, what="the pause")
    die_at(monkeypatch, worker.Supervisor, "tick", after=False)
    thread.join(timeout=30)
    outage.end()
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    threading.Event().wait(2)
    assert state_of(road, attempt) == ContainerState.PAUSED

    road.supervise()

    attempt.refresh_from_db()
    assert attempt.outcome == Outcome.GRADED
    assert attempt.paused_seconds > 2
    assert road.text(attempt) == "begun\ndone"
    road.nothing_is_left()


# -------------------------------------------------------------------------------- a copy is made


class Copying:
    """A part of the watch that holds the agent still once, as a save of restless files does."""

    every = 0.5

    def __init__(self) -> None:
        self.seconds = 0.0

    def look(self, watch: Watch) -> Ending | None:
        if not self.seconds and watch.active() > 1:
            began = time.monotonic()
            with watch.pauser.hold():
                assert watch.engine.look(watch.container).state == ContainerState.PAUSED
            self.seconds = time.monotonic() - began
        return None

    def last(self, watch: Watch, ending: Ending) -> None:
        """Nothing is left to do."""


def test_a_pause_for_a_copy_is_named_as_one_and_is_not_charged(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying = Copying()
    monkeypatch.setattr(worker.Supervisor, "parts", lambda _: [copying])

    attempt = road.run(f"sleep 3; {PERFECT}")

    [pause] = read(attempt.interruptions)
    assert (pause.kind, pause.words) == (Kind.COPIED, "paused while a checkpoint was copied")
    # Written down to the hundredth.
    assert 0 < pause.seconds <= copying.seconds + 0.005
    assert attempt.paused_seconds == pytest.approx(pause.seconds)
    assert "cut off" not in road.text(attempt, "run")


def test_a_pause_for_a_copy_that_its_supervisor_did_not_outlive_is_named_as_one(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Copying):
        def look(self, watch: Watch) -> Ending | None:
            # As in `hold`, whose end no dead process comes to.
            watch.pauser._pause(Kind.COPIED)
            watch.pauser.leave()
            raise Killed("in the middle of a copy")

    with monkeypatch.context() as patch:
        patch.setattr(worker.Supervisor, "parts", lambda _: [Dying()])
        attempt = road.queued(f"sleep 2; {PERFECT}")
        with pytest.raises(Killed):
            road.supervise()
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    assert state_of(road, attempt) == ContainerState.PAUSED

    road.supervise()

    attempt.refresh_from_db()
    assert attempt.outcome == Outcome.GRADED
    assert Kind.COPIED in [one.kind for one in read(attempt.interruptions)]
    assert attempt.paused_seconds > 0


# -------------------------------------------------------------------------------- unwatched


def test_time_after_an_unwatched_end_is_not_charged(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = road.queued(f"sleep 1; {PERFECT}")
    die_at(monkeypatch, Watch, "until_the_end", after=False)
    with pytest.raises(Killed):
        road.supervise()
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    workspace = Workspace.for_attempt(attempt.pk)
    wait_for(lambda: workspace.agent_exit_code() is not None, what="the agent's end")
    threading.Event().wait(4)

    road.supervise()

    attempt.refresh_from_db()
    assert attempt.outcome == Outcome.GRADED
    assert attempt.down_seconds > 3.5
    assert attempt.active_seconds < 4.9
    assert Kind.DOWN in [one.kind for one in read(attempt.interruptions)]


def test_a_worker_that_was_away_while_the_agent_went_on_is_named_and_charged(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = road.queued(f"sleep 5; {PERFECT}")
    die_at(monkeypatch, Watch, "until_the_end", after=False)
    with pytest.raises(Killed):
        road.supervise()
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    threading.Event().wait(2)

    road.supervise()

    attempt.refresh_from_db()
    assert attempt.down_seconds == 0
    assert attempt.active_seconds > 4.5
    assert [one.kind for one in read(attempt.interruptions)] == [Kind.UNWATCHED]


# -------------------------------------------------------------------------------- the engine


class Silence:
    """While it lasts, some calls of the engine get no answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.lasts = threading.Event()
        self.asked = 0

    def of(self, *names: str) -> "Silence":
        for name in names:
            self._silence(name, getattr(DockerEngine, name))
        return self

    def _silence(self, name: str, real: object) -> None:
        def call(*arguments: object, **fields: object) -> object:
            if self.lasts.is_set():
                self.asked += 1
                raise EngineFailure(Cause.ENGINE_UNREACHABLE, "Connection refused")
            return real(*arguments, **fields)  # type: ignore[operator]

        self._monkeypatch.setattr(DockerEngine, name, call)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Silence:
    return Silence(monkeypatch)


def test_a_silent_engine_is_said_on_the_row_and_ends_nothing(road: Road, silence: Silence) -> None:
    silence.of("look", "usage", "memory_kills", "agent_is_alive")
    waits = "while [ ! -e /home/code/go ]; do sleep 0.1; done"
    attempt = road.queued(f"echo begun; {waits}; {PERFECT}")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")

    silence.lasts.set()
    wait_for(lambda: fresh(attempt).engine_silent_since, what="the silence")
    assert fresh(attempt).engine_silence == "Connection refused"
    silence.lasts.clear()
    wait_for(lambda: fresh(attempt).engine_silent_since is None, what="the answer")
    (Workspace.for_attempt(attempt.pk).code / "go").touch()
    thread.join(timeout=60)

    assert fresh(attempt).outcome == Outcome.GRADED
    road.nothing_is_left()


def fresh(attempt: Attempt) -> Attempt:
    attempt.refresh_from_db()
    return attempt


@pytest.mark.parametrize("call", ["kill", "remove"])
def test_collecting_waits_for_an_engine_that_does_not_answer(
    road: Road, silence: Silence, call: str
) -> None:
    silence.of(call)
    silence.lasts.set()
    attempt = road.queued(PERFECT)
    thread = road.in_the_background()

    wait_for(lambda: silence.asked >= 3, what="three tries")
    assert fresh(attempt).state == State.COLLECTING
    assert fresh(attempt).engine_silent_since
    silence.lasts.clear()
    thread.join(timeout=60)

    assert (fresh(attempt).outcome, attempt.cause) == (Outcome.GRADED, "")
    assert attempt.engine_silent_since is None
    road.nothing_is_left()


@pytest.mark.parametrize("call", ["create", "start", "start_agent"])
def test_a_start_waits_for_an_engine_that_restarts(road: Road, silence: Silence, call: str) -> None:
    silence.of(call)
    silence.lasts.set()
    attempt = road.queued(f"echo once; {PERFECT}")
    thread = road.in_the_background()

    wait_for(lambda: silence.asked >= 3, what="three tries")
    assert fresh(attempt).state == State.STARTING
    silence.lasts.clear()
    thread.join(timeout=60)

    assert (fresh(attempt).outcome, attempt.cause) == (Outcome.GRADED, "")
    assert road.text(attempt) == "once"
    road.nothing_is_left()


def test_a_start_gives_up_on_a_silent_engine_at_its_limit(
    road: Road, silence: Silence, settings: object
) -> None:
    settings.START_LIMIT = timedelta(seconds=1)  # type: ignore[attr-defined]
    silence.of("create")
    silence.lasts.set()

    attempt = road.run(PERFECT)

    assert attempt.outcome == Outcome.INFRASTRUCTURE_FAILED
    assert attempt.cause == Cause.ENGINE_UNREACHABLE


def test_an_outage_in_the_middle_of_a_step_repeats_the_step_and_starts_nothing_twice(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.specification.hardware_of
    failures = iter([OperationalError("gone"), OperationalError("gone")])

    def hardware_of(attempt: Attempt) -> dict[str, object]:
        if failure := next(failures, None):
            raise failure
        return real(attempt)

    monkeypatch.setattr(worker.specification, "hardware_of", hardware_of)

    attempt = road.run(f"echo once; {PERFECT}")

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, "")
    assert road.text(attempt) == "once"


def test_three_engine_errors_in_a_row_put_the_host_aside(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_host(road.image)

    def refuse(*_: object) -> str:
        raise EngineFailure(Cause.ENGINE_ERROR, "shim: no such file")

    monkeypatch.setattr(DockerEngine, "create", refuse)

    for _ in range(3):
        assert Host.objects.get(pk=road.host.pk).put_aside == ""
        assert road.run(PERFECT).cause == Cause.ENGINE_ERROR

    aside = Host.objects.get(pk=road.host.pk).put_aside
    assert aside == "3 attempts in a row failed here (engine error): shim: no such file"
