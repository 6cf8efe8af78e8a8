"""Complete seeds, mean and standard error as mle-bench publishes them."""

import csv
import random
import subprocess
from pathlib import Path

import pytest

from runs.core import statistics
from runs.core.comparability import Hardware, differences
from runs.core.statistics import (
    Graded,
    IncompleteSeeds,
    Summary,
    complete_seeds,
    ranks,
    summaries,
    summary,
)
from tests.conftest import SHARED, SHARED_IS_ABSENT

GOLD = Graded(submission_exists=True, valid_submission=True, above_median=True, gold=True)
NOTHING = Graded()
ML_PYTHON = Path(__file__).resolve().parents[2] / ".venv-ml" / "bin" / "python"


def published(value: Summary) -> str:
    """As upstream's README prints it."""
    return f"{value.mean:.2f} ± {value.standard_error:.2f}"


def test_published_row_of_famou_agent() -> None:
    """Famou-Agent on Low: 14, 14, 13 medals of 22; README: 62.12 ± 1.52."""
    assert published(summary([medals / 22 * 100 for medals in (14, 14, 13)])) == "62.12 ± 1.52"


def test_a_single_seed_has_no_error() -> None:
    assert summary([50.0]) == Summary(50.0, 0.0, 50.0, 50.0)


def test_three_runs_of_low_give_86_36() -> None:
    if not SHARED.is_dir():
        pytest.skip(SHARED_IS_ABSENT)
    reports: dict[str, list[Graded]] = {}
    with (SHARED / "golden" / "lite22-three-runs" / "lite22_three_run.csv").open() as file:
        for row in csv.DictReader(file):
            graded = Graded(
                gold=row["medal"] == "gold",
                silver=row["medal"] == "silver",
                bronze=row["medal"] == "bronze",
            )
            reports.setdefault(row["competition_id"], []).append(graded)

    seeds = complete_seeds(reports, sorted(reports))

    assert (len(seeds), len(seeds[0])) == (3, 22)
    assert published(summaries(seeds)["any_medal_percentage"]) == "86.36 ± 0.00"


def test_dropping_two_rows_of_a_seed_changes_what_is_padded() -> None:
    """15 medals of 22 in two seeds; in the third two rows are missing, one of them a medal."""
    names = [f"c{number:02}" for number in range(22)]
    reports = {name: [GOLD if number < 14 else NOTHING] * 3 for number, name in enumerate(names)}
    del reports["c00"][2], reports["c21"][2]

    unpadded = complete_seeds(reports, names)
    padded = complete_seeds(reports, names, pad_missing=True)

    assert len(unpadded) == 2
    assert published(summaries(unpadded)["any_medal_percentage"]) == "63.64 ± 0.00"
    assert len(padded) == 3
    assert published(summaries(padded)["any_medal_percentage"]) == "62.12 ± 1.52"


def test_seeds_pair_reports_by_position_across_competitions() -> None:
    seeds = complete_seeds({"a": [GOLD, NOTHING, GOLD], "b": [NOTHING, GOLD]}, ["a", "b"])

    assert seeds == [[GOLD, NOTHING], [NOTHING, GOLD]]


def test_competitions_without_a_report_are_named() -> None:
    with pytest.raises(IncompleteSeeds, match="2 competitions have no report: b, d") as caught:
        complete_seeds({"a": [GOLD], "b": [], "c": [GOLD]}, ["a", "b", "c", "d"])

    assert caught.value.missing == ["b", "d"]


def test_padding_fills_a_competition_that_never_ran() -> None:
    seeds = complete_seeds({"a": [GOLD]}, ["a", "b"], pad_missing=True)

    assert seeds == [[GOLD, NOTHING]]


def test_reports_of_other_competitions_do_not_count() -> None:
    seeds = complete_seeds({"a": [GOLD], "other": [GOLD]}, ["a"])

    assert summaries(seeds)["gold_medal_percentage"].mean == 100


