"""An admin's page over the failed runs of all groups: find, dry run, queue again, take back."""

import pytest
from django.urls import reverse

from mlebench_web.accounts.models import Role
from runs.core.failures import Cause
from runs.core.states import Outcome, State
from runs.models import Attempt, Checkpoint, Requeue, Run
from tests.factories import make_competition, make_group, make_host, make_run, make_user
from tests.web.conftest import World, signed_in
from tests.web.pages import get

pytestmark = pytest.mark.django_db

PAGE = "failed_runs"


def broken(count: int = 1, **fields: object) -> list[Run]:
    group = make_group()
    return [
        make_run(
            group,
            competition=make_competition("demo-one"),
            seed=seed,
            outcome=Outcome.INFRASTRUCTURE_FAILED,
            cause=Cause.ENGINE_ERROR,
            **fields,
        )
        for seed in range(count)
    ]


def test_it_lists_failed_runs_of_all_groups_by_cause(world: World) -> None:
    broken(2, host=make_host("box-2"))

    page = get(signed_in(world.admin), reverse(PAGE))

    rows = [t.text for t in page.tags if t.name == "tr"]
    engine = next(row for row in rows if "The container engine refused." in row)
    assert "2" in engine
    assert "box-2" in engine
    assert any("The agent crashed." in row and "the agent's own" in row for row in rows)
    assert page.check() == []


def test_filters_narrow_it_and_the_count_is_stated(world: World) -> None:
    broken(3, host=make_host("box-2"))
    client = signed_in(world.admin)

    text = client.get(reverse(PAGE), {"cause": "engine_error", "host": "box-2"}).content.decode()
    assert "All 3 runs that match" in text
    nothing = client.get(reverse(PAGE), {"until": "2020-01-01"}).content.decode()
    assert "No failed run matches these filters" in nothing
    for odd in ({"cause": "x"}, {"since": "2020-99-99"}, {"page": "z"}, {"until": "9999-12-31"}):
        assert client.get(reverse(PAGE), odd).status_code == 200, odd


def test_a_dry_run_says_how_many_and_how_long_and_changes_nothing(world: World) -> None:
    runs = broken(2)

    text = (
        signed_in(world.admin)
        .post(reverse("plan_rerun"), {"run": [run.pk for run in runs]})
        .content.decode()
    )

    assert "Run 2 runs again?" in text
    assert "A dry run: nothing was changed." in text
    assert " h <small>" in text
    assert Attempt.objects.filter(run__in=runs).count() == 2


def test_all_that_match_are_queued_and_taken_back(world: World) -> None:
    runs = broken(3)
    others = Run.objects.filter(state="failed").exclude(pk__in=[run.pk for run in runs])
    untouched = {run.pk: run.attempts.count() for run in others}
    client = signed_in(world.admin)

    plan = client.post(reverse("plan_rerun"), {"all": "1", "cause": "engine_error"})
    ids = plan.context["ids"]
    answer = client.post(
        reverse("start_rerun"),
        {"ids": ids, "reason": "mended", "time_limit_hours": "1"},
        follow=True,
    )

    assert "3 runs queued again" in answer.content.decode()
    assert [run.newest_attempt().overrides for run in runs] == [{"time_limit_s": 3600}] * 3
    assert {run.pk: run.attempts.count() for run in others} == untouched
    assert "Undo 3 runs" in answer.content.decode()
    undone = client.post(reverse("undo_rerun", args=[Requeue.objects.get().pk]), follow=True)
    assert "3 runs taken back, and failed as before." in undone.content.decode()
    assert [run.newest_attempt().cause for run in runs] == [Cause.ENGINE_ERROR] * 3
    shown = client.get(runs[0].get_absolute_url()).content.decode()
    assert "The container engine refused." in shown, "the page shows the failure again"


def test_an_admin_resumes_those_that_can_be(world: World) -> None:
    can, cannot = broken(2)
    client = signed_in(world.admin)
    ids = {"run": [can.pk, cannot.pk]}
    plan = client.post(reverse("plan_rerun"), ids).content.decode()
    assert "It cannot be resumed: none of them has a checkpoint." in plan
    Checkpoint.objects.create(
        attempt=can.newest_attempt(),
        number=1,
        active_seconds=60,
        files=1,
        size=1,
        added_bytes=1,
        save_seconds=0.1,
        path="checkpoints/1.json",
        digest="0" * 64,
    )

    plan = client.post(reverse("plan_rerun"), ids).content.decode()
    asked = {"ids": f"{can.pk},{cannot.pk}", "mode": "resume"}
    answer = client.post(reverse("start_rerun"), asked, follow=True)

    assert "1 of 2 runs can be resumed now" in plan
    assert 'name="mode" value="resume">' in plan
    assert "2 runs queued again, 1 of them from a checkpoint." in answer.content.decode()
    assert can.newest_attempt().resumed_from is not None
    assert cannot.newest_attempt().resumed_from is None


def test_an_agents_own_failure_asks_for_a_reason(world: World) -> None:
    failed = world.by_outcome[Outcome.AGENT_FAILED]
    client = signed_in(world.admin)

    page = client.post(reverse("plan_rerun"), {"run": failed.pk})
    assert "a reason is needed" in page.content.decode()
    refused = client.post(reverse("start_rerun"), {"ids": page.context["ids"]}, follow=True)

    assert "Write the reason" in refused.content.decode()
    assert failed.newest_attempt().state == State.ENDED


@pytest.mark.parametrize("role", [Role.VIEWER, Role.RESEARCHER, Role.LEAD])
def test_it_is_for_admins_alone(world: World, role: Role) -> None:
    client = signed_in(make_user("someone", role=role))
    [run] = broken()

    assert client.get(reverse(PAGE)).status_code == 403
    for name, arguments in (("plan_rerun", []), ("start_rerun", []), ("undo_rerun", [1])):
        answer = client.post(reverse(name, args=arguments), {"ids": str(run.pk), "run": run.pk})
        assert answer.status_code == 403
    assert run.attempts.count() == 1
    assert reverse(PAGE) not in client.get("/").content.decode()


def test_a_page_of_many_costs_as_many_queries_as_one_of_few(
    world: World, django_assert_max_num_queries: "object"
) -> None:
    client = signed_in(world.admin)
    broken(40)
    client.get(reverse(PAGE))

    with django_assert_max_num_queries(16):  # type: ignore[operator]
        client.get(reverse(PAGE))
