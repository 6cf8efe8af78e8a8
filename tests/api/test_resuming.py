"""Resume or restart, a checkpoint now, and a host's runs moved away: API, page and shell."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from mlebench_web.accounts.models import AuditEntry, User
from mlebench_web.catalog import folders
from mlebench_web.fleet.models import Host
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, State
from runs.models import Attempt, Checkpoint, Run, RunGroup
from tests import factories
from tests.api.conftest import ApiClient


@pytest.fixture
def group(lab: Host) -> RunGroup:
    agent = factories.make_agent("baseline")
    agent.folder = folders.builtin("baseline")
    agent.save()
    return factories.make_group(agent=agent)


def lost_run(group: RunGroup, *, cause: Cause = Cause.CONTAINER_KILLED, seed: int = 0) -> Run:
    return factories.make_run(group, seed=seed, outcome=Outcome.INFRASTRUCTURE_FAILED, cause=cause)


def saved(run: Run, *, step: int = 3, active_seconds: float = 60, **fields: object) -> Checkpoint:
    attempt = run.newest_attempt()
    values: dict[str, object] = {
        "number": attempt.checkpoints.count() + 1,
        "step": step,
        "active_seconds": active_seconds,
        "files": 2,
        "size": 1000,
        "added_bytes": 500,
        "save_seconds": 0.1,
        "path": f"checkpoints/{run.pk}/x.json",
        "digest": "0" * 64,
        **fields,
    }
    return Checkpoint.objects.create(attempt=attempt, **values)


# ------------------------------------------------------------------------------ resume, restart


def test_a_resume_goes_on_from_the_attempt_with_the_checkpoint(
    api: ApiClient, group: RunGroup
) -> None:
    run = lost_run(group)
    saved(run)
    before = run.newest_attempt()

    status, answer = api.send(f"runs/{run.pk}/rerun", {"mode": "resume"})

    assert status == 200
    assert answer["items"][0]["resumed_from"] == before.pk
    assert AuditEntry.objects.get(action="rerun").detail["mode"] == "resume"


def test_a_restart_goes_on_from_nothing(api: ApiClient, group: RunGroup) -> None:
    run = lost_run(group)
    saved(run)

    _, answer = api.send(f"runs/{run.pk}/rerun", {"mode": "restart"})

    assert answer["items"][0]["resumed_from"] is None


@pytest.mark.parametrize(
    ("fields", "why", "field"),
    [
        pytest.param(None, "it has no checkpoint", "mode", id="none"),
        pytest.param({"path": ""}, "it has no checkpoint", "mode", id="dropped"),
        pytest.param({"fault": "half of it"}, "it has no checkpoint", "mode", id="corrupt"),
        pytest.param(
            {"active_seconds": 25 * 3600},
            "its time limit is used up (25 of 24 h)",
            "overrides.time_limit_s",
            id="no time",
        ),
    ],
)
def test_a_run_that_cannot_be_resumed_is_named_and_none_is_queued(
    api: ApiClient, group: RunGroup, fields: dict[str, object] | None, why: str, field: str
) -> None:
    other, run = lost_run(group), lost_run(group, seed=1)
    saved(other)
    if fields is not None:
        saved(run, **fields)

    status, answer = api.send(f"run-groups/{group.pk}/rerun", {"which": "failed", "mode": "resume"})

    assert status == 422
    assert answer["errors"][0]["field"] == field
    assert f"run {run.pk} ({run}): {why}" in answer["errors"][0]["message"]
    assert not Attempt.objects.filter(state=State.QUEUED).exists()


@pytest.mark.parametrize(
    ("asked_before", "asked", "status"),
    [
        pytest.param({}, {"time_limit_s": 26 * 3600}, 200, id="a larger one"),
        pytest.param({}, {"time_limit_s": 25 * 3600}, 422, id="not larger than what is used"),
        pytest.param({}, {}, 422, id="the group's"),
        pytest.param({"time_limit_s": 26 * 3600}, {}, 422, id="not the last attempt's"),
    ],
)
def test_the_time_limit_that_applies_is_the_one_that_is_asked_for(
    api: ApiClient,
    group: RunGroup,
    asked_before: dict[str, object],
    asked: dict[str, object],
    status: int,
) -> None:
    run = lost_run(group)
    Attempt.objects.update(overrides=asked_before)
    saved(run, active_seconds=25 * 3600)

    said, _ = api.send(f"runs/{run.pk}/rerun", {"mode": "resume", "overrides": asked})

    assert said == status
    newest = run.newest_attempt()
    assert (newest.resumed_from is not None) == (status == 200)


def test_the_page_offers_a_resume_where_only_the_time_is_used_up(
    page: Client, group: RunGroup
) -> None:
    run = lost_run(group)
    saved(run, active_seconds=24 * 3600)

    shown = page.get(f"/runs/{run.pk}/").content.decode()
    assert 'value="resume">' in shown
    assert "its time limit is used up (24 of 24 h)" in shown
    refused = page.post(f"/runs/{run.pk}/rerun/", {"mode": "resume"}, follow=True)
    assert "Write a larger &quot;Time limit, hours&quot;" in refused.content.decode()
    assert run.newest_attempt().number == 1
    page.post(f"/runs/{run.pk}/rerun/", {"mode": "resume", "time_limit_hours": "30"})

    assert run.newest_attempt().resumed_from is not None


def test_the_shell_names_the_option_of_the_time_limit(group: RunGroup) -> None:
    run = lost_run(group)
    saved(run, active_seconds=24 * 3600)
    words = ("rerun", str(group.pk), "--which", "failed", "--mode", "resume")

    with pytest.raises(CommandError, match=r"^--time-limit-hours: Cannot be resumed within"):
        call_command(*words, stdout=StringIO())
    call_command(*words, "--time-limit-hours", "30", stdout=StringIO())

    assert run.newest_attempt().resumed_from is not None


def test_an_older_attempts_checkpoint_is_found_through_the_one_that_went_on_from_it(
    api: ApiClient, group: RunGroup
) -> None:
    run = lost_run(group)
    saved(run)
    second = factories.make_attempt(
        run,
        outcome=Outcome.INFRASTRUCTURE_FAILED,
        cause=Cause.START_LIMIT,
        resumed_from=run.newest_attempt(),
    )

    status, answer = api.send(f"runs/{run.pk}/rerun", {"mode": "resume"})

    assert status == 200
    assert answer["items"][0]["resumed_from"] == second.pk


def test_after_a_restart_from_zero_the_old_checkpoints_count_no_more(
    api: ApiClient, group: RunGroup
) -> None:
    run = lost_run(group)
    saved(run)
    factories.make_attempt(run, outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.DISK_FULL)

    status, _ = api.send(f"runs/{run.pk}/rerun", {"mode": "resume"})

    assert status == 422


def test_the_shell_resumes(group: RunGroup) -> None:
    run = lost_run(group)
    saved(run)

    call_command("rerun", str(group.pk), "--which", "failed", "--mode", "resume", stdout=StringIO())

    assert Run.objects.get(pk=run.pk).newest_attempt().resumed_from is not None


# ------------------------------------------------------------------------------ checkpoint now


def test_a_checkpoint_is_asked_for_once(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)

    for _ in range(2):
        status, shown = api.send(f"runs/{run.pk}/checkpoint")
        assert status == 200
        assert shown["attempts"][0]["checkpoint_asked_at"] is not None

    assert AuditEntry.objects.filter(action="checkpoint").count() == 1
    assert run.newest_attempt().checkpoint_asked_by == "alice"


def test_a_run_that_does_not_run_has_nothing_to_save(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.GOLD)

    status, answer = api.send(f"runs/{run.pk}/checkpoint")

    assert status == 409
    assert "does not run" in answer["detail"]


def test_an_agent_that_cannot_go_on_gets_no_checkpoint(api: ApiClient, lab: Host) -> None:
    group = factories.make_group(agent=factories.make_agent("dummy", is_builtin=False))
    run = factories.make_run(group, state=State.RUNNING)

    status, answer = api.send(f"runs/{run.pk}/checkpoint")

    assert status == 409
    assert "cannot go on from a checkpoint" in answer["detail"]
    with pytest.raises(CommandError, match="cannot go on"):
        call_command("checkpoint", str(run.pk))


def test_checkpoints_are_listed_with_what_became_of_them(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)
    saved(run, path="")
    saved(run, fault="its manifest is gone")
    saved(run, step=None)

    _, answer = api.read(f"runs/{run.pk}/checkpoints")

    shown = [(each["number"], each["state"], each["step"]) for each in answer["items"]]
    assert shown == [(3, "kept", None), (2, "corrupt", 3), (1, "dropped", 3)]


# ------------------------------------------------------------------------------ move


def test_draining_with_move_asks_those_that_can_go_on(
    admin_api: ApiClient, group: RunGroup, lab: Host
) -> None:
    factories.make_host("box-2")
    can = factories.make_run(group, state=State.RUNNING, host=lab)
    dummies = factories.make_group(agent=factories.make_agent("dummy", is_builtin=False))
    cannot = factories.make_run(dummies, state=State.RUNNING, host=lab)

    status, answer = admin_api.send(f"hosts/{lab.name}/drain", {"move": True})

    assert status == 200
    why = "dummy cannot go on from a checkpoint"
    assert answer["not_moved"] == [{"run": cannot.pk, "why": why}]
    assert can.newest_attempt().move_asked_by == "ada"
    assert cannot.newest_attempt().move_asked_at is None
    lab.refresh_from_db()
    assert lab.is_draining


def test_draining_without_move_moves_nothing(
    admin_api: ApiClient, group: RunGroup, lab: Host
) -> None:
    factories.make_host("box-2")
    run = factories.make_run(group, state=State.RUNNING, host=lab)

    _, answer = admin_api.send(f"hosts/{lab.name}/drain")
    assert answer["not_moved"] == []
    assert run.newest_attempt().move_asked_at is None
    call_command("drain", lab.name, "--move", stdout=StringIO())
    assert run.newest_attempt().move_asked_at is not None


@pytest.mark.parametrize(
    ("other", "why"),
    [
        pytest.param(None, "none takes runs now", id="no other host"),
        pytest.param({"is_draining": True}, "none takes runs now", id="drains too"),
        pytest.param({"engine_id": ""}, "box-2: it has no container engine", id="too little"),
    ],
)
def test_a_run_that_no_other_host_could_take_is_not_moved_and_says_why(
    admin_api: ApiClient, group: RunGroup, lab: Host, other: dict[str, object] | None, why: str
) -> None:
    if other is not None:
        factories.make_host("box-2", **other)
    run = factories.make_run(group, state=State.RUNNING, host=lab)
    why = f"no other host could take it ({why})"

    _, answer = admin_api.send(f"hosts/{lab.name}/drain", {"move": True})
    err = StringIO()
    call_command("drain", lab.name, "--move", stdout=StringIO(), stderr=err)
    client = Client()
    client.force_login(User.objects.get(username="ada"))
    page = client.post(f"/fleet/{lab.name}/drain/", {"move": "1"}, follow=True)

    assert answer["not_moved"] == [{"run": run.pk, "why": why}]
    said = f"Not moved, they go on here: run {run.pk} ({run}): {why}."
    assert said in err.getvalue()
    assert said in page.content.decode()
    assert run.newest_attempt().move_asked_at is None


# ------------------------------------------------------------------------------ the page


@pytest.fixture
def page(alice: User) -> Client:
    client = Client()
    client.force_login(alice)
    return client


def test_the_page_shows_checkpoints_and_offers_resume_where_it_can(
    page: Client, group: RunGroup
) -> None:
    run = lost_run(group)
    shown = page.get(f"/runs/{run.pk}/").content.decode()
    assert "It cannot be resumed: it has no checkpoint." in shown
    saved(run)
    bad = saved(run, fault="a part of ckpt/fold-1.npz is gone")

    shown = page.get(f"/runs/{run.pk}/").content.decode()

    assert "It cannot be resumed" not in shown
    assert bad.fault in shown
    assert "Goes on with the first fold that is missing" in shown


def test_the_page_says_what_a_resumed_attempt_went_on_from(page: Client, group: RunGroup) -> None:
    run = lost_run(group)
    checkpoint = saved(run)
    factories.make_attempt(
        run,
        state=State.RUNNING,
        resumed_from=run.newest_attempt(),
        restored_checkpoint=checkpoint,
        charged_seconds=60,
    )

    shown = page.get(f"/runs/{run.pk}/").content.decode()

    assert "Attempt 2 went on from checkpoint 1 of attempt 1, step 3" in shown
    assert ">resumed</span>" in shown
    assert "Checkpoint now" in shown


def test_checkpoint_now_is_a_button_that_works(page: Client, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)

    answer = page.post(f"/runs/{run.pk}/checkpoint/", follow=True)

    assert "A checkpoint is made now." in answer.content.decode()
    assert run.newest_attempt().checkpoint_asked_by == "alice"


def test_the_form_says_what_a_lost_host_costs(page: Client, group: RunGroup) -> None:
    data = {
        "agent": "baseline",
        "split": "demo",
        "seeds": "1",
        "time_limit_hours": "24",
        "step_timeout_hours": "9",
    }

    shown = page.post("/groups/new/preflight/", data).content.decode()

    assert "Goes on with the first fold that is missing" in shown
