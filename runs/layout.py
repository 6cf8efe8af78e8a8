"""Results on disk in upstream's layout, so that mle-bench's own tools can read them.

    run-groups/<run group>/<competition>_<uuid>/{run.log,submission,logs,code}
    run-groups/<run group>/metadata.json, <timestamp>_grading_report.json, harness.json

Each attempt collects into a folder of its own, `.attempts/<id>`; the run's folder is a link to
the folder of the sealed attempt that counts, so a stale writer cannot touch a result.
"""

import json
import os
from pathlib import Path

from django.conf import settings

from runs import logs
from runs.core.states import Outcome
from runs.models import Attempt, GradingReport, LogSegment, Run, RunGroup


def group_folder(group: RunGroup) -> Path:
    return Path(settings.RUN_GROUPS_DIR) / group.folder


def attempt_folder(attempt: Attempt) -> Path:
    """Where the outputs of one attempt are kept."""
    return group_folder(attempt.run.group) / ".attempts" / str(attempt.pk)


def run_folder(run: Run) -> Path:
    """Upstream's folder of a run: that of the attempt that counts."""
    return group_folder(run.group) / run.upstream_id


def publish(attempt: Attempt) -> None:
    """After a seal: the run's folder points at the attempt that counts, and the group's files say
    so. Safe to repeat; nothing to do for an attempt that does not count.
    """
    if attempt.outcome not in (Outcome.GRADED, Outcome.AGENT_FAILED):
        return
    folder = attempt_folder(attempt)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "run.log", _run_log(attempt))
    link = run_folder(attempt.run)
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(Path(".attempts", str(attempt.pk)))
    os.replace(new, link)
    if attempt.run.group.is_over():
        write_group_files(attempt.run.group)


def _run_log(attempt: Attempt) -> str:
    """What the product did, and upstream's last line, its only source of time."""
    lines = logs.last_lines(attempt.pk, LogSegment.Source.RUN, 1000)
    return "\n".join([*lines, f"Run completed in {attempt.active_seconds:.2f} seconds."]) + "\n"


def write_group_files(group: RunGroup) -> None:
    """metadata.json, the grading report and our own record; each whole or not at all."""
    folder = group_folder(group)
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(group.runs.select_related("competition", "counted").order_by("id"))
    counted = [run for run in runs if run.counted]
    reports = [
        report
        for report in GradingReport.objects.filter(
            is_current=True, attempt__in=[run.counted_id for run in counted]
        )
        .select_related("attempt__run__competition")
        .order_by("attempt__run__competition__name", "attempt__run__seed")
    ]
    created = max((report.created_at for report in reports), default=group.created_at)
    stamp = created.strftime("%Y-%m-%dT%H-%M-%S-UTC")
    metadata = {
        "run_group": group.folder,
        "created_at": stamp,
        "runs": {
            run.upstream_id: {
                "success": bool(run.counted and run.counted.outcome == Outcome.GRADED)
            }
            for run in counted
        },
    }
    _write(folder / "metadata.json", json.dumps(metadata, indent=4))
    for old in folder.glob("*_grading_report.json"):
        if old.name != f"{stamp}_grading_report.json":
            # More than one in a folder, and upstream's aggregate script refuses it.
            old.unlink()
    _write(folder / f"{stamp}_grading_report.json", json.dumps(_summary(reports), indent=2))
    _write(folder / "harness.json", json.dumps(_record(group, runs), indent=2))


def _summary(reports: list[GradingReport]) -> dict[str, object]:
    """Upstream's summary keys over the rows, then the rows."""

    def count(name: str) -> int:
        return sum(bool(getattr(report, name)) for report in reports)

    return {
        "total_runs": len(reports),
        "total_runs_with_submissions": count("submission_exists"),
        "total_valid_submissions": count("valid_submission"),
        "total_medals": count("any_medal"),
        "total_gold_medals": count("gold_medal"),
        "total_silver_medals": count("silver_medal"),
        "total_bronze_medals": count("bronze_medal"),
        "total_above_median": count("above_median"),
        "competition_reports": [report.as_upstream() for report in reports],
    }


def _record(group: RunGroup, runs: list[Run]) -> dict[str, object]:
    """What upstream's files cannot say: agent, seed, config, times, hardware."""
    return {
        "experiment": group.experiment.name,
        "agent": group.agent.name if group.agent else None,
        "container_settings": group.container_settings,
        "runtime": group.runtime,
        "runs": {
            run.upstream_id: {
                "competition": run.competition.name,
                "seed": run.seed,
                "outcome": run.counted.outcome if run.counted else None,
                "cause": run.counted.cause if run.counted else None,
                "exit_code": run.counted.exit_code if run.counted else None,
                "active_seconds": run.counted.active_seconds if run.counted else None,
                "hardware": run.counted.hardware if run.counted else None,
                "image_id": run.counted.image_id if run.counted else None,
            }
            for run in runs
        },
    }


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
