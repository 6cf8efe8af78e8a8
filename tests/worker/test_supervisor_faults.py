"""What goes wrong around a supervisor and must cost its agent nothing."""

import errno
import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import OperationalError
from django.utils import timezone
from pytest_django import Settings

from runs import queue, worker, workspace
from runs.attempt_disk import AttemptDisk
from runs.containers import ContainerState, EngineFailure, Look, engine_of
from runs.core.failures import Cause
from runs.core.states import Outcome, RunState, State
from runs.models import Attempt
from runs.pausing import Pauser
from runs.queue import Lease
from runs.watching import Watch
from runs.worker import Supervisor
from tests import factories

pytestmark = pytest.mark.django_db

MakeSupervisor = Callable[..., Supervisor]


@pytest.fixture
def supervise(settings: Settings, tmp_path: Path) -> MakeSupervisor:
    """Makes the supervisor of an attempt in this state."""
    settings.ATTEMPTS_DIR = tmp_path / "attempts"
    host = factories.make_host(settings.HOST_NAME)

    def make(state: State = State.RUNNING, **fields: object) -> Supervisor:
        token = uuid.uuid4()
        run = factories.make_run(
            state=state,
            host=host,
            lease_token=token,
            lease_until=timezone.now() + timedelta(minutes=1),
            **{**queue.this_supervisor(), **fields},
        )
        supervisor = Supervisor(
            Lease(run.newest_attempt(), token, adopted=False), engine_of("process")
        )
        supervisor.workspace.make()
        return supervisor

    return make


# ---------------------------------------------------------------------------- the database


class Outages:
    """The road breaks off this often, and then it is gone to its end."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.went = 0

    def go_on(self) -> None:
        self.went += 1
        if self.left:
            self.left -= 1
            raise OperationalError("database is locked")


@pytest.mark.django_db(transaction=True)
def test_outages_that_have_nothing_to_do_with_each_other_are_not_added_up(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that holds the lock each hour must not end a run of a day."""
    monkeypatch.setattr(worker, "OUTAGES_WITHIN_SECONDS", 0)
    road = Outages(2 * worker.OUTAGES_AT_MOST)
    monkeypatch.setattr(Supervisor, "go_on", lambda _: road.go_on())

    supervise().go_on_through_outages()

    assert road.went == 2 * worker.OUTAGES_AT_MOST + 1


