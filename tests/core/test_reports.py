"""mle-bench's result files, as forks, strangers and half a disk leave them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.core.harness_file import Harness, read_harness
from runs.core.reports import (
    ImportRefused,
    experiments_file,
    read_experiments,
    read_metadata,
    read_report,
    stamp_in,
    upstream_id,
)
from runs.core.states import Outcome
from tests.support.upstream import row


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2024-09-06T18-25-55-UTC_run-group_aide", datetime(2024, 9, 6, 18, 25, 55, tzinfo=UTC)),
        (
            "x/2024-09-18T18-21-42-GMT_grading_report.json",
            datetime(2024, 9, 18, 18, 21, 42, tzinfo=UTC),
        ),
        ("famou-agent_group1", None),
        ("2024-09-06T18-25-55-PDT", None),
        ("2024-13-06T18-25-55-UTC", None),
        ("0000-01-01T00-00-00-UTC", None),
    ],
)
def test_a_stamp_ends_in_utc_or_gmt_which_is_the_same(text: str, at: datetime | None) -> None:
    assert stamp_in(text) == at


def test_rows_are_in_upstreams_order_by_competition_and_stable() -> None:
    rows = [row("b", score=1), row("a", score=2), row("b", score=3), row("a", score=4)]

    report = read_report(json.dumps({"competition_reports": rows}).encode(), "r.json")

    assert [(each.competition_id, each.score) for each in report.rows] == [
        ("a", 2),
        ("a", 4),
        ("b", 1),
        ("b", 3),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"competition_id": "a\0b"}, r"row 1: competition_id should be a name, not 'a\\x00b'"),
        ({"competition_id": "\ud800"}, "competition_id should be a name"),
        ({"gold_medal": 2}, "gold_medal should be true or false, not 2"),
        ({"gold_medal": [True]}, "gold_medal should be true or false"),
        ({"is_lower_better": 1}, "is_lower_better should be true, false or null"),
        ({"score": True}, "score should be a number or null, not True"),
        ({"score": 10**400}, "score: the number is too large"),
        ({"created_at": "0001-01-01T00:00:00+23:59"}, "created_at should be a time"),
        ({"created_at": {}}, "created_at should be a time"),
    ],
)
def test_a_bad_row_is_named(fields: dict[str, object], message: str) -> None:
    data = json.dumps({"competition_reports": [{**row("a"), **fields}]}).encode()

    with pytest.raises(ImportRefused, match=message):
        read_report(data, "r.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid x", "Git LFS pointer.*git lfs pull"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"competition_reports": ' + b"[" * 9 * 2**20, "larger than 8 MiB"),
        (b"[]", "should be a JSON object, not list"),
        (b'{"competition_reports": {}}', "is no grading report"),
        (b"\xff", "is not JSON"),
        (b'{"competition_reports": [' + b"1" * 5000 + b"]}", "is not JSON"),
    ],
)
def test_what_is_no_report_says_so(data: bytes, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        read_report(data, "r.json")


def test_metadata_keeps_the_order_of_its_runs() -> None:
    content = {
        "created_at": "2026-01-01T01-00-00-GMT",
        "runs": {"b_1": {"success": True}, "a_1": {}},
    }

    metadata = read_metadata(json.dumps(content).encode(), "metadata.json")

    assert list(metadata.runs.items()) == [("b_1", True), ("a_1", None)]
    assert metadata.created_at == datetime(2026, 1, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", "..", "a\0b"])
def test_a_run_id_that_is_a_path_is_refused(run_id: str) -> None:
    with pytest.raises(ImportRefused, match="is no run id"):
        read_metadata(json.dumps({"runs": {run_id: {}}}).encode(), "metadata.json")


def test_the_experiments_file_is_read_as_upstream_reads_it() -> None:
    """First comma, no quotes; blank lines and headers are left out; ids have spaces and &."""
    text = (
        "experiment_id,run_group\r\n\r\nFM Agent,famou_1\n o3-gpt-4.1-R&D-Agent , rd_1 \n"
        'FM Agent,famou_1\n"quoted",a,b\nexperiment_id_2,left out\n'
    )

    pairs = read_experiments(b"\xef\xbb\xbf" + text.encode(), "e.csv")

    assert pairs == [
        ("FM Agent", "famou_1"),
        ("o3-gpt-4.1-R&D-Agent", "rd_1"),
        ('"quoted"', "a,b"),
    ]


@pytest.mark.parametrize("line", ["alone", ",group", "experiment,", "a\0b,c"])
def test_a_bad_line_of_the_experiments_file_is_named(line: str) -> None:
    with pytest.raises(ImportRefused, match=r"e\.csv, line 2: should be experiment_id,run_group"):
        read_experiments(f"experiment_id,run_group\n{line}\n".encode(), "e.csv")


def test_names_are_written_so_that_upstream_reads_them_back() -> None:
    names = ["plain", "with, comma", "two\nlines", "experiment_id of mine"]

    pairs = [(upstream_id(name), "g") for name in names]

    assert read_experiments(experiments_file(pairs).encode(), "e.csv") == pairs
    assert pairs[1][0] == "with; comma"


def harness(**fields: object) -> Harness | None:
    return read_harness(json.dumps({"harness": "mlebench-web", **fields}).encode(), "harness.json")


def test_another_harness_is_not_ours() -> None:
    assert read_harness(b'{"harness": "else"}', "harness.json") is None


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({"experiment": 3}, "experiment"),
        ({"agent": "x" * 201}, "agent"),
        ({"time_limit_seconds": -1}, "time_limit_seconds"),
        ({"time_limit_seconds": 1e300}, "time_limit_seconds"),
        ({"container_settings": {"binds": []}}, "container_settings"),
        ({"container_settings": {"gpus": 10**9}}, "container_settings"),
        ({"runs": {"c_1": {"seed": -1}}}, "seed"),
        ({"runs": {"c_1": {"seed": True}}}, "seed"),
        ({"runs": {"c_1": {"exit_code": 2**40}}}, "exit_code"),
        ({"runs": {"c_1": {"resumed": "yes"}}}, "resumed"),
        ({"runs": []}, "runs"),
    ],
)
def test_what_does_not_fit_is_left_out_and_named(fields: dict[str, Any], left_out: str) -> None:
    found = harness(**fields)

    assert found is not None
    assert f": {left_out} should be" in found.warnings[0]


def test_hardware_has_the_keys_and_types_of_a_measured_host() -> None:
    said = {
        "cpus": 36,
        "memory_bytes": float("inf"),
        "gpus": [{"name": "A10", "memory_bytes": 24, "uuid": "GPU-1"}],
        "anything": "else",
    }

    found = harness(runs={"c_1": {"hardware": said, "outcome": "agent_failed", "cause": "no such"}})

    assert found is not None
    run = found.runs["c_1"]
    assert run.hardware == {"cpus": 36, "gpus": [{"name": "A10", "memory_bytes": 24}]}
    assert (run.outcome, run.cause) == (Outcome.AGENT_FAILED, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [*row("a"), "harness", "runs", "seed", "hardware", "gpus", "container_settings", "outcome"]
)


@given(
    st.dictionaries(
        st.sampled_from(["competition_reports", "runs", "created_at", "run_group", "harness"]),
        st.lists(st.dictionaries(KEYS, JSON), max_size=3)
        | st.dictionaries(st.text(max_size=8), st.dictionaries(KEYS, JSON), max_size=3)
        | st.just("mlebench-web")
        | JSON,
    )
    | JSON
)
def test_any_json_is_read_or_refused(content: object) -> None:
    data = json.dumps(content).encode()
    for read in (read_report, read_metadata, read_harness):
        try:
            read(data, "file.json")
        except ImportRefused as error:
            message = str(error)
        else:
            message = "file.json"
        assert "file.json" in message


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (read_report, read_metadata, read_harness, read_experiments):
        try:
            read(data, "file")
        except ImportRefused as error:
            message = str(error)
        else:
            message = "file"
        assert "file" in message
