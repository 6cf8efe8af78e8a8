"""mle-bench's result files, made elsewhere -> checked values: grading reports, metadata.json,
run_group_experiments.csv. Pure: bytes in, values out, ImportRefused naming file, row and key.

A report's totals are not believed (they lie in reports of real forks); its rows are.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# A report of 75 competitions and 3 seeds has 150 KB; Python's JSON takes twenty times its size.
FILE_LIMIT_BYTES = 8 * 2**20
GIT_LFS = b"version https://git-lfs.github.com/spec/"
# Upstream's time, in UTC; which of the two words stands there is the platform's choice.
STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d)-(\d\d)-(\d\d)-(GMT|UTC)")
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
# Of one report: 75 competitions and 100 seeds have 7,500.
MOST_ROWS = 20_000


class ImportRefused(Exception):
    """It cannot be imported; the text names the file and says what to do. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One graded submission, in upstream's words. What was not reported is None."""

    competition_id: str
    score: float | None
    gold_threshold: float | None
    silver_threshold: float | None
    bronze_threshold: float | None
    median_threshold: float | None
    gold_medal: bool
    silver_medal: bool
    bronze_medal: bool
    above_median: bool
    submission_exists: bool
    valid_submission: bool
    is_lower_better: bool | None
    created_at: datetime | None
    submission_path: str

    @property
    def any_medal(self) -> bool:
        """From the tiers, as upstream's aggregation reads it."""
        return self.gold_medal or self.silver_medal or self.bronze_medal

    @property
    def has_path(self) -> bool:
        return self.submission_path not in ("None", "")


@dataclass(frozen=True)
class Report:
    """One grading report, its rows in upstream's order (by competition, stable)."""

    name: str
    digest: str
    rows: tuple[ReportRow, ...]
    warnings: tuple[str, ...]

    @property
    def made_at(self) -> datetime | None:
        """By its name, else by its newest row."""
        return stamp_in(self.name) or max(
            (row.created_at for row in self.rows if row.created_at), default=None
        )


@dataclass(frozen=True)
class Metadata:
    """metadata.json: the runs in upstream's order, and whether each ended without an error."""

    run_group: str
    created_at: datetime | None
    runs: Mapping[str, bool | None]


# ---------------------------------------------------------------------------- JSON


def load_object(data: bytes, where: str) -> dict[str, Any]:
    if data.startswith(GIT_LFS):
        raise ImportRefused(
            f"{where} is a Git LFS pointer, not the file: run `git lfs pull` in its checkout."
        )
    if len(data) > FILE_LIMIT_BYTES:
        raise ImportRefused(f"{where} is larger than {FILE_LIMIT_BYTES // 2**20} MiB.")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{where} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ImportRefused(
            f"{where} should be a JSON object, not {type(content).__name__}: "
            "it has no list competition_reports, runs or the like."
        )
    return content


def is_text(value: object) -> bool:
    """A text that any database holds: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(value: object, *, where: str) -> float | None:
    """A finite number or None. NaN, which Python's json writes and reads, is no score."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ImportRefused(f"{where} should be a number or null, not {short(value)}.")
    try:
        found = float(value)
    except OverflowError as error:
        raise ImportRefused(f"{where}: the number is too large.") from error
    return found if math.isfinite(found) else None


def stamp_in(text: str) -> datetime | None:
    """The first of upstream's time stamps in a name."""
    match = STAMP.search(text)
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None


