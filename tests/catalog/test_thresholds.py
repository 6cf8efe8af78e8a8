import pytest

from mlebench_web.catalog.thresholds import thresholds


@pytest.mark.parametrize(
    ("teams", "gold", "silver", "bronze"),
    [
        pytest.param(2, 1, 1, 1, id="never below the first place"),
        pytest.param(10, 1, 2, 4, id="a reference ladder"),
        pytest.param(99, 9, 19, 39, id="last of the smallest class"),
        pytest.param(100, 10, 20, 40, id="first of the second class"),
        pytest.param(249, 10, 49, 99, id="last of the second class"),
        pytest.param(250, 10, 50, 100, id="first of the third class"),
        pytest.param(999, 11, 50, 100, id="int cuts off"),
        pytest.param(1000, 12, 50, 100, id="first of the largest class"),
        pytest.param(1221, 12, 61, 122, id="as many teams as aerial cactus has"),
    ],
)
def test_places_by_number_of_teams(teams: int, gold: int, silver: int, bronze: int) -> None:
    found = thresholds([float(place) for place in range(1, teams + 1)])

    assert (found.gold, found.silver, found.bronze) == (gold, silver, bronze)


def test_the_direction_is_first_against_last() -> None:
    assert thresholds([0.1, 0.5]).is_lower_better
    assert not thresholds([0.5, 0.1]).is_lower_better


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert thresholds([1.0, 2.0, 4.0, 8.0]).median == 3.0


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.7, 0.5]])
def test_no_direction_no_thresholds(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="score"):
        thresholds(scores)
