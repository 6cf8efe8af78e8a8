"""Scores of an experiment, as mle-bench publishes them: complete seeds, mean, SEM. Pure.

The arithmetic is upstream's (experiments/aggregate_grading_reports.py) to the last digit, also
where numpy adds in another order than a plain loop.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Upstream's names, in its order.
METRICS = (
    "submission_exists_percentage",
    "valid_submissions_percentage",
    "above_median_percentage",
    "gold_medal_percentage",
    "silver_medal_percentage",
    "bronze_medal_percentage",
    "any_medal_percentage",
)


class IncompleteSeeds(Exception):
    """No complete seed: `missing` names the competitions without any report."""

    def __init__(self, missing: Sequence[str]) -> None:
        self.missing = list(missing)
        super().__init__(
            f"No complete seed: {len(self.missing)} competitions have no report: "
            f"{', '.join(self.missing)}."
        )


@dataclass(frozen=True)
class Graded:
    """What counts of one grading report. All false: a report without a submission."""

    submission_exists: bool = False
    valid_submission: bool = False
    above_median: bool = False
    gold: bool = False
    silver: bool = False
    bronze: bool = False

    @property
    def any_medal(self) -> bool:
        """From the tiers: a report's own any_medal is not read, as upstream does not."""
        return self.gold or self.silver or self.bronze


Seed = list[Graded]


@dataclass(frozen=True)
class Summary:
    """Mean over seeds of a percentage (0 to 100), with its standard error and 95 % interval."""

    mean: float
    standard_error: float
    ci_lower: float
    ci_upper: float


def complete_seeds(
    reports: Mapping[str, Sequence[Graded]],
    competitions: Sequence[str],
    *,
    pad_missing: bool = False,
) -> list[Seed]:
    """Seed i is the i-th report of each competition; how many is the smallest count.

    `reports` are in run-group order. With `pad_missing` the largest count is taken, and what is
    missing counts as no submission. Reports of competitions that are not in the list are left
    out. Raises IncompleteSeeds when there is not one.
    """
    if not competitions:
        raise ValueError("A split has at least one competition.")
    counts = {name: len(reports.get(name, ())) for name in competitions}
    count = max(counts.values()) if pad_missing else min(counts.values())
    if not count:
        raise IncompleteSeeds([name for name in competitions if not counts[name]])
    return [
        [reports[name][index] if index < counts[name] else Graded() for name in competitions]
        for index in range(count)
    ]


def percentages(seed: Seed) -> dict[str, float]:
    """Each metric over the competitions of one seed, 0 to 100."""

    def percent(hits: int) -> float:
        return hits / len(seed) * 100

    return {
        "submission_exists_percentage": percent(sum(one.submission_exists for one in seed)),
        "valid_submissions_percentage": percent(sum(one.valid_submission for one in seed)),
        "above_median_percentage": percent(sum(one.above_median for one in seed)),
        "gold_medal_percentage": percent(sum(one.gold for one in seed)),
        "silver_medal_percentage": percent(sum(one.silver for one in seed)),
        "bronze_medal_percentage": percent(sum(one.bronze for one in seed)),
        "any_medal_percentage": percent(sum(one.any_medal for one in seed)),
    }


def summaries(seeds: Sequence[Seed]) -> dict[str, Summary]:
    """Each metric over the seeds. Raises ValueError when there is no seed."""
    per_seed = [percentages(seed) for seed in seeds]
    return {name: summary([values[name] for values in per_seed]) for name in METRICS}


def summary(values: Sequence[float]) -> Summary:
    """Mean and standard error; the error divides by n - 1 and is 0 for a single value."""
    if not values:
        raise ValueError("A mean needs at least one seed.")
    count = len(values)
    mean = numpy_sum(values) / count
    error = 0.0
    if count > 1:
        squares = [(value - mean) * (value - mean) for value in values]
        error = math.sqrt(numpy_sum(squares) / (count - 1)) / math.sqrt(count)
    return Summary(mean, error, mean - 1.96 * error, mean + 1.96 * error)


def numpy_sum(values: Sequence[float]) -> float:
    """The sum in the order in which numpy adds up to 128 doubles: eight lanes, then the rest.

    A plain loop differs in the last digit from eight seeds on.
    """
    if len(values) > 128:
        # Halves, the first one a multiple of eight long.
        half = len(values) // 2
        half -= half % 8
        return numpy_sum(values[:half]) + numpy_sum(values[half:])
    if len(values) < 8:
        total = 0.0
        for value in values:
            total += value
        return total
    lanes = list(values[:8])
    whole = len(values) - len(values) % 8
    for start in range(8, whole, 8):
        for lane in range(8):
            lanes[lane] += values[start + lane]
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + (
        (lanes[4] + lanes[5]) + (lanes[6] + lanes[7])
    )
    for value in values[whole:]:
        total += value
    return total


def ranks[Key](scores: Mapping[Key, Summary]) -> dict[Key, int]:
    """Place of each: 1 + the number whose (mean - SEM) is above this one's (mean + SEM).

    For display, not a test: overlapping rows share a place.
    """
    return {
        key: 1
        + sum(
            other.mean - other.standard_error > own.mean + own.standard_error
            for other in scores.values()
        )
        for key, own in scores.items()
    }
