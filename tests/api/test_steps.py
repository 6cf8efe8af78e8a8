"""Steps of a run over the API."""

import pytest

from mlebench_web.fleet.models import Host
from runs.core.failures import Cause
from runs.core.states import Outcome, State
from runs.models import Attempt, Run
from tests import factories
from tests.api.conftest import ApiClient


@pytest.fixture
def run(lab: Host) -> Run:
    """Two attempts: the step that the first was killed in is done again by the second."""
    run = factories.make_run(outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.CONTAINER_KILLED)
    first = run.newest_attempt()
    second = factories.make_attempt(run, state=State.RUNNING)
    factories.make_step(first, 1, value=0.7)
    factories.make_step(first, 2, "interrupted")
    factories.make_step(second, 2, "failed", error="ValueError")
    factories.make_step(second, 3, "")
    return run


def test_steps_are_listed_over_all_attempts(api: ApiClient, run: Run) -> None:
    status, answer = api.read(f"runs/{run.pk}/steps")

    assert status == 200
    assert (answer["count"], answer["next"]) == (4, None)
    assert [(each["attempt"], each["number"], each["state"]) for each in answer["items"]] == [
        (1, 1, "finished"),
        (1, 2, "interrupted"),
        (2, 2, "failed"),
        (2, 3, "running"),
    ]
    first, _, failed, running = answer["items"]
    assert first["metric"] == {"name": "auc", "value": 0.7, "maximize": True}
    assert (first["name"], first["seconds"], first["source"]) == ("fold 1", 10, "agent")
    assert failed["error"] == "ValueError"
    for name in ("seconds", "ended_at", "metric", "error"):
        assert running[name] is None, name


def test_steps_come_in_pages_and_of_one_attempt(api: ApiClient, run: Run) -> None:
    _, page = api.read(f"runs/{run.pk}/steps?limit=3")
    _, second = api.read(f"runs/{run.pk}/steps?attempt=2")
    status, _ = api.read(f"runs/{run.pk}/steps?attempt=9")

    assert len(page["items"]) == 3
    assert "offset=3" in page["next"]
    assert [each["number"] for each in second["items"]] == [2, 3]
    assert status == 404


def test_a_run_without_steps_has_an_empty_list(api: ApiClient, lab: Host) -> None:
    run = factories.make_run()

    assert api.read(f"runs/{run.pk}/steps") == (200, {"items": [], "count": 0, "next": None})


def test_an_attempt_says_its_last_sign_of_life_and_what_it_says_of_the_whole(
    api: ApiClient, run: Run
) -> None:
    Attempt.objects.filter(run=run, number=2).update(
        signs={"any": 1767225600.0},
        step_feed={"overall": {"name": "auc", "value": 0.8, "maximize": True}},
    )

    _, shown = api.read(f"runs/{run.pk}")

    first, second = shown["attempts"]
    assert (first["last_sign_at"], first["metric"]) == (None, None)
    assert second["last_sign_at"] == "2026-01-01T00:00:00Z"
    assert second["metric"] == {"name": "auc", "value": 0.8, "maximize": True}
