"""The leaderboard: one row for each experiment with a run of a split, with hardware and time."""

from runs.leaderboard.counting import hardware_of
from runs.leaderboard.row import ALL, PARTS, Flag, Medals, Row
from runs.leaderboard.table import SEEDS_TO_RANK, SEEDS_TO_RANK_DEMO, MixedSplit, rows
from runs.leaderboard.times import DatasetTime, SeedTime, time_per_dataset

__all__ = [
    "ALL",
    "PARTS",
    "SEEDS_TO_RANK",
    "SEEDS_TO_RANK_DEMO",
    "DatasetTime",
    "Flag",
    "Medals",
    "MixedSplit",
    "Row",
    "SeedTime",
    "hardware_of",
    "rows",
    "time_per_dataset",
]
