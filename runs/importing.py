"""Grading reports that were made elsewhere -> runs of an experiment, ready for the leaderboard.

A report's totals are not read (they lie in reports of real forks); its rows are. Each file becomes
one run group, in the order of the arguments; a competition's n-th row in it is its n-th seed.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from mlebench_web.accounts.models import User
from mlebench_web.catalog.models import Competition
from runs.models import Experiment, GradingReport, Run, RunGroup

# A report of 75 competitions and 3 seeds has 150 KB.
FILE_LIMIT_BYTES = 64 * 2**20
THRESHOLDS = ("gold_threshold", "silver_threshold", "bronze_threshold", "median_threshold")
FLAGS = (
    "gold_medal",
    "silver_medal",
    "bronze_medal",
    "above_median",
    "submission_exists",
    "valid_submission",
)
TOTALS = {
    "total_runs_with_submissions": "submission_exists",
    "total_valid_submissions": "valid_submission",
    "total_gold_medals": "gold_medal",
    "total_silver_medals": "silver_medal",
    "total_bronze_medals": "bronze_medal",
    "total_above_median": "above_median",
}
PATH_LIMIT = 500


class ImportRefused(Exception):
    """A file cannot be imported; the text names it and says what to do. Nothing was changed."""


@dataclass(frozen=True)
class ReportFile:
    """One grading report, checked, its rows in upstream's order (by competition, stable)."""

    path: Path
    digest: str
    rows: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """What an import did. `known` are files that this experiment had already."""

    experiment: Experiment
    groups: tuple[RunGroup, ...]
    runs: int
    known: tuple[Path, ...]
    warnings: tuple[str, ...]


# ---------------------------------------------------------------------------- importing


def import_reports(experiment_name: str, paths: Iterable[Path], *, by: User | None) -> Imported:
    """Import each file as a run group of the experiment, which is made when there is none.

    Importing a file again changes nothing. All or nothing: raises ImportRefused.
    """
    name = experiment_name.strip()
    limit = Experiment._meta.get_field("name").max_length
    if not name or (limit and len(name) > limit):
        raise ImportRefused(f"An experiment has a name of 1 to {limit} characters.")
    files = [read_report(path) for path in paths]
    if not files:
        raise ImportRefused("Name at least one grading report.")
    competitions = known_competitions(files)
    refuse_regrades(files)
    with transaction.atomic():
        experiment, _ = Experiment.objects.select_for_update().get_or_create(
            name=name, defaults={"created_by": by}
        )
        return import_into(experiment, files, competitions, by=by)


def import_into(
    experiment: Experiment,
    files: list[ReportFile],
    competitions: Mapping[str, Competition],
    *,
    by: User | None,
) -> Imported:
    digests = set(experiment.groups.values_list("import_digest", flat=True))
    position = experiment.groups.exclude(import_digest="").count()
    groups: list[RunGroup] = []
    known: list[Path] = []
    warnings: list[str] = []
    for file in files:
        if file.digest in digests:
            known.append(file.path)
            continue
        digests.add(file.digest)
        groups.append(import_file(experiment, file, competitions, position=position, by=by))
        position += 1
        warnings += file.warnings
    runs = Run.objects.filter(group__in=groups).count() if groups else 0
    return Imported(experiment, tuple(groups), runs, tuple(known), tuple(warnings))


def import_file(
    experiment: Experiment,
    file: ReportFile,
    competitions: Mapping[str, Competition],
    *,
    position: int,
    by: User | None,
) -> RunGroup:
    seeds: dict[str, int] = {}
    group = RunGroup.objects.create(
        experiment=experiment,
        created_by=by,
        team=by.team if by else None,
        seeds=1,
        # Groups are put in order by this name, as upstream does: it keeps that of the arguments.
        folder=f"imported_{experiment.pk:08d}_{position:06d}_{file.digest[:12]}",
        imported_from=file.path.name[:300],
        import_digest=file.digest,
    )
    actor = by.username if by else "import_reports"
    for row in file.rows:
        name = row["competition_id"]
        seed = seeds.get(name, 0)
        seeds[name] = seed + 1
        run = Run.objects.create(group=group, competition=competitions[name], seed=seed)
        attempt = run.record_import(by=actor)
        GradingReport.objects.create(
            attempt=attempt,
            grader=f"imported: {file.path.name}"[:100],
            any_medal=any(row[f"{medal}_medal"] for medal in ("gold", "silver", "bronze")),
            **{key: row[key] for key in ("score", *THRESHOLDS, *FLAGS)},
            is_lower_better=row["is_lower_better"],
            created_at=row["created_at"],
            submission_path=row["submission_path"],
        )
        run.count(attempt)
    group.seeds = max(seeds.values(), default=1)
    group.save(update_fields=["seeds"])
    return group


