"""The verbs of the server's shell: the answer alone on standard output, and clear refusals."""

import json
import subprocess
import sys
import uuid
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.utils import timezone

from mlebench_web.accounts import tokens
from mlebench_web.accounts.models import ApiToken, AuditEntry, OneTimeLink, Role, User
from mlebench_web.fleet.models import Host
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, State, Verdict
from runs.models import Run, RunGroup
from tests import factories
from tests.support.lab import make_lab


@pytest.fixture
def lab(db: None) -> Host:
    return make_lab()


def manage(*words: str) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    out, err = StringIO(), StringIO()
    call_command(words[0], *words[1:], stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def refusal(*words: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        manage(*words)
    return caught.value


# --------------------------------------------------------------------------------------- submit


def test_submit_prints_the_id_and_nothing_else(lab: Host) -> None:
    out, err = manage("submit", "--agent", "baseline", "--split", "demo", "--seeds", "3")

    assert int(out) == RunGroup.objects.get().pk
    assert err == ""
    assert Run.objects.count() == 6


def test_submit_prints_json_on_request(lab: Host) -> None:
    out, _ = manage(
        "submit", "--agent", "baseline", "--competition", "demo-tree-crowns", "--format", "json"
    )

    shown = json.loads(out)
    assert shown["id"] == RunGroup.objects.get().pk
    assert shown["competitions"] == ["demo-tree-crowns"]


def test_submit_hands_on_every_option(lab: Host) -> None:
    alice = factories.make_user("alice")
    manage(
        *("submit", "--agent", "dummy", "--split", "low", "--container-config", "no_sysbox"),
        *("--seeds", "2", "--experiment", "mine", "--time-limit-s", "60"),
        *("--step-timeout-s", "30", "--priority", "5", "--env", "A=1=2", "--env", "B="),
        *("--acknowledge-no-gpu", "--user", "alice"),
    )

    group = RunGroup.objects.get()
    assert group.created_by == alice
    assert group.experiment.name == "mine"
    assert group.time_limit.total_seconds() == 60
    assert group.step_timeout.total_seconds() == 30
    assert (group.priority, group.seeds) == (5, 2)
    assert group.env == {"A": "1=2", "B": ""}
    assert group.acknowledged_no_gpu is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--agent", "nobody", "--split", "demo"],
            "--agent: There is no agent 'nobody'. Allowed: baseline, dummy.",
        ),
        (
            ["--agent", "dummy", "--split", "x"],
            "--split: There is no split 'x'. Allowed: demo, low, all.",
        ),
        (["--agent", "dummy", "--competition", "x"], "--competition: There is no competition 'x'."),
        (["--agent", "dummy", "--split", "demo", "--env", "A"], "--env: 'A': write NAME=VALUE."),
        (
            ["--agent", "dummy", "--split", "demo", "--env", "API_KEY=1"],
            "--env: API_KEY looks like a secret.",
        ),
        (
            ["--agent", "dummy", "--split", "demo", "--user", "x"],
            "--user: There is no active user 'x'.",
        ),
        (
            ["--agent", "dummy", "--split", "demo", "--time-limit-s", "0"],
            "--time-limit-s: Write seconds",
        ),
    ],
)
def test_submit_names_the_option_and_what_is_allowed(
    lab: Host, words: list[str], said: str
) -> None:
    error = refusal("submit", *words)

    assert said in str(error)
    assert error.returncode == 2
    assert RunGroup.objects.count() == 0


def test_submit_binds_to_what_the_person_may_do(lab: Host) -> None:
    factories.make_user("vera", role=Role.VIEWER)

    error = refusal("submit", "--agent", "dummy", "--split", "demo", "--user", "vera")

    assert "Viewers" in str(error)


