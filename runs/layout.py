"""Result folders in upstream's run-group layout, so that upstream's own tools read them.

    <RUN_GROUPS_DIR>/<group>/metadata.json
                            /<start>_grading_report.json    exactly one: upstream refuses two
                            /harness.json                   what upstream's files have no place for
                            /<competition>_<uuid>/{run.log,submission,logs,code}
                            /attempts/<competition>_<uuid>-<number>/{submission,logs,code}

Each attempt is collected into a folder of its own. The run's folder holds links to the files of
the attempt that counts, so it takes no second copy of them, and a stale writer cannot touch it.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

from runs import logs
from runs.core.states import Outcome
from runs.models import Attempt, GradingReport, LogSegment, Run, RunGroup

# Upstream's time stamp at the start of a run group's name.
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-[A-Z]+")
# Below an attempt's folder and a run's: the one file that counts.
SUBMISSION = "submission/submission.csv"
# Of our own log: what fits on a few screens.
RUN_LOG_BYTES = 2**20


def group_folder(group: RunGroup) -> Path:
    return Path(settings.RUN_GROUPS_DIR) / group.folder


def run_folder(run: Run) -> Path:
    """What upstream's tools read; there once an attempt counts."""
    return group_folder(run.group) / run.upstream_id


def attempt_folder(attempt: Attempt) -> Path:
    """What an attempt left, as it was collected."""
    run = attempt.run
    return group_folder(run.group) / "attempts" / f"{run.upstream_id}-{attempt.number}"


def publish(attempt: Attempt) -> None:
    """After an attempt was sealed: its run's folder and the files of its group. Safe to repeat."""
    run = Run.objects.select_related("group__experiment", "competition", "counted").get(
        pk=attempt.run_id
    )
    if run.counted_id == attempt.pk:
        assemble(run, attempt)
    publish_group(run.group)


def assemble(run: Run, attempt: Attempt) -> None:
    """Make the run's folder from the attempt that counts, whole or not at all."""
    folder = run_folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".assemble-{run.uuid}-"
    for left in folder.parent.glob(f"{prefix}*"):
        # Of a process that was killed here: a run has one sealed attempt at a time.
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    made.chmod(0o755)
    try:
        source = attempt_folder(attempt)
        if source.is_dir():
            shutil.copytree(source, made, copy_function=link, symlinks=True, dirs_exist_ok=True)
        for name in ("submission", "logs", "code"):
            (made / name).mkdir(exist_ok=True)
        if not run.group.is_imported:
            # One that came with an import stays as it was; it is a link to the attempt's own.
            (made / "run.log").write_text(run_log(attempt))
        if folder.exists():
            # A name that is in use cannot be taken over by a folder: move the old one away first.
            folder.rename(made / ".replaced")
        made.rename(folder)
        shutil.rmtree(folder / ".replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def take_over(old: Attempt, new: Attempt) -> None:
    """Give a new attempt the files of an older one, as links. Safe to repeat."""
    target = attempt_folder(new)
    if target.exists():
        # Of a try whose rows were never written: no attempt has this number yet.
        shutil.rmtree(target)
    source = attempt_folder(old)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link, symlinks=True)


def link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except PermissionError:
        # Some network file systems have no hard links.
        shutil.copy2(source, target, follow_symlinks=False)


def run_log(attempt: Attempt) -> str:
    """Our log of the run, ended by the line from which upstream's users read the time."""
    window = logs.window(attempt.pk, LogSegment.Source.RUN, limit_bytes=RUN_LOG_BYTES)
    ended = attempt.agent_ended_at or attempt.ended_at or attempt.queued_at
    seconds = attempt.active_seconds + attempt.timings.get("collect", 0)
    stamp = f"{ended:%Y-%m-%d %H:%M:%S},{ended.microsecond // 1000:03d}"
    text = window.text if window.text.endswith("\n") or not window.text else f"{window.text}\n"
    return f"{text}[{stamp}] [layout.py:1] Run completed in {seconds:.2f} seconds.\n"


def publish_group(group: RunGroup) -> None:
    """Write metadata.json, the grading report and harness.json anew."""
    folder = group_folder(group)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / ".publish.lock"):
        write_group(group, folder)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One at a time: the last of two writers must not have read before the first one's seal."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_group(group: RunGroup, folder: Path) -> None:
    runs = runs_of(group)
    for name, (content, indent) in documents(group, runs, name=folder.name).items():
        write_json(folder / name, content, indent=indent)


def runs_of(group: RunGroup) -> list[Run]:
    """In the order in which upstream's files have them. Costs one query."""
    return list(
        group.runs.select_related("competition", "counted__host")
        .prefetch_related("attempts__host")
        .order_by("competition__name", "seed")
    )


def documents(
    group: RunGroup, runs: list[Run], *, name: str
) -> dict[str, tuple[dict[str, Any], int]]:
    """Upstream's files of a group whose folder has this name, and ours, each with its indent."""
    counted = [run for run in runs if run.counted]
    reports = current_reports(counted)
    rows = [reports[run.counted_id] for run in counted if run.counted_id in reports]
    return {
        "metadata.json": (metadata(group, counted, name=name), 4),
        f"{stamp_of(group)}_grading_report.json": (grading_report(rows, name=name), 2),
        "harness.json": (harness(group, runs, name=name), 2),
    }


