"""Grading reports of an experiment -> one row, with hardware and time.

Arithmetic and rank are in runs/core/statistics.py. A row is computed over the whole split, never
over what a filter shows, in a fixed number of queries.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from mlebench_web.catalog.models import Competition, Split
from runs.core import comparability, statistics
from runs.core.comparability import Difference, Hardware
from runs.core.states import Outcome, RunState
from runs.core.statistics import Graded, IncompleteSeeds, Summary
from runs.models import Attempt, Experiment, GradingReport, Run, RunGroup

# Fewer complete seeds are listed, not ranked. The demo is a pipeline check: one is enough.
SEEDS_TO_RANK = 3
SEEDS_TO_RANK_DEMO = 1
# Splits of which the All tab shows a column each.
PARTS = ("low", "medium", "high")
ALL = "split75"
PUBLISHED_FILE = Path(__file__).resolve().parent / "data" / "published_leaderboard.csv"
PUBLISHED_SOURCE = "openai/mle-bench README at 783b15a (2026-02-26)"
OVER = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)


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


class MixedSplit(Exception):
    """A split of demo competitions and others: their results are never added up."""


# ---------------------------------------------------------------------------- rows


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
        ranked += published(split.name)
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


# ---------------------------------------------------------------------------- reading


@dataclass
class Counted:
    """A run, the attempt whose report counts, and what came before it."""

    run: Run
    attempts: list[Attempt]
    attempt: Attempt | None = None
    report: GradingReport | None = None

    @property
    def competition(self) -> str:
        return self.run.competition.name

    @property
    def graded(self) -> Graded | None:
        if self.report is None:
            return None
        return Graded(
            submission_exists=self.report.submission_exists,
            valid_submission=self.report.valid_submission,
            above_median=self.report.above_median,
            gold=self.report.gold_medal,
            silver=self.report.silver_medal,
            bronze=self.report.bronze_medal,
        )

    @property
    def seconds(self) -> float | None:
        """Active agent time; None for an attempt that ran elsewhere."""
        if self.attempt is None or self.report is None or not self.attempt.has_time:
            return None
        return self.attempt.active_seconds

    @property
    def hardware(self) -> Hardware | None:
        """What it was measured to have; None where nothing was."""
        if self.attempt is None or not self.attempt.hardware:
            return None
        return hardware_of(self.attempt.hardware)

    @property
    def was_run_again(self) -> bool:
        """After the agent's own failure, or after a cancel that followed its start."""
        return any(attempt.is_agents_own_end for attempt in self.attempts[:-1]) or any(
            attempt.reported.get("run_again") for attempt in self.attempts
        )


def hardware_of(measured: Mapping[str, Any]) -> Hardware:
    gpus = measured.get("gpus")
    return Hardware(
        cpus=measured.get("cpus"),
        memory_bytes=measured.get("memory_bytes"),
        gpu_names=None if gpus is None else tuple(sorted(str(gpu["name"]) for gpu in gpus)),
    )


def load(
    split: Split,
    *,
    first_outcomes: bool,
    instead: Mapping[int, GradingReport | None],
) -> dict[Experiment, list[Counted]]:
    """Runs of the split by experiment, in run-group order then seed. Costs three queries."""
    runs = (
        Run.objects.filter(competition__splits=split)
        .select_related("competition", "group__experiment__agent", "group__agent")
        .order_by("seed")
    )
    attempts: dict[int, list[Attempt]] = {}
    for attempt in (
        Attempt.objects.filter(run__competition__splits=split)
        .only(
            "run_id",
            "number",
            "outcome",
            "agent_started_at",
            "active_seconds",
            "hardware",
            "overrides",
            "image_id",
            "resumed_from_id",
            "host_id",
            "reported",
        )
        .order_by("run_id", "number")
    ):
        attempts.setdefault(attempt.run_id, []).append(attempt)
    reports: dict[int, GradingReport | None] = {
        report.attempt_id: report
        for report in GradingReport.objects.filter(
            is_current=True, attempt__run__competition__splits=split
        )
    }
    reports |= instead
    found: dict[Experiment, list[Counted]] = {}
    for run in sorted(runs, key=upstreams_order):
        counted = Counted(run=run, attempts=attempts.get(run.pk, []))
        counted.attempt = chosen(counted, first_outcomes=first_outcomes)
        counted.report = reports.get(counted.attempt.pk) if counted.attempt else None
        found.setdefault(run.group.experiment, []).append(counted)
    return found


