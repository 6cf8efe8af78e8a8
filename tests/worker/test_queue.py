"""Claim, adoption, fencing and the reaper, against a real database."""

import threading
import uuid
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.conf import settings
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from mlebench_web.catalog.models import Agent
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Gpu, Host
from runs import queue
from runs.core.failures import Cause
from runs.core.limits import Reaping
from runs.core.states import IllegalMove, Outcome, RunState, State, Verdict
from runs.models import Attempt, GpuLease, Move, Replaced, Run
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def box() -> Host:
    """This very host: its worker is this process."""
    host = factories.make_host(settings.HOST_NAME, slots=2, cpus=4, boot_id=hosts.boot_id())
    factories.make_prepared(host, factories.make_competition())
    return host


def queued(**fields: object) -> Attempt:
    group = factories.make_group(
        config=factories.make_config("small", settings={"nano_cpus": 1e9, "mem_limit": "1G"}),
        **fields,
    )
    return factories.make_run(group).newest_attempt()


def gpu_group(gpus: int, **fields: object) -> Attempt:
    group = factories.make_group(
        config=factories.make_config(
            f"gpu {gpus}", settings={"nano_cpus": 1e9, "mem_limit": "1G", "gpus": gpus}
        ),
        **fields,
    )
    return factories.make_run(group).newest_attempt()


def calm() -> Reaping:
    """A reaper that is sure of its clock."""
    patience = Reaping(ttl=90, lost_after=settings.HOST_LOST_AFTER.total_seconds())
    patience.tick = lambda **_: None  # type: ignore[method-assign]
    patience.may_lose_hosts = lambda: True  # type: ignore[method-assign]
    return patience


def test_a_claim_gives_a_lease_and_reserves_what_the_config_asks(box: Host) -> None:
    attempt = queued()

    lease = queue.take_work(box)

    assert lease is not None
    attempt.refresh_from_db()
    assert (attempt.state, attempt.host, attempt.lease_token) == (State.STARTING, box, lease.token)
    assert (attempt.cpus, attempt.memory_bytes) == (1, 2**30)
    assert attempt.image_id == factories.IMAGE_ID
    assert attempt.run.state == RunState.STARTING
    assert list(Move.objects.filter(attempt=attempt).values_list("new", "by"))[-1] == (
        State.STARTING,
        box.name,
    )


def test_nothing_is_claimed_that_does_not_fit(box: Host) -> None:
    for _ in range(3):
        queued()

    assert queue.claim(box)
    assert queue.claim(box)
    assert queue.claim(box) is None, "two slots"


def test_a_smaller_one_behind_one_that_does_not_fit_is_taken(box: Host) -> None:
    gpu_group(1, priority=9)
    small = queued()

    lease = queue.claim(box)

    assert lease is not None
    assert lease.attempt == small


def test_a_draining_host_claims_nothing(box: Host) -> None:
    queued()
    Host.objects.update(is_draining=True)

    assert queue.claim(box) is None


def test_data_that_is_not_prepared_keeps_a_run_waiting_and_says_so(box: Host) -> None:
    group = factories.make_group()
    other = factories.make_competition("demo-other")
    attempt = factories.make_run(group, competition=other).newest_attempt()

    assert queue.claim(box) is None
    assert "preparing data" in queue.why_waiting(attempt)


def test_two_attempts_never_hold_one_gpu(box: Host) -> None:
    gpus = [factories.make_gpu(box, index).uuid for index in range(2)]
    first, second, third = gpu_group(1), gpu_group(1), gpu_group(1)
    Host.objects.update(slots=4)

    leases = [queue.claim(box), queue.claim(box), queue.claim(box)]

    assert [lease and lease.attempt.pk for lease in leases] == [first.pk, second.pk, None]
    held = GpuLease.objects.filter(released_at__isnull=True).values_list("gpu__uuid", flat=True)
    assert sorted(held) == sorted(gpus)
    assert "0 of 1 GPUs are free" in queue.why_waiting(third)


def test_the_database_refuses_a_second_live_lease_of_a_gpu(box: Host) -> None:
    gpu = factories.make_gpu(box)
    one, other = queued(), queued()
    GpuLease.objects.create(attempt=one, gpu=gpu)

    with pytest.raises(IntegrityError), transaction.atomic():
        GpuLease.objects.create(attempt=other, gpu=gpu)


def test_a_faulty_gpu_is_not_leased(box: Host) -> None:
    factories.make_gpu(box, fault="The GPU is lost")
    attempt = gpu_group(1)

    assert queue.claim(box) is None
    assert "it has no GPU" in queue.why_waiting(attempt)


def test_an_end_frees_cpus_and_gpus(box: Host) -> None:
    gpu = factories.make_gpu(box)
    gpu_group(1)
    lease = queue.claim(box)
    assert lease

    lease.attempt.move(State.COLLECTING, token=lease.token, by="test")
    assert not queue.offer_of(box).free_gpus, "held until the container was seen gone"
    lease.attempt.release(token=lease.token, by="test")

    assert queue.offer_of(box).free_gpus == (gpu.uuid,)
    assert queue.offer_of(box).free_cpus == box.cpus


