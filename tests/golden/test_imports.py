"""Grading reports made elsewhere, from the command line to the leaderboard."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from mlebench_web.catalog.models import Competition, Split
from runs import leaderboard
from runs.models import Attempt, Experiment, GradingReport, RunGroup
from tests.factories import make_competition, make_split

pytestmark = pytest.mark.django_db


def command(*arguments: object) -> Any:
    out = StringIO()
    call_command(*map(str, arguments), stdout=out, stderr=StringIO())
    return json.loads(out.getvalue())


def row(competition: str, medal: str = "", **fields: object) -> dict[str, object]:
    return {
        "competition_id": competition,
        "score": 0.5,
        "gold_medal": medal == "gold",
        "silver_medal": medal == "silver",
        "bronze_medal": medal == "bronze",
        "above_median": bool(medal),
        "submission_exists": True,
        "valid_submission": True,
        "is_lower_better": False,
        "created_at": "2026-01-01T00:00:00.000001",
        "submission_path": f"runs/{competition}/submission.csv",
        **fields,
    }


def write(folder: Path, name: str, rows: list[dict[str, object]], **header: object) -> Path:
    path = folder / name
    path.write_text(json.dumps({**header, "competition_reports": rows}))
    return path


@pytest.fixture
def pair() -> Split:
    names = ["aerial-cactus-identification", "leaf-classification"]
    return make_split("pair", [make_competition(name) for name in names])


def test_three_runs_of_low_give_86_36_with_full_precision(golden: Path, tmp_path: Path) -> None:
    with (golden / "lite22-three-runs" / "lite22_three_run.csv").open() as file:
        facts = list(csv.DictReader(file))
    low = Split.objects.filter(name="low").first()
    if not low:
        names = sorted({fact["competition_id"] for fact in facts})
        low = make_split("low", [make_competition(name) for name in names])
    reports = [
        write(
            tmp_path,
            f"{number}_grading_report.json",
            [
                row(
                    fact["competition_id"],
                    fact["medal"],
                    score=float(fact["score"]) if fact["score"] else None,
                    submission_path="None",
                )
                for fact in facts
                if fact["run"] == str(number)
            ],
        )
        for number in (1, 2, 3)
    ]

    done = command("import_reports", "--experiment", "three runs", *reports)
    [found] = command("leaderboard", "--split", "low", "--format", "json")

    assert (done["run_groups"], done["runs"]) == (3, 66)
    assert (found["experiment"], found["seeds"], found["competitions"]) == ("three runs", 3, 22)
    any_medal = found["any_medal_percentage"]
    assert any_medal["mean"] == pytest.approx(1900 / 22, abs=1e-12)
    assert f"{any_medal['mean']:.2f} ± {any_medal['standard_error']:.2f}" == "86.36 ± 0.00"
    assert found["rank"] == 1


def test_importing_twice_changes_nothing(pair: Split, tmp_path: Path) -> None:
    reports = [
        write(tmp_path, f"{number}.json", [row(name, score=number) for name in names(pair)])
        for number in range(3)
    ]
    command("import_reports", "--experiment", "e", *reports)
    before = command("leaderboard", "--split", "pair", "--format", "json")

    again = command("import_reports", "--experiment", "e", *reversed(reports))

    assert (again["run_groups"], again["runs"], len(again["known"])) == (0, 0, 3)
    assert command("leaderboard", "--split", "pair", "--format", "json") == before
    assert (RunGroup.objects.count(), Attempt.objects.count()) == (3, 6)


def names(split: Split) -> list[str]:
    return sorted(split.competitions.values_list("name", flat=True))


def test_seeds_are_in_the_order_of_the_arguments(pair: Split, tmp_path: Path) -> None:
    """More than ten files: as strings, 10 would come before 9."""
    first, second = names(pair)
    reports = [
        write(tmp_path, f"{99 - number}.json", [row(first, score=number), row(second)])
        for number in range(12)
    ]

    command("import_reports", "--experiment", "e", *reports)

    scores = [
        report.score
        for report in GradingReport.objects.filter(attempt__run__competition__name=first).order_by(
            "attempt__run__group__folder"
        )
    ]
    assert scores == list(range(12))


def test_several_rows_of_a_competition_are_several_seeds(pair: Split, tmp_path: Path) -> None:
    first, second = names(pair)
    report = write(
        tmp_path, "r.json", [row(first, "gold"), row(second), row(first), row(second, "silver")]
    )

    command("import_reports", "--experiment", "e", report)
    [found] = leaderboard.rows(pair)

    assert found.seeds == 2
    assert [(medals.gold, medals.silver) for medals in found.medals] == [(1, 0), (0, 1)]


def test_a_missing_competition_leaves_no_complete_seed_and_padding_says_so(
    pair: Split, tmp_path: Path
) -> None:
    first, second = names(pair)
    command("import_reports", "--experiment", "e", write(tmp_path, "r.json", [row(first, "gold")]))

    [plain] = command("leaderboard", "--split", "pair", "--format", "json")
    [padded] = command("leaderboard", "--split", "pair", "--format", "json", "--pad-missing")

    assert (plain["seeds"], plain["any_medal_percentage"]) == (0, None)
    assert plain["missing_competitions"] == [second]
    assert (padded["seeds"], padded["any_medal_percentage"]["mean"]) == (1, 50.0)
    assert padded["padded"]


def test_real_reports_of_forks(golden: Path) -> None:
    """Null scores, a missing submission, a median threshold of another leaderboard."""
    for name in (
        "denoising-dirty-documents",
        "aerial-cactus-identification",
        "leaf-classification",
    ):
        make_competition(name)
    first, regrade, other = sorted((golden / "foreign-reports").iterdir())

    done = command("import_reports", "--experiment", "o3", first, other)

    assert done["runs"] == 4
    report = GradingReport.objects.get(attempt__run__competition__name="denoising-dirty-documents")
    assert (report.score, report.submission_exists) == (None, False)
    imported = GradingReport.objects.get(median_threshold=1.0).as_upstream()
    assert imported == {**json.loads(other.read_text())["competition_reports"][0]}
    with pytest.raises(CommandError, match="the same submissions, graded twice"):
        command("import_reports", "--experiment", "both", first, regrade)
    assert not Experiment.objects.filter(name="both").exists()


def test_a_header_that_lies_is_named_and_not_believed(pair: Split, tmp_path: Path) -> None:
    first, second = names(pair)
    rows = [row(first), row(second, submission_exists=False, valid_submission=False)]
    report = write(tmp_path, "r.json", rows, total_runs_with_submissions=2)
    errors = StringIO()

    call_command(
        "import_reports", "--experiment", "e", str(report), stdout=StringIO(), stderr=errors
    )

    assert "total_runs_with_submissions says 2, its rows say 1" in errors.getvalue()
    [found] = leaderboard.rows(pair)
    assert found.metrics["submission_exists_percentage"].mean == 50


GOOD = row("aerial-cactus-identification")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "is not JSON", id="half a file"),
        pytest.param("\xff\x00", "is not JSON", id="binary"),
        pytest.param("[" * 100_000, "is not JSON", id="deep"),
        pytest.param("[]", "no list competition_reports", id="a list"),
        pytest.param('{"competition_reports": []}', "is empty", id="no row"),
        pytest.param('{"competition_reports": [3]}', "row 1: should be an object", id="no object"),
        pytest.param(
            json.dumps({"competition_reports": [{**GOOD, "competition_id": None}]}),
            "row 1: competition_id",
            id="no competition",
        ),
        pytest.param(
            json.dumps({"competition_reports": [GOOD, {**GOOD, "score": "high"}]}),
            "row 2, score should be a number or null, not 'high'",
            id="a word as score",
        ),
        pytest.param(
            json.dumps({"competition_reports": [{**GOOD, "gold_medal": "yes"}]}),
            "gold_medal should be true or false",
            id="a word as medal",
        ),
        pytest.param(
            json.dumps({"competition_reports": [{**GOOD, "created_at": "yesterday"}]}),
            "created_at should be a time",
            id="no time",
        ),
        pytest.param(
            json.dumps({"competition_reports": [{**GOOD, "competition_id": "no-such"}]}),
            "Unknown competitions: no-such",
            id="unknown competition",
        ),
    ],
)
def test_a_bad_report_is_refused_by_name_and_changes_nothing(
    text: str, message: str, pair: Split, tmp_path: Path
) -> None:
    bad, good = tmp_path / "bad.json", write(tmp_path, "good.json", [GOOD])
    bad.write_text(text, encoding="latin-1")

    with pytest.raises(CommandError, match=message):
        command("import_reports", "--experiment", "e", good, bad)

    assert not Experiment.objects.exists()


def test_a_bare_nan_is_no_score(pair: Split, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"competition_reports": [{**GOOD, "score": float("nan")}]}))

    command("import_reports", "--experiment", "e", path)

    assert GradingReport.objects.get().score is None


def test_an_imported_row_says_what_was_not_reported(pair: Split, tmp_path: Path) -> None:
    report = write(tmp_path, "r.json", [row(name) for name in names(pair)])
    command("import_reports", "--experiment", "e", report)

    [found] = leaderboard.rows(pair)

    assert found.is_imported
    assert (found.hardware, found.median_run_seconds, found.gpu_hours, found.hours) == (
        "",
        None,
        None,
        None,
    )
    assert {one.name for one in found.differences} == {"time", "vCPU", "RAM", "GPU", "seeds"}
    [time, _] = leaderboard.time_per_dataset(Experiment.objects.get())
    assert (time.median_seconds, time.seeds[0].seconds) == (None, None)


def test_an_unknown_split_names_the_ones_there_are(pair: Split) -> None:
    with pytest.raises(CommandError, match=r"no split 'nowhere'. There are: .*pair"):
        command("leaderboard", "--split", "nowhere")


@pytest.mark.parametrize("kind", ["csv", "md"])
def test_other_formats_hold_the_same_row(kind: str, pair: Split, tmp_path: Path) -> None:
    report = write(tmp_path, "r.json", [row(name, "gold") for name in names(pair)])
    command("import_reports", "--experiment", "=cmd()", report)
    out = StringIO()

    call_command("leaderboard", "--split", "pair", "--format", kind, stdout=out)

    text = out.getvalue()
    assert "100.0" in text
    if kind == "csv":
        assert next(csv.DictReader(StringIO(text)))["experiment"] == "'=cmd()"


def test_published_rows_are_there_when_asked_for() -> None:
    low = Split.objects.filter(name="low").first() or make_split("low", [make_competition("c")])

    with_published = command("leaderboard", "--split", low.name, "--format", "json", "--published")

    assert sum(one["published"] for one in with_published) == 26
    assert command("leaderboard", "--split", low.name, "--format", "json") == []
    assert all(one["rank"] is None for one in with_published)
    assert Competition.objects.exists()