def time_of(value: object, *, where: str) -> datetime | None:
    """Upstream writes local times without a zone; they are taken as UTC."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(str(value))
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ImportRefused(f"{where}: created_at should be a time, not {short(value)}.") from error


# ---------------------------------------------------------------------------- grading reports


def read_report(data: bytes, name: str) -> Report:
    """Read and check one file."""
    content = load_object(data, name)
    rows = content.get("competition_reports")
    if not isinstance(rows, list):
        raise ImportRefused(f"{name} is no grading report: it has no list competition_reports.")
    if not rows:
        raise ImportRefused(f"{name}: competition_reports is empty.")
    if len(rows) > MOST_ROWS:
        raise ImportRefused(f"{name}: competition_reports has more than {MOST_ROWS} rows.")
    checked = [check_row(row, where=f"{name}, row {number}") for number, row in enumerate(rows, 1)]
    return Report(
        name=name,
        digest=hashlib.sha256(data).hexdigest(),
        rows=tuple(sorted(checked, key=lambda row: row.competition_id)),
        warnings=tuple(lies_of(content, checked, name)),
    )


def check_row(row: object, *, where: str) -> ReportRow:
    """One row with the types that we rely on."""
    if not isinstance(row, dict):
        raise ImportRefused(f"{where}: should be an object, not {type(row).__name__}.")
    name = row.get("competition_id")
    if not is_text(name) or not name:
        raise ImportRefused(f"{where}: competition_id should be a name, not {short(name)}.")
    flags = {}
    for key in FLAGS:
        value = row.get(key)
        # Some forks write 0 and 1.
        if not isinstance(value, int | float) or value not in (False, True):
            raise ImportRefused(f"{where}: {key} should be true or false, not {short(value)}.")
        flags[key] = bool(value)
    direction = row.get("is_lower_better")
    if direction is not None and not isinstance(direction, bool):
        raise ImportRefused(
            f"{where}: is_lower_better should be true, false or null, not {short(direction)}."
        )
    return ReportRow(
        competition_id=str(name),
        score=number(row.get("score"), where=f"{where}, score"),
        gold_threshold=number(row.get("gold_threshold"), where=f"{where}, gold_threshold"),
        silver_threshold=number(row.get("silver_threshold"), where=f"{where}, silver_threshold"),
        bronze_threshold=number(row.get("bronze_threshold"), where=f"{where}, bronze_threshold"),
        median_threshold=number(row.get("median_threshold"), where=f"{where}, median_threshold"),
        **flags,
        is_lower_better=direction,
        created_at=time_of(row.get("created_at"), where=where),
        submission_path=plain(str(row.get("submission_path")))[:PATH_LIMIT],
    )


def plain(text: str) -> str:
    return text.replace("\0", "").encode(errors="backslashreplace").decode()


def lies_of(content: Mapping[str, Any], rows: Sequence[ReportRow], name: str) -> Iterable[str]:
    """Totals of the header that its rows do not bear out. The rows count."""
    for total, key in TOTALS.items():
        said, seen = content.get(total), sum(getattr(row, key) for row in rows)
        if said is not None and said != seen:
            yield f"{name}: {total} says {short(said)}, its rows say {seen}. The rows count."


# ---------------------------------------------------------------------------- metadata.json


def read_metadata(data: bytes, name: str) -> Metadata:
    content = load_object(data, name)
    runs = content.get("runs")
    if not isinstance(runs, dict):
        raise ImportRefused(f"{name}: runs should be an object, one entry a run.")
    found: dict[str, bool | None] = {}
    for run_id, said in runs.items():
        if not is_text(run_id) or "/" in run_id or run_id in ("", ".", ".."):
            raise ImportRefused(f"{name}: {short(run_id)} is no run id.")
        success = said.get("success") if isinstance(said, dict) else None
        found[run_id] = success if isinstance(success, bool) else None
    group = content.get("run_group")
    return Metadata(
        run_group=group if isinstance(group, str) and is_text(group) and "/" not in group else "",
        created_at=stamp_in(str(content.get("created_at"))),
        runs=found,
    )


# ---------------------------------------------------------------------------- experiments


def read_experiments(data: bytes, name: str) -> list[tuple[str, str]]:
    """run_group_experiments.csv: (experiment, run group) line by line, read as upstream does.

    Split at the first comma, no quotes: ids have spaces and &.
    """
    if data.startswith(GIT_LFS):
        raise ImportRefused(
            f"{name} is a Git LFS pointer, not the file: run `git lfs pull` in its checkout."
        )
    if len(data) > FILE_LIMIT_BYTES:
        raise ImportRefused(f"{name} is larger than {FILE_LIMIT_BYTES // 2**20} MiB.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{name} is not UTF-8 text: {error}.") from error
    pairs = []
    # Line ends as Python's text files have them; splitlines() knows more.
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip() or line.startswith("experiment_id"):
            continue
        experiment, comma, group = line.strip().partition(",")
        pair = experiment.strip(), group.strip()
        if not comma or not all(pair) or not all(map(is_text, pair)):
            raise ImportRefused(f"{name}, line {number}: should be experiment_id,run_group.")
        pairs.append(pair)
    return list(dict.fromkeys(pairs))


def experiments_file(pairs: Iterable[tuple[str, str]]) -> str:
    """The same file, for upstream's script. An id has no comma and no line end there."""
    lines = ["experiment_id,run_group"]
    lines += [f"{upstream_id(experiment)},{group}" for experiment, group in pairs]
    return "\n".join(lines) + "\n"


def upstream_id(experiment: str) -> str:
    """An experiment's name as upstream's file can hold it."""
    name = " ".join(experiment.replace(",", ";").split())
    return f"_{name}" if name.startswith("experiment_id") else name
