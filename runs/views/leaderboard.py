"""The leaderboard: one row an experiment, published results beside them. Sorted and filtered
here; a filter takes rows away and never changes a row's numbers."""

import csv
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from django.contrib.auth.decorators import login_required
from django.db.models import Count
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils.safestring import SafeString
from django.views.decorators.http import require_GET

from mlebench_web.catalog.models import Split
from mlebench_web.http import SignedInRequest
from runs import leaderboard
from runs.charts import whisker
from runs.core.statistics import METRICS, Summary
from runs.leaderboard import Flag, MixedSplit, Row

BAR_WIDTH = 120


def _mean(summary: Summary | None) -> float | None:
    return summary.mean if summary else None


SORTS: dict[str, Callable[[Row], float | str | None]] = {
    "medal": lambda row: _mean(row.any_medal),
    "low": lambda row: _mean(row.parts.get("low")),
    "medium": lambda row: _mean(row.parts.get("medium")),
    "high": lambda row: _mean(row.parts.get("high")),
    "valid": lambda row: _mean(row.valid),
    "median": lambda row: _mean(row.above_median),
    "seeds": lambda row: row.seeds or None,
    "time": lambda row: row.median_dataset_seconds,
    "gpu": lambda row: row.gpu_hours,
    "name": lambda row: row.name.lower(),
}


@dataclass(frozen=True)
class Asked:
    """What the address asks for."""

    split: Split
    sort: str
    text: str
    published: bool
    first: bool
    padded: bool
    comparable: bool


@dataclass(frozen=True)
class Shown:
    """A row and what only the page needs."""

    row: Row
    rank: str
    bar: SafeString
    medals: list[tuple[str, str]]
    medal_words: str
    gpus: str
    machine: str
    chip: tuple[str, str]
    chip_words: str
    flags: tuple[Flag, ...]


def _asked(request: SignedInRequest) -> Asked:
    get = request.GET
    name = get.get("split")
    name = leaderboard.ALL if name == "all" else name
    split = Split.objects.filter(name=name).first() if name else _usual_split()
    if split is None:
        raise Http404(f"There is no split {name!r}.")
    sort = get.get("sort", "")
    return Asked(
        split=split,
        sort=sort if sort.lstrip("-") in SORTS else "",
        text=get.get("q", "").strip().lower(),
        published=get.get("published") != "0",
        first=get.get("first") == "1",
        padded=get.get("padded") == "1",
        comparable=get.get("comparable") == "1",
    )


def _usual_split() -> Split | None:
    """The one that most run groups are about; the demo only while there is nothing else."""
    splits = list(Split.objects.annotate(groups=Count("rungroup")).order_by("position", "name"))
    used = [split for split in splits if split.groups]
    real = [split for split in used if split.name != "demo"]
    if real or used:
        return max(real or used, key=lambda split: split.groups)
    return next((split for split in splits if split.name == "demo"), splits[0] if splits else None)


def _rows(asked: Asked) -> list[Row]:
    """Raises MixedSplit."""
    rows = leaderboard.rows(
        asked.split,
        pad_missing=asked.padded,
        first_outcomes=asked.first,
        with_published=asked.published,
    )
    if asked.text:
        rows = [row for row in rows if asked.text in f"{row.name} {row.agent}".lower()]
    if asked.comparable:
        rows = [row for row in rows if row.is_comparable]
    if asked.sort:
        key = SORTS[asked.sort.lstrip("-")]
        known = [row for row in rows if key(row) is not None]
        unknown = [row for row in rows if key(row) is None]
        # What is not known goes last in both directions.
        known.sort(key=key, reverse=asked.sort.startswith("-"))  # type: ignore[arg-type]
        rows = known + unknown
    return rows


@login_required
@require_GET
def page(request: SignedInRequest) -> HttpResponse:
    asked = _asked(request)
    problem, rows = "", []
    try:
        rows = _rows(asked)
    except MixedSplit as mixed:
        problem = str(mixed)
    is_demo = asked.split.competitions.filter(is_demo=True).exists()
    top = max(
        (row.any_medal.mean + row.any_medal.standard_error for row in rows if row.any_medal),
        default=0,
    )
    most = min(max(math.ceil(top / 20) * 20, 20), 100)
    shared: Counter[int | None] = Counter(row.rank for row in rows)
    shown = [_shown(row, shared, most, is_demo) for row in rows]
    context = {
        "section": "leaderboard",
        "asked": asked,
        "split": asked.split,
        "is_demo": is_demo,
        "has_parts": any(row.parts for row in rows),
        "parts": leaderboard.PARTS,
        "rows": shown,
        "ours": sum(not row.is_published for row in rows),
        "most": most,
        "problem": problem,
        "splits": Split.objects.annotate(count=Count("competitions")).order_by("position", "name"),
        "seeds_to_rank": leaderboard.SEEDS_TO_RANK_DEMO if is_demo else leaderboard.SEEDS_TO_RANK,
    }
    return render(request, "runs/leaderboard.html", context)


