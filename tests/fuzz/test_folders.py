"""Folders of run groups: strange files beside honest ones become a plan, or one refusal."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.core.reports import ImportRefused
from runs.core.run_groups import plan_group
from runs.import_source import read_source
from tests.fuzz.cases import count, fuzz
from tests.fuzz.strategies import dumped, mutated, with_changes
from tests.fuzz.test_reports import METADATA, REPORT, ROW

GROUP = "2026-01-01T00-00-00-GMT_run-group_aide"
IDS = [f"spaceship-titanic_{number:08x}-0000-4000-8000-000000000000" for number in range(3)]
PATHS = st.sampled_from(
    [f"runs/{GROUP}/{name}/submission/submission.csv" for name in IDS]
    + ["None", "", "../../x", "/etc/passwd", f"{IDS[0]}/../{IDS[1]}/submission.csv", "a\0b"]
)
ROWS = st.lists(
    st.builds(
        lambda name, path, score: {
            **ROW,
            "competition_id": name,
            "submission_path": path,
            "score": score,
        },
        st.sampled_from(["spaceship-titanic", "aerial-cactus-identification", "a/b", "..", "x_y"]),
        PATHS,
        st.sampled_from([0.5, None, float("nan"), 1]),
    ),
    min_size=1,
    max_size=5,
)
NAMES = (
    *(f"{GROUP}/{name}/submission/submission.csv" for name in IDS),
    f"{GROUP}/{IDS[0]}/logs/agent.log",
    f"{GROUP}/notes.txt",
    f"{GROUP}/{IDS[0]}/metadata.json",
    f"{GROUP}/x/y/z/w/v/2026_grading_report.json",
    "run_group_experiments.csv",
    ".DS_Store",
)
LINKS = ("/etc/passwd", "..", ".", f"../{GROUP}", "/dev/zero", "nowhere")


@st.composite
def files(draw: st.DrawFn) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number in range(draw(st.integers(0, 2))):
        report = {**REPORT, "competition_reports": draw(ROWS)}
        raw = dumped(report).encode()
        if draw(st.sampled_from([False, False, True])):
            raw = draw(mutated(raw))
        found[f"{GROUP}/2026-01-0{number + 1}T00-00-00-GMT_grading_report.json"] = raw
    if draw(st.booleans()):
        ids = draw(st.lists(st.sampled_from([*IDS, "..", "x", ""]), max_size=4))
        metadata = {**METADATA, "runs": {each: {"success": True} for each in ids}}
        found[f"{GROUP}/metadata.json"] = dumped(draw(with_changes(metadata))).encode()
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True)):
        found[name] = draw(mutated(b"experiment_id,run_group\naide," + GROUP.encode() + b"\n"))
    return found


@given(content=files(), links=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(LINKS))))
@fuzz(120)
def test_a_folder_becomes_a_plan_that_its_reports_bear_out_or_a_refusal(
    content: dict[str, bytes],
    links: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed-folder"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    write(root, content, links)
    try:
        source = read_source(root, name="runs")
    except ImportRefused as error:
        count("run-group folders", "refused")
        refusal = str(error)
        source = None
    if source is None:
        assert refusal.isprintable() or "\n" in refusal
        return
    for group in source.groups:
        planned(group.found)


def planned(found: object) -> None:
    try:
        plan = plan_group(found)  # type: ignore[arg-type]
    except ImportRefused:
        count("run-group folders", "refused")
        return
    count("run-group folders", "planned")
    places = [(run.competition, run.seed) for run in plan.runs]
    assert len(places) == len(set(places)), "wrong acceptance: two runs of one seed"
    rows = [row for report in found.reports for row in report.rows]  # type: ignore[attr-defined]
    gradings = [grading.row for run in plan.runs for grading in run.gradings]
    assert all(row in rows for row in gradings), "wrong acceptance: a grading of nobody's"
    assert len(gradings) <= len(rows)
    for run in plan.runs:
        assert run.run_id not in (".", "..")
        assert not {"/", "\0"} & set(run.run_id)
        assert all(grading.row.competition_id == run.competition for grading in run.gradings)
    json.dumps([each.as_json() for each in plan.skipped]).encode()


def write(root: Path, content: dict[str, bytes], links: list[tuple[str, str]]) -> None:
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name, target in links:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not path.is_symlink():
            path.symlink_to(target)
