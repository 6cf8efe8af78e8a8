"""Steps in the rows: read from a real file, written under the lease, taken over by another."""

import json
import time
import uuid
from pathlib import Path

import pytest

from runs import event_file, logs, queue, steps
from runs.checkpoints import CheckpointPart
from runs.containers import engine_of
from runs.core.failures import Cause
from runs.core.states import Outcome, State, Verdict
from runs.core.steps import StepEnd
from runs.models import Attempt, LogSegment, Replaced, Step
from runs.steps import StepPart
from runs.watching import Ending, Watch
from runs.worker import Supervisor
from tests import factories
from tests.support.speaker import running_attempt

pytestmark = pytest.mark.django_db


class Seat:
    """A supervisor's seat before a running attempt: its watch, without a container."""

    def __init__(self, attempt: Attempt, *, adopted: bool = False) -> None:
        assert attempt.lease_token is not None
        lease = queue.Lease(attempt, attempt.lease_token, adopted)
        self.supervisor = Supervisor(lease, engine_of("process"))
        self.supervisor.workspace.make()
        self.part = StepPart(self.supervisor)
        self.checkpoints = CheckpointPart(self.supervisor)
        self.watch = Watch(self.supervisor, [self.part, self.checkpoints])
        self.events = self.supervisor.workspace.root / event_file.EVENTS

    def say(self, *rows: dict[str, object] | bytes) -> None:
        with self.events.open("ab") as file:
            for row in rows:
                line = row if isinstance(row, bytes) else json.dumps({"v": 1, **row}).encode()
                file.write(line + b"\n")

    def look(self, *rows: dict[str, object] | bytes) -> None:
        self.say(*rows)
        self.part.look(self.watch)

    def told(self) -> str:
        """What the product says in the run's log."""
        self.supervisor.log.ship()
        window = logs.last_lines(self.watch.attempt.pk, LogSegment.Source.RUN, 50)
        return "\n".join(window)


@pytest.fixture
def attempt() -> Attempt:
    return running_attempt()


@pytest.fixture
def seat(attempt: Attempt) -> Seat:
    return Seat(attempt)


def adopted(attempt: Attempt) -> Seat:
    """Another supervisor takes it over."""
    Attempt.objects.filter(pk=attempt.pk).update(lease_token=uuid.uuid4())
    return Seat(Attempt.objects.get(pk=attempt.pk), adopted=True)


def rows(attempt: Attempt) -> list[tuple[int, str, str]]:
    return list(attempt.steps.values_list("number", "name", "end"))


def started(step: int, **fields: object) -> dict[str, object]:
    return {"type": "step_started", "step": step, "name": f"fold {step}", **fields}


def finished(step: int, **fields: object) -> dict[str, object]:
    return {"type": "step_finished", "step": step, **fields}


METRIC = {"name": "auc", "value": 0.9, "maximize": True}


def test_a_step_is_a_row_from_its_start_on(seat: Seat, attempt: Attempt) -> None:
    seat.look(started(1, total=20))
    assert rows(attempt) == [(1, "fold 1", "")]
    assert seat.part.running is not None

    seat.look(finished(1, metric=METRIC))

    step = attempt.steps.get()
    assert (step.name, step.end, step.source) == ("fold 1", StepEnd.FINISHED, "agent")
    assert (step.metric_name, step.metric_value, step.metric_maximize) == ("auc", 0.9, True)
    assert step.seconds is not None
    assert step.began_at is not None
    assert step.ended_at is not None
    assert step.ended_at >= step.began_at
    assert seat.part.running is None
    attempt.refresh_from_db()
    assert attempt.step_feed["total"] == 20
    assert attempt.signs["step"] == pytest.approx(time.time(), abs=60)


def test_the_agents_clock_is_believed_within_what_is_known(seat: Seat, attempt: Attempt) -> None:
    """A step cannot have begun before the agent, before the last look, or in the future."""
    now = time.time()
    seat.look(started(1, t=now - 1e6), finished(1, t=now + 1e6))
    first = attempt.steps.get(number=1)
    assert first.began_seconds == 0
    assert first.ended_seconds == pytest.approx(seat.watch.active(), abs=30)

    # 100 s of active time later; the last look was 10 s ago.
    seat.watch.clock.before += 100
    seat.part._read_at = time.monotonic() - 10
    seat.look(started(2, t=now - 1e6))

    second = attempt.steps.get(number=2)
    assert second.began_seconds == pytest.approx(seat.watch.active() - 10, abs=5)


