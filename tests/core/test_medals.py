"""Upstream's medal rule: thresholds by position, inclusive medals, a strict median."""

import csv
import random

import pytest

from mlebench_web.catalog.thresholds import thresholds
from runs.core.medals import Standing, Thresholds, standing
from tests.conftest import SHARED, SHARED_IS_ABSENT


@pytest.mark.parametrize(
    ("teams", "gold", "silver", "bronze"),
    [
        pytest.param(2, 1, 1, 1, id="the smallest"),
        pytest.param(10, 1, 2, 4, id="a ladder of ten"),
        pytest.param(99, 9, 19, 39, id="below 100"),
        pytest.param(100, 10, 20, 40, id="from 100"),
        pytest.param(249, 10, 49, 99, id="below 250"),
        pytest.param(250, 10, 50, 100, id="from 250"),
        pytest.param(999, 11, 50, 100, id="below 1000"),
        pytest.param(1000, 12, 50, 100, id="from 1000"),
        pytest.param(1221, 12, 61, 122, id="aerial cactus"),
        pytest.param(2929, 15, 146, 292, id="aptos"),
    ],
)
def test_thresholds_are_scores_at_positions(
    teams: int, gold: int, silver: int, bronze: int
) -> None:
    """Position p has score p, lower is better: the threshold is its own position."""
    found = thresholds(list(range(1, teams + 1)))

    assert (found.gold, found.silver, found.bronze) == (gold, silver, bronze)
    assert found.median == (teams + 1) / 2
    assert found.is_lower_better


def test_the_direction_is_the_leaderboards_first_against_its_last_score() -> None:
    assert thresholds([0.1, 0.2]).is_lower_better
    assert not thresholds([0.2, 0.1]).is_lower_better


HIGHER = Thresholds(0.9, 0.8, 0.7, 0.5, is_lower_better=False)
LOWER = Thresholds(0.1, 0.2, 0.3, 0.5, is_lower_better=True)


@pytest.mark.parametrize(
    ("score", "asked", "expected"),
    [
        pytest.param(0.9, HIGHER, Standing(gold=True, above_median=True), id="gold is inclusive"),
        pytest.param(0.89999, HIGHER, Standing(silver=True, above_median=True), id="silver"),
        pytest.param(0.7, HIGHER, Standing(bronze=True, above_median=True), id="bronze"),
        pytest.param(0.50001, HIGHER, Standing(above_median=True), id="above the median"),
        pytest.param(0.5, HIGHER, Standing(), id="the median itself is not above it"),
        pytest.param(0.1, LOWER, Standing(gold=True, above_median=True), id="lower: gold"),
        pytest.param(0.11, LOWER, Standing(silver=True, above_median=True), id="lower: silver"),
        pytest.param(0.49999, LOWER, Standing(above_median=True), id="lower: above the median"),
        pytest.param(0.5, LOWER, Standing(), id="lower: the median itself"),
        pytest.param(None, LOWER, Standing(), id="no score"),
        pytest.param(float("nan"), HIGHER, Standing(), id="not a number"),
        pytest.param(float("inf"), HIGHER, Standing(), id="infinite"),
        pytest.param(float("-inf"), LOWER, Standing(), id="infinitely low"),
        pytest.param(0, LOWER, Standing(gold=True, above_median=True), id="zero is a score"),
        pytest.param(
            0.05, Thresholds(None, None, None, None, None), Standing(), id="nothing is known"
        ),
    ],
)
def test_a_scores_place(score: float | None, asked: Thresholds, expected: Standing) -> None:
    assert standing(score, asked) == expected


def test_one_score_never_has_two_medals_and_better_is_never_worse() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        scores = sorted(round(chance.random(), 3) for _ in range(chance.randrange(2, 400)))
        if scores[0] == scores[-1]:
            continue
        found = thresholds(scores)
        asked = Thresholds(found.gold, found.silver, found.bronze, found.median, True)
        better, worse = sorted((chance.random(), chance.random()))
        first, second = standing(better, asked), standing(worse, asked)
        assert first.gold + first.silver + first.bronze <= 1
        assert first.any_medal >= second.any_medal
        assert first.above_median >= second.above_median


def test_equal_thresholds_give_gold() -> None:
    """Aerial cactus: gold, silver and bronze are 1.0."""
    asked = Thresholds(1.0, 1.0, 1.0, 0.9991, is_lower_better=False)

    assert standing(1.0, asked) == Standing(gold=True, above_median=True)
    assert standing(0.99999, asked) == Standing(above_median=True)


def test_medals_of_66_real_scores() -> None:
    if not SHARED.is_dir():
        pytest.skip(SHARED_IS_ABSENT)
    with (SHARED / "data" / "competitions.csv").open() as file:
        asked = {
            row["id"]: Thresholds(
                float(row["gold_threshold"]),
                float(row["silver_threshold"]),
                float(row["bronze_threshold"]),
                float(row["median_threshold"]),
                row["is_lower_better"] == "True",
            )
            for row in csv.DictReader(file)
        }
    with (SHARED / "golden" / "lite22-three-runs" / "lite22_three_run.csv").open() as file:
        rows = list(csv.DictReader(file))

    for row in rows:
        place = standing(
            float(row["score"]) if row["score"] else None, asked[row["competition_id"]]
        )
        medal = next((name for name in ("gold", "silver", "bronze") if getattr(place, name)), "")
        assert medal == (row["medal"] if row["medal"] in ("gold", "silver", "bronze") else ""), row