def test_submit_waits_until_all_has_ended(lab: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's part is played between two looks."""
    from runs.management.commands import submit as command

    def finish(_: float) -> None:
        for run in Run.objects.exclude(state="finished"):
            attempt = run.newest_attempt()
            factories.make_report(attempt, result=Result.GOLD)
            token = uuid.uuid4()
            attempt.claim(lab, token=token)
            attempt.move(State.COLLECTING, token=token, by="box-1")
            attempt.seal(Verdict(Outcome.GRADED), token=token, by="box-1")

    monkeypatch.setattr(command.time, "sleep", finish)

    out, err = manage("submit", "--agent", "dummy", "--split", "demo", "--wait")

    assert int(out) == RunGroup.objects.get().pk
    assert err.splitlines() == ["2 queued", "2 finished"]


def test_submit_wait_fails_when_a_run_did_not_finish(
    lab: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runs import submit
    from runs.management.commands import submit as command

    monkeypatch.setattr(
        command.time,
        "sleep",
        lambda _: submit.cancel_group(RunGroup.objects.get(), by=None),
    )

    error = refusal("submit", "--agent", "dummy", "--split", "demo", "--wait")

    assert str(error) == "2 of 2 runs did not finish."
    assert error.returncode == 1


# ------------------------------------------------------------------------------- rerun and cancel


def test_rerun_prints_the_runs_that_were_queued(lab: Host) -> None:
    group = factories.make_group()
    broken = factories.make_run(
        group, outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.CONTAINER_KILLED
    )
    factories.make_run(group, outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED)

    out, _ = manage("rerun", str(group.pk), "--which", "infrastructure")

    assert out.split() == [str(broken.pk)]


def test_rerun_asks_for_the_reason(lab: Host) -> None:
    run = factories.make_run(outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED)

    error = refusal("rerun", str(run.group_id), "--which", "failed")
    out, _ = manage("rerun", str(run.group_id), "--run", str(run.pk), "--reason", "bad data")

    assert str(error).startswith("--reason:")
    assert out.split() == [str(run.pk)]


def test_rerun_refuses_a_graded_run_by_name(lab: Host) -> None:
    run = factories.make_run(result=Result.GOLD)

    error = refusal("rerun", str(run.group_id), "--run", str(run.pk), "--reason", "x")

    assert str(error).startswith(f"--run: run {run.pk}")


def test_rerun_names_a_group_or_a_run_that_is_not_there(lab: Host) -> None:
    group = factories.make_group()

    assert str(refusal("rerun", "999", "--which", "failed")) == "GROUP: There is no run group 999."
    assert "no run 999" in str(refusal("rerun", str(group.pk), "--run", "999"))


def test_cancel_prints_how_many(lab: Host) -> None:
    group = factories.make_group(runs=True, seeds=3)

    assert manage("cancel", "--group", str(group.pk))[0] == "3\n"
    assert manage("cancel", "--group", str(group.pk))[0] == "0\n"


def test_cancel_of_a_run_that_has_ended_says_so(lab: Host) -> None:
    run = factories.make_run(result=Result.GOLD)

    assert "nothing left to cancel" in str(refusal("cancel", "--run", str(run.pk)))


# ------------------------------------------------------------------------- hosts that fail


def test_a_host_that_was_put_aside_is_used_again(lab: Host) -> None:
    Host.objects.update(put_aside="three failed")

    assert manage("use_again", "box-1")[0] == "box-1\n"
    assert Host.objects.get().put_aside == ""
    assert "was in use" in manage("use_again", "box-1")[1]


def test_a_silent_host_is_said_to_be_lost(lab: Host) -> None:
    with pytest.raises(CommandError, match="so it is not gone"):
        manage("host_lost", "box-1")
    then = timezone.now() - timedelta(minutes=5)
    Host.objects.update(worker_seen_at=then, service_seen_at=then)
    run = factories.make_run(state=State.RUNNING, host=lab, lease_until=then)

    assert manage("host_lost", "box-1")[0] == f"{run.pk}\n"
    assert run.attempts.count() == 2


def test_a_rerun_takes_overrides_and_names_the_wrong_one(lab: Host) -> None:
    run = factories.make_run(outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.ENGINE_ERROR)

    with pytest.raises(CommandError, match="--host: There is no host 'nowhere'"):
        manage("rerun", str(run.group_id), "--which", "failed", "--host", "nowhere")
    limits = ("--time-limit-hours", "2", "--step-timeout-hours", "0.5")
    manage("rerun", str(run.group_id), "--which", "failed", *limits)

    assert run.newest_attempt().overrides == {"time_limit_s": 7200, "step_timeout_s": 1800}


# --------------------------------------------------------------------------------------- drain


def test_drain_and_undrain(lab: Host) -> None:
    factories.make_run(state=State.RUNNING, host=lab)

    assert manage("drain", "box-1")[0] == "1\n"
    assert Host.objects.get().is_draining is True
    manage("undrain", "box-1")
    assert Host.objects.get().is_draining is False
    assert [entry.action for entry in AuditEntry.objects.order_by("pk")] == ["drain", "undrain"]


def test_drain_says_how_long_it_takes_at_most(lab: Host) -> None:
    assert manage("drain", "box-1") == ("0\n", "")
    began = timezone.now() - timedelta(hours=18, minutes=40, seconds=1)
    factories.make_run(state=State.RUNNING, host=lab, began=began)

    out, err = manage("drain", "box-1")

    assert out == "1\n"
    assert err == "What it has is finished after at most 5 h 20 of agent time.\n"


def test_drain_of_an_unknown_host_lists_the_known(lab: Host) -> None:
    assert str(refusal("drain", "x")) == "HOST: There is no host 'x'. Allowed: box-1."


# --------------------------------------------------------------------------------------- accounts


def test_createtoken_makes_the_user_and_prints_the_token_alone(db: None) -> None:
    out, err = manage("createtoken", "--user", "ci", "--role", "researcher")

    user = tokens.user_of(out.strip())
    assert user is not None
    assert (user.username, user.role) == ("ci", "researcher")
    assert not user.has_usable_password()
    assert (out.count("\n"), err) == (1, "")


def test_createtoken_gives_a_known_user_another_token(db: None) -> None:
    first, _ = manage("createtoken", "--user", "ci", "--role", "admin")
    second, _ = manage("createtoken", "--user", "ci")
    third, _ = manage("createtoken", "--user", "ci", "--role", "admin")

    assert len({first, second, third}) == 3
    assert {tokens.user_of(each.strip()).pk for each in (first, second, third)} == {
        User.objects.get().pk
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user", "new"], "--role: new is new, so name a role: viewer, researcher, lead, admin."),
        (["--user", "vera", "--role", "admin"], "--role: vera is viewer"),
        (["--user", "a b", "--role", "admin"], "--user:"),
        (["--user", "", "--role", "admin"], "--user:"),
        (["--user", "gone"], "--user: gone may not sign in."),
    ],
)
def test_createtoken_refuses_clearly(db: None, words: list[str], said: str) -> None:
    factories.make_user("vera", role=Role.VIEWER)
    factories.make_user("gone")
    User.objects.filter(username="gone").update(is_active=False)

    error = refusal("createtoken", *words)

    assert str(error).startswith(said)
    assert error.returncode == 2
    assert ApiToken.objects.count() == 0


def test_setup_link_prints_a_link_that_works_once_and_ends_the_older(db: None) -> None:
    first = manage("setup_link")[0].strip()
    second = manage("setup_link")[0].strip()

    def find(link: str) -> OneTimeLink | None:
        assert link.startswith(f"{settings.PUBLIC_URL}/setup/")
        return OneTimeLink.find(OneTimeLink.Purpose.SETUP, link.split("/")[-2])

    assert find(first) is None
    link = find(second)
    assert link is not None
    assert link.use() is True
    assert find(second) is None


def test_setup_link_refuses_when_an_admin_can_sign_in(db: None) -> None:
    factories.make_user("ada", role=Role.ADMIN)

    error = refusal("setup_link")

    assert "ada" in str(error)
    assert f"{settings.PUBLIC_URL}/account/login/" in str(error)


def test_an_admin_with_a_token_only_is_no_obstacle(db: None) -> None:
    """Scripts come first on a new server; a person must still get in."""
    manage("createtoken", "--user", "ci", "--role", "admin")

    assert manage("setup_link")[0].startswith("http")


def test_createtoken_works_with_nothing_but_a_database(tmp_path: Path) -> None:
    """After migrate alone, in a process of its own: no broker, no web, no worker."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "MLEBENCH_WEB_DATA": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "mlebench_web.settings",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, settings.BASE_DIR / "manage.py", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )

    run("migrate", "--verbosity", "0")
    made = run("createtoken", "--user", "ci", "--role", "lead")

    assert made.stdout.startswith("mlw_")
    assert made.stdout.count("\n") == 1