def upstreams_order(run: Run) -> tuple[str, str, str, int]:
    """Upstream sorts run groups as strings of Python: databases know other orders."""
    group = run.group
    return group.experiment.name, group.upstream_name, run.competition.name, run.seed


def chosen(counted: Counted, *, first_outcomes: bool) -> Attempt | None:
    """The attempt that counts: the newest graded or failed one, or the agent's first own end."""
    if first_outcomes:
        for attempt in counted.attempts:
            if attempt.outcome == Outcome.GRADED or attempt.is_agents_own_end:
                return attempt
        return None
    wanted = counted.run.counted_id
    return next((attempt for attempt in counted.attempts if attempt.pk == wanted), None)


def names_for(runs: list[Counted], competitions: list[Competition], *, is_demo: bool) -> list[str]:
    """The competitions that a row is computed over: the whole split, whoever ran less.

    Not so for the demo, which measures nothing: there it is what the experiment was asked to run,
    since some of the split must be downloaded first. The row says when that is less than all.
    """
    ran = {one.competition for one in runs}
    return [one.name for one in competitions if not is_demo or one.name in ran]


# ---------------------------------------------------------------------------- one row


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


def median_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


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


def hardware_in_words(measured: list[Hardware | None]) -> str:
    """The most frequent first, joined when they differ; empty where nothing was measured."""
    counted = Counter(str(one) for one in measured if one)
    return " / ".join(words for words, _ in counted.most_common() if words)


def partial(names: int, of: int) -> tuple[Flag, ...]:
    if names == of:
        return ()
    text = f"Computed over the {names} of {of} competitions that it was asked to run."
    return (Flag(f"{names} of {of} competitions", text),)


def flags_of(
    runs: list[Counted],
    groups: list[RunGroup],
    hardware: list[Hardware | None],
    *,
    is_padded: bool,
) -> tuple[Flag, ...]:
    found = []
    if mixed := what_is_mixed(runs, groups):
        found.append(Flag("mixed", f"Different {', '.join(mixed)} within this experiment."))
    if len({one for one in hardware if one}) > 1:
        found.append(Flag("mixed hardware", "Runs had different hardware."))
    if is_padded:
        found.append(Flag("padded", "Missing reports count as no submission."))
    counts = (
        ("cut short", "graded although the infrastructure failed", cut_short(runs)),
        (
            "re-run",
            "run again after the agent's own failure or a cancel",
            sum(one.was_run_again for one in runs),
        ),
        ("resumed", "resumed from a checkpoint", sum(is_resumed(one) for one in runs)),
    )
    for name, words, count in counts:
        if count:
            found.append(Flag(name, f"{count} of {len(runs)} runs: {words}."))
    if why := {group.why_unsandboxed for group in groups} - {""}:
        reasons = "; ".join(sorted(why))
        found.append(Flag("unsandboxed", f"Agents could reach their host: {reasons}."))
    if any(group.is_imported for group in groups):
        found.append(imported(runs, groups))
    return tuple(found)


