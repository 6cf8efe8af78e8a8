"""Experiments as leaderboard rows: seeds, rank, hardware, time, and what a reader must know."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from pytest_django import DjangoAssertNumQueries

from mlebench_web.catalog.models import Competition, ContainerConfig, Split
from runs import leaderboard
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, State
from runs.leaderboard import Medals, Row
from runs.models import Experiment, Run, RunGroup
from tests.factories import (
    make_attempt,
    make_competition,
    make_config,
    make_group,
    make_run,
    make_split,
)

pytestmark = pytest.mark.django_db

GIB = 2**30
OFFICIAL = {
    "cpus": 36.0,
    "memory_bytes": 440 * GIB,
    "gpus": [{"uuid": "GPU-1", "name": "NVIDIA A10", "memory_bytes": 24 * GIB}],
}
NAMES = ("aerial-cactus-identification", "leaf-classification")


@pytest.fixture
def pair() -> Split:
    return make_split("pair", [make_competition(name) for name in NAMES])


def competitions(split: Split) -> list[Competition]:
    return list(split.competitions.order_by("name"))


def finish(
    split: Split,
    results: Sequence[Sequence[Result]],
    *,
    experiment: str = "e",
    group: RunGroup | None = None,
    hardware: dict[str, object] | None = None,
    lasted: timedelta = timedelta(hours=2),
) -> RunGroup:
    """A run group in which each competition (outer) had each seed's result (inner)."""
    group = group or make_group(experiment=experiment, split=split)
    for competition, seeds in zip(competitions(split), results, strict=True):
        for result in seeds:
            make_run(
                group,
                competition=competition,
                result=result,
                hardware=hardware or OFFICIAL,
                lasted=lasted,
            )
    return group


def only(split: Split, **options: bool) -> Row:
    [row] = leaderboard.rows(split, **options)
    return row


def flags(row: Row) -> list[str]:
    return [flag.name for flag in row.flags]


G, S, N, X = Result.GOLD, Result.SILVER, Result.NO_SUBMISSION, Result.INVALID


def test_three_complete_seeds_make_a_ranked_row(pair: Split) -> None:
    finish(pair, [(G, G, N), (S, X, S)])

    row = only(pair)

    assert row.any_medal
    assert row.any_medal.mean == pytest.approx(200 / 3)
    assert row.any_medal.standard_error == pytest.approx(100 / 6)
    assert (row.seeds, row.rank, row.coverage) == (3, 1, "6 of 6 runs have a report")
    assert row.medals == (Medals(1, 1, 0), Medals(1, 0, 0), Medals(0, 1, 0))
    assert row.metrics["valid_submissions_percentage"].mean == pytest.approx(400 / 6)
    assert (row.differences, row.is_comparable) == ((), True)


def test_hardware_and_time_are_those_that_runs_had(pair: Split) -> None:
    finish(pair, [(G, G, G), (S, S, S)], lasted=timedelta(hours=2))

    row = only(pair)

    assert row.hardware == "1 x NVIDIA A10, 36 CPUs, 440 GiB"
    assert (row.median_run_seconds, row.median_dataset_seconds) == (7200, 7200)
    assert row.gpu_hours == 12


def test_a_second_group_adds_seeds_and_replaces_none(pair: Split) -> None:
    finish(pair, [(G,), (N,)])
    finish(pair, [(N, G), (N, G)])

    row = only(pair)

    assert (row.groups, row.seeds) == (2, 3)
    assert [medals.gold for medals in row.medals] == [1, 0, 2]


def test_fewer_than_three_seeds_are_listed_and_not_ranked(pair: Split) -> None:
    finish(pair, [(G, G), (G, G)])

    row = only(pair)

    assert (row.seeds, row.rank) == (2, None)
    assert [one.name for one in row.differences] == ["seeds"]


def test_one_seed_ranks_on_the_demo_split(db: None) -> None:
    demo = make_split("one-demo", [make_competition("demo-diamond-prices")])
    finish(demo, [(G,)])

    row = only(demo)

    assert (row.rank, row.differences) == (1, ())


def test_a_demo_row_is_computed_over_what_was_asked_for_and_says_so(db: None) -> None:
    """The tiles must be downloaded first; the diamonds alone are the first demo."""
    shipped = make_split("shipped", [make_competition("demo-diamond-prices")])
    whole = make_split("whole", list(shipped.competitions.all()))
    whole.competitions.add(make_competition("demo-tiles"))
    finish(shipped, [(G,)])

    row = only(whole)

    assert (row.seeds, row.competitions) == (1, 1)
    assert row.any_medal is not None
    assert row.any_medal.mean == 100
    assert [flag.name for flag in row.flags] == ["1 of 2 competitions"]


def test_demo_competitions_are_never_added_to_others(pair: Split) -> None:
    pair.competitions.add(make_competition("demo-diamond-prices"))

    with pytest.raises(leaderboard.MixedSplit, match="two splits"):
        leaderboard.rows(pair)