# ---------------------------------------------------------------------------- reading


def read_report(path: Path) -> ReportFile:
    """Read and check one file. Raises ImportRefused naming file, row and key."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ImportRefused(f"{path}: {error.strerror}.") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise ImportRefused(f"{path} is larger than {FILE_LIMIT_BYTES // 2**20} MiB.")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{path} is not JSON: {error}.") from error
    rows = content.get("competition_reports") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ImportRefused(f"{path} is no grading report: it has no list competition_reports.")
    if not rows:
        raise ImportRefused(f"{path}: competition_reports is empty.")
    checked = [check_row(row, where=f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    return ReportFile(
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        rows=tuple(sorted(checked, key=lambda row: str(row["competition_id"]))),
        warnings=tuple(lies_of(content, checked, path)),
    )


def check_row(row: object, *, where: str) -> dict[str, Any]:
    """One row with the types that we rely on; what was not reported is None."""
    if not isinstance(row, dict):
        raise ImportRefused(f"{where}: should be an object, not {type(row).__name__}.")
    name = row.get("competition_id")
    if not isinstance(name, str) or not name:
        raise ImportRefused(f"{where}: competition_id should be a name, not {name!r}.")
    found: dict[str, Any] = {"competition_id": name}
    for key in ("score", *THRESHOLDS):
        found[key] = number(row.get(key), where=f"{where}, {key}")
    for key in FLAGS:
        value = row.get(key)
        # Some forks write 0 and 1.
        if value not in (False, True):
            raise ImportRefused(f"{where}: {key} should be true or false, not {value!r}.")
        found[key] = bool(value)
    direction = row.get("is_lower_better")
    if direction is not None and not isinstance(direction, bool):
        raise ImportRefused(
            f"{where}: is_lower_better should be true, false or null, not {direction!r}."
        )
    found["is_lower_better"] = direction
    found["created_at"] = time_of(row.get("created_at"), where=where)
    path = row.get("submission_path")
    found["submission_path"] = str(path)[:PATH_LIMIT].replace("\0", "")
    return found


def number(value: object, *, where: str) -> float | None:
    """A finite number or None. NaN, which Python's json writes and reads, is no score."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ImportRefused(f"{where} should be a number or null, not {value!r}.")
    try:
        found = float(value)
    except OverflowError as error:
        raise ImportRefused(f"{where}: the number is too large.") from error
    return found if math.isfinite(found) else None


def time_of(value: object, *, where: str) -> datetime:
    """Upstream writes local times without a zone; they are taken as UTC. Now, where none is."""
    if value is None:
        return timezone.now()
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise ImportRefused(f"{where}: created_at should be a time, not {value!r}.") from error
    return at if at.tzinfo else at.replace(tzinfo=timezone.get_default_timezone())


def lies_of(content: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Iterable[str]:
    """Totals of the header that its rows do not bear out. The rows count."""
    for total, key in TOTALS.items():
        said, seen = content.get(total), sum(row[key] for row in rows)
        if said is not None and said != seen:
            yield f"{path}: {total} says {said}, its rows say {seen}. The rows count."


def known_competitions(files: Iterable[ReportFile]) -> dict[str, Competition]:
    """The rows' competitions by name. Raises ImportRefused naming all unknown ones."""
    names = {row["competition_id"]: file.path for file in files for row in file.rows}
    found = {one.name: one for one in Competition.objects.filter(name__in=names)}
    if unknown := sorted(set(names) - set(found)):
        shown = ", ".join(f"{name} ({names[name]})" for name in unknown[:10])
        raise ImportRefused(f"Unknown competitions: {shown}. Nothing was imported.")
    return found


def refuse_regrades(files: list[ReportFile]) -> None:
    """Two reports of the same submissions are one seed graded twice, not two seeds.

    They differ in nothing but the time of grading (and both name their submissions).
    """
    seen: dict[str, ReportFile] = {}
    for file in files:
        facts = [{key: row[key] for key in row if key != "created_at"} for row in file.rows]
        if all(row["submission_path"] in ("None", "") for row in facts):
            continue
        other = seen.setdefault(json.dumps(facts, sort_keys=True), file)
        if other is not file and other.digest != file.digest:
            raise ImportRefused(
                f"{other.path} and {file.path} report the same submissions, graded twice: as two "
                "seeds they would count double. Give one of them."
            )
