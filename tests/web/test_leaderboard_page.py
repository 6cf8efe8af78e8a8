"""The leaderboard page and its CSV: what is shown, sorted and filtered. Rows: test_leaderboard."""

import csv
import io

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mlebench_web.catalog.models import Competition, Split
from runs.core.states import Result, State
from tests.factories import make_agent, make_competition, make_group, make_run, make_user
from tests.web.conftest import signed_in
from tests.web.pages import Page, get

pytestmark = pytest.mark.django_db

GOLD, VALID = Result.GOLD, Result.VALID


@pytest.fixture
def low(db: None) -> Split:
    """Low, with two competitions only, so that a test can fill it."""
    split = Split.objects.get_or_create(name="low", defaults={"title": "Low"})[0]
    split.competitions.set(
        [make_competition("one", is_demo=False), make_competition("two", is_demo=False)]
    )
    return split


@pytest.fixture
def client(db: None) -> Client:
    return signed_in(make_user())


def experiment(name: str, *seeds: list[Result], **fields: object) -> None:
    """A group with one list of results a seed, in the order of the competitions."""
    group = make_group(experiment=name, agent=make_agent(f"agent of {name}"), seeds=len(seeds))
    competitions = list(Competition.objects.filter(name__in=("one", "two")).order_by("name"))
    for seed, results in enumerate(seeds):
        for competition, result in zip(competitions, results, strict=True):
            make_run(group, competition=competition, seed=seed, result=result, **fields)


def page_of(client: Client, query: str = "?split=low&published=0") -> Page:
    return get(client, reverse("leaderboard") + query)


def names(page: Page) -> list[str]:
    return [
        t.text.strip()
        for t in page.tags
        if t.name == "a" and "/experiments/" in t.attributes["href"]
    ]


def in_order(page: Page) -> list[str]:
    return list(dict.fromkeys(name for name in names(page) if name in ("good", "half", "bad")))


def test_the_best_is_first_with_its_error_and_medals(client: Client, low: Split) -> None:
    experiment("bad", [VALID, VALID], [VALID, VALID], [VALID, VALID])
    experiment("good", [GOLD, GOLD], [GOLD, VALID], [GOLD, GOLD])

    page = page_of(client)

    assert in_order(page) == ["good", "bad"]
    # 100, 50, 100: mean 83.33, standard error 28.87 / sqrt(3) = 16.67.
    assert any("83.3 % plus or minus 16.7" in t.attributes.get("aria-label", "") for t in page.tags)
    assert any(t.attributes.get("title", "").startswith("seed 0: 2 gold") for t in page.tags)


def test_columns_sort_by_the_address_and_the_unknown_goes_last(client: Client, low: Split) -> None:
    experiment("good", [GOLD, GOLD])
    experiment("half", [GOLD, VALID])
    experiment("bad", [Result.INVALID, VALID])
    group = make_group(experiment="unknown")
    make_run(group, competition=Competition.objects.get(name="one"))

    ascending = page_of(client, "?split=low&published=0&sort=valid")
    descending = page_of(client, "?split=low&published=0&sort=-name")

    assert in_order(ascending)[0] == "bad"
    assert names(ascending).index("unknown") > names(ascending).index("good")
    assert in_order(descending) == ["half", "good", "bad"]


def test_a_filter_takes_rows_away_and_changes_no_number(client: Client, low: Split) -> None:
    experiment("good", [GOLD, GOLD], [GOLD, VALID])
    experiment("bad", [VALID, VALID], [VALID, VALID])

    def numbers(page: Page) -> list[str]:
        row = next(t for t in page.tags if t.name == "tr" and "good" in t.text)
        return row.text.split()

    whole, filtered = page_of(client), page_of(client, "?split=low&published=0&q=GOOD")

    assert in_order(filtered) == ["good"]
    assert numbers(whole) == numbers(filtered)


def test_published_results_stand_beside_ours_and_are_marked(client: Client, low: Split) -> None:
    experiment("good", [GOLD, GOLD])

    with_them = page_of(client, "?split=low")
    without = page_of(client)

    published = [t for t in with_them.tags if t.attributes.get("class") == "pub"]
    assert len(published) == 26
    assert all("Published" in row.text for row in published)
    assert not [t for t in without.tags if t.attributes.get("class") == "pub"]