def test_what_is_still_running_is_so_far_and_does_not_rank(pair: Split) -> None:
    group = finish(pair, [(G, G, G), (S, S, S)])
    make_run(group, competition=competitions(pair)[0], state=State.RUNNING)

    row = only(pair)

    assert (row.is_so_far, row.rank, row.seeds) == (True, None, 3)
    assert row.coverage == "6 of 7 runs have a report"
    assert row.medal_reports == 6


def test_infrastructure_failed_and_cancelled_runs_have_no_report(pair: Split) -> None:
    group = finish(pair, [(G,), (G,)])
    first, second = competitions(pair)
    make_run(group, competition=first, outcome=Outcome.INFRASTRUCTURE_FAILED)
    make_run(group, competition=second, outcome=Outcome.CANCELLED)

    row = only(pair)

    assert (row.seeds, row.reports, row.runs) == (1, 2, 4)
    assert not row.is_so_far


def test_an_agent_failure_is_a_report_without_a_medal(pair: Split) -> None:
    group = finish(pair, [(G,), ()])
    make_run(group, competition=competitions(pair)[1], outcome=Outcome.AGENT_FAILED)

    row = only(pair)

    assert row.seeds == 1
    assert row.any_medal
    assert row.any_medal.mean == 50
    assert "re-run" not in flags(row)


def test_a_split_that_lacks_competitions_names_them(pair: Split) -> None:
    finish(pair, [(G, G, G), ()])

    row = only(pair)
    padded = only(pair, pad_missing=True)

    assert (row.seeds, row.metrics, row.missing) == (0, {}, (NAMES[1],))
    assert padded.any_medal
    assert (padded.seeds, padded.any_medal.mean, padded.is_padded) == (3, 50, True)
    assert flags(padded) == ["padded"]


def test_padding_that_fills_nothing_is_not_called_padded(pair: Split) -> None:
    finish(pair, [(G,), (G,)])

    assert not only(pair, pad_missing=True).is_padded


def test_overlapping_rows_share_a_rank_and_the_best_comes_first(pair: Split) -> None:
    finish(pair, [(N, N, N), (N, N, N)], experiment="last")
    finish(pair, [(G, G, G), (G, G, G)], experiment="best")
    finish(pair, [(G, G, N), (G, G, G)], experiment="near")
    finish(pair, [(G,), (G,)], experiment="one seed")

    found = [(row.name, row.rank) for row in leaderboard.rows(pair)]

    assert found == [("best", 1), ("one seed", None), ("near", 1), ("last", 3)]


def test_a_run_again_after_the_agents_own_failure_is_counted_and_said(pair: Split) -> None:
    group = finish(pair, [(), (G,)])
    again = make_run(group, competition=competitions(pair)[0], outcome=Outcome.AGENT_FAILED)
    make_attempt(again, result=Result.GOLD)

    now, first = only(pair), only(pair, first_outcomes=True)

    assert now.any_medal
    assert first.any_medal
    assert (now.any_medal.mean, first.any_medal.mean) == (100, 50)
    assert "re-run" in flags(now)


def test_a_run_again_after_an_infrastructure_failure_is_nobodys_choice(pair: Split) -> None:
    group = finish(pair, [(), (G,)])
    again = make_run(
        group, competition=competitions(pair)[0], outcome=Outcome.INFRASTRUCTURE_FAILED
    )
    make_attempt(again, result=Result.GOLD)

    now, first = only(pair), only(pair, first_outcomes=True)

    assert now.metrics == first.metrics
    assert "re-run" not in flags(now)


def test_a_cancel_after_the_start_is_a_first_outcome_without_a_report(pair: Split) -> None:
    group = finish(pair, [(), (G,)])
    again = make_run(group, competition=competitions(pair)[0], outcome=Outcome.CANCELLED)
    make_attempt(again, result=Result.GOLD)

    assert only(pair).seeds == 1
    assert "re-run" in flags(only(pair))
    assert only(pair, first_outcomes=True).seeds == 0


def test_a_cancel_before_the_start_is_no_outcome(pair: Split) -> None:
    group = finish(pair, [(), (G,)])
    again = make_run(
        group,
        competition=competitions(pair)[0],
        outcome=Outcome.CANCELLED,
        agent_started_at=None,
    )
    make_attempt(again, result=Result.GOLD)

    assert only(pair, first_outcomes=True).seeds == 1


def test_a_cut_short_and_a_resumed_run_are_marked(pair: Split) -> None:
    finish(pair, [(G,), (G,)])
    first, second = Run.objects.all()
    Run.objects.filter(pk=first.pk).update(is_cut_short=True)
    old = second.attempts.get()
    make_attempt(second, result=Result.GOLD, resumed_from=old)

    assert {"cut short", "resumed"} <= set(flags(only(pair)))


def test_another_limit_or_config_makes_a_row_mixed(pair: Split) -> None:
    finish(pair, [(G,), (G,)])
    finish(
        pair,
        [(G,), (G,)],
        group=make_group(
            experiment="e",
            time_limit=timedelta(hours=12),
            container_settings={"mem_limit": "80G"},
        ),
    )

    row = only(pair)

    [mixed] = [flag for flag in row.flags if flag.name == "mixed"]
    assert mixed.text == "Different container config, time limit within this experiment."
    assert row.hours is None


