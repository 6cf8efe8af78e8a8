"""Grading again by API, page and shell: who may, what is answered, what a second press does."""

import threading
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django.fixtures import Settings

from mlebench_web.accounts.models import AuditEntry, Role, User
from mlebench_web.catalog.models import Competition
from runs import layout
from runs.core.states import Result, State
from runs.models import RegradeJob, Run, RunGroup
from runs.regrade_jobs import RegradeJobs
from tests import factories
from tests.api.conftest import ApiClient
from tests.support import small_competition

FAIR = "id,price\n1,1.25\n2,2.25\n3,3.25\n4,4.25\n"


@pytest.fixture
def competition(db: None, settings: Settings, tmp_path: Path) -> Competition:
    settings.COMPETITIONS_DIR = tmp_path / "competitions"
    return small_competition.make()


@pytest.fixture
def group(competition: Competition, alice: User) -> RunGroup:
    return factories.make_group(owner=alice, competitions=[competition])


@pytest.fixture
def run(group: RunGroup, competition: Competition) -> Run:
    """It has gold by mistake: what it handed in is worth bronze."""
    run = factories.make_run(
        group,
        competition=competition,
        result=Result.GOLD,
        artifacts=[{"path": layout.SUBMISSION, "bytes": len(FAIR)}],
    )
    file = layout.attempt_folder(run.newest_attempt()) / layout.SUBMISSION
    file.parent.mkdir(parents=True)
    file.write_text(FAIR)
    return run


@pytest.fixture
def work(warm_grader: object) -> RegradeJobs:
    return RegradeJobs(factories.make_host(), threading.Event())


def test_a_run_is_graded_again_and_the_answer_says_what_changed(
    api: ApiClient, run: Run, work: RegradeJobs
) -> None:
    status, asked = api.send(f"runs/{run.pk}/regrade", {"reason": "new answers"})
    work.work()
    _, after = api.read(f"regrades/{asked['id']}")
    _, history = api.read(f"runs/{run.pk}/reports")

    assert (status, asked["state"], asked["jobs"][0]["state"]) == (200, "at work", "wanted")
    assert (after["state"], after["changed"], after["reason"]) == ("ended", 1, "new answers")
    [job] = after["jobs"]
    assert (job["before"]["result"], job["after"]["result"]) == ("gold", "bronze")
    assert [each["is_current"] for each in history["items"]] == [True, False]
    assert len(history["items"][0]["files_digest"]) == 64


def test_a_group_with_a_run_at_work_names_what_it_left_alone(
    api: ApiClient, group: RunGroup, run: Run, competition: Competition
) -> None:
    going = factories.make_run(group, competition=competition, state=State.RUNNING)

    status, answer = api.send(f"run-groups/{group.pk}/regrade")

    assert status == 200
    assert [job["run"] for job in answer["jobs"]] == [run.pk]
    assert answer["skipped"] == [{"run": going.pk, "why": "It has not ended."}]


def test_a_run_at_work_is_refused(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)

    status, answer = api.send(f"runs/{run.pk}/regrade")

    assert (status, answer["detail"]) == (409, "It has not ended.")
    assert not RegradeJob.objects.exists()


def test_sent_twice_it_is_one_regrade(api: ApiClient, run: Run) -> None:
    _, first = api.send(f"runs/{run.pk}/regrade")
    _, second = api.send(f"runs/{run.pk}/regrade")

    assert second["id"] == first["id"]
    assert RegradeJob.objects.count() == 1


def test_unknown_fields_runs_and_words_are_named(api: ApiClient, run: Run, group: RunGroup) -> None:
    assert api.send(f"runs/{run.pk}/regrade", {"force": True})[0] == 422
    status, answer = api.send(f"run-groups/{group.pk}/regrade", {"which": [run.pk, 999]})
    assert (status, answer["errors"][0]["field"]) == (422, "which")
    assert api.send(f"run-groups/{group.pk}/regrade", {"which": "best"})[0] == 422
    assert api.send("runs/999/regrade")[0] == 404
    assert api.read("regrades/999")[0] == 404


@pytest.mark.parametrize(
    ("name", "role", "team", "status"),
    [
        ("charlie", Role.RESEARCHER, "speech", 403),
        ("bob", Role.RESEARCHER, "vision", 403),
        ("leo", Role.LEAD, "vision", 200),
        ("ada", Role.ADMIN, None, 200),
    ],
)
def test_the_owner_leads_of_the_team_and_admins_may(
    name: str, role: Role, team: str | None, status: int, run: Run
) -> None:
    other = ApiClient(factories.make_user(name, role=role, team=team))

    assert other.send(f"runs/{run.pk}/regrade")[0] == status


def test_the_page_shows_before_and_after_and_keeps_the_history(
    client: Client, alice: User, run: Run, work: RegradeJobs
) -> None:
    client.force_login(alice)

    pressed = client.post(f"/runs/{run.pk}/regrade/", {"reason": "new answers"})
    work.work()
    page = client.get(pressed["Location"]).content.decode()
    its_run = client.get(run.get_absolute_url()).content.decode()

    assert "changed" in page
    assert "new answers" in page
    assert page.index("gold") < page.index("bronze")
    assert "Grading history" in its_run
    assert "re-grade" in client.get(run.group.get_absolute_url()).content.decode()
    # Nothing changes any more, so the page asks no more.
    assert 'hx-trigger="tick' not in page


def test_the_page_of_a_regrade_at_work_says_why_it_waits(
    client: Client, alice: User, run: Run
) -> None:
    client.force_login(alice)

    pressed = client.post(f"/groups/{run.group_id}/regrade/")
    page = client.get(pressed["Location"]).content.decode()

    assert "No online host has the answers of test-prices." in page


def test_who_may_not_presses_in_vain(client: Client, run: Run) -> None:
    client.force_login(factories.make_user("charlie", team="speech"))

    assert client.post(f"/runs/{run.pk}/regrade/").status_code == 403
    assert client.post(f"/groups/{run.group_id}/regrade/").status_code == 403
    assert not RegradeJob.objects.exists()


def said(*arguments: str) -> str:
    out = StringIO()
    call_command("regrade", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def test_the_shell_grades_a_whole_competition_again(
    run: Run, work: RegradeJobs, competition: Competition
) -> None:
    number = int(said("--competition", competition.name, "--reason", "a bug in the grader"))
    work.work()

    told = said("--run", str(run.pk), "--format", "json")

    assert RegradeJob.objects.filter(regrade=number).get().state == RegradeJob.State.DONE
    assert AuditEntry.objects.filter(action="grade again", actor_name="server's shell").count() == 2
    assert '"result":"bronze"' in told


def test_the_shell_waits_and_prints_what_changed(
    run: Run, work: RegradeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock of the command is the only thing that is played: what it waits for is real.
    monkeypatch.setattr("runs.management.commands.regrade.time.sleep", lambda _: work.work())

    out = said("--run", str(run.pk), "--wait")
    again = said("--run", str(run.pk), "--wait")

    assert out.startswith(f"* run {run.pk} test-prices, seed 0: 0.1 (gold) -> 0.25 (bronze)")
    assert again.startswith(f"  run {run.pk} test-prices, seed 0: 0.25 (bronze) -> 0.25 (bronze)")


def test_the_shell_names_what_there_is_not(db: None) -> None:
    with pytest.raises(CommandError, match="--run: There is no run 7"):
        said("--run", "7")
    with pytest.raises(CommandError, match="--group: There is no run group 7"):
        said("--group", "7")
    with pytest.raises(CommandError, match="--competition: There is no competition x"):
        said("--competition", "x")