def test_every_percentage_has_upstreams_name() -> None:
    found = summaries([[GOLD, Graded(submission_exists=True)]])

    assert list(found) == list(statistics.METRICS)
    assert {name: value.mean for name, value in found.items()} == {
        "submission_exists_percentage": 100.0,
        "valid_submissions_percentage": 50.0,
        "above_median_percentage": 50.0,
        "gold_medal_percentage": 50.0,
        "silver_medal_percentage": 0.0,
        "bronze_medal_percentage": 0.0,
        "any_medal_percentage": 50.0,
    }


def test_means_and_errors_equal_numpy_and_scipy_to_the_last_bit(tmp_path: Path) -> None:
    if not ML_PYTHON.exists():
        pytest.skip("the Python with numpy and scipy is not there")
    chance = random.Random(7)
    cases = [
        [chance.randrange(76) / 75 * 100 for _ in range(count)]
        for count in (1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 36, 100, 128, 129, 200, 300)
        for _ in range(20)
    ]
    code = (
        "import json,sys,numpy,scipy.stats\n"
        "for v in json.load(sys.stdin):\n"
        "    e=float(scipy.stats.sem(v,ddof=1)) if len(v)>1 else 0.0\n"
        "    print(repr(float(numpy.mean(v))),repr(e))\n"
    )
    theirs = subprocess.run(
        [ML_PYTHON, "-I", "-c", code], input=repr(cases), capture_output=True, text=True, check=True
    ).stdout.splitlines()

    ours = [f"{found.mean!r} {found.standard_error!r}" for found in map(summary, cases)]

    assert ours == theirs


def test_overlapping_intervals_share_a_rank() -> None:
    def row(mean: float, error: float) -> Summary:
        return Summary(mean, error, 0, 0)

    found = ranks(
        {"best": row(80, 1), "near": row(78, 1.5), "third": row(70, 1), "last": row(1, 0)}
    )

    assert found == {"best": 1, "near": 1, "third": 3, "last": 4}


OFFICIAL = Hardware(cpus=36, memory_bytes=440 * 10**9, gpu_names=("NVIDIA A10",))


def names_of(**changes: object) -> list[str]:
    values: dict[str, object] = {"hours": 24, "hardware": OFFICIAL, "seeds": 3, **changes}
    return [found.name for found in differences(**values)]  # type: ignore[arg-type]


def test_the_official_setup_differs_in_nothing() -> None:
    assert names_of() == []
    assert names_of(hardware=Hardware(36, 440 * 2**30, ("NVIDIA A10",))) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        pytest.param({"hours": 12}, "time", id="12 hours"),
        pytest.param({"seeds": 2}, "seeds", id="two seeds"),
        pytest.param({"hardware": Hardware(8, 440 * 10**9, ("NVIDIA A10",))}, "vCPU", id="8 CPUs"),
        pytest.param({"hardware": Hardware(36, 16 * 10**9, ("NVIDIA A10",))}, "RAM", id="16 GB"),
        pytest.param({"hardware": Hardware(36, 440 * 10**9, ())}, "GPU", id="no GPU"),
        pytest.param({"hardware": Hardware(36, 440 * 10**9, ("NVIDIA A100",))}, "GPU", id="A100"),
        pytest.param({"hardware": Hardware(36, 440 * 10**9, ("NVIDIA A10",) * 2)}, "GPU", id="two"),
    ],
)
def test_each_difference_is_named(changes: dict[str, object], name: str) -> None:
    assert names_of(**changes) == [name]


def test_what_was_not_reported_is_no_agreement() -> None:
    assert names_of(hours=None, hardware=Hardware()) == ["time", "vCPU", "RAM", "GPU"]


def test_hardware_in_words() -> None:
    assert str(Hardware(4, 16 * 2**30, ("NVIDIA A10",))) == "1 x NVIDIA A10, 4 CPUs, 16 GiB"
    assert str(Hardware(1, 3 * 2**29, ())) == "no GPU, 1 CPU, 1.5 GiB"
    assert str(Hardware()) == ""
