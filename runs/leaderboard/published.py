"""The rows of upstream's README: published, not re-run, never ranked."""

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from runs.core.statistics import Summary
from runs.leaderboard.row import ALL, PARTS, Flag, Row

PUBLISHED_FILE = Path(__file__).resolve().parents[1] / "data" / "published_leaderboard.csv"
PUBLISHED_SOURCE = "openai/mle-bench README at 783b15a (2026-02-26)"


def rows_of(split_name: str) -> list[Row]:
    """The published rows of a split; none for a split that upstream does not report."""
    prefix = "all" if split_name == ALL else split_name
    if prefix not in (*PARTS, "all"):
        return []
    competitions = {"low": 22, "medium": 38, "high": 15, "all": 75}[prefix]
    return [
        Row(
            name=fact["agent"],
            agent=fact["llm"],
            split=split_name,
            competitions=competitions,
            # Not in the README's table.
            seeds=0,
            metrics={"any_medal_percentage": summary_of(fact, prefix)},
            parts={part: summary_of(fact, part) for part in PARTS} if prefix == "all" else {},
            is_published=True,
            is_padded=fact["padded"] == "1",
            hardware=hardware_of(fact),
            hours=float(fact["hours"]),
            flags=flags_of(fact),
            url=fact["url"],
            source=PUBLISHED_SOURCE,
            date=fact["date"],
        )
        for fact in facts()
    ]


@cache
def facts() -> tuple[dict[str, str], ...]:
    with PUBLISHED_FILE.open(newline="") as file:
        return tuple(csv.DictReader(file))


def summary_of(fact: Mapping[str, str], prefix: str) -> Summary:
    """Mean and SEM as printed, to two places; the interval follows from them."""
    mean, error = float(fact[f"{prefix}_mean"]), float(fact[f"{prefix}_sem"])
    return Summary(mean, error, mean - 1.96 * error, mean + 1.96 * error)


def hardware_of(fact: Mapping[str, str]) -> str:
    """As its authors stated it; empty where they did not."""
    if not fact["gpus"]:
        return ""
    return f"{fact['gpus']}, {fact['cpus']} CPUs, {fact['memory_gb']} GB"


def flags_of(fact: Mapping[str, str]) -> tuple[Flag, ...]:
    found = [Flag("published", f"From the {PUBLISHED_SOURCE}; not re-run here.")]
    if fact["known_leakage"]:
        issue = re.sub(r".*/", "#", fact["known_leakage"])
        found.append(Flag("known leakage", f"See mle-bench {issue}: {fact['known_leakage']}"))
    if fact["padded"] == "1":
        found.append(Flag("padded", "Missing reports were counted as no submission."))
    return tuple(found)
