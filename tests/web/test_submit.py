"""The verbs behind page, API and shell; the rest of their rules is in tests/api."""

import dataclasses
import threading
import uuid

import pytest
from django.db import connection
from django.db.models.signals import pre_save

from mlebench_web.accounts.models import AuditEntry, User
from mlebench_web.fleet.models import Host
from runs import submit
from runs.core.failures import Cause
from runs.core.group_state import group_state
from runs.core.states import Outcome, Result, RunState, State, Verdict
from runs.forms import NewRunGroupForm
from runs.models import Attempt, Experiment, Move, Run, RunGroup
from runs.request import RequestInvalid, RunGroupRequest
from tests import factories
from tests.support.lab import make_lab

DEMO = RunGroupRequest(agent="baseline", split="demo", seeds=3)


@pytest.fixture
def lab(db: None) -> Host:
    return make_lab()


@pytest.fixture
def alice(db: None) -> User:
    return factories.make_user("alice")


def test_either_all_is_made_or_nothing(lab: Host, alice: User) -> None:
    """The last write fails, as a full disk would have it."""

    def full(**_: object) -> None:
        raise OSError("disk full")

    pre_save.connect(full, sender=AuditEntry)
    try:
        with pytest.raises(OSError, match="disk full"):
            submit.create_run_group(DEMO, by=alice)
    finally:
        pre_save.disconnect(full, sender=AuditEntry)

    assert (RunGroup.objects.count(), Run.objects.count(), Attempt.objects.count()) == (0, 0, 0)


def test_the_bell_is_rung_after_the_commit_and_never_spoils_the_answer(
    lab: Host, alice: User, monkeypatch, django_capture_on_commit_callbacks
) -> None:
    seen = []

    def ring() -> None:
        seen.append(RunGroup.objects.count())
        raise RuntimeError("broken bell")

    monkeypatch.setattr(submit.bell, "ring", ring)

    with django_capture_on_commit_callbacks(execute=True):
        submit.create_run_group(DEMO, by=alice)

    assert seen == [1]


def test_the_shell_may_start_without_a_person(lab: Host) -> None:
    group = submit.create_run_group(DEMO, by=None)

    assert group.created_by is None
    assert AuditEntry.objects.get().actor_name == "server's shell"
    assert Move.objects.first().by == "server's shell"


# --------------------------------------------------------------------------------------- cancel


def test_a_cancel_that_a_claim_overtakes_asks_the_supervisor(lab: Host, alice: User) -> None:
    """Between reading "queued" and sealing, a host claims the attempt."""
    run = factories.make_run()
    asked = run.newest_attempt

    def claimed_meanwhile() -> Attempt:
        attempt = asked()
        if attempt.state == State.QUEUED:
            Attempt.objects.get(pk=attempt.pk).claim(lab, token=uuid.uuid4(), cpus=1)
        return attempt

    run.newest_attempt = claimed_meanwhile  # type: ignore[method-assign]

    assert submit.cancel_run(run, by=alice) is True

    attempt = asked()
    assert attempt.state == State.STARTING
    assert attempt.cancel_requested_by == "alice"


def test_a_second_cancel_changes_nothing(lab: Host, alice: User) -> None:
    run = factories.make_run(state=State.RUNNING)

    assert submit.cancel_run(run, by=alice) is True
    first = run.newest_attempt().cancel_requested_at
    assert submit.cancel_run(run, by=alice) is False

    assert run.newest_attempt().cancel_requested_at == first
    assert AuditEntry.objects.filter(action="cancel").count() == 1


def test_a_cancelled_run_stays_cancelled_at_a_second_press(lab: Host, alice: User) -> None:
    run = factories.make_run()

    assert submit.cancel_run(run, by=alice) is True
    assert submit.cancel_run(run, by=alice) is False


def test_a_cancel_queues_no_new_attempt(lab: Host, alice: User) -> None:
    """It beats every later cause, as an engine that breaks while the agent is stopped."""
    run = factories.make_run(state=State.RUNNING)
    submit.cancel_run(run, by=alice)
    attempt = run.newest_attempt()

    attempt.seal(
        Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.ENGINE_ERROR),
        token=attempt.lease_token,
        by="box-1",
    )

    assert run.attempts.count() == 1


# --------------------------------------------------------------------------------------- re-run


def broken(count: int = 1) -> list[Run]:
    group = factories.make_group()
    return [
        factories.make_run(
            group, outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.CONTAINER_KILLED
        )
        for _ in range(count)
    ]


def test_older_attempts_stay_as_they_are(lab: Host, alice: User) -> None:
    (run,) = broken()
    before = Attempt.objects.values().get()

    (attempt,) = submit.rerun([run], by=alice)

    assert attempt.number == 2
    assert Attempt.objects.values().get(number=1) == before


def test_a_reason_of_blanks_is_none(lab: Host, alice: User) -> None:
    run = factories.make_run(outcome=Outcome.AGENT_FAILED, cause=Cause.TIME_LIMIT)

    with pytest.raises(submit.ReasonNeeded):
        submit.rerun([run], by=alice, reason="  \n")


