"""Steps on the run page: over all attempts, with the best metric, its curve and signs of life."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from runs.core.failures import EXPLAINED, Cause
from runs.core.states import Outcome, State
from runs.models import Attempt, Run, Step
from runs.step_curve import Measured, step_curve
from tests import factories
from tests.factories import make_step
from tests.web.conftest import signed_in
from tests.web.pages import get, parse

pytestmark = pytest.mark.django_db


@pytest.fixture
def run() -> Run:
    """Three attempts, each killed but the last, which runs; a step for every 10 s."""
    run = factories.make_run(outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.CONTAINER_KILLED)
    factories.make_attempt(run, outcome=Outcome.CONTINUED, cause=Cause.STEP_TIMEOUT)
    now = timezone.now()
    third = factories.make_attempt(run, state=State.RUNNING, began=now - timedelta(seconds=40))
    Attempt.objects.filter(pk=third.pk).update(
        charged_seconds=30,
        step_feed={"total": 20, "faults": 0},
        signs={"any": now.timestamp() - 60, "step": now.timestamp() - 3600},
    )
    first, second, third = run.attempts.order_by("number")
    make_step(first, 1, "finished", value=0.7)
    make_step(first, 2, "interrupted")
    make_step(second, 2, "finished", value=0.9)
    make_step(second, 3, "timed_out")
    make_step(third, 3, "failed", error="ValueError: <b>")
    make_step(third, 4, "", name="the <fourth>")
    return run


@pytest.fixture
def client() -> Client:
    return signed_in(factories.make_user())


def text_of(client: Client, run: Run, query: str = "") -> str:
    response = client.get(run.get_absolute_url() + query)
    assert response.status_code == 200
    return response.content.decode()


def test_each_step_stands_there_with_its_attempt_and_why_that_ended(
    client: Client, run: Run
) -> None:
    page = get(client, run.get_absolute_url())

    table = page.with_id("steps").text
    words = (
        "Attempt 1 on box-1: The container was killed from outside.",
        "fold 1",
        "Finished",
        "Interrupted",
        f"Attempt 2 on box-1: {EXPLAINED[Cause.STEP_TIMEOUT][0]}",
        "Timed out",
        "Attempt 3 on box-1: running",
        "ValueError: <b>",
        "the <fourth>",
        "Running",
    )
    at = -1
    for each in words:
        assert table.find(each, at + 1) > at, each
        at = table.find(each, at + 1)


def test_the_summary_says_the_running_step_the_best_metric_and_the_last_sign_of_life(
    client: Client, run: Run
) -> None:
    text = text_of(client, run)

    assert "6, 1 failed, 1 interrupted, 1 timed out" in text
    assert "4 of 20 the &lt;fourth&gt;" in text
    assert "<dt>Best auc</dt><dd><b>0.9</b>, step 2</dd>" in text
    assert "Best auc <b>0.9</b> at step 2" in text
    assert "higher is better" in text
    assert "<dt>Sign of life</dt><dd>1 min ago</dd>" in text
    assert "<dt>of a step</dt><dd>1 h ago</dd>" in text


def test_the_curve_of_the_metric_can_be_read_without_seeing_it(client: Client, run: Run) -> None:
    text = text_of(client, run)

    assert "auc over 2 steps of 2 attempts, higher is better: first 0.7 at step 1, best 0.9" in text
    assert '<polyline class="ln"' in text
    assert "attempt 2</text>" in text


def test_a_poll_brings_the_steps_too(client: Client, run: Run) -> None:
    response = client.get(run.get_absolute_url(), headers={"HX-Request": "true"})

    page = parse(response)
    assert page.with_id("run-below").attributes["hx-swap-oob"] == "true"
    assert "the <fourth>" in page.with_id("run-below").text
    assert "Sign of life" in page.with_id("run-left").text


def test_of_many_the_newest_are_shown_and_all_at_a_persons_word(client: Client, run: Run) -> None:
    third = run.newest_attempt()
    for number in range(5, 60):
        make_step(third, number, "finished", value=0.5)

    newest, everything = text_of(client, run), text_of(client, run, "?steps=all")

    assert "The newest 12 of 61." in newest
    assert '<a href="?steps=all#steps">Show all 61</a>' in newest
    assert "fold 1<" not in newest
    assert "fold 1<" in everything
    assert "Show the newest only" in everything


def test_many_steps_cost_no_more_queries(
    client: Client, run: Run, django_assert_num_queries: object
) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as few:
        text_of(client, run)
    for number in range(5, 200):
        make_step(run.newest_attempt(), number, "finished", value=0.5)

    with django_assert_num_queries(len(few)):  # type: ignore[operator]
        text_of(client, run, "?steps=all")


def test_a_metric_without_a_direction_has_no_best(client: Client) -> None:
    run = factories.make_run(state=State.RUNNING)
    for number, value in ((1, 0.5), (2, 0.7)):
        make_step(run.newest_attempt(), number, "finished", value=value, maximize=None)

    text = text_of(client, run)

    assert "direction not said" in text
    assert "Best auc" not in text


def test_an_ended_run_without_steps_shows_none_of_it(client: Client) -> None:
    run = factories.make_run(outcome=Outcome.GRADED)

    text = text_of(client, run)

    assert "Agent steps" not in text
    assert 'id="steps"' not in text


def test_a_running_agent_that_says_nothing_has_a_sign_of_life(client: Client) -> None:
    run = factories.make_run(state=State.RUNNING)
    Attempt.objects.update(signs={"any": timezone.now().timestamp() - 180})

    text = text_of(client, run)

    assert "It has not told of one so far." in text
    assert "<dt>Sign of life</dt><dd>3 min ago</dd>" in text


def test_what_was_no_event_is_counted_on_the_page(client: Client, run: Run) -> None:
    Attempt.objects.filter(number=3).update(step_feed={"faults": 3, "fault": "a line is no JSON"})

    assert "Left out of its events file, since it is no event: 3 times" in text_of(client, run)


def test_steps_that_a_probe_read_say_so(client: Client, run: Run) -> None:
    Step.objects.update(source="probe")

    assert "read from its own files" in text_of(client, run)


@pytest.mark.parametrize(("maximize", "best"), [(True, 0.9), (False, 0.5), (None, None)])
def test_the_curve_shows_better_values_higher(maximize: bool | None, best: float | None) -> None:
    points = [Measured(1, number, value) for number, value in enumerate((0.5, 0.9, 0.7), start=1)]
    chosen = next((point for point in points if point.value == best), None)

    svg = step_curve(points, name="auc", maximize=maximize, best=chosen)

    line = svg.split('<polyline class="ln" points="')[1].split('"')[0]
    heights = [float(pair.split(",")[1]) for pair in line.split()]
    highest = min(range(3), key=lambda place: heights[place])
    assert points[highest].value == (0.5 if maximize is False else 0.9)
    assert ("best" in svg) is (best is not None)


def test_one_point_or_equal_ones_make_no_broken_curve() -> None:
    point = Measured(1, 1, 0.5)

    assert step_curve([point], name="auc", maximize=True, best=point) == ""
    level = step_curve([point, Measured(1, 2, 0.5)], name="auc", maximize=True, best=point)
    assert "nan" not in level
    assert "auc over 2 steps" in level


def test_a_name_from_an_agent_is_escaped_in_the_curve() -> None:
    points = [Measured(1, number, number) for number in (1, 2)]

    svg = step_curve(points, name='"><script>', maximize=True, best=None)

    assert "<script>" not in svg
