"""Which run a row of a report belongs to, and which seed it is."""

import json
from typing import Any

import pytest

from runs.core.harness_file import Harness, read_harness
from runs.core.reports import ImportRefused, Metadata, Report, read_report
from runs.core.run_groups import FoundGroup, GroupPlan, plan_group
from runs.core.states import Outcome
from tests.support.upstream import path_of, row, without_submission

U1 = "11111111-1111-4111-8111-111111111111"
U2 = "22222222-2222-4222-8222-222222222222"
U3 = "33333333-3333-4333-8333-333333333333"


def report(*rows: dict[str, object], name: str = "grading_report.json") -> Report:
    return read_report(json.dumps({"competition_reports": list(rows)}).encode(), name)


def graded(run: str, **fields: object) -> dict[str, object]:
    return row(run.partition("_")[0], submission_path=path_of("g", run), **fields)


def plan(*reports: Report, runs: tuple[str, ...] = (), **fields: Any) -> GroupPlan:
    metadata = Metadata("g", None, dict.fromkeys(runs, True)) if runs else None
    return plan_group(FoundGroup("g", reports, metadata=metadata, **fields))


def found(plan: GroupPlan) -> list[tuple[str, int, str, float | None]]:
    return [
        (run.competition, run.seed, run.run_id, run.current.row.score if run.current else None)
        for run in plan.runs
    ]


def test_a_row_goes_to_the_run_that_its_path_names() -> None:
    rows = [graded(f"a_{U2}", score=2), graded(f"a_{U1}", score=1)]

    made = plan(report(*rows), runs=(f"a_{U1}", f"a_{U2}"))

    # Seeds are upstream's: by position in the report, not in metadata.json.
    assert found(made) == [("a", 0, f"a_{U2}", 2), ("a", 1, f"a_{U1}", 1)]


def test_a_row_without_a_submission_goes_to_a_run_that_no_other_names() -> None:
    rows = [without_submission("a"), graded(f"a_{U2}"), without_submission("b")]

    made = plan(report(*rows), runs=(f"a_{U2}", f"b_{U3}", f"a_{U1}"))

    assert [(seed, run_id) for _, seed, run_id, _ in found(made)] == [
        (0, f"a_{U1}"),
        (1, f"a_{U2}"),
        (0, f"b_{U3}"),
    ]
    assert made.skipped == ()


def test_without_metadata_folders_stand_for_it() -> None:
    made = plan(report(without_submission("a")), run_folders=(f"a_{U1}", f"b_{U2}"))

    assert found(made) == [("a", 0, f"a_{U1}", None)]
    assert [each.what for each in made.skipped] == [f"b_{U2}"]


def test_a_report_that_has_a_run_twice_counts_both_as_upstream_does() -> None:
    made = plan(report(graded(f"a_{U1}", score=1), graded(f"a_{U1}", score=2)))

    assert found(made) == [("a", 0, f"a_{U1}", 1), ("a", 1, "", 2)]
    assert "both rows count" in made.warnings[0]


def test_paths_of_forks_are_identities_too() -> None:
    """Not upstream's layout: what follows the run's folder tells two submissions apart."""
    rows = [row("a", submission_path=f"a_seed_0/logs/{kind}/submission.csv") for kind in "xy"]

    made = plan(report(*rows), runs=(f"a_{U1}",))

    # What it graded lies elsewhere: it takes no folder that nothing names.
    assert [run_id for _, _, run_id, _ in found(made)] == ["a_seed_0", ""]
    assert [each.what for each in made.skipped] == [f"a_{U1}"]


def test_the_newest_of_two_gradings_counts_by_the_name_then_by_the_rows() -> None:
    first = report(graded(f"a_{U1}", score=1), name="2026-01-02T00-00-00-GMT_grading_report.json")
    second = report(graded(f"a_{U1}", score=2), name="2026-01-01T00-00-00-UTC_grading_report.json")
    third = report(
        graded(f"a_{U1}", score=3, created_at="2027-01-01T00:00:00"), name="0_grading_report.json"
    )

    made = plan(first, second, third)

    [run] = made.runs
    assert [each.row.score for each in run.gradings] == [2, 1, 3]


def test_reports_of_other_runs_are_more_seeds_in_the_order_of_their_names() -> None:
    later = report(graded(f"a_{U1}", score=1), name="b_grading_report.json")
    first = report(
        graded(f"a_{U2}", score=2), without_submission("b"), name="a_grading_report.json"
    )

    made = plan(later, first)

    assert found(made) == [
        ("a", 0, f"a_{U2}", 2),
        ("a", 1, f"a_{U1}", 1),
        ("b", 0, "", None),
    ]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[graded(f"a_{U1}")], [graded(f"a_{U1}"), graded(f"a_{U2}")]], id="some"),
        pytest.param([[without_submission("a")], [without_submission("a")]], id="no paths"),
        pytest.param([[without_submission("a")], [graded(f"a_{U1}")]], id="no paths in one"),
    ],
)
def test_reports_that_may_be_of_the_same_runs_are_refused(rows: list[list[Any]]) -> None:
    reports = [
        report(*each, name=f"{number}_grading_report.json") for number, each in enumerate(rows)
    ]

    with pytest.raises(ImportRefused, match="it cannot be told whether they are about the same"):
        plan(*reports)


def test_the_digest_is_of_the_reports_however_they_are_named() -> None:
    one, other = report(graded(f"a_{U1}")), report(graded(f"a_{U2}"), name="x")

    assert plan(one).digest == one.digest
    assert plan(one, other).digest == plan(other, one).digest


def harness(**runs: dict[str, object]) -> Harness:
    content = {"harness": "mlebench-web", "runs": runs}
    read = read_harness(json.dumps(content).encode(), "harness.json")
    assert read is not None
    return read


def test_our_own_harness_gives_seeds_and_brings_back_what_has_no_report() -> None:
    runs = {
        f"a_{U1}": {"seed": 1, "outcome": "graded", "active_seconds": 60},
        f"a_{U2}": {"seed": 0, "outcome": "infrastructure_failed", "cause": "host_lost"},
        f"b_{U3}": {"seed": 0, "outcome": "agent_failed", "cause": "time_limit"},
    }

    made = plan(
        report(graded(f"a_{U1}"), without_submission("b")),
        runs=(f"a_{U1}", f"b_{U3}"),
        harness=harness(**runs),
    )

    assert [(run.competition, run.seed, run.outcome) for run in made.runs] == [
        ("a", 0, Outcome.INFRASTRUCTURE_FAILED),
        ("a", 1, Outcome.GRADED),
        ("b", 0, Outcome.AGENT_FAILED),
    ]


def test_a_harness_that_contradicts_the_report_gives_no_seeds() -> None:
    runs = {f"a_{U1}": {"seed": 1}, f"a_{U2}": {"seed": 0}}

    made = plan(report(graded(f"a_{U1}"), graded(f"a_{U2}")), harness=harness(**runs))

    assert [(run.seed, run.run_id) for run in made.runs] == [(0, f"a_{U1}"), (1, f"a_{U2}")]