def test_different_hardware_within_a_row_is_marked_and_shown(pair: Split) -> None:
    finish(pair, [(G, G), (G,)])
    finish(pair, [(), (G,)], hardware={"cpus": 2.0, "memory_bytes": 8 * GIB, "gpus": []})

    row = only(pair)

    assert row.hardware == "1 x NVIDIA A10, 36 CPUs, 440 GiB / no GPU, 2 CPUs, 8 GiB"
    assert "mixed hardware" in flags(row)


def test_runs_without_a_sandbox_are_marked(pair: Split) -> None:
    config = make_config("demo-process", runtime=ContainerConfig.Runtime.PROCESS)
    finish(pair, [(G,), (G,)], group=make_group(experiment="e", config=config))

    assert "unsandboxed" in flags(only(pair))


def test_what_was_not_measured_is_none_and_not_zero(pair: Split) -> None:
    finish(pair, [(G,), (G,)], hardware={"cpus": 2.0})

    row = only(pair)

    assert (row.hardware, row.gpu_hours) == ("2 CPUs", None)


def test_competitions_with_a_known_issue_can_be_left_out(pair: Split) -> None:
    finish(pair, [(G, G, G), (N, N, N)])
    Competition.objects.filter(name=NAMES[1]).update(known_issue="The answers leak.")

    with_it, without = only(pair), only(pair, without_known_issues=True)

    assert with_it.any_medal
    assert without.any_medal
    assert (with_it.any_medal.mean, without.any_medal.mean) == (50, 100)
    assert (with_it.competitions, without.competitions) == (2, 1)


def test_the_all_tab_has_low_medium_and_high_beside_it(db: None) -> None:
    made = {name: make_competition(f"competition-{name}") for name in ("low", "medium", "high")}
    for name in made:
        Split.objects.filter(name=name).delete()
        make_split(name, [made[name]])
    Split.objects.filter(name="split75").delete()
    whole = make_split("split75", list(made.values()))
    # In the order of their names: high, low, medium.
    finish(whole, [(N, N, N), (G, G, G), (G, N, N)])

    row = only(whole)

    assert {name: part.mean for name, part in row.parts.items()} == {
        "low": 100,
        "medium": pytest.approx(100 / 3),
        "high": 0,
    }
    assert row.any_medal
    assert row.any_medal.mean == pytest.approx(400 / 9)


def test_published_rows_stand_beside_ours_and_never_rank(db: None) -> None:
    Split.objects.filter(name="low").delete()
    low = make_split("low", [make_competition("c")])
    finish(low, [(G, G, G)])

    found = leaderboard.rows(low, with_published=True)

    ours, published = found[0], [row for row in found if row.is_published]
    assert (ours.name, ours.rank, len(published)) == ("e", 1, 26)
    [aide] = [row for row in published if (row.name, row.agent) == ("AIDE", "o1-preview")]
    assert aide.any_medal
    assert (aide.any_medal.mean, aide.any_medal.standard_error) == (35.91, 1.86)
    assert (aide.rank, aide.hardware, aide.hours) == (None, "", 24)
    assert "not re-run" in aide.flags[0].text


def test_a_row_costs_the_same_queries_whatever_the_number_of_experiments(
    pair: Split, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    finish(pair, [(G, G, G), (S, S, S)], experiment="first")
    with django_assert_max_num_queries(4):
        leaderboard.rows(pair)

    for number in range(5):
        finish(pair, [(G, G, G), (S, S, S)], experiment=f"another {number}")

    with django_assert_max_num_queries(4):
        assert len(leaderboard.rows(pair)) == 6


def test_time_per_dataset_has_each_seed_and_what_it_ran_on(pair: Split) -> None:
    first, second = competitions(pair)
    group = make_group(experiment="e")
    for hours in (1, 2, 6):
        make_run(
            group,
            competition=first,
            result=G,
            lasted=timedelta(hours=hours),
            hardware=OFFICIAL,
        )
    make_run(group, competition=second, state=State.RUNNING)
    make_run(
        group,
        competition=second,
        outcome=Outcome.AGENT_FAILED,
        cause=Cause.AGENT_CRASHED,
        lasted=timedelta(minutes=5),
    )

    times = leaderboard.time_per_dataset(Experiment.objects.get())

    assert [time.competition for time in times] == list(NAMES)
    one, two = times
    assert (one.median_seconds, one.min_seconds, one.max_seconds) == (7200, 3600, 21600)
    assert [seed.seconds for seed in one.seeds] == [3600, 7200, 21600]
    assert one.hardware == "1 x NVIDIA A10, 36 CPUs, 440 GiB"
    assert [seed.seconds for seed in two.seeds] == [None, 300]


def test_a_row_as_json_has_upstreams_names_and_no_nan(pair: Split) -> None:
    finish(pair, [(G,), (X,)])

    said = only(pair).as_json()

    assert said["any_medal_percentage"] == {
        "mean": 50.0,
        "standard_error": 0.0,
        "ci_lower": 50.0,
        "ci_upper": 50.0,
    }
    assert said["medals_per_seed"] == [{"gold": 1, "silver": 0, "bronze": 0}]