def test_an_adopting_supervisor_loses_no_event_and_counts_none_twice(
    seat: Seat, attempt: Attempt
) -> None:
    seat.look(started(1), finished(1), started(2))
    # Half a line, and what comes while nobody watches.
    seat.say(finished(2), started(3), b'{"type": "step_fin')
    seat.events.write_bytes(seat.events.read_bytes()[:-1])

    other = adopted(attempt)
    other.look(b'ished", "step": 3}', started(4))

    ends = [(number, end) for number, _, end in rows(attempt)]
    assert ends == [(1, "finished"), (2, "finished"), (3, "finished"), (4, "")]
    attempt.refresh_from_db()
    assert attempt.step_feed["lines"] == 7
    assert attempt.step_feed["faults"] == 0


def test_a_replaced_supervisor_writes_nothing(seat: Seat, attempt: Attempt) -> None:
    seat.look(started(1))
    adopted(attempt)

    with pytest.raises(Replaced):
        seat.look(finished(1), started(2))

    assert rows(attempt) == [(1, "fold 1", "")]
    # The other one reads from where this one was, not from where it would have been.
    other = Seat(Attempt.objects.get(pk=attempt.pk), adopted=True)
    other.look()
    assert rows(attempt) == [(1, "fold 1", "finished"), (2, "fold 2", "")]


def test_hostile_lines_are_counted_and_told_of_once(seat: Seat, attempt: Attempt) -> None:
    seat.look(b"\xff\xfe\x00", b"[" * 60_000, started(1, name=7), b"{}")
    seat.look(b"x" * 70_000, b"nothing", started(2))

    assert [number for number, _, _ in rows(attempt)] == [1, 2]
    attempt.refresh_from_db()
    assert attempt.step_feed["faults"] == 6
    told = seat.told()
    assert told.count("Not all in the agent's events file is an event: a line is no JSON") == 1
    assert "7" not in rows(attempt)[0][1]


def test_secrets_of_the_agent_are_in_no_row(seat: Seat, attempt: Attempt) -> None:
    seat.supervisor.log.secrets = ["hunter2-hunter2"]

    seat.look(
        started(1, name="log in with hunter2-hunter2"),
        finished(
            1, error="x" * 290 + "hunter2-hunter2", metric={"name": "hunter2-hunter2", "value": 1}
        ),
    )

    step = attempt.steps.get()
    assert step.name == "log in with •••"
    assert "hunter" not in step.error + step.metric_name


def test_the_agents_checkpoint_is_saved_soon(seat: Seat) -> None:
    seat.look(started(3), finished(3), {"type": "checkpoint", "step": 3})

    wish = seat.checkpoints._said
    assert wish is not None
    assert (wish.is_agents_word, wish.step) == (True, 3)


def test_a_checkpoint_that_was_said_before_an_adoption_is_saved_after_it(
    seat: Seat, attempt: Attempt
) -> None:
    """The supervisor died between the event and the save."""
    seat.look({"type": "checkpoint", "step": 3})

    other = adopted(attempt)
    other.look()

    assert other.checkpoints._said is not None
    assert other.checkpoints._said.step == 3


def test_the_end_of_the_attempt_interrupts_its_step(seat: Seat, attempt: Attempt) -> None:
    seat.look(started(1), finished(1))
    seat.say(started(2))

    seat.part.last(seat.watch, Ending(cause=Cause.TIME_LIMIT, active_seconds=60))

    assert rows(attempt) == [(1, "fold 1", "finished"), (2, "fold 2", "interrupted")]
    assert attempt.steps.get(number=2).ended_seconds == 60