def test_a_host_declared_lost_offers_nothing_until_it_was_swept(box: Host) -> None:
    gpu = factories.make_gpu(box)
    gpu_group(1)
    lease = queue.claim(box)
    assert lease

    lease.attempt.seal(
        Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST),
        token=lease.token,
        by="control worker",
        release=False,
    )

    offer = queue.offer_of(box)
    assert offer.free_gpus == ()
    assert offer.free_cpus == (box.cpus or 0) - 1
    assert Gpu.objects.get().pk == gpu.pk


# -------------------------------------------------------------------------------- fencing


def test_a_stale_supervisor_can_write_nothing(box: Host) -> None:
    queued()
    old = queue.claim(box)
    assert old
    stale = Attempt.objects.get(pk=old.attempt.pk)
    Attempt.objects.update(supervisor_pid=1, supervisor_started=0)

    new = queue.take_work(box)

    assert new is not None
    assert new.adopted
    with pytest.raises(Replaced):
        stale.move(State.RUNNING, token=old.token, by="stale")
    with pytest.raises(Replaced):
        stale.save_held(old.token, active_seconds=99)
    with pytest.raises(Replaced):
        stale.seal(Verdict(Outcome.GRADED), token=old.token, by="stale")
    stale.refresh_from_db()
    assert (stale.state, stale.active_seconds) == (State.STARTING, 0)


def test_an_attempt_with_a_live_supervisor_is_not_adopted(box: Host) -> None:
    queued()
    assert queue.claim(box)

    assert queue.adopt_one(box) is None


def test_an_expired_lease_is_adopted_although_its_process_lives(box: Host) -> None:
    """A hung supervisor sends no heartbeat; its token is worth nothing from here on."""
    queued()
    lease = queue.claim(box)
    assert lease
    Attempt.objects.update(lease_until=timezone.now() - timedelta(seconds=1))

    adopted = queue.adopt_one(box)

    assert adopted is not None
    assert adopted.token != lease.token


def test_a_supervisor_of_an_earlier_boot_is_dead(box: Host) -> None:
    queued()
    assert queue.claim(box)
    Attempt.objects.update(supervisor_boot_id="another boot")

    assert queue.adopt_one(box) is not None


def test_of_two_adoptions_one_wins(box: Host) -> None:
    queued()
    assert queue.claim(box)
    Attempt.objects.update(supervisor_pid=1, supervisor_started=0)
    first, second = Attempt.objects.get(), Attempt.objects.get()

    queue.adopt(first)

    with pytest.raises(Replaced):
        queue.adopt(second)


def test_an_attempt_of_another_host_is_never_adopted(box: Host) -> None:
    factories.make_run(
        state=State.RUNNING,
        host=factories.make_host("other"),
        lease_until=timezone.now() - timedelta(hours=1),
    )

    assert queue.adopt_one(box) is None


def test_an_ended_attempt_never_changes_again(box: Host) -> None:
    attempt = factories.make_run(outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED)
    row = attempt.newest_attempt()

    with pytest.raises(IllegalMove):
        row.move(State.RUNNING, token=row.lease_token, by="test")
    with pytest.raises(Replaced):
        row.save_held(row.lease_token or uuid.uuid4(), active_seconds=1)


def test_a_claim_and_a_cancel_at_once_leave_one_of_the_two(box: Host) -> None:
    attempt = queued()
    stale = Attempt.objects.get(pk=attempt.pk)
    assert queue.claim(box)

    with pytest.raises(Replaced):
        stale.seal(Verdict(Outcome.CANCELLED, Cause.CANCELLED), token=None, by="alice")
    assert Attempt.objects.get().state == State.STARTING


@pytest.mark.django_db(transaction=True)
def test_many_claims_at_once_take_each_attempt_once() -> None:
    """Four workers of two hosts, twelve attempts: real connections, real locks."""
    competition = factories.make_competition()
    for name in ("one", "two"):
        host = factories.make_host(name, slots=6, cpus=6)
        factories.make_prepared(host, competition)
        factories.make_gpu(host, 0)
        factories.make_gpu(host, 1)
    for _ in range(4):
        gpu_group(1)
    for _ in range(8):
        queued()
    taken: list[int] = []
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while lease := queue.claim(Host.objects.get(name=name)):
                taken.append(lease.attempt.pk)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "one", "two", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert failures == []
    assert sorted(taken) == sorted(Attempt.objects.values_list("pk", flat=True))
    assert GpuLease.objects.filter(released_at__isnull=True).count() == 4


# -------------------------------------------------------------------------------- tries


def test_an_infrastructure_failure_queues_the_next_attempt_until_no_try_is_left(box: Host) -> None:
    run = queued().run

    for number in range(1, settings.MAX_TRIES + 1):
        lease = queue.claim(box)
        assert lease is not None
        assert lease.attempt.number == number
        lease.attempt.seal(
            Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.ENGINE_ERROR), token=lease.token, by="test"
        )
        # The back-off is over.
        Attempt.objects.update(not_before=None)

    run.refresh_from_db()
    assert run.state == RunState.FAILED
    assert queue.claim(box) is None
    assert run.attempts.count() == settings.MAX_TRIES


