"""mle-bench's medal rule: thresholds by position in leaderboard.csv, and a score's place. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Scores are rounded to this many places before they are compared, as upstream does.
SCORE_PLACES = 5


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


def medal_positions(team_count: int) -> tuple[int, int, int]:
    """Places (from 1) whose scores are the gold, silver and bronze thresholds.

    Fractions are cut off, not rounded. Raises ValueError when there is no team.
    """
    if team_count < 1:
        raise ValueError("A leaderboard has at least one score.")
    fifth, two_fifths = max(1, int(team_count * 0.2)), max(1, int(team_count * 0.4))
    if team_count < 100:
        return max(1, int(team_count * 0.1)), fifth, two_fifths
    if team_count < 250:
        return 10, fifth, two_fifths
    gold = 10 + int(team_count * 0.002)
    if team_count < 1000:
        return gold, 50, 100
    return gold, int(team_count * 0.05), int(team_count * 0.1)


def thresholds(scores: Sequence[float]) -> Thresholds:
    """Thresholds of a leaderboard, `scores` in the order of its file (best first; never sorted).

    Lower is better when the first score is below the last one. Raises ValueError for an empty
    leaderboard or a score that is not a finite number.
    """
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise ValueError(f"A leaderboard holds finite scores only, not {bad[0]}.")
    gold, silver, bronze = medal_positions(len(scores))
    return Thresholds(
        gold=float(scores[gold - 1]),
        silver=float(scores[silver - 1]),
        bronze=float(scores[bronze - 1]),
        median=float(median(scores)),
        is_lower_better=scores[0] < scores[-1],
    )


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