def test_a_seal_without_a_last_look_interrupts_the_step_too(seat: Seat, attempt: Attempt) -> None:
    seat.look(started(1))
    attempt.refresh_from_db()
    attempt.move(State.COLLECTING, token=attempt.lease_token, by="test", cause=Cause.HOST_LOST)

    attempt.seal(
        Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST),
        token=attempt.lease_token,
        by="test",
    )

    assert rows(attempt) == [(1, "fold 1", "interrupted")]
    # Nobody knows when.
    assert attempt.steps.get().seconds is None


def test_a_step_can_be_marked_as_timed_out_and_stays_so(seat: Seat, attempt: Attempt) -> None:
    seat.look(started(1))

    step = seat.part.time_out(seat.watch)
    assert step is not None
    assert rows(attempt) == [(1, "fold 1", "timed_out")]
    seat.look(finished(1, error="killed"), started(2))

    assert rows(attempt) == [(1, "fold 1", "timed_out"), (2, "fold 2", "")]
    attempt.refresh_from_db()
    assert attempt.step_feed["timeouts"] == 1


def test_steps_are_in_the_order_in_which_they_were_taken(seat: Seat, attempt: Attempt) -> None:
    """Whatever numbers the agent gives them."""
    for active, number in enumerate((5, 4, 6, 1)):
        seat.watch.clock.before = 100.0 * active
        seat.look(started(number), finished(number))
    seat.watch.clock.before = 400.0
    # Nobody told of its start.
    seat.look(finished(2))

    in_order = attempt.steps.in_order()  # type: ignore[attr-defined]
    assert list(in_order.values_list("number", flat=True)) == [5, 4, 6, 1, 2]


def test_all_that_is_unread_is_caught_up_with(
    seat: Seat, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_file, "READ_BYTES", 500)
    seat.say(started(1), *({"type": "heartbeat"} for _ in range(100)), finished(1))
    seat.look()
    assert rows(attempt) == [(1, "fold 1", "")]

    seat.part.catch_up(seat.watch)

    assert rows(attempt) == [(1, "fold 1", "finished")]