def test_an_infrastructure_failure_of_a_cancelled_attempt_queues_nothing(box: Host) -> None:
    queued()
    lease = queue.claim(box)
    assert lease
    Attempt.objects.update(cancel_requested_at=timezone.now())

    lease.attempt.seal(
        Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.ENGINE_ERROR), token=lease.token, by="test"
    )

    assert Attempt.objects.count() == 1


# -------------------------------------------------------------------------------- the reaper


@pytest.fixture
def silent() -> Attempt:
    """A running attempt whose host has been silent for an hour."""
    long_ago = timezone.now() - timedelta(hours=1)
    host = factories.make_host("silent", worker_seen_at=long_ago, service_seen_at=long_ago)
    run = factories.make_run(state=State.RUNNING, host=host, lease_until=long_ago)
    return run.newest_attempt()


def test_with_one_worker_host_there_is_no_relaunch_by_time(silent: Attempt) -> None:
    assert queue.reap(calm()) == []
    assert Attempt.objects.count() == 1


def test_a_silent_host_is_lost_when_another_could_take_its_run(silent: Attempt, box: Host) -> None:
    [sealed] = queue.reap(calm())

    assert (sealed.outcome, sealed.cause) == (Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST)
    assert sealed.released_at is None
    assert Run.objects.get().newest_attempt().state == State.QUEUED


@pytest.mark.parametrize("accepts", [True, False])
def test_a_privileged_run_of_a_lost_host_needs_another_that_accepts_it(
    silent: Attempt, box: Host, accepts: bool
) -> None:
    Agent.objects.update(privileged=True)
    Host.objects.filter(name="silent").update(accepts_privileged=True)
    Host.objects.filter(pk=box.pk).update(accepts_privileged=accepts)

    assert queue.another_host_could_take(silent) == accepts
    sealed = queue.reap(calm())

    assert [attempt.cause for attempt in sealed] == ([Cause.HOST_LOST] if accepts else [])


def test_a_host_whose_service_still_answers_is_not_lost(silent: Attempt, box: Host) -> None:
    Host.objects.filter(name="silent").update(service_seen_at=timezone.now())

    assert queue.reap(calm()) == []


def test_a_reaper_after_an_outage_waits(silent: Attempt, box: Host) -> None:
    assert queue.reap(Reaping(ttl=90, lost_after=900)) == []


def test_a_lease_that_was_renewed_a_moment_ago_is_not_adopted(box: Host) -> None:
    """Its supervisor had been stuck for longer than its lease, and goes on."""
    row = factories.make_run(
        state=State.RUNNING,
        host=box,
        lease_token=uuid.uuid4(),
        lease_until=timezone.now() - timedelta(seconds=1),
    ).newest_attempt()
    Attempt.objects.update(lease_until=Now() + settings.LEASE_TTL)

    with pytest.raises(Replaced):
        queue.adopt(row)


def test_a_database_that_took_no_writes_is_an_outage_to_the_reaper(
    box: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered questions all the time, and no host could say that it is there."""
    patience, begin, now = Reaping(ttl=90, lost_after=900), timezone.now(), 0

    def reap_until(seconds: int) -> list[Attempt]:
        nonlocal now
        while now < seconds:
            now += 30
            sealed = queue.reap(patience)
        return sealed

    def refuse() -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(queue, "time", SimpleNamespace(monotonic=lambda: float(now)))
    monkeypatch.setattr(hosts, "now", lambda: begin + timedelta(seconds=now))
    reap_until(990)
    assert patience.may_lose_hosts()
    long_ago = begin - timedelta(hours=1)
    host = factories.make_host("silent", worker_seen_at=long_ago, service_seen_at=long_ago)
    factories.make_run(state=State.RUNNING, host=host, lease_until=long_ago)

    with monkeypatch.context() as locked:
        locked.setattr(queue, "prove_that_it_takes_writes", refuse)
        while now < 1200:
            now += 30
            with pytest.raises(OperationalError):
                queue.reap(patience)

    Host.objects.filter(pk=box.pk).update(worker_seen_at=begin + timedelta(hours=1))
    assert reap_until(2100) == []
    assert len(reap_until(2130)) == 1, "900 s after it took writes again"


def test_a_lease_that_has_not_expired_is_left_alone(silent: Attempt, box: Host) -> None:
    Attempt.objects.update(lease_until=timezone.now() + timedelta(seconds=60))

    assert queue.reap(calm()) == []


def test_a_cancelled_attempt_of_a_silent_host_is_sealed_cancelled(silent: Attempt) -> None:
    Attempt.objects.update(cancel_requested_at=timezone.now())

    [sealed] = queue.reap(calm())

    assert sealed.outcome == Outcome.CANCELLED
    assert Attempt.objects.count() == 1


def test_an_offer_takes_a_fixed_number_of_queries(
    box: Host, django_assert_max_num_queries: "object"
) -> None:
    for _ in range(20):
        queued()

    with django_assert_max_num_queries(7):  # type: ignore[operator]
        queue.offer_of(box)
