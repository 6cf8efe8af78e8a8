"""Grading reports of experiments -> rows in their order, with ranks.

Arithmetic and rank are in runs/core/statistics.py. A row is computed over the whole split, never
over what a filter shows, in a fixed number of queries.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from mlebench_web.catalog.models import Competition, Split
from runs.core import comparability, statistics
from runs.core.comparability import Hardware
from runs.core.states import RunState
from runs.core.statistics import Graded, IncompleteSeeds, Summary
from runs.leaderboard import published
from runs.leaderboard.counting import Counted, load, names_for
from runs.leaderboard.flags import flags_of, partial
from runs.leaderboard.row import ALL, PARTS, Medals, Row
from runs.leaderboard.times import hardware_in_words, median_or_none
from runs.models import Experiment, GradingReport, RunGroup

# Fewer complete seeds are listed, not ranked. The demo is a pipeline check: one is enough.
SEEDS_TO_RANK = 3
SEEDS_TO_RANK_DEMO = 1
OVER = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)


class MixedSplit(Exception):
    """A split of demo competitions and others: their results are never added up."""


def rows(
    split: Split,
    *,
    pad_missing: bool = False,
    first_outcomes: bool = False,
    without_known_issues: bool = False,
    with_published: bool = False,
    instead: Mapping[int, GradingReport | None] | None = None,
) -> list[Row]:
    """One row for each experiment with a run of this split: ranked ones first.

    `pad_missing` counts a missing report as no submission. `first_outcomes` counts each run's
    first end that was the agent's own, whatever was run again later. `without_known_issues`
    leaves out competitions with a known issue. `instead`: reports by attempt in place of the
    current ones, None for none at all. Raises MixedSplit.
    """
    competitions = list(split.competitions.order_by("name"))
    if not competitions:
        return []
    is_demo = is_demo_split(split, competitions)
    parts = part_names() if split.name == ALL else {}
    if without_known_issues:
        competitions = [one for one in competitions if not one.known_issue]
        sound = {one.name for one in competitions}
        parts = {part: [name for name in names if name in sound] for part, names in parts.items()}
    asked = {one.name for one in competitions}
    counted = {
        experiment: kept
        for experiment, runs in load(
            split, first_outcomes=first_outcomes, instead=instead or {}
        ).items()
        if (kept := [one for one in runs if one.competition in asked])
    }
    found = [
        row_of(
            experiment,
            runs,
            split=split,
            names=names_for(runs, competitions, is_demo=is_demo),
            parts=parts,
            of=len(competitions),
            is_demo=is_demo,
            pad_missing=pad_missing,
        )
        for experiment, runs in counted.items()
    ]
    ranked = with_ranks(found, SEEDS_TO_RANK_DEMO if is_demo else SEEDS_TO_RANK)
    if with_published:
        ranked += published.rows_of(split.name)
    return sorted(ranked, key=place)


def is_demo_split(split: Split, competitions: list[Competition]) -> bool:
    kinds = {competition.is_demo for competition in competitions}
    if len(kinds) > 1:
        raise MixedSplit(
            f"The split {split.name} holds demo competitions and others. Demo medals are a "
            "pipeline check and are never added to those of the 75: make two splits."
        )
    return kinds == {True}


def part_names() -> dict[str, list[str]]:
    """Competitions of Low, Medium and High. Costs one query."""
    names: dict[str, list[str]] = {part: [] for part in PARTS}
    pairs = Split.objects.filter(name__in=PARTS).values_list("name", "competitions__name")
    for part, name in pairs:
        if name:
            names[part].append(name)
    return {part: sorted(found) for part, found in names.items() if found}


def place(row: Row) -> tuple[object, ...]:
    """Best mean first; a published row goes below one of ours with the same mean."""
    mean = row.any_medal.mean if row.any_medal else -1.0
    return (-mean, row.is_published, row.name, row.hours or 0)


def with_ranks(found: list[Row], seeds_needed: int) -> list[Row]:
    """Rank rows with enough complete seeds and nothing still running."""
    able = {
        index: row.any_medal
        for index, row in enumerate(found)
        if row.any_medal and row.seeds >= seeds_needed and not row.is_so_far
    }
    ranks = statistics.ranks(able)
    return [replace(row, rank=ranks.get(index)) for index, row in enumerate(found)]


def row_of(
    experiment: Experiment,
    runs: list[Counted],
    *,
    split: Split,
    names: list[str],
    parts: dict[str, list[str]],
    of: int,
    is_demo: bool,
    pad_missing: bool,
) -> Row:
    reports: dict[str, list[Graded]] = {}
    for one in runs:
        if one.graded:
            reports.setdefault(one.competition, []).append(one.graded)
    seeds = seeds_of(reports, names, pad_missing=pad_missing)
    with_report = [one for one in runs if one.report]
    groups = {one.run.group_id: one.run.group for one in runs}
    hardware = [one.hardware for one in with_report]
    is_padded = pad_missing and any(len(reports.get(name, ())) < len(seeds) for name in names)
    hours = hours_of(groups.values())
    return Row(
        name=experiment.name,
        agent=experiment.agent.name if experiment.agent else "",
        split=split.name,
        competitions=len(names),
        seeds=len(seeds),
        metrics=statistics.summaries(seeds) if seeds else {},
        parts=parts_of(reports, parts, pad_missing=pad_missing),
        medals=tuple(
            Medals(
                gold=sum(one.gold for one in seed),
                silver=sum(one.silver for one in seed),
                bronze=sum(one.bronze for one in seed),
            )
            for seed in seeds
        ),
        experiment_id=experiment.pk,
        groups=len(groups),
        runs=len(runs),
        reports=len(with_report),
        medal_reports=sum(one.graded.any_medal for one in runs if one.graded),
        missing=tuple(name for name in names if not reports.get(name)),
        is_so_far=any(one.run.state not in OVER for one in runs),
        is_padded=is_padded,
        is_imported=all(group.is_imported for group in groups.values()),
        hardware=hardware_in_words(hardware),
        median_run_seconds=median_or_none(one.seconds for one in with_report),
        median_dataset_seconds=median_or_none(
            median_or_none(one.seconds for one in with_report if one.competition == name)
            for name in names
        ),
        gpu_hours=gpu_hours(with_report),
        hours=hours,
        differences=()
        if is_demo
        else comparability.differences(
            hours=hours, hardware=common_hardware(hardware), seeds=len(seeds)
        ),
        flags=(
            *partial(len(names), of),
            *flags_of(runs, list(groups.values()), hardware, is_padded=is_padded),
        ),
    )


def seeds_of(
    reports: Mapping[str, list[Graded]], names: list[str], *, pad_missing: bool
) -> list[list[Graded]]:
    try:
        return statistics.complete_seeds(reports, names, pad_missing=pad_missing)
    except IncompleteSeeds:
        return []


def parts_of(
    reports: Mapping[str, list[Graded]], parts: dict[str, list[str]], *, pad_missing: bool
) -> dict[str, Summary]:
    """Any medal on each part. All is not their weighted mean: seeds pair differently."""
    found = {}
    for part, names in parts.items():
        if seeds := seeds_of(reports, names, pad_missing=pad_missing):
            found[part] = statistics.summaries(seeds)["any_medal_percentage"]
    return found


def gpu_hours(runs: list[Counted]) -> float | None:
    """Active hours times GPUs; None where any run's time or GPUs were not measured."""
    total = 0.0
    for one in runs:
        if one.seconds is None or one.hardware is None or one.hardware.gpu_names is None:
            return None
        total += one.seconds / 3600 * len(one.hardware.gpu_names)
    return total if runs else None


def hours_of(groups: Iterable[RunGroup]) -> float | None:
    """The time limit; None where groups differ or did not say."""
    limits = {group.time_limit for group in groups}
    limit = limits.pop() if len(limits) == 1 else None
    return limit.total_seconds() / 3600 if limit else None


def common_hardware(measured: list[Hardware | None]) -> Hardware:
    """What most runs had: differences to the official setup are named for that."""
    counted = Counter(one for one in measured if one)
    return counted.most_common(1)[0][0] if counted else Hardware()