def test_an_imported_result_is_never_run_again(lab: Host, alice: User) -> None:
    run = factories.make_run(result=Result.GOLD)

    with pytest.raises(submit.NotRerunnable):
        submit.rerun([run], by=alice, reason="because")


def test_the_actor_may_have_a_name_only(lab: Host) -> None:
    (run,) = broken()

    submit.rerun([run], by=None, by_name="nightly job")

    assert AuditEntry.objects.get().actor_name == "nightly job"
    assert Move.objects.filter(attempt__number=2).get().by == "nightly job"


@pytest.mark.django_db(transaction=True)
def test_two_people_who_press_at_once_queue_each_run_once() -> None:
    make_lab()
    alice = factories.make_user("alice")
    runs = broken(5)
    together = threading.Barrier(4)
    queued: list[int] = []

    def press() -> None:
        try:
            together.wait()
            queued.append(len(submit.rerun(runs, by=alice)))
        finally:
            connection.close()

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(queued) == [0, 0, 0, 5]
    assert Attempt.objects.filter(state=State.QUEUED).count() == 5


# --------------------------------------------------------------------------------- state of a group


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({}, RunState.QUEUED),
        ({RunState.QUEUED: 3}, RunState.QUEUED),
        ({RunState.QUEUED: 3, RunState.STARTING: 1}, RunState.RUNNING),
        ({RunState.QUEUED: 1, RunState.FINISHED: 3}, RunState.RUNNING),
        ({RunState.GRADING: 1, RunState.FAILED: 3}, RunState.RUNNING),
        ({RunState.FINISHED: 3}, RunState.FINISHED),
        ({RunState.FINISHED: 3, RunState.FAILED: 0}, RunState.FINISHED),
        ({RunState.FINISHED: 3, RunState.CANCELLED: 1}, RunState.CANCELLED),
        ({RunState.FAILED: 1, RunState.FINISHED: 3, RunState.CANCELLED: 1}, RunState.FAILED),
    ],
)
def test_the_state_of_a_group_follows_from_its_runs(counts: dict, state: RunState) -> None:
    assert group_state(counts) == state


# ----------------------------------------------------------------------------------------- form

FORM = {
    "agent": "baseline",
    "split": "demo",
    "seeds": "3",
    "time_limit_hours": "24",
    "step_timeout_hours": "0.5",
}


def test_the_form_becomes_the_same_request(lab: Host, alice: User) -> None:
    form = NewRunGroupForm(FORM, by=alice)

    assert form.is_valid(), form.errors
    assert form.asked() == RunGroupRequest(
        agent="baseline", split="demo", seeds=3, time_limit_s=86_400, step_timeout_s=1_800
    )
    assert form.checks == []


def test_what_blocks_stands_at_its_field_and_in_the_panel(lab: Host, alice: User) -> None:
    factories.make_gpu(lab)

    form = NewRunGroupForm(
        {**FORM, "split": "low", "container_config": "no_sysbox", "time_limit_hours": "1"},
        by=alice,
    )

    assert not form.is_valid()
    assert set(form.errors) == {"acknowledge_no_gpu"}
    assert "acknowledge" in {check.level for check in form.checks}
    assert "inform" in {check.level for check in form.checks}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"agent": "nobody"}, "agent"),
        ({"split": ""}, "split"),
        ({"split": "demo", "competitions": ["spaceship-titanic"]}, "competitions"),
        ({"seeds": "0"}, "seeds"),
        ({"seeds": "many"}, "seeds"),
        ({"time_limit_hours": "nan"}, "time_limit_hours"),
        ({"time_limit_hours": "1e9"}, "time_limit_hours"),
        ({"step_timeout_hours": "-1"}, "step_timeout_hours"),
        ({"priority": "1000"}, "priority"),
        ({"container_config": "nothing"}, "container_config"),
    ],
)
def test_the_form_says_what_is_wrong_at_the_field(
    lab: Host, alice: User, change: dict, field: str
) -> None:
    form = NewRunGroupForm({**FORM, **change}, by=alice)

    assert not form.is_valid()
    assert list(form.errors) == [field]


def test_an_experiment_of_another_agent_is_an_error_at_the_experiment(
    lab: Host, alice: User
) -> None:
    submit.create_run_group(DEMO, by=alice)

    form = NewRunGroupForm({**FORM, "agent": "dummy", "experiment": "baseline"}, by=alice)

    assert not form.is_valid()
    assert list(form.errors) == ["experiment"]


def test_an_imported_experiment_takes_no_run_groups(lab: Host, alice: User) -> None:
    Experiment.objects.create(name="imported")

    with pytest.raises(RequestInvalid, match="was imported"):
        submit.create_run_group(dataclasses.replace(DEMO, experiment="imported"), by=alice)


def test_errors_of_the_service_name_their_fields(lab: Host) -> None:
    with pytest.raises(RequestInvalid) as caught:
        submit.create_run_group(RunGroupRequest(agent="x", split="y", seeds=0), by=None)

    assert [error.field for error in caught.value.errors] == ["agent", "split", "seeds"]