def current_reports(runs: Iterable[Run]) -> dict[int | None, GradingReport]:
    """The current report of each run's counted attempt, by attempt. Costs one query."""
    attempts = [run.counted_id for run in runs]
    return {
        report.attempt_id: report
        for report in GradingReport.objects.filter(
            attempt__in=attempts, is_current=True
        ).select_related("attempt__run__competition")
    }


def metadata(group: RunGroup, counted: list[Run], *, name: str) -> dict[str, Any]:
    """Upstream's metadata.json. Only runs with a report are in it: upstream's make_submission
    grades whatever is listed, and would count a run that a broken host ended."""
    ends = [run.counted.ended_at for run in counted if run.counted and run.counted.ended_at]
    return {
        "run_group": name,
        "created_at": stamp(max(ends, default=group.created_at)),
        "runs": {
            run.upstream_id: {
                "success": bool(run.counted and run.counted.outcome == Outcome.GRADED)
            }
            for run in counted
        },
    }


def grading_report(reports: list[GradingReport], *, name: str) -> dict[str, Any]:
    """Upstream's report of a run group, with totals that are those of its rows.

    A row's path names the file in the group's folder: it alone ties a row to its run.
    """

    def row(report: GradingReport) -> dict[str, object]:
        path = f"{name}/{report.attempt.run.upstream_id}/submission/submission.csv"
        return report.as_upstream() | {
            "submission_path": path if report.submission_exists else "None"
        }

    def total(name: str) -> int:
        return sum(bool(getattr(report, name)) for report in reports)

    return {
        "total_runs": len(reports),
        "total_runs_with_submissions": total("submission_exists"),
        "total_valid_submissions": total("valid_submission"),
        "total_medals": total("any_medal"),
        "total_gold_medals": total("gold_medal"),
        "total_silver_medals": total("silver_medal"),
        "total_bronze_medals": total("bronze_medal"),
        "total_above_median": total("above_median"),
        "competition_reports": [row(report) for report in reports],
    }


def harness(group: RunGroup, runs: list[Run], *, name: str) -> dict[str, Any]:
    """What a reader of the results needs and upstream's files do not say. No environment, no
    arguments: they may hold secrets."""
    return {
        "harness": "mlebench-web",
        "experiment": group.experiment.name,
        "run_group": name,
        "agent": group.agent.name if group.agent else group.reported.get("agent"),
        "split": group.split.name if group.split else group.reported.get("split"),
        "container_config": group.container_config.name
        if group.container_config
        else group.reported.get("container_config"),
        "container_settings": group.container_settings,
        "runtime": group.runtime or None,
        "seeds": group.seeds,
        "time_limit_seconds": group.time_limit.total_seconds() if group.time_limit else None,
        "step_timeout_seconds": group.step_timeout.total_seconds() if group.step_timeout else None,
        "runs": {run.upstream_id: harness_of_run(run) for run in runs},
    }


def harness_of_run(run: Run) -> dict[str, Any]:
    attempts = sorted(run.attempts.all(), key=lambda each: each.number)
    newest = attempts[-1] if attempts else None
    # Of a run without a result, how it ended last.
    attempt = run.counted or (newest if newest and newest.is_ended else None)
    said: dict[str, Any] = {
        "competition_id": run.competition.name,
        "seed": run.seed,
        "state": run.state,
        "result": run.result or None,
        "cut_short": run.is_cut_short,
    }
    if attempt:
        said |= {
            "attempt": attempt.number,
            "outcome": attempt.outcome,
            "cause": attempt.cause or None,
            "exit_code": attempt.exit_code,
            "host": attempt.host.name if attempt.host else attempt.reported.get("host"),
            "hardware": attempt.hardware or None,
            "image_id": attempt.image_id or None,
            "active_seconds": attempt.active_seconds if attempt.has_time else None,
            "wall_seconds": attempt.wall_seconds,
            "resumed": attempt.was_resumed,
            "run_again": any(each.is_agents_own_end for each in attempts[:-1])
            or bool(attempt.reported.get("run_again")),
        }
    return said


def stamp(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H-%M-%S}-UTC"


def stamp_of(group: RunGroup) -> str:
    """The same at each writing, so that a group never has two reports."""
    found = STAMP.match(group.folder)
    return found[0] if found else stamp(group.created_at)


def write_json(path: Path, content: dict[str, Any], *, indent: int) -> None:
    """Whole or not at all. For the one who holds the folder's lock: what a writer that was killed
    has left, the next one writes over."""
    temporary = path.with_name(f".writing-{path.name}")
    with temporary.open("w") as file:
        json.dump(content, file, indent=indent, allow_nan=False)
        # As any file that the process makes: readable for whoever reads the results.
        os.fchmod(file.fileno(), 0o644)
    temporary.replace(path)
