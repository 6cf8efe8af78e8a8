"""Back-off, hosts that are put aside or said to be gone, and gradings of silent hosts."""

from datetime import timedelta

import pytest
from django.utils import timezone

from mlebench_web.accounts.models import AuditEntry, User
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import aside, bell, layout, queue
from runs.core.failures import Cause
from runs.core.limits import Reaping
from runs.core.overrides import Overrides
from runs.core.states import Outcome, RunState, State, Verdict
from runs.models import Attempt, Installation
from tests import factories
from tests.support import small_competition

pytestmark = pytest.mark.django_db

INFRA = Outcome.INFRASTRUCTURE_FAILED
LONG_AGO = timedelta(hours=1)


@pytest.fixture
def box(settings: "object") -> Host:
    host = factories.make_host(settings.HOST_NAME, slots=2, cpus=2)  # type: ignore[attr-defined]
    factories.make_prepared(host, factories.make_competition())
    return host


def silent_host(name: str = "silent") -> Host:
    then = timezone.now() - LONG_AGO
    return factories.make_host(name, worker_seen_at=then, service_seen_at=then)


def expired(state: State, host: Host, **fields: object) -> Attempt:
    run = factories.make_run(
        state=state, host=host, lease_until=timezone.now() - LONG_AGO, **fields
    )
    return run.newest_attempt()


def fail_one(host: Host, cause: Cause = Cause.ENGINE_ERROR, outcome: Outcome = INFRA) -> None:
    factories.make_run(outcome=outcome, cause=cause, host=host, cause_detail="shim gone")
    aside.judge(host, outcome)


# -------------------------------------------------------------------------------- back-off


def test_a_retry_waits_out_its_back_off_and_says_why(box: Host) -> None:
    run = factories.make_run()
    lease = queue.claim(box)
    assert lease

    lease.attempt.seal(Verdict(INFRA, Cause.ENGINE_ERROR), token=lease.token, by="test")

    retry = run.newest_attempt()
    assert retry.state == State.QUEUED
    assert retry.not_before is not None
    assert 5 < (retry.not_before - hosts.now()).total_seconds() <= 10
    assert queue.claim(box) is None
    assert queue.could_claim(box) == set()
    said = queue.why_waiting(retry)
    assert said.startswith("Back-off after a failure: it is tried again in ")
    assert "The container engine refused." in said
    Attempt.objects.filter(pk=retry.pk).update(not_before=hosts.now() - timedelta(seconds=1))
    assert queue.could_claim(box) == {retry.pk}
    assert queue.claim(box) is not None


