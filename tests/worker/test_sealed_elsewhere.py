"""A supervisor that was away for too long: what was decided without it stands, and it leaves."""

import errno
import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from runs import queue, worker
from runs.attempt_disk import AttemptDisk
from runs.containers import engine_of
from runs.core.failures import Cause
from runs.core.states import Outcome, State, Verdict
from runs.models import Attempt, Replaced
from runs.queue import Lease
from runs.worker import Supervisor
from tests import factories

pytestmark = pytest.mark.django_db

LOST = Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST)


@pytest.fixture
def supervisor(settings: "object") -> Supervisor:
    """Its attempt is at the end of its start."""
    host = factories.make_host(settings.HOST_NAME)  # type: ignore[attr-defined]
    token = uuid.uuid4()
    run = factories.make_run(
        state=State.STARTING,
        host=host,
        lease_token=token,
        lease_until=timezone.now() + timedelta(minutes=1),
        **queue.this_supervisor(),
    )
    return Supervisor(Lease(run.newest_attempt(), token, adopted=False), engine_of("process"))


def seal_from_outside(supervisor: Supervisor) -> None:
    """As the control worker does it: under the token that the row has."""
    row = Attempt.objects.get(pk=supervisor.attempt.pk)
    row.seal(LOST, token=supervisor.token, by="control", release=False)


def test_a_move_of_an_attempt_that_was_sealed_meanwhile_is_refused_as_replaced(
    supervisor: Supervisor,
) -> None:
    seal_from_outside(supervisor)

    with pytest.raises(Replaced):
        supervisor.move(State.RUNNING)


def test_another_seal_is_not_taken_for_its_own(supervisor: Supervisor) -> None:
    seal_from_outside(supervisor)

    with pytest.raises(Replaced):
        supervisor.seal(Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.CONTAINER_KILLED))

    row = Attempt.objects.get(pk=supervisor.attempt.pk)
    assert (row.cause, row.swept_at) == (Cause.HOST_LOST, None), "the janitor sweeps it"


def test_it_leaves_without_an_error_when_it_wakes_up(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sealed_during_the_start(self: Supervisor) -> None:
        seal_from_outside(self)
        self.move(State.RUNNING)

    monkeypatch.setattr(Supervisor, "start", sealed_during_the_start)
    lease = Lease(supervisor.attempt, supervisor.token, adopted=False)

    worker.supervise(lease, engine_of("process"))

    assert Attempt.objects.get(pk=supervisor.attempt.pk).cause == Cause.HOST_LOST


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (errno.ENOSPC, Cause.DISK_FULL),
        (errno.EDQUOT, Cause.DISK_FULL),
        (errno.EACCES, Cause.PRODUCT_ERROR),
    ],
    ids=["no space", "over quota", "refused"],
)
def test_a_full_disk_is_named_whichever_disk_it_is(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, error: int, cause: Cause
) -> None:
    monkeypatch.setattr(AttemptDisk, "is_full", lambda _: False)

    assert supervisor.disk.cause_of(OSError(error, "told")) == cause
