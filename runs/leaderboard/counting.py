"""Which attempt of each run counts, and what it says: three queries for a split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlebench_web.catalog.models import Competition, Split
from runs.core.comparability import Hardware
from runs.core.states import Outcome
from runs.core.statistics import Graded
from runs.models import Attempt, Experiment, GradingReport, Run


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
