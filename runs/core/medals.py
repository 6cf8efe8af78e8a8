"""mle-bench's medal rule: a score against a competition's thresholds. Pure.

Where the thresholds come from (positions in leaderboard.csv): mlebench_web/catalog/thresholds.py.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """What a competition asks for; None where its leaderboard is not known."""

    gold: float | None
    silver: float | None
    bronze: float | None
    median: float | None
    is_lower_better: bool | None


@dataclass(frozen=True)
class Standing:
    """A score against the thresholds. At most one medal is true."""

    gold: bool = False
    silver: bool = False
    bronze: bool = False
    above_median: bool = False

    @property
    def any_medal(self) -> bool:
        return self.gold or self.silver or self.bronze


def standing(score: float | None, asked: Thresholds) -> Standing:
    """Medal and median of a rounded score. A medal needs the threshold, the median more than it.

    No score, a score that is not finite, and a threshold that is not known: false.
    """
    if score is None or not math.isfinite(score) or asked.is_lower_better is None:
        return Standing()
    sign = -1 if asked.is_lower_better else 1

    def reaches(threshold: float | None) -> bool:
        return threshold is not None and sign * score >= sign * threshold

    gold = reaches(asked.gold)
    silver = not gold and reaches(asked.silver)
    bronze = not gold and not silver and reaches(asked.bronze)
    above_median = asked.median is not None and sign * score > sign * asked.median
    return Standing(gold, silver, bronze, above_median)
