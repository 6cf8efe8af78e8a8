"""A move asks for a save of its own, leads away from the host, and is dropped with the drain."""

from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db.models.functions import Now
from django.utils import timezone

from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import draining, queue
from runs.checkpoints import CheckpointPart
from runs.checkpoints.saving import Saved, Wish
from runs.containers import engine_of
from runs.core.failures import Cause
from runs.core.overrides import Overrides
from runs.core.states import Outcome, State, Verdict
from runs.models import Attempt
from runs.watching import Ending, Watch
from runs.worker import Supervisor
from tests import factories

pytestmark = pytest.mark.django_db


class Seat:
    """A watch before a running attempt, with saves that are only noted."""

    def __init__(self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
        assert attempt.lease_token is not None
        self.attempt = attempt
        lease = queue.Lease(attempt, attempt.lease_token, adopted=False)
        supervisor = Supervisor(lease, engine_of("process"))
        self.part = CheckpointPart(supervisor)
        self.watch = Watch(supervisor, [self.part])
        self.saves: list[Wish] = []
        self.moved: list[str] = []
        self.problem = ""
        monkeypatch.setattr(supervisor.log, "say", lambda text: None)
        monkeypatch.setattr(self.part, "saver", SimpleNamespace(save=self._save))
        monkeypatch.setattr(self.watch, "go_on_from_checkpoint", self._go_on)

    def _save(self, wish: Wish, *, active_seconds: float) -> Saved:
        self.saves.append(wish)
        return Saved(wish, problem=self.problem)

    def _go_on(self, cause: Cause, detail: str) -> Ending | None:
        self.moved.append(detail)
        return None

    def ask(self, **fields: Any) -> None:
        Attempt.objects.filter(pk=self.attempt.pk).update(**fields)
        self.watch.attempt.refresh_from_db()

    def look(self) -> None:
        """One look, and what it began is at its end when this comes back."""
        self.part.look(self.watch)
        if self.part._thread is not None:
            self.part._thread.join(10)


@pytest.fixture
def box() -> Host:
    return factories.make_host(django_settings.HOST_NAME, boot_id=hosts.boot_id())


@pytest.fixture
def seat(box: Host, monkeypatch: pytest.MonkeyPatch) -> Seat:
    run = factories.make_run(state=State.RUNNING, host=box, began=timezone.now())
    return Seat(run.newest_attempt(), monkeypatch)


def test_a_move_is_not_made_on_the_checkpoint_of_an_earlier_ask(seat: Seat) -> None:
    seat.ask(checkpoint_asked_at=Now())
    seat.look()
    seat.look()
    assert (len(seat.saves), seat.attempt.checkpoint_asked_at) == (1, None)

    seat.ask(move_asked_at=Now(), move_asked_by="ada")
    seat.look()
    assert (len(seat.saves), seat.moved) == (2, [])
    seat.look()

    assert seat.moved == ["ada asked to move it to another host."]


def test_a_save_that_began_before_the_move_was_asked_is_not_for_it(seat: Seat) -> None:
    seat.ask(checkpoint_asked_at=Now())
    seat.look()
    seat.ask(move_asked_at=Now())

    seat.look()

    assert (len(seat.saves), seat.moved) == (2, [])


def test_a_save_that_failed_moves_nothing(seat: Seat) -> None:
    seat.problem = "the disk is full"
    seat.ask(move_asked_at=Now())

    seat.look()
    seat.look()

    assert (len(seat.saves), seat.moved) == (1, [])
    assert seat.attempt.checkpoint_problem == "the disk is full"


def test_a_move_that_is_asked_again_is_saved_for_again(seat: Seat) -> None:
    seat.ask(move_asked_at=Now())
    seat.look()
    seat.look()
    seat.ask(move_asked_at=None)
    seat.look()
    assert len(seat.moved) == 1

    seat.ask(move_asked_at=timezone.now())
    seat.look()

    assert (len(seat.saves), len(seat.moved)) == (2, 1)


def test_undraining_drops_the_moves_that_were_not_made(box: Host) -> None:
    other = factories.make_host("box-2")
    asked: dict[str, Any] = {"move_asked_at": timezone.now(), "move_asked_by": "ada"}
    Host.objects.update(is_draining=True)
    box.refresh_from_db()
    here = factories.make_run(state=State.RUNNING, host=box, **asked)
    stopped = factories.make_run(state=State.RUNNING, host=box, goes_on=True, **asked)
    elsewhere = factories.make_run(state=State.RUNNING, host=other, **asked)

    assert draining.undrain(box, by=None)

    attempt = here.newest_attempt()
    assert (attempt.move_asked_at, attempt.move_asked_by) == (None, "")
    assert stopped.newest_attempt().move_asked_by == "ada", "it is being stopped already"
    assert elsewhere.newest_attempt().move_asked_by == "ada"
    assert not draining.undrain(box, by=None)


@pytest.mark.parametrize(("cause", "host"), [(Cause.MOVED, None), (Cause.STEP_TIMEOUT, "box-1")])
def test_a_moved_run_does_not_wait_for_the_host_that_it_left(
    cause: Cause, host: str | None
) -> None:
    box = factories.make_host("box-1")
    asked = Overrides(host="box-1", time_limit_s=3600)
    run = factories.make_run(state=State.GRADING, host=box, overrides=asked.as_json())
    attempt = run.newest_attempt()

    attempt.seal(Verdict(Outcome.CONTINUED, cause), token=attempt.lease_token, by="test")

    assert run.newest_attempt().number == 2
    assert run.newest_attempt().asked == Overrides(host=host, time_limit_s=3600)
