"""A run keeps its last good submission, and shows its score over time when it has ended."""

from datetime import timedelta

import pytest

from runs import layout, snapshots
from runs.core.failures import Cause
from runs.core.states import Outcome, RunState
from tests.docker.conftest import wait_for
from tests.docker.road import PERFECT, Road, has_said
from tests.support import small_competition

# Agents that take their time, in containers.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

GOOD = PERFECT
BAD = "echo 'id,price' > /home/submission/submission.csv"


def test_an_agent_that_ruins_its_submission_and_hangs_is_graded_by_its_last_good_one(
    road: Road,
) -> None:
    attempt = road.run(f"{GOOD}; sleep 5; {BAD}; sleep 1000", time_limit=timedelta(seconds=8))

    report = attempt.reports.get(is_current=True)
    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.TIME_LIMIT)
    assert report.gold_medal
    assert attempt.graded_snapshot is not None
    kept = layout.attempt_folder(attempt) / "submission"
    assert (kept / "submission.csv").read_text() == small_competition.PERFECT
    assert (kept / "submission.as-left.csv").read_text() == "id,price\n"
    assert "Graded is the submission as it was after" in road.text(attempt, "run")


def test_after_a_clean_end_the_file_that_was_left_counts_even_if_it_is_bad(road: Road) -> None:
    attempt = road.run(f"{GOOD}; sleep 5; {BAD}")

    report = attempt.reports.get()
    assert (report.submission_exists, report.valid_submission) == (True, False)
    assert attempt.graded_snapshot is None


def test_an_agent_that_removes_its_submission_and_crashes_is_graded_by_the_snapshot(
    road: Road,
) -> None:
    attempt = road.run(f"{GOOD}; sleep 5; rm /home/submission/submission.csv; exit 4")

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.AGENT_CRASHED)
    assert attempt.reports.get(is_current=True).gold_medal


@pytest.mark.parametrize(
    ("left", "outcome"),
    [
        pytest.param(GOOD, Outcome.GRADED, id="valid"),
        pytest.param(BAD, Outcome.INFRASTRUCTURE_FAILED, id="invalid"),
    ],
)
def test_the_last_try_on_a_broken_host_is_graded_only_by_a_valid_submission(
    road: Road, settings: object, left: str, outcome: Outcome
) -> None:
    settings.MAX_TRIES = 1  # type: ignore[attr-defined]
    attempt = road.queued(f"{left}; echo before; sleep 1000")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "before"), what="the agent's line")

    attempt.refresh_from_db()
    road.engine.kill(attempt.container_id)
    thread.join(timeout=30)

    attempt.refresh_from_db()
    attempt.run.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (outcome, Cause.CONTAINER_KILLED)
    assert attempt.run.is_cut_short == (outcome == Outcome.GRADED)
    assert attempt.run.state == (
        RunState.FINISHED if outcome == Outcome.GRADED else RunState.FAILED
    )


def test_snapshots_are_scored_after_the_end_and_give_the_score_over_time(road: Road) -> None:
    half = GOOD.replace("2.0", "4.0")
    attempt = road.queued(f"{half}; sleep 5; {GOOD}; sleep 5; exit 1")
    road.supervise()
    attempt.refresh_from_db()

    snapshots.score_ended()

    rows = list(attempt.snapshots.values_list("score", "is_valid"))
    assert rows == [(0.5, True), (0.0, True)]
    times = list(attempt.snapshots.values_list("active_seconds", flat=True))
    assert times == sorted(times)


def test_a_running_agents_snapshots_have_no_score(road: Road) -> None:
    attempt = road.queued(
        f"{GOOD}; sleep 6; echo before; sleep 1000", time_limit=timedelta(minutes=1)
    )
    thread = road.in_the_background()
    wait_for(lambda: attempt.snapshots.exists(), what="a snapshot")

    snapshots.score_ended()

    assert attempt.snapshots.get().score is None
    attempt.refresh_from_db()
    road.engine.kill(attempt.container_id)
    thread.join(timeout=30)
