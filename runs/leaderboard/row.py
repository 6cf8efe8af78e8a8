"""One row: what a page, a command and the API show of an experiment on a split."""

from dataclasses import dataclass, field
from typing import Any

from runs.core import statistics
from runs.core.comparability import Difference
from runs.core.statistics import Summary

# Splits of which the All tab shows a column each.
PARTS = ("low", "medium", "high")
ALL = "split75"


@dataclass(frozen=True)
class Medals:
    """Medals of one complete seed."""

    gold: int
    silver: int
    bronze: int


@dataclass(frozen=True)
class Flag:
    """Something that a reader must know about a row. `name` is short and stable."""

    name: str
    text: str


@dataclass(frozen=True)
class Row:
    """One experiment, or one published result, on one split. What is not known is None."""

    name: str
    agent: str
    split: str
    competitions: int
    # Complete seeds; with padding, the largest number of reports of a competition.
    seeds: int
    # By upstream's names; empty without a complete seed.
    metrics: dict[str, Summary]
    # Means of Low, Medium and High, on the All tab only.
    parts: dict[str, Summary] = field(default_factory=dict)
    medals: tuple[Medals, ...] = ()
    rank: int | None = None
    experiment_id: int | None = None
    groups: int = 0
    # Of the runs of this split.
    runs: int = 0
    reports: int = 0
    medal_reports: int = 0
    missing: tuple[str, ...] = ()
    # Something is queued or runs: the numbers are "so far".
    is_so_far: bool = False
    is_padded: bool = False
    is_imported: bool = False
    is_published: bool = False
    hardware: str = ""
    # Seconds of active agent time; None where nothing was measured.
    median_run_seconds: float | None = None
    # The median over competitions of the median of their runs.
    median_dataset_seconds: float | None = None
    gpu_hours: float | None = None
    hours: float | None = None
    differences: tuple[Difference, ...] = ()
    flags: tuple[Flag, ...] = ()
    url: str = ""
    source: str = ""
    date: str = ""

    @property
    def any_medal(self) -> Summary | None:
        return self.metrics.get("any_medal_percentage")

    @property
    def valid(self) -> Summary | None:
        return self.metrics.get("valid_submissions_percentage")

    @property
    def above_median(self) -> Summary | None:
        return self.metrics.get("above_median_percentage")

    @property
    def coverage(self) -> str:
        """ "61 of 66 runs have a report"; empty for a published row."""
        return f"{self.reports} of {self.runs} runs have a report" if self.runs else ""

    @property
    def is_comparable(self) -> bool:
        """Under mle-bench's official conditions, all of them known."""
        return not self.is_published and not self.differences and not self.is_so_far

    def as_json(self) -> dict[str, Any]:
        """The row of `manage.py leaderboard --format json` and the API, at full precision."""
        return {
            "experiment": self.name,
            "agent": self.agent or None,
            "split": self.split,
            "seeds": self.seeds,
            "competitions": self.competitions,
            "rank": self.rank,
            **{name: as_json(self.metrics.get(name)) for name in statistics.METRICS},
            "parts": {name: as_json(part) for name, part in self.parts.items()},
            "medals_per_seed": [vars(medals) for medals in self.medals],
            "runs": self.runs,
            "reports": self.reports,
            "run_groups": self.groups,
            "missing_competitions": list(self.missing),
            "so_far": self.is_so_far,
            "padded": self.is_padded,
            "imported": self.is_imported,
            "published": self.is_published,
            "hardware": self.hardware or None,
            "median_run_seconds": self.median_run_seconds,
            "median_dataset_seconds": self.median_dataset_seconds,
            "gpu_hours": self.gpu_hours,
            "time_limit_hours": self.hours,
            "differences": [vars(difference) for difference in self.differences],
            "flags": [vars(flag) for flag in self.flags],
            "url": self.url or None,
            "source": self.source or None,
        }


def as_json(summary: Summary | None) -> dict[str, float] | None:
    return vars(summary) if summary else None