def test_a_back_off_rings_no_bell(box: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(bell, "send", lambda host, count: sent.append(count) or count)
    attempt = factories.make_run(not_before=timezone.now() + timedelta(minutes=1)).newest_attempt()

    bell.ring()
    Attempt.objects.filter(pk=attempt.pk).update(not_before=None)
    bell.ring()

    assert sent == [0, 1]


def test_a_run_whose_host_was_lost_starts_elsewhere_at_once(box: Host) -> None:
    attempt = expired(State.RUNNING, silent_host())

    assert queue.seal_lost(attempt, by="test", detail="gone")

    assert attempt.run.newest_attempt().not_before is None


def test_what_a_rerun_asked_for_holds_for_its_retries_but_nobody_waits_for_a_lost_host(
    box: Host,
) -> None:
    asked = Overrides(host="silent", time_limit_s=3600).as_json()
    attempt = expired(State.RUNNING, silent_host(), overrides=asked)

    assert queue.seal_lost(attempt, by="test", detail="gone")

    assert attempt.run.newest_attempt().overrides == {"time_limit_s": 3600}


# -------------------------------------------------------------------------------- put aside


def test_three_failures_in_a_row_put_a_host_aside_while_another_is_there(box: Host) -> None:
    factories.make_host("other")
    fail_one(box)
    fail_one(box)
    box.refresh_from_db()
    assert box.put_aside == ""

    fail_one(box)

    box.refresh_from_db()
    assert box.put_aside == "3 attempts in a row failed here (engine error): shim gone"
    factories.make_run()
    assert queue.claim(box) is None


@pytest.mark.parametrize(
    "other", [{}, {"is_draining": True}, {"put_aside": "x"}, {"worker_seen_at": None}]
)
def test_the_last_host_that_can_be_used_is_only_shown_as_failing(box: Host, other: dict) -> None:
    if other:
        factories.make_host("other", **other)

    for _ in range(3):
        fail_one(box)

    box.refresh_from_db()
    assert box.put_aside == ""
    assert box.failing.startswith("3 attempts in a row failed here")
    fail_one(box, Cause.AGENT_CRASHED, Outcome.AGENT_FAILED)
    box.refresh_from_db()
    assert box.failing == "", "a run on it went well"


def test_use_again_forgives_what_was_before(box: Host, admin: User) -> None:
    factories.make_host("other")
    for _ in range(3):
        fail_one(box)

    assert aside.use_again(box, by=admin)
    assert not aside.use_again(box, by=admin), "a second press changes nothing"

    box.refresh_from_db()
    assert box.put_aside == ""
    assert AuditEntry.objects.filter(action="use again").count() == 1
    Host.objects.filter(pk=box.pk).update(used_again_at=timezone.now())
    fail_one(box, outcome=INFRA)
    box.refresh_from_db()
    assert box.put_aside == "", "it has its three tries anew"


# -------------------------------------------------------------------------------- gone


def test_a_silent_host_that_is_said_to_be_gone_loses_its_attempts_at_once(admin: User) -> None:
    """Also with one host, and without waiting for HOST_LOST_AFTER."""
    then = timezone.now() - timedelta(minutes=3)
    host = factories.make_host("silent", worker_seen_at=then, service_seen_at=then)
    running, cancelled = expired(State.RUNNING, host), expired(State.STARTING, host)
    Attempt.objects.filter(pk=cancelled.pk).update(cancel_requested_at=then)
    grading = expired(State.GRADING, host)

    sealed = aside.declare_lost(host, by=admin)

    assert {attempt.pk for attempt in sealed} == {running.pk, cancelled.pk}
    outcomes = [Attempt.objects.get(pk=each.pk).outcome for each in (running, cancelled, grading)]
    assert outcomes == [INFRA, Outcome.CANCELLED, ""]
    running.refresh_from_db()
    assert running.cause == Cause.HOST_LOST
    assert running.cause_detail == f"{admin} said that silent is gone."
    assert running.released_at is None, "its container may still run there"
    assert running.run.newest_attempt().state == State.QUEUED
    host.refresh_from_db()
    assert host.is_declared_lost()
    Host.objects.update(service_seen_at=timezone.now() + timedelta(seconds=1))
    host.refresh_from_db()
    assert not host.is_declared_lost(), "it was heard of"


def test_a_host_that_answers_is_not_gone(box: Host, admin: User) -> None:
    attempt = expired(State.RUNNING, box)

    with pytest.raises(aside.HostAnswers, match="so it is not gone"):
        aside.declare_lost(box, by=admin)

    attempt.refresh_from_db()
    assert attempt.state == State.RUNNING


def test_a_heartbeat_that_came_meanwhile_saves_the_attempt(box: Host) -> None:
    attempt = expired(State.RUNNING, silent_host())
    Attempt.objects.update(lease_until=timezone.now() + timedelta(seconds=60))

    assert not queue.seal_lost(attempt, by="test", detail="gone")


# -------------------------------------------------------------------------------- grading


@pytest.fixture
def left_in_grading(box: Host, settings: "object") -> Attempt:
    """A silent host's attempt in grading, its files collected and the answers here."""
    competition = small_competition.make()
    attempt = expired(
        State.GRADING, silent_host(), competition=competition, supervisor_boot_id="theirs"
    )
    layout.attempt_folder(attempt).mkdir(parents=True)
    return attempt


def test_a_grading_of_a_silent_host_is_taken_over_where_files_and_answers_are(
    left_in_grading: Attempt, box: Host
) -> None:
    lease = queue.take_work(box)

    assert lease is not None
    assert lease.attempt.pk == left_in_grading.pk
    assert lease.attempt.host == left_in_grading.host, "where it ran stays as it is"
    # When its own host comes back, it leaves the other one to it.
    Attempt.objects.update(supervisor_boot_id="elsewhere")
    assert left_in_grading.host is not None
    assert queue.adopt_one(left_in_grading.host) is None
    Attempt.objects.update(lease_until=timezone.now() - LONG_AGO)
    assert queue.adopt_one(left_in_grading.host) is not None


def test_a_grading_is_never_lost(left_in_grading: Attempt, box: Host) -> None:
    calm = Reaping(ttl=90, lost_after=900)
    calm.may_lose_hosts = lambda: True  # type: ignore[method-assign]

    assert queue.reap(calm) == []
    left_in_grading.refresh_from_db()
    assert left_in_grading.state == State.GRADING


@pytest.mark.parametrize("lacks", ["files", "answers", "silence"])
def test_a_grading_stays_with_its_host_otherwise(
    left_in_grading: Attempt, box: Host, lacks: str, settings: "object", tmp_path: object
) -> None:
    if lacks == "files":
        layout.attempt_folder(left_in_grading).rmdir()
    elif lacks == "answers":
        settings.COMPETITIONS_DIR = tmp_path  # type: ignore[attr-defined]
    else:
        Host.objects.filter(name="silent").update(service_seen_at=timezone.now())

    assert queue.adopt_grading(box) is None


def test_a_bell_is_rung_for_the_grading_of_a_silent_host(
    left_in_grading: Attempt, box: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(bell, "send", lambda host, count: sent.append((host, count)) or count)

    bell.ring()

    assert sent == [(box.name, 1)]


# -------------------------------------------------------------------------------- trust


def test_after_an_outage_an_expired_lease_says_nothing_for_one_lease(box: Host) -> None:
    queue.reap(Reaping(ttl=90, lost_after=900))

    trusted = Installation.this().trust_leases_from
    assert trusted is not None
    assert 80 < (trusted - hosts.now()).total_seconds() <= 91


# -------------------------------------------------------------------------------- overrides


def test_an_override_of_the_host_waits_for_that_one(box: Host) -> None:
    other = silent_host("other")
    factories.make_prepared(other, factories.make_competition())
    attempt = factories.make_run(overrides={"host": "other"}).newest_attempt()

    assert queue.claim(box) is None
    assert "the re-run asked for other" in queue.why_waiting(attempt)
    assert queue.claim(other) is not None


def test_an_override_of_gpu_class_and_memory_decides_what_is_leased(box: Host) -> None:
    factories.make_gpu(box, 0, name="NVIDIA A100-SXM4-80GB")
    wanted = factories.make_gpu(box, 1, name="NVIDIA A10")
    config = factories.make_config(
        "one gpu", settings={"nano_cpus": 1e9, "mem_limit": "1G", "gpus": 1}
    )
    group = factories.make_group(config=config)
    factories.make_run(group, overrides={"gpu": "A10", "memory_bytes": 3 * 2**30})

    lease = queue.claim(box)

    assert lease is not None
    assert [row.gpu for row in lease.attempt.gpu_leases.all()] == [wanted]
    assert lease.attempt.memory_bytes == 3 * 2**30
    factories.make_run(group, overrides={"gpu": "H100"})
    assert queue.claim(box) is None


def test_an_override_of_the_time_limit_is_the_attempts(box: Host) -> None:
    attempt = factories.make_run(overrides={"time_limit_s": 60}).newest_attempt()

    assert queue.time_limit_of(attempt) == timedelta(seconds=60)
    assert attempt.run.state == RunState.QUEUED
