"""Medal thresholds from a leaderboard, by mle-bench's rule (mlebench/grade_helpers.py). Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    gold: float
    silver: float
    bronze: float
    median: float
    is_lower_better: bool


def thresholds(scores: Sequence[float]) -> Thresholds:
    """`scores` in the order of the file, best first; positions count from 1.

    The direction is whether the first score is below the last. Raises ValueError without scores,
    and when first and last are equal, since no direction can be read from that.
    """
    if not scores:
        raise ValueError("A leaderboard needs at least one score.")
    if scores[0] == scores[-1]:
        raise ValueError("The first and the last score are equal: which direction is better?")
    count = len(scores)
    if count < 100:
        places = max(1, int(0.1 * count)), max(1, int(0.2 * count)), max(1, int(0.4 * count))
    elif count < 250:
        places = 10, int(0.2 * count), int(0.4 * count)
    elif count < 1000:
        places = 10 + int(0.002 * count), 50, 100
    else:
        places = 10 + int(0.002 * count), int(0.05 * count), int(0.1 * count)
    gold, silver, bronze = (scores[place - 1] for place in places)
    return Thresholds(gold, silver, bronze, statistics.median(scores), scores[0] < scores[-1])
