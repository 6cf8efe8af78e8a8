"""Grading reports, metadata.json and run_group_experiments.csv that were made elsewhere."""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runs.core.reports import (
    FLAGS,
    ImportRefused,
    read_experiments,
    read_metadata,
    read_report,
)
from tests.fuzz.cases import count, fuzz
from tests.fuzz.strategies import dumped, mutated, with_changes

ROW = {
    "competition_id": "spaceship-titanic",
    "score": 0.81,
    "gold_threshold": 0.82,
    "silver_threshold": 0.81,
    "bronze_threshold": 0.80,
    "median_threshold": 0.79,
    "any_medal": True,
    "gold_medal": False,
    "silver_medal": True,
    "bronze_medal": False,
    "above_median": True,
    "submission_exists": True,
    "valid_submission": True,
    "is_lower_better": False,
    "created_at": "2026-01-02T03:04:05.678901",
    "submission_path": "runs/2026-01-01T00-00-00-GMT_run-group_aide/x_1/submission/submission.csv",
}
REPORT = {
    "total_runs": 2,
    "total_runs_with_submissions": 1,
    "total_valid_submissions": 1,
    "total_medals": 1,
    "total_gold_medals": 0,
    "total_silver_medals": 1,
    "total_bronze_medals": 0,
    "total_above_median": 1,
    "competition_reports": [
        ROW,
        {**ROW, "competition_id": "aerial-cactus-identification", "score": None},
    ],
}
METADATA = {
    "run_group": "2026-01-01T00-00-00-GMT_run-group_aide",
    "created_at": "2026-01-01T00-00-00-GMT",
    "runs": {"spaceship-titanic_ab12": {"success": True}, "x_1": {"success": False}},
}
EXPERIMENTS = b"experiment_id,run_group\naide,2026-01-01T00-00-00-GMT_run-group_aide\nb & c,d\n"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def could_be_right(row: Any) -> bool:
    """What a report's row must be at the least, said anew and without the product's code."""
    if not isinstance(row, dict):
        return False
    name = row.get("competition_id")
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    if any(row.get(flag) not in (True, False) for flag in FLAGS):
        return False
    numbers = ["score", *(f"{tier}_threshold" for tier in ("gold", "silver", "bronze", "median"))]
    return all(row.get(key) is None or is_number(row[key]) for key in numbers)


def refused(error: ImportRefused, what: str, name: str) -> None:
    count(what, "refused")
    assert str(error).startswith(name), "the file is named"


@given(st.data())
@fuzz(300)
def test_a_grading_report_is_read_as_it_stands_or_refused(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        raw = dumped(data.draw(with_changes(REPORT))).encode()
    else:
        raw = data.draw(mutated(json.dumps(REPORT, indent=2).encode()))
    try:
        report = read_report(raw, "r.json")
    except ImportRefused as error:
        refused(error, "grading reports", "r.json")
        return
    count("grading reports", "accepted")

    rows = json.loads(raw)["competition_reports"]
    assert all(could_be_right(row) for row in rows), "wrong acceptance"
    expected = sorted(rows, key=lambda row: row["competition_id"])
    for row, said in zip(report.rows, expected, strict=True):
        row.competition_id.encode()
        row.submission_path.encode()
        assert row.competition_id == said["competition_id"]
        assert row.score is None or math.isfinite(row.score)
        score = said.get("score")
        if score is None or not math.isfinite(float(score)):
            assert row.score is None
        else:
            assert row.score == float(score)
        for flag in FLAGS:
            assert getattr(row, flag) is bool(said[flag])
        assert row.any_medal == any(
            said[f"{medal}_medal"] for medal in ("gold", "silver", "bronze")
        )


@given(st.data())
@fuzz(200)
def test_a_metadata_file_is_read_as_it_stands_or_refused(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        raw = dumped(data.draw(with_changes(METADATA))).encode()
    else:
        raw = data.draw(mutated(json.dumps(METADATA).encode()))
    try:
        found = read_metadata(raw, "metadata.json")
    except ImportRefused as error:
        refused(error, "metadata.json", "metadata.json")
        return
    count("metadata.json", "accepted")

    said = json.loads(raw)["runs"]
    assert list(found.runs) == list(said)
    for run_id, success in found.runs.items():
        assert run_id not in ("", ".", "..")
        assert not {"/", "\0"} & set(run_id)
        inner = said[run_id]
        told = inner.get("success") if isinstance(inner, dict) else None
        assert success is (told if isinstance(told, bool) else None)


@given(mutated(EXPERIMENTS))
@fuzz(200)
def test_a_list_of_experiments_is_read_as_it_stands_or_refused(raw: bytes) -> None:
    try:
        pairs = read_experiments(raw, "e.csv")
    except ImportRefused as error:
        refused(error, "experiments.csv", "e.csv")
        return
    count("experiments.csv", "accepted")

    text = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    for experiment, group in pairs:
        assert experiment
        assert group
        assert f"{experiment}" in text
        assert any(
            line.split(",", 1)[0].strip() == experiment and line.split(",", 1)[1].strip() == group
            for line in text.split("\n")
            if "," in line
        ), "wrong acceptance"
