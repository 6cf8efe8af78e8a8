"""Run groups in mle-bench's layout, as its own code leaves them, for tests."""

import io
import json
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

STAMP = "2026-01-01T00-00-00-UTC"


def row(competition: str, medal: str = "", **fields: object) -> dict[str, object]:
    """A row of a grading report: 16 keys, valid and without a medal unless said."""
    return {
        "competition_id": competition,
        "score": 0.5,
        "gold_threshold": 0.9,
        "silver_threshold": 0.8,
        "bronze_threshold": 0.7,
        "median_threshold": 0.6,
        "any_medal": bool(medal),
        "gold_medal": medal == "gold",
        "silver_medal": medal == "silver",
        "bronze_medal": medal == "bronze",
        "above_median": bool(medal),
        "submission_exists": True,
        "valid_submission": True,
        "is_lower_better": False,
        "created_at": "2026-01-02T00:00:00.000001",
        "submission_path": "None",
        **fields,
    }


def without_submission(competition: str, **fields: object) -> dict[str, object]:
    return row(
        competition,
        **{"score": None, "submission_exists": False, "valid_submission": False, **fields},
    )


def run_id(competition: str) -> str:
    return f"{competition}_{uuid.uuid4()}"


def path_of(group: str, run: str) -> str:
    return f"runs/{group}/{run}/submission/submission.csv"


def write_group(
    parent: Path,
    name: str,
    rows: Sequence[tuple[str, Mapping[str, object]]],
    *,
    report: str = f"{STAMP}_grading_report.json",
    seconds: float | None = None,
    header: Mapping[str, object] | None = None,
    logs: bool = True,
) -> Path:
    """A run group's folder: (run id, row) for each run, with metadata and one report."""
    folder = parent / name
    folder.mkdir(parents=True)
    runs = dict.fromkeys(run for run, _ in rows)
    for run, content in rows:
        for part in ("submission", "logs", "code"):
            (folder / run / part).mkdir(parents=True, exist_ok=True)
        if content["submission_exists"]:
            (folder / run / "submission" / "submission.csv").write_text(f"id,y\n1,{run}\n")
        (folder / run / "code" / "train.py").write_text("print(1)\n")
        if logs:
            (folder / run / "logs" / "agent.log").write_text("I thought.\n")
        if seconds is not None:
            (folder / run / "run.log").write_text(
                "[2026-01-01 10:00:00,001] [run.py:64] [Container] hello\n"
                f"[2026-01-01 11:00:00,001] [run.py:134] Run completed in {seconds:.2f} seconds.\n"
            )
    write_metadata(folder, name, list(runs))
    write_report(folder, report, rows, group=name, header=header)
    return folder


def write_metadata(folder: Path, name: str, runs: Sequence[str]) -> None:
    content = {
        "run_group": name,
        "created_at": STAMP,
        "runs": {run: {"success": True} for run in runs},
    }
    (folder / "metadata.json").write_text(json.dumps(content, indent=4))


def write_report(
    folder: Path,
    name: str,
    rows: Sequence[tuple[str, Mapping[str, object]]],
    *,
    group: str = "",
    header: Mapping[str, object] | None = None,
) -> Path:
    """Rows that have a submission name it by its path, as upstream's do."""
    reports = [
        {
            **content,
            "submission_path": path_of(group, run)
            if run and content["submission_exists"]
            else "None",
        }
        for run, content in rows
    ]
    path = folder / name
    path.write_text(json.dumps({**(header or {}), "competition_reports": reports}, indent=2))
    return path


def tar_of(folder: Path, *, mode: str = "w:gz") -> bytes:
    """The folder itself, by its name, in a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        archive.add(folder, arcname=folder.name)
    return out.getvalue()


def unpacked(data: bytes, into: Path) -> Path:
    """A tar of ours, unpacked by Python's own code."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(into, filter="data")
    return into