def imported(runs: list[Counted], groups: list[RunGroup]) -> Flag:
    own = [group for group in groups if group.is_imported]
    what = "Graded elsewhere" if len(own) == len(groups) else f"{len(own)} of {len(groups)} groups"
    sources = sorted({group.imported_from for group in own})
    words = [f"{what}: imported from {', '.join(sources[:3])}{' ...' if sources[3:] else ''}."]
    theirs = [one for one in runs if one.run.group.is_imported and one.report]
    if any(one.hardware is None for one in theirs):
        words.append("Hardware was not reported.")
    if any(one.seconds is None for one in theirs):
        words.append("Time was not reported.")
    return Flag("imported", " ".join(words))


def cut_short(runs: list[Counted]) -> int:
    return sum(one.run.is_cut_short for one in runs)


def is_resumed(one: Counted) -> bool:
    return one.attempt is not None and one.attempt.was_resumed


def limit_of(one: Counted) -> timedelta | None:
    """What a re-run was given in place of its group's limit, else that."""
    if one.attempt and one.attempt.asked.time_limit_s:
        return timedelta(seconds=one.attempt.asked.time_limit_s)
    return one.run.group.time_limit


def step_timeout_of(one: Counted) -> timedelta | None:
    if one.attempt and one.attempt.asked.step_timeout_s:
        return timedelta(seconds=one.attempt.asked.step_timeout_s)
    return one.run.group.step_timeout


def what_is_mixed(runs: list[Counted], groups: list[RunGroup]) -> list[str]:
    """What should be one thing within an experiment and is not."""
    images = {one.attempt.image_id for one in runs if one.attempt and one.attempt.image_id}
    compared: dict[str, set[Any]] = {
        "agent arguments": {repr(sorted(group.agent_kwargs.items())) for group in groups},
        "container config": {
            repr(sorted(group.container_settings.items())) + group.runtime for group in groups
        },
        "time limit": {limit_of(one) for one in runs} | {group.time_limit for group in groups},
        "step timeout": {step_timeout_of(one) for one in runs}
        | {group.step_timeout for group in groups},
        "image": images,
    }
    return [name for name, values in compared.items() if len(values) > 1]


# ---------------------------------------------------------------------------- time per dataset


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


# ---------------------------------------------------------------------------- published rows


def published(split_name: str) -> list[Row]:
    """The rows of upstream's README for this split: published, not re-run, never ranked."""
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
            metrics={"any_medal_percentage": published_summary(fact, prefix)},
            parts={part: published_summary(fact, part) for part in PARTS}
            if prefix == "all"
            else {},
            is_published=True,
            is_padded=fact["padded"] == "1",
            hardware=published_hardware(fact),
            hours=float(fact["hours"]),
            flags=published_flags(fact),
            url=fact["url"],
            source=PUBLISHED_SOURCE,
            date=fact["date"],
        )
        for fact in published_facts()
    ]


@cache
def published_facts() -> tuple[dict[str, str], ...]:
    with PUBLISHED_FILE.open(newline="") as file:
        return tuple(csv.DictReader(file))


def published_summary(fact: Mapping[str, str], prefix: str) -> Summary:
    """Mean and SEM as printed, to two places; the interval follows from them."""
    mean, error = float(fact[f"{prefix}_mean"]), float(fact[f"{prefix}_sem"])
    return Summary(mean, error, mean - 1.96 * error, mean + 1.96 * error)


def published_hardware(fact: Mapping[str, str]) -> str:
    """As its authors stated it; empty where they did not."""
    if not fact["gpus"]:
        return ""
    return f"{fact['gpus']}, {fact['cpus']} CPUs, {fact['memory_gb']} GB"


def published_flags(fact: Mapping[str, str]) -> tuple[Flag, ...]:
    found = [Flag("published", f"From the {PUBLISHED_SOURCE}; not re-run here.")]
    if fact["known_leakage"]:
        issue = re.sub(r".*/", "#", fact["known_leakage"])
        found.append(Flag("known leakage", f"See mle-bench {issue}: {fact['known_leakage']}"))
    if fact["padded"] == "1":
        found.append(Flag("padded", "Missing reports were counted as no submission."))
    return tuple(found)