@pytest.mark.django_db(transaction=True)
def test_an_error_that_comes_again_at_once_and_again_is_no_outage(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = Outages(2 * worker.OUTAGES_AT_MOST)
    monkeypatch.setattr(Supervisor, "go_on", lambda _: road.go_on())

    with pytest.raises(OperationalError):
        supervise().go_on_through_outages()

    assert road.went == worker.OUTAGES_AT_MOST + 1


@pytest.mark.django_db(transaction=True)
def test_a_database_that_only_answers_questions_is_waited_for(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process holds SQLite's lock, a read says nothing."""
    supervisor = supervise()
    road, refused = Outages(1), iter([True, True, True])

    def prove() -> None:
        assert road.went == 1, "not tried again before the database takes writes"
        if next(refused, False):
            raise OperationalError("database is locked")

    monkeypatch.setattr(Supervisor, "go_on", lambda _: road.go_on())
    monkeypatch.setattr(queue, "prove_that_it_takes_writes", prove)

    supervisor.go_on_through_outages()

    assert next(refused, None) is None
    assert road.went == 2


def test_a_save_that_is_at_work_is_gone_on_with_after_an_outage(
    supervise: MakeSupervisor,
) -> None:
    """Two that save at once for one attempt would remove each other's blobs."""
    supervisor = supervise()
    supervisor.parts()
    first = supervisor.saving
    assert first

    supervisor.parts()
    assert supervisor.saving is first

    first.saver.left.set()
    supervisor.parts()
    assert supervisor.saving is not first, "it has made its last save"


# ---------------------------------------------------------------------------- our own errors


@pytest.mark.parametrize(
    ("state", "fields", "outcome", "cause", "attempts", "run_state"),
    [
        (
            State.RUNNING,
            {},
            Outcome.INFRASTRUCTURE_FAILED,
            Cause.PRODUCT_ERROR,
            2,
            RunState.QUEUED,
        ),
        (
            State.GRADING,
            {},
            Outcome.INFRASTRUCTURE_FAILED,
            Cause.GRADER_FAILED,
            1,
            RunState.FAILED,
        ),
        (
            State.RUNNING,
            {"cancel_requested_at": timezone.now(), "cancel_requested_by": "alice"},
            Outcome.CANCELLED,
            Cause.CANCELLED,
            1,
            RunState.CANCELLED,
        ),
    ],
    ids=["running", "grading", "cancelled"],
)
def test_an_error_of_our_own_is_sealed_for_what_it_costs(
    supervise: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    fields: dict[str, object],
    outcome: Outcome,
    cause: Cause,
    attempts: int,
    run_state: RunState,
) -> None:
    """What the agent handed in is kept: after its end no other agent is started."""
    supervisor = supervise(state, **fields)

    def broken(_: Supervisor) -> None:
        raise RuntimeError("a storage that says no")

    monkeypatch.setattr(Supervisor, "go_on", broken)
    worker.supervise(
        Lease(supervisor.attempt, supervisor.token, adopted=True), engine_of("process")
    )

    row = Attempt.objects.get(pk=supervisor.attempt.pk)
    assert (row.outcome, row.cause) == (outcome, cause)
    assert "a storage that says no" in row.cause_detail
    assert row.run.attempts.count() == attempts
    assert row.run.state == run_state


# ---------------------------------------------------------------------------- the disk


def test_output_that_cannot_be_counted_ends_no_run(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> int:
        raise OSError(errno.ETIMEDOUT, "counting the output took over 60 s")

    monkeypatch.setattr(workspace.Workspace, "used_bytes", slow)

    assert Watch(supervise()).over_quota() is None


def test_counting_goes_on_with_a_heartbeat_and_is_given_up(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "bin" / "du"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(workspace, "COUNT_SECONDS", 0)
    ticks: list[float] = []

    with pytest.raises(OSError, match="counting the output"):
        supervise().workspace.used_bytes(tick=lambda: ticks.append(time.monotonic()))

    assert ticks


@pytest.mark.parametrize(
    ("quota", "cause"), [(2**40, Cause.DISK_FULL), (0, Cause.OUTPUT_QUOTA)], ids=["within", "over"]
)
def test_a_full_disk_is_the_hosts_fault_only_while_the_attempt_is_within_its_quota(
    supervise: MakeSupervisor, settings: Settings, quota: int, cause: Cause
) -> None:
    settings.OUTPUT_QUOTA_BYTES = quota
    supervisor = supervise()
    (supervisor.workspace.code / "big").write_bytes(b"x" * 100_000)

    assert supervisor.disk.cause_of(OSError(errno.ENOSPC, "told")) == cause


def test_a_disk_that_filled_long_after_the_agents_end_explains_nothing(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise()
    watch = Watch(supervisor)
    code = supervisor.workspace.logs / "agent.rc"
    code.write_text("1\n")
    an_hour_ago = time.time() - 3600
    os.utime(code, (an_hour_ago, an_hour_ago))
    watch.seen_alive = time.monotonic() - 7200
    watch.full_disk_at = time.monotonic() - 60
    assert not watch.disk_explains()

    watch.full_disk_at = time.monotonic() - 3601
    assert watch.disk_explains()

    monkeypatch.setattr(AttemptDisk, "is_full", lambda _: True)
    watch.full_disk_at = time.monotonic() - 3601
    assert watch.disk_explains(), "full from before its end until now"


# ---------------------------------------------------------------------------- time


def test_an_outage_after_the_agents_end_is_not_its_time(supervise: MakeSupervisor) -> None:
    began = timezone.now() - timedelta(seconds=1000)
    supervisor = supervise(agent_started_at=began)
    watch = Watch(supervisor)
    watch.looked_active = watch.active() - 600
    code = supervisor.workspace.logs / "agent.rc"
    code.write_text("0\n")
    ended = time.time() - 400
    os.utime(code, (ended, ended))

    assert watch.ended_by_itself(0).active_seconds == pytest.approx(600, abs=5)

    # A wall clock that has jumped: it had not ended when it was last looked for.
    os.utime(code, (ended - 5000, ended - 5000))
    assert watch.active_at_the_end() == pytest.approx(400, abs=5)


def test_a_pause_in_the_outage_is_taken_off_once(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent ended, the container was paused for the rest of the outage, and both are over."""
    supervisor = supervise(agent_started_at=timezone.now() - timedelta(seconds=1000))
    watch = Watch(supervisor)
    # It was looked for at 400 s; it ended at 500 s, and stood still from 600 s to 1000 s.
    watch.looked_active = 400
    monkeypatch.setattr(supervisor.pauser, "seconds", lambda: 400.0)
    code = supervisor.workspace.logs / "agent.rc"
    code.write_text("0\n")
    ended = time.time() - 500
    os.utime(code, (ended, ended))

    assert watch.active_at_the_end() == pytest.approx(400, abs=5)


def test_a_container_that_died_unseen_in_an_outage_of_its_engine_costs_the_agent_nothing(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise(agent_started_at=timezone.now() - timedelta(seconds=1000))
    watch = Watch(supervisor)
    watch.alive_active = watch.active() - 600
    dead = EngineFailure(Cause.CONTAINER_KILLED, "killed")
    monkeypatch.setattr(Supervisor, "dead_container", lambda _: dead)
    monkeypatch.setattr(
        type(supervisor.engine), "look", lambda *_: Look(ContainerState.EXITED, exit_code=137)
    )

    ending = watch.look_at_container()

    assert ending
    assert ending.active_seconds == pytest.approx(400, abs=5)
    assert Attempt.objects.get(pk=supervisor.attempt.pk).down_seconds == pytest.approx(600, abs=5)


# ---------------------------------------------------------------------------- pauses


class Beats:
    """A heart that nothing is asked of here."""

    last_beat = 0.0
    replaced = False


class PausingEngine:
    """Only what a pauser asks; the one that is broken refuses."""

    def __init__(self, *, is_broken: bool = False) -> None:
        self.is_broken = is_broken

    def pause(self, _: str) -> None:
        if self.is_broken:
            raise EngineFailure(Cause.ENGINE_UNREACHABLE, "it restarts")

    def unpause(self, _: str) -> None:
        return


def pauser_in(folder: Path, *, is_broken: bool = False) -> Pauser:
    pauser = Pauser(
        Beats(),  # type: ignore[arg-type]
        PausingEngine(is_broken=is_broken),  # type: ignore[arg-type]
        folder,
        lost_after=900,
        ttl=90,
    )
    pauser.watch("container")
    return pauser


def test_a_pause_that_failed_is_no_pause_for_whoever_follows(tmp_path: Path) -> None:
    pauser = pauser_in(tmp_path, is_broken=True)
    with pauser.hold():
        assert not pauser.is_holding

    assert pauser_in(tmp_path).left_behind() is None


def test_a_pause_of_ones_own_is_not_found_as_another_ones(tmp_path: Path) -> None:
    """A watch that an outage ended begins anew in the same process."""
    pauser = pauser_in(tmp_path)
    with pauser.hold():
        assert pauser.left_behind() is None
    assert pauser.taken
    assert pauser.left_behind() is None
    pauser.forget_what_was_left()
    assert pauser_in(tmp_path).left_behind() is not None, "kept until the row knows it"


def test_a_pause_before_the_agents_time_began_is_part_of_no_account(tmp_path: Path) -> None:
    pauser = pauser_in(tmp_path)
    with pauser.hold():
        pass

    pauser.begin_anew()

    assert pauser.unwritten() == 0
    assert pauser_in(tmp_path).left_behind() is None


@pytest.mark.parametrize(
    ("now", "is_charged"), [(ContainerState.RUNNING, True), (ContainerState.PAUSED, False)]
)
def test_a_pause_without_an_end_counts_only_while_the_container_stands_still(
    supervise: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    now: ContainerState,
    is_charged: bool,
) -> None:
    """Its supervisor died after it wrote it down: before the pause, in it, or after its end."""
    supervisor = supervise(agent_started_at=timezone.now() - timedelta(seconds=1000))
    dead = pauser_in(supervisor.workspace.root)
    with dead.hold():
        marker = (supervisor.workspace.root / "paused.json").read_text()
    (supervisor.workspace.root / "paused.json").write_text(marker)
    monkeypatch.setattr(type(supervisor.engine), "look", lambda *_: Look(now))
    watch = Watch(supervisor)

    watch.pick_up()

    noted = Attempt.objects.get(pk=supervisor.attempt.pk).interruptions
    assert (noted == []) is is_charged


def test_an_agent_is_guarded_against_a_twin_from_its_start_on(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that is cut off between the agent's start and its first look pauses too."""
    supervisor = supervise(State.STARTING)
    seen: list[str] = []
    monkeypatch.setattr(worker.specification, "container_of", lambda *_: None)
    monkeypatch.setattr(worker, "ask_to_serve", lambda *_: None)
    engine = type(supervisor.engine)
    monkeypatch.setattr(engine, "create", lambda *_: "the-container")
    monkeypatch.setattr(engine, "start", lambda *_: None)
    monkeypatch.setattr(Supervisor, "wait_until_ready", lambda *_: None)

    monkeypatch.setattr(engine, "start_agent", lambda *_: None)
    move = Supervisor.move

    def moving(supervisor: Supervisor, new: State, **fields: object) -> None:
        seen.append(supervisor.pauser._container)
        move(supervisor, new, **fields)

    monkeypatch.setattr(Supervisor, "move", moving)

    supervisor.start()

    assert seen == ["the-container"], "while it waits for a database that is away"
    assert supervisor.attempt.state == State.RUNNING


@pytest.mark.parametrize(
    ("left", "goes_on"),
    [(ContainerState.CREATED, []), (ContainerState.PAUSED, ["unpaused"])],
    ids=["created", "paused"],
)
def test_a_start_that_was_paused_when_its_supervisor_died_goes_on(
    supervise: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    left: ContainerState,
    goes_on: list[str],
) -> None:
    supervisor = supervise(State.STARTING)
    done: list[str] = []
    engine = type(supervisor.engine)
    monkeypatch.setattr(engine, "look", lambda *_: Look(left))
    monkeypatch.setattr(engine, "unpause", lambda *_: done.append("unpaused"))

    supervisor.take_over_start("the-container")

    assert done == goes_on