def _shown(row: Row, shared: Counter[int | None], most: float, is_demo: bool) -> Shown:
    rank = ""
    if row.rank:
        rank = f"={row.rank}" if shared[row.rank] > 1 else str(row.rank)
    gpus, _, machine = row.hardware.split(" / ")[0].partition(", ")
    chip, words = _chip(row, is_demo)
    return Shown(
        row=row,
        rank=rank,
        bar=whisker(
            row.any_medal.mean,
            # One seed has no error: upstream's 0 would look like certainty.
            row.any_medal.standard_error if row.is_published or row.seeds > 1 else None,
            most=most,
            width=BAR_WIDTH,
            css="pubbar" if row.is_published else "f-bar",
        )
        if row.any_medal
        else SafeString(""),
        medals=_mean_medals(row),
        medal_words="; ".join(
            f"seed {number}: {each.gold} gold, {each.silver} silver, {each.bronze} bronze"
            for number, each in enumerate(row.medals)
        ),
        gpus=gpus.replace(" x ", " \u00d7 "),
        machine=machine,
        chip=chip,
        chip_words=words,
        flags=tuple(flag for flag in row.flags if flag.name not in ("published", "unsandboxed")),
    )


def _chip(row: Row, is_demo: bool) -> tuple[tuple[str, str], str]:
    """The colour and the words of the comparability chip, and a line below it."""
    if row.is_published:
        words = f"Published, {row.hours:g} h" if row.hours else "Published"
        return ("", words), f"{row.date}, not re-run"
    if row.is_so_far:
        return ("run", "So far"), row.coverage
    if not row.seeds:
        missing = f"{len(row.missing)} of {row.competitions} competitions without a report"
        return ("warn", "No complete seed"), missing
    if is_demo:
        return ("", "Demo"), "a pipeline check"
    if row.is_comparable:
        return ("ok", "Comparable"), "official 24 h setup"
    names = list(dict.fromkeys(each.name for each in row.differences))
    verb = "differs" if len(names) == 1 else "differ"
    return ("warn", f"{', '.join(names)} {verb}"), row.differences[0].text


def _mean_medals(row: Row) -> list[tuple[str, str]]:
    """Gold, silver and bronze a seed, as means over the complete seeds."""
    if not row.medals:
        return []
    count = len(row.medals)
    return [
        (
            letter,
            f"{sum(getattr(each, name) for each in row.medals) / count:.1f}".removesuffix(".0"),
        )
        for letter, name in (("G", "gold"), ("S", "silver"), ("B", "bronze"))
    ]


# ---------------------------------------------------------------------------- CSV

COLUMNS = (
    "rank",
    "experiment",
    "agent",
    "split",
    "competitions",
    "seeds",
    *(f"{name}_{part}" for name in METRICS for part in ("mean", "standard_error")),
    *(
        f"{part}_any_medal_{each}"
        for part in leaderboard.PARTS
        for each in ("mean", "standard_error")
    ),
    "runs",
    "reports",
    "so_far",
    "padded",
    "published",
    "hardware",
    "median_run_seconds",
    "median_dataset_seconds",
    "gpu_hours",
    "time_limit_hours",
    "differences",
    "flags",
)
# A spreadsheet takes a cell that begins so for a formula, and names come from people.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@login_required
@require_GET
def as_csv(request: SignedInRequest) -> HttpResponse:
    """The rows of the page at full precision; what is not known is empty."""
    asked = _asked(request)
    try:
        rows = _rows(asked)
    except MixedSplit as mixed:
        return HttpResponse(str(mixed), status=409, content_type="text/plain; charset=utf-8")
    response = HttpResponse(content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="leaderboard-{asked.split.name}.csv"'
    writer = csv.writer(response)
    writer.writerow(COLUMNS)
    for row in rows:
        values = _csv_values(row)
        writer.writerow([_safe(values.get(name)) for name in COLUMNS])
    return response


def _csv_values(row: Row) -> dict[str, object]:
    values: dict[str, object] = dict(row.as_json())
    for name in METRICS:
        if summary := row.metrics.get(name):
            values[f"{name}_mean"] = summary.mean
            values[f"{name}_standard_error"] = summary.standard_error
    for part, summary in row.parts.items():
        values[f"{part}_any_medal_mean"] = summary.mean
        values[f"{part}_any_medal_standard_error"] = summary.standard_error
    values["differences"] = "; ".join(each.text for each in row.differences)
    values["flags"] = "; ".join(each.text for each in row.flags)
    return values


def _safe(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