def test_a_file_that_grows_without_end_is_not_caught_up_with_forever(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def read() -> event_file.Lines:
        looks.append(1)
        return event_file.Lines([b'{"type": "heartbeat"}'], is_behind=True)

    monkeypatch.setattr(seat.part.tail, "read", read)

    seat.part.catch_up(seat.watch)

    assert len(looks) == steps.LAST_LOOKS


def test_steps_of_a_resumed_attempt_continue_their_numbers(attempt: Attempt) -> None:
    assert attempt.lease_token is not None
    checkpoint = attempt.add_checkpoint(
        token=attempt.lease_token,
        step=4,
        active_seconds=50,
        files=1,
        size=1,
        added_bytes=1,
        save_seconds=0.1,
        path="x",
        digest="0" * 64,
    )
    Attempt.objects.filter(pk=attempt.pk).update(restored_checkpoint=checkpoint)
    seat = Seat(Attempt.objects.get(pk=attempt.pk))

    # It says no numbers.
    seat.look({"type": "step_started"}, {"type": "step_finished"}, {"type": "step_started"})

    assert [number for number, _, _ in rows(attempt)] == [5, 6]


def test_a_very_long_run_keeps_a_bounded_number_of_rows(
    seat: Seat, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.core.steps.MAX_STEPS", 20)
    for first in range(1, 100, 10):
        seat.look(*({"type": "step_finished", "step": first + each} for each in range(10)))

    numbers = [number for number, _, _ in rows(attempt)]
    assert len(numbers) <= 20
    assert numbers == sorted(seat.part.ledger.steps)
    assert numbers[-5:] == [96, 97, 98, 99, 100]


def test_an_agent_that_says_nothing_costs_no_write(
    seat: Seat, django_assert_num_queries: object
) -> None:
    seat.look()

    with django_assert_num_queries(0):  # type: ignore[operator]
        seat.part.look(seat.watch)
        seat.part.last(seat.watch, Ending(ended_by_itself=True, exit_code=0))


def test_a_sign_of_life_that_is_no_event_is_written_now_and_then(
    seat: Seat, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SIGN_EVERY", 0.0)
    seat.watch.last_sign = time.monotonic() + 1

    seat.part.look(seat.watch)

    attempt.refresh_from_db()
    assert attempt.signs["any"] == pytest.approx(time.time(), abs=60)
    assert "step" not in attempt.signs


def test_rows_of_steps_leave_with_their_attempt(seat: Seat, attempt: Attempt) -> None:
    seat.look(started(1))

    attempt.run.delete()

    assert not Step.objects.exists()


# ------------------------------------------------------------------------------ probes


@pytest.fixture
def aide(attempt: Attempt) -> Attempt:
    agent = factories.make_agent("aide/dev", image_name="aide", is_builtin=False)
    type(attempt.run.group).objects.filter(pk=attempt.run.group_id).update(agent=agent)
    return Attempt.objects.get(pk=attempt.pk)


def node(value: float | None, plan: str = "A plan.") -> dict[str, object]:
    return {
        "plan": plan,
        "is_buggy": value is None,
        "exc_type": None if value else "ValueError",
        "metric": {"value": value, "maximize": True if value else None},
        "ctime": time.time(),
        "exec_time": 0.1,
    }


def write_journal(seat: Seat, *nodes: dict[str, object]) -> None:
    path: Path = seat.supervisor.workspace.logs / "journal.json"
    path.write_text(json.dumps({"nodes": nodes}))
    seat.part._probe_due = 0
    seat.part.look(seat.watch)


def test_an_agent_that_does_not_speak_is_read_by_its_probe(aide: Attempt) -> None:
    seat = Seat(aide)
    seat.look()
    # Its first step has begun with it.
    assert rows(aide) == [(1, "", "")]

    write_journal(seat, node(0.7, "A forest."), node(None))

    assert rows(aide) == [
        (1, "A forest.", "finished"),
        (2, "A plan.", "failed"),
        (3, "", ""),
    ]
    first, second, third = aide.steps.all()
    assert (first.metric_value, first.metric_maximize, first.source) == (0.7, True, "probe")
    assert second.error == "ValueError"
    assert third.is_assumed


def test_a_probe_goes_on_with_another_supervisor(aide: Attempt) -> None:
    seat = Seat(aide)
    seat.look()
    write_journal(seat, node(0.7))

    other = adopted(aide)
    write_journal(other, node(0.7), node(0.8))

    assert [(number, end) for number, _, end in rows(aide)] == [
        (1, "finished"),
        (2, "finished"),
        (3, ""),
    ]


def test_a_half_written_journal_does_not_begin_anew_with_another_supervisor(aide: Attempt) -> None:
    seat = Seat(aide)
    seat.look()
    write_journal(seat, node(0.7))
    known = [(1, "A plan.", "finished"), (2, "", "")]
    assert rows(aide) == known

    journal = seat.supervisor.workspace.logs / "journal.json"
    journal.write_text(journal.read_text()[:20])
    other = adopted(aide)
    other.look()
    assert rows(aide) == known

    write_journal(other, node(0.7), node(0.8))
    assert [end for _, _, end in rows(aide)] == ["finished", "finished", ""]


def test_a_step_that_was_only_assumed_is_gone_when_the_agent_has_ended(aide: Attempt) -> None:
    seat = Seat(aide)
    seat.look()
    write_journal(seat, node(0.7))

    seat.part.last(seat.watch, Ending(ended_by_itself=True, exit_code=0, active_seconds=5))

    assert rows(aide) == [(1, "A plan.", "finished")]


def test_a_file_that_a_probe_cannot_read_is_told_of_once(aide: Attempt) -> None:
    seat = Seat(aide)
    (seat.supervisor.workspace.logs / "journal.json").symlink_to("/etc/hostname")
    for _ in range(2):
        seat.part._probe_due = 0
        seat.look()

    assert seat.told().count("Steps of the agent cannot be read: logs/journal.json") == 1


def test_an_agent_that_speaks_is_not_probed(aide: Attempt) -> None:
    seat = Seat(aide)
    seat.look(started(1))

    write_journal(seat, node(0.7), node(0.8))

    assert rows(aide) == [(1, "fold 1", "")]
