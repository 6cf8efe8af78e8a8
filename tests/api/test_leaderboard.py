"""GET leaderboard: the same rows as the page's."""

import json

import pytest

from mlebench_web.catalog.models import Competition, Split
from mlebench_web.fleet.models import Host
from runs import leaderboard
from runs.core.states import Result
from tests import factories
from tests.api.conftest import ApiClient
from tests.api.test_run_groups import fields


@pytest.fixture
def results(lab: Host) -> None:
    """Two complete seeds of the demo split: one medal in each."""
    group = factories.make_group(experiment="first", split=Split.objects.get(name="demo"))
    for seed, (diamonds, trees) in enumerate(
        [(Result.GOLD, Result.VALID), (Result.NO_SUBMISSION, Result.BRONZE)]
    ):
        for name, result in (("demo-diamond-prices", diamonds), ("demo-tree-crowns", trees)):
            competition = Competition.objects.get(name=name)
            factories.make_run(group, competition=competition, seed=seed, result=result)


def test_rows_have_upstreams_metrics(api: ApiClient, results: None) -> None:
    status, answer = api.read("leaderboard?split=demo")

    assert status == 200
    (row,) = answer["items"]
    assert (row["experiment"], row["split"]) == ("first", "demo")
    assert (row["seeds"], row["competitions"], row["rank"]) == (2, 2, 1)
    assert row["any_medal_percentage"] == {
        "mean": 50.0,
        "standard_error": 0.0,
        "ci_lower": 50.0,
        "ci_upper": 50.0,
    }
    assert answer["next"] is None
    (same,) = leaderboard.rows(Split.objects.get(name="demo"))
    assert row == json.loads(json.dumps(same.as_json()))


def test_an_unknown_split_comes_with_the_allowed_ones(api: ApiClient, lab: Host) -> None:
    status, answer = api.read("leaderboard?split=x")

    assert (status, fields(answer)) == (422, ["split"])
    assert answer["errors"][0]["allowed"] == ["demo", "low", "all"]


def test_without_a_split_it_says_so(api: ApiClient, lab: Host) -> None:
    status, answer = api.read("leaderboard")

    assert (status, fields(answer)) == (422, ["split"])


def test_published_rows_come_on_request(api: ApiClient, lab: Host) -> None:
    _, without = api.read("leaderboard?split=low")
    _, with_published = api.read("leaderboard?split=low&published=1")

    assert without["count"] == 0
    assert with_published["count"] == 26
    assert all(row["published"] for row in with_published["items"])


def test_demo_and_other_competitions_are_never_added_up(api: ApiClient, lab: Host) -> None:
    factories.make_split("mix", list(Competition.objects.all()))

    status, answer = api.read("leaderboard?split=mix")

    assert (status, fields(answer)) == (422, ["split"])
