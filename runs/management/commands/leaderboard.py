"""Print the leaderboard of a split."""

import csv
import io
import json
from argparse import ArgumentParser

from django.core.management.base import BaseCommand, CommandError

from mlebench_web.catalog.models import Split
from runs.core.statistics import METRICS, Summary
from runs.leaderboard import ALL, MixedSplit, Row, rows


class Command(BaseCommand):
    help = (
        "Print one row for each experiment with runs of the split. JSON has upstream's metric "
        "names at full precision; an experiment without a complete seed has null metrics."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--split", default=ALL, help="low, medium, high, all, demo, ...")
        parser.add_argument("--format", choices=FORMATS, default="md")
        parser.add_argument(
            "--pad-missing", action="store_true", help="a missing report counts as no submission"
        )
        parser.add_argument(
            "--first-outcomes", action="store_true", help="leave re-runs of an agent's failure out"
        )
        parser.add_argument(
            "--published", action="store_true", help="also the rows of mle-bench's README"
        )

    def handle(
        self,
        *,
        split: str,
        format: str,
        pad_missing: bool,
        first_outcomes: bool,
        published: bool,
        **_: object,
    ) -> None:
        found = Split.objects.filter(name=ALL if split == "all" else split).first()
        if not found:
            allowed = ", ".join([*Split.objects.values_list("name", flat=True), "all"])
            raise CommandError(f"--split: there is no split {split!r}. There are: {allowed}.")
        try:
            answer = rows(
                found,
                pad_missing=pad_missing,
                first_outcomes=first_outcomes,
                with_published=published,
            )
        except MixedSplit as error:
            raise CommandError(str(error)) from error
        self.stdout.write(FORMATS[format](answer))


def as_json(answer: list[Row]) -> str:
    return json.dumps([row.as_json() for row in answer], indent=2, allow_nan=False)


def as_csv(answer: list[Row]) -> str:
    """One line a row; each metric's mean and standard error, empty where there is none."""
    metrics = [f"{name}_{part}" for name in METRICS for part in ("mean", "sem")]
    head = ["rank", "experiment", "agent", "split", "seeds", "competitions", *metrics]
    head += ["runs", "reports", "hardware", "median_dataset_seconds", "gpu_hours"]
    head += ["time_limit_hours", "differences", "flags", "source"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in answer:
        values: list[object] = [row.rank, row.name, row.agent, row.split, row.seeds]
        values.append(row.competitions)
        for name in METRICS:
            found = row.metrics.get(name)
            values += [found.mean, found.standard_error] if found else [None, None]
        values += [row.runs, row.reports, row.hardware, row.median_dataset_seconds, row.gpu_hours]
        values += [row.hours, "; ".join(one.text for one in row.differences)]
        values += ["; ".join(one.name for one in row.flags), row.source]
        writer.writerow([plain(value) for value in values])
    return text.getvalue().rstrip("\n")


def plain(value: object) -> object:
    """No cell that a spreadsheet would take for a formula: names are what people typed."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def as_markdown(answer: list[Row]) -> str:
    head = ["#", "experiment", "any medal %", "gold", "silver", "bronze", "valid %", "seeds"]
    head += ["hardware", "time per dataset", "marks"]
    lines = [head, ["---"] * len(head)]
    for row in answer:
        so_far = f"{row.medal_reports} medals so far" if row.is_so_far else "no complete seed"
        lines.append(
            [
                str(row.rank or ""),
                row.name.replace("|", "\\|"),
                mean(row.any_medal) if row.any_medal else so_far,
                mean(row.metrics.get("gold_medal_percentage")),
                mean(row.metrics.get("silver_medal_percentage")),
                mean(row.metrics.get("bronze_medal_percentage")),
                mean(row.valid),
                str(row.seeds) if not row.is_published else "",
                row.hardware,
                duration(row.median_dataset_seconds),
                ", ".join([*(one.name for one in row.differences), *(f.name for f in row.flags)]),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(summary: Summary | None) -> str:
    return f"{summary.mean:.2f} ± {summary.standard_error:.2f}" if summary else ""


def duration(seconds: float | None) -> str:
    """ "18 h 45 min", "3 min 20 s", "0.4 s"; empty when nothing was measured."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


FORMATS = {"json": as_json, "csv": as_csv, "md": as_markdown}
