"""Time per dataset, and the middle of measured times."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from mlebench_web.catalog.models import Competition
from runs.core.comparability import Hardware
from runs.leaderboard.counting import hardware_of, upstreams_order
from runs.models import Experiment, GradingReport, Run


def median_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def hardware_in_words(measured: list[Hardware | None]) -> str:
    """The most frequent first, joined when they differ; empty where nothing was measured."""
    counted = Counter(str(one) for one in measured if one)
    return " / ".join(words for words, _ in counted.most_common() if words)


@dataclass(frozen=True)
class SeedTime:
    """One run of a competition; seconds are None where it was not measured or has not ended."""

    seed: int
    run_id: int
    seconds: float | None


@dataclass(frozen=True)
class DatasetTime:
    """Active seconds of an experiment's runs of one competition."""

    competition: str
    dataset_bytes: int | None
    median_seconds: float | None
    min_seconds: float | None
    max_seconds: float | None
    seeds: tuple[SeedTime, ...]
    hardware: str


def time_per_dataset(experiment: Experiment) -> list[DatasetTime]:
    """By competition, in their order. Costs two queries."""
    runs = list(
        Run.objects.filter(group__experiment=experiment)
        .select_related("competition", "counted", "group__experiment")
        .order_by("seed")
    )
    runs.sort(key=lambda run: (run.competition.name, *upstreams_order(run)))
    reported = set(
        GradingReport.objects.filter(
            is_current=True, attempt__run__group__experiment=experiment
        ).values_list("attempt_id", flat=True)
    )
    by_competition: dict[Competition, list[Run]] = {}
    for run in runs:
        by_competition.setdefault(run.competition, []).append(run)
    found = []
    for competition, its_runs in by_competition.items():
        seconds = {
            run.pk: run.counted.active_seconds
            for run in its_runs
            if run.counted and run.counted.has_time and run.counted_id in reported
        }
        known = list(seconds.values())
        found.append(
            DatasetTime(
                competition=competition.name,
                dataset_bytes=competition.dataset_size_bytes,
                median_seconds=median_or_none(known),
                min_seconds=min(known, default=None),
                max_seconds=max(known, default=None),
                seeds=tuple(
                    SeedTime(number, run.pk, seconds.get(run.pk))
                    for number, run in enumerate(its_runs)
                ),
                hardware=hardware_in_words(
                    [
                        hardware_of(run.counted.hardware)
                        for run in its_runs
                        if run.counted and run.counted.hardware
                    ]
                ),
            )
        )
    return found