def test_what_still_runs_is_so_far_and_has_no_rank(client: Client, low: Split) -> None:
    experiment("good", [GOLD, GOLD], [GOLD, GOLD], [GOLD, GOLD])
    experiment("half", [GOLD, GOLD], [GOLD, GOLD], [GOLD, GOLD])
    make_run(
        make_group(experiment="half", agent=make_agent("agent of half")),
        competition=Competition.objects.get(name="one"),
        seed=3,
        state=State.RUNNING,
    )

    page = page_of(client)

    first_cells = [t.text.strip()[0] for t in page.tags if t.name == "tr" and "agent of" in t.text]
    assert in_order(page) == ["good", "half"]
    assert first_cells == ["1", "\u2013"]
    assert any(t.text == "So far" for t in page.tags)


def test_demo_stands_apart_and_says_what_it_is(client: Client) -> None:
    page = page_of(client, "?split=demo")

    assert any("reference baselines" in t.text for t in page.tags if t.name == "p")
    assert not any("Published results" in t.text for t in page.tags if t.name == "a")


def test_a_split_that_mixes_demo_and_others_is_refused_in_words(client: Client, low: Split) -> None:
    low.competitions.add(make_competition("demo-one"))

    page = page_of(client)
    table = client.get(reverse("leaderboard_csv") + "?split=low")

    assert any("never added to those of the 75" in t.text for t in page.tags)
    assert table.status_code == 409


def test_an_unknown_split_is_not_found(client: Client) -> None:
    assert client.get(reverse("leaderboard") + "?split=nothing").status_code == 404


def test_all_is_the_name_of_all_75(client: Client) -> None:
    page = page_of(client, "?split=all")

    current = [t.text for t in page.tags if t.attributes.get("aria-current") == "true"]
    assert current == ["All 75"]


def test_the_csv_has_full_precision_and_empty_cells(client: Client, low: Split) -> None:
    experiment("good", [GOLD, GOLD], [GOLD, VALID], [GOLD, GOLD])

    response = client.get(reverse("leaderboard_csv") + "?split=low&published=0")

    rows = list(csv.DictReader(io.StringIO(response.content.decode())))
    assert rows[0]["experiment"] == "good"
    assert float(rows[0]["any_medal_percentage_mean"]) == 250 / 3
    assert rows[0]["low_any_medal_mean"] == ""


def test_a_name_is_never_a_formula_in_a_spreadsheet(client: Client, low: Split) -> None:
    experiment('=HYPERLINK("http://evil.example")', [GOLD, GOLD])

    response = client.get(reverse("leaderboard_csv") + "?split=low&published=0")

    rows = list(csv.DictReader(io.StringIO(response.content.decode())))
    assert rows[0]["experiment"].startswith("'=")


def test_the_leaderboard_costs_as_many_queries_for_many_experiments(
    client: Client, low: Split
) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            page_of(client)
        return len(queries)

    experiment("e0", [GOLD, GOLD])
    cost()
    one = cost()
    for number in range(1, 8):
        experiment(f"e{number}", [GOLD, VALID], [VALID, GOLD], [GOLD, GOLD])

    assert cost() == one <= 25


def test_an_experiment_shows_the_time_per_dataset_with_every_seed(
    client: Client, low: Split
) -> None:
    experiment("good", [GOLD, GOLD], [GOLD, VALID])
    link = next(
        t.attributes["href"] for t in page_of(client).tags if t.name == "a" and t.text == "good"
    )

    page = get(client, link)

    row = next(t for t in page.tags if t.name == "tr" and "one" in t.text and "2 min 00" in t.text)
    assert row.text.count("2 min 00") == 5  # median, least, most, and each of two seeds
    assert page.check() == []


def test_one_seed_shows_no_error(client: Client, low: Split) -> None:
    """Upstream's standard error of one seed is 0, which would look like certainty."""
    experiment("good", [GOLD, VALID])

    page = page_of(client)

    assert any(t.attributes.get("aria-label") == "50.0 %" for t in page.tags)
    assert any(t.text == "one seed" for t in page.tags if t.name == "small")
