"""The run group pages: list, form, grid, cancel, re-run."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from mlebench_web.accounts.models import AuditEntry, Role
from mlebench_web.catalog.models import ContainerConfig
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, RunState, State
from runs.models import Attempt, Run, RunGroup
from runs.views.picture import picture_of
from tests.factories import (
    make_agent,
    make_competition,
    make_config,
    make_gpu,
    make_group,
    make_host,
    make_image,
    make_prepared,
    make_run,
    make_split,
    make_user,
)
from tests.web.conftest import World, signed_in
from tests.web.pages import get, parse

pytestmark = pytest.mark.django_db


# ---------------------------------------------------------------------------- the grid


def test_each_state_and_result_has_a_word_a_letter_and_a_count(world: World) -> None:
    client = signed_in(world.alice)

    text = client.get(world.group.get_absolute_url()).content.decode()

    for words in (
        "gold",
        "silver",
        "bronze",
        "above median",
        "valid, below median",
        "invalid submission",
        "no submission",
        "agent failed",
        "infrastructure failed",
        "cancelled",
        "lost contact",
        "grading",
        "running",
        "starting",
        "queued",
    ):
        assert f", {words}" in text, words  # the cell's full name
        assert f"{words} <b>" in text, words  # the legend


def test_the_grid_costs_as_many_queries_for_225_runs_as_for_3() -> None:
    alice = make_user()
    hosts = [make_host("box-1"), make_host("box-2")]
    make_gpu(hosts[0])
    few = make_group(owner=alice, seeds=3)
    for seed in range(3):
        make_run(few, seed=seed, result=Result.GOLD, host=hosts[0])
    many = make_group(owner=alice, seeds=3)
    results = list(Result)
    for number in range(75):
        competition = make_competition(f"c-{number:02}")
        for seed in range(3):
            result = results[(number + seed) % len(results)]
            make_run(
                many, competition=competition, seed=seed, result=result, host=hosts[number % 2]
            )
    make_run(many, outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED)
    client = signed_in(alice)
    # Content types and the like are read once a process.
    client.get(few.get_absolute_url())

    counts = []
    for group in (few, many):
        with CaptureQueriesContext(connection) as queries:
            response = client.get(group.get_absolute_url())
        assert response.status_code == 200
        counts.append(len(queries))

    assert counts[0] == counts[1] <= 25


def test_the_list_costs_as_many_queries_for_20_groups_as_for_1() -> None:
    alice = make_user()
    client = signed_in(alice)

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            client.get(reverse("groups"))
        return len(queries)

    make_group(owner=alice, seeds=3, runs=True)
    cost()
    one = cost()
    for _ in range(19):
        make_group(owner=alice, seeds=3, runs=True)

    assert cost() == one


def test_figures_are_over_the_whole_group_whatever_order_is_shown(world: World) -> None:
    now = timezone.now()

    pictures = [picture_of(world.group, order=order, now=now) for order in ("split", "slowest")]

    assert pictures[0].figures == pictures[1].figures
    figures = pictures[0].figures
    assert figures.total == world.group.runs.count()
    # Seven results, the agent's own failure, and the run that was tried three times.
    assert figures.with_report == len(Result) + 2
    assert figures.medals == 4
    assert figures.failed == 2
    assert figures.infrastructure_failed == 1


def test_causes_group_failed_runs_and_say_what_to_do(world: World) -> None:
    causes = picture_of(world.group, now=timezone.now()).causes

    assert {(each.cause, len(each.runs), each.is_agents_own) for each in causes} == {
        (Cause.AGENT_CRASHED, 1, True),
        (Cause.HOST_LOST, 1, False),
    }
    text = signed_in(world.alice).get(world.group.get_absolute_url()).content.decode()
    assert "Read the last lines of its log." in text
    # What a hostile program may have had a part in is text.
    assert "seen &lt;b&gt;so&lt;/b&gt;" in text


# ---------------------------------------------------------------------------- live


def test_a_poll_is_answered_with_304_until_something_moves(world: World) -> None:
    client = signed_in(world.alice)
    path = world.group.get_absolute_url()
    polls = {"HX-Request": "true"}

    # Twice: the tag changes with the clock too, and that may be just now.
    for _ in range(2):
        tag = client.get(path, headers=polls).headers["ETag"]
        unchanged = client.get(path, headers={**polls, "If-None-Match": tag})
        if unchanged.status_code == 304:
            break
    attempt = world.by_state[State.QUEUED].newest_attempt()
    attempt.move(
        State.ENDED,
        token=None,
        by="test",
        outcome=Outcome.CANCELLED,
        ended_at=timezone.now(),
    )
    changed = client.get(path, headers={**polls, "If-None-Match": tag})

    assert unchanged.status_code == 304
    assert unchanged.content == b""
    assert changed.status_code == 200


def test_a_poll_gets_the_same_part_as_the_page_and_nothing_else(world: World) -> None:
    client = signed_in(world.alice)
    path = world.group.get_absolute_url()

    part = client.get(path, headers={"HX-Request": "true"}).content.decode()

    assert "<html" not in part
    assert part.strip().startswith('<div id="live"')


def test_a_group_that_is_over_asks_no_more(world: World) -> None:
    client = signed_in(world.alice)

    running = get(client, world.group.get_absolute_url()).with_id("live").attributes
    over = get(client, world.finished.get_absolute_url()).with_id("live").attributes

    assert running["hx-trigger"] == "tick from:body"
    assert not any(name.startswith("hx-") for name in over)


# ---------------------------------------------------------------------------- who may


CHANGERS = [
    pytest.param("alice", 302, id="the owner"),
    pytest.param("bob", 403, id="a researcher of the team"),
    pytest.param("charlie", 403, id="a stranger"),
    pytest.param("vera", 403, id="a viewer"),
    pytest.param("ada", 302, id="an admin"),
]
ROLES = {"vera": Role.VIEWER, "ada": Role.ADMIN}


@pytest.mark.parametrize(("who", "status"), CHANGERS)
def test_who_may_cancel(world: World, who: str, status: int) -> None:
    team = "speech" if who == "charlie" else "vision"
    user = make_user(who, role=ROLES.get(who, Role.RESEARCHER), team=team)

    response = signed_in(user).post(reverse("cancel_group", args=[world.group.pk]), {"what": "all"})

    assert response.status_code == status
    queued = Run.objects.get(pk=world.by_state[State.QUEUED].pk)
    running = world.by_state[State.RUNNING].newest_attempt()
    may = status == 302
    assert (queued.state == RunState.CANCELLED) is may
    assert (running.cancel_requested_at is not None) is may


@pytest.mark.parametrize(("who", "status"), CHANGERS)
def test_who_may_run_failed_runs_again(world: World, who: str, status: int) -> None:
    team = "speech" if who == "charlie" else "vision"
    user = make_user(who, role=ROLES.get(who, Role.RESEARCHER), team=team)

    response = signed_in(user).post(
        reverse("rerun_group", args=[world.group.pk]), {"cause": Cause.HOST_LOST}
    )

    assert response.status_code == status
    run = world.by_outcome[Outcome.INFRASTRUCTURE_FAILED]
    assert run.attempts.count() == (2 if status == 302 else 1)


def test_who_may_not_sees_the_button_off_and_the_reason_beside_it(world: World) -> None:
    client = signed_in(make_user("charlie", team="speech"))

    page = get(client, world.group.get_absolute_url())

    off = [t.text for t in page.tags if t.name == "button" and "disabled" in t.attributes]
    assert off == ["Re-grade…", "Cancel…", "Re-run 2 failed…"]
    assert not page.posts_to(reverse("cancel_group", args=[world.group.pk]))
    assert any("Only the owner" in t.text for t in page.tags if t.name == "p")


def test_runs_are_chosen_in_the_grid_and_run_again_with_a_reason(world: World) -> None:
    client = signed_in(world.alice)
    page = get(client, f"{world.group.get_absolute_url()}?pick=1")
    boxes = {t.attributes["value"] for t in page.tags if t.attributes.get("name") == "run"}
    failed = world.by_outcome[Outcome.AGENT_FAILED]
    cancelled = world.by_outcome[Outcome.CANCELLED]

    assert {str(failed.pk), str(cancelled.pk)} <= boxes
    assert str(world.by_result[Result.GOLD].pk) not in boxes, "a result stands"
    assert "hx-get" not in page.with_id("live").attributes, "a poll would take the ticks away"
    client.post(
        reverse("rerun_group", args=[world.group.pk]),
        {"run": [failed.pk, cancelled.pk], "reason": "a typo in the prompt"},
    )

    assert [run.newest_attempt().state for run in (failed, cancelled)] == [State.QUEUED] * 2


def test_the_grid_says_since_when_contact_is_lost(world: World) -> None:
    text = signed_in(world.alice).get(world.group.get_absolute_url()).content.decode()

    assert "lost contact since 5 min ago" in text
    assert "1 run, the longest since" in text


def test_dropping_queued_runs_leaves_running_ones_alone(world: World) -> None:
    signed_in(world.alice).post(reverse("cancel_group", args=[world.group.pk]), {"what": "queued"})

    assert Run.objects.get(pk=world.by_state[State.QUEUED].pk).state == RunState.CANCELLED
    assert world.by_state[State.RUNNING].newest_attempt().cancel_requested_at is None


def test_an_agents_own_failure_runs_again_only_with_a_reason(world: World) -> None:
    client = signed_in(world.alice)
    path = reverse("rerun_group", args=[world.group.pk])
    run = world.by_outcome[Outcome.AGENT_FAILED]

    refused = client.post(path, {"cause": Cause.AGENT_CRASHED}, follow=True)
    assert run.attempts.count() == 1
    accepted = client.post(
        path, {"cause": Cause.AGENT_CRASHED, "reason": "the key was wrong"}, follow=True
    )

    assert "Write the reason" in refused.content.decode()
    assert "1 run queued again" in accepted.content.decode()
    assert run.attempts.count() == 2
    assert AuditEntry.objects.get(action="rerun").reason == "the key was wrong"


def test_a_second_press_of_re_run_changes_nothing(world: World) -> None:
    client = signed_in(world.alice)
    path = reverse("rerun_group", args=[world.group.pk])

    for _ in range(2):
        client.post(path, {"cause": Cause.HOST_LOST})

    assert world.by_outcome[Outcome.INFRASTRUCTURE_FAILED].attempts.count() == 2


# ---------------------------------------------------------------------------- filters


def test_filters_live_in_the_address(world: World) -> None:
    client = signed_in(world.admin)

    def shown(query: str) -> set[str]:
        page = get(client, reverse("groups") + query)
        return {t.text.strip() for t in page.tags if t.attributes.get("class") == "name"}

    everything = shown("")
    assert len(everything) == 3
    assert shown("?state=running") == {each for each in everything if "all states" in each}
    assert shown("?state=finished") == {each for each in everything if "all states" not in each}
    assert shown("?mine=1") == {each for each in everything if "bare" in each}
    assert shown("?agent=dummy") == shown("?mine=1")
    assert shown("?q=DONE") == {each for each in everything if "done" in each}
    assert shown("?q=nothing+like+it") == set()


def test_a_long_list_is_cut_into_pages_on_the_server(world: World) -> None:
    for _ in range(30):
        make_group(owner=world.alice)
    client = signed_in(world.alice)

    first = client.get(reverse("groups")).content.decode()
    last = client.get(reverse("groups") + "?page=2").content.decode()

    assert "1 to 25 of 33" in first
    assert "26 to 33 of 33" in last


# ---------------------------------------------------------------------------- a new one


@pytest.fixture
def ready(db: None) -> None:
    """What the form needs for a demo run to be startable at once."""
    image = make_image(make_agent("baseline"))
    host = make_host("box-1", image_ids=[image.image_id])
    competition = make_competition("demo-diamond-prices")
    make_prepared(host, competition)
    make_split("demo", [competition])


FORM = {
    "agent": "baseline",
    "split": "demo",
    "container_config": "",
    "seeds": "2",
    "time_limit_hours": "1.5",
    "step_timeout_hours": "1",
    "priority": "0",
    "experiment": "mine",
}


def test_start_makes_the_runs_and_leads_to_them(ready: None) -> None:
    alice = make_user()

    response = signed_in(alice).post(reverse("new_group"), FORM)

    group = RunGroup.objects.get()
    assert response.headers["Location"] == group.get_absolute_url()
    assert (group.created_by, group.experiment.name) == (alice, "mine")
    assert group.time_limit == timedelta(hours=1.5)
    count = group.split.competitions.count()  # type: ignore[union-attr]
    assert group.runs.filter(state=RunState.QUEUED).count() == 2 * count


def test_errors_stand_at_the_fields(ready: None) -> None:
    response = signed_in(make_user()).post(
        reverse("new_group"), FORM | {"seeds": "0", "time_limit_hours": "soon"}
    )

    assert response.status_code == 422
    page = parse(response)
    assert page.with_id("id_seeds").attributes["aria-invalid"] == "true"
    assert page.with_id("id_time_limit_hours").attributes["value"] == "soon"
    assert page.check() == []
    assert not RunGroup.objects.exists()


def test_check_again_without_script_starts_nothing(ready: None) -> None:
    response = signed_in(make_user()).post(reverse("new_group"), FORM | {"check": "1"})

    assert response.status_code == 200
    assert not RunGroup.objects.exists()


def test_what_blocks_takes_the_start_button_away_until_it_is_solved(ready: None) -> None:
    def start_is_off(**changed: str) -> bool:
        answer = signed_in(make_user()).post(reverse("preflight"), FORM | changed)
        buttons = [t for t in parse(answer).tags if t.name == "button"]
        return "disabled" in next(t for t in buttons if t.text.startswith("Start")).attributes

    assert not start_is_off()
    assert start_is_off(seeds="0")
    assert start_is_off(container_config="nonesuch")
    assert not start_is_off()


def test_a_viewer_sees_the_form_but_starts_nothing(ready: None) -> None:
    client = signed_in(make_user("vera", role=Role.VIEWER))

    page = get(client, reverse("new_group"))
    refused = client.post(reverse("new_group"), FORM)

    starts = [t for t in page.tags if t.name == "button" and t.text.startswith("Start")]
    assert [("disabled" in t.attributes) for t in starts] == [True]
    assert "Viewers may look only" in page.with_id("preflight").text
    assert refused.status_code == 403
    assert not RunGroup.objects.exists()


def test_the_address_fills_the_form_in(ready: None) -> None:
    client = signed_in(make_user())

    page = get(client, reverse("new_group") + "?split=demo&agent=baseline&seeds=5&experiment=E")

    assert page.with_id("id_seeds").attributes["value"] == "5"
    assert page.with_id("id_experiment").attributes["value"] == "E"
    checked = [t.attributes for t in page.tags if "checked" in t.attributes]
    assert {"type": "radio", "name": "split", "value": "demo", "checked": ""} in checked


def test_a_clone_asks_for_the_same_again(world: World) -> None:
    group = world.finished
    RunGroup.objects.filter(pk=group.pk).update(time_limit=timedelta(hours=3), priority=7)

    page = get(signed_in(world.alice), reverse("new_group") + f"?clone={group.pk}")

    assert page.with_id("id_time_limit_hours").attributes["value"] == "3"
    assert page.with_id("id_priority").attributes["value"] == "7"
    assert page.with_id("id_experiment").attributes["value"] == "done"


def test_the_panel_alone_comes_back_when_a_choice_changes(ready: None) -> None:
    response = signed_in(make_user()).post(
        reverse("preflight"), FORM | {"seeds": "1"}, headers={"HX-Request": "true"}
    )

    text = response.content.decode()
    assert text.strip().startswith("<aside")
    assert "3 seeds or more" in text
    assert not RunGroup.objects.exists()


def test_a_config_without_gpu_on_a_fleet_with_gpus_must_be_acknowledged() -> None:
    """The complaint that the product starts from: GPUs that stood idle for a whole benchmark."""
    image = make_image(make_agent("baseline"))
    host = make_host("gpu-1", cpus=64, memory_bytes=200 * 2**30, image_ids=[image.image_id])
    make_gpu(host)
    competition = make_competition("real-one", is_demo=False)
    make_prepared(host, competition)
    make_split("real", [competition], position=1)
    make_config("cpu-only", settings={"nano_cpus": 4e9, "mem_limit": "8G"})
    client = signed_in(make_user())
    asked = FORM | {"split": "real", "container_config": "cpu-only"}

    refused = client.post(reverse("new_group"), asked)
    box = parse(refused)
    started = client.post(reverse("new_group"), asked | {"acknowledge_no_gpu": "on"})

    assert refused.status_code == 422
    assert box.with_id("id_acknowledge_no_gpu").attributes["type"] == "checkbox"
    assert started.status_code == 302
    assert RunGroup.objects.get().acknowledged_no_gpu
    # Nobody is asked to acknowledge what is not so.
    demo = client.post(reverse("preflight"), FORM)
    assert not parse(demo).has_id("id_acknowledge_no_gpu")


def test_waiting_runs_say_why(world: World) -> None:
    Attempt.objects.exclude(state=State.QUEUED).delete()
    group = make_group(owner=world.alice, config=ContainerConfig.objects.get(name="demo"))
    make_run(group)

    page = get(signed_in(world.alice), group.get_absolute_url())

    assert any("Waiting" in t.text for t in page.tags if t.attributes.get("class") == "note info")
