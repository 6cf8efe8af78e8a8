"""All that the run group page shows, from a fixed number of queries whatever its size."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.db.models import Avg, QuerySet
from django.utils.safestring import SafeString

from mlebench_web.catalog.models import Competition, Split
from mlebench_web.fleet.models import Gpu, Host
from runs import contact, leaderboard
from runs.charts import Part, stacked_bar
from runs.core.failures import AGENTS_OWN, EXPLAINED, Cause
from runs.core.group_state import group_state
from runs.core.states import Outcome, Result, RunState, State
from runs.models import Attempt, Run, RunGroup
from runs.views import marks
from runs.views.marks import Mark, mark_of

ORDERS = {"split": "By split", "failed": "Failed first", "slowest": "Slowest"}
MEDALS = (Result.GOLD, Result.SILVER, Result.BRONZE)
# Columns of the grid on a wide screen, and rows of one before a split goes on in the next.
COLUMNS, COLUMN_ROWS = 4, 24
# Splits that a benchmark of all competitions is read by.
COMPLEXITY = ("low", "medium", "high")
OVER = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)


@dataclass(frozen=True)
class Cell:
    run: Run
    mark: Mark
    # When its lease expired, where that says that contact is lost.
    lost_since: datetime | None = None

    @property
    def can_rerun(self) -> bool:
        failed = (marks.AGENT_FAILED, marks.INFRASTRUCTURE_FAILED, marks.CANCELLED)
        return self.mark in failed or self.run.is_cut_short


@dataclass(frozen=True)
class Row:
    competition: Competition
    cells: Sequence[Cell]
    # Median of the agents' active time; None while no run of it has ended.
    seconds: float | None


@dataclass(frozen=True)
class Section:
    title: str
    rows: Sequence[Row]
    # How many competitions it has in all; None where it goes on from the column before.
    count: int | None


@dataclass(frozen=True)
class FailedCause:
    """Runs that failed for one cause."""

    cause: str
    sentence: str
    advice: str
    is_agents_own: bool
    runs: Sequence[Run]
    hosts: Sequence[str]
    # Of the newest one, in the engine's or the product's own words.
    example: str
    newest: datetime | None

    @property
    def competitions(self) -> list[str]:
        return sorted({run.competition.name for run in self.runs})

    @property
    def dialog_id(self) -> str:
        return f"rerun-{self.cause or 'none'}"

    @property
    def alone(self) -> "list[FailedCause]":
        return [self]


@dataclass(frozen=True)
class HostInUse:
    host: Host
    at_work: int
    all: int
    hardware: str
    utilisation: float | None


@dataclass
class Figures:
    total: int = 0
    over: int = 0
    with_report: int = 0
    medals: int = 0
    valid: int = 0
    above_median: int = 0
    at_work: int = 0
    failed: int = 0
    infrastructure_failed: int = 0
    attempts: int = 0
    agent_seconds: float = 0
    # None: what an import does not say.
    gpu_hours: float | None = 0
    median_seconds: float | None = None
    wall: timedelta | None = None

    def of_reports(self, count: int) -> float | None:
        """Percent of the runs that have a report; None before the first."""
        return 100 * count / self.with_report if self.with_report else None

    @property
    def medal_percent(self) -> float | None:
        return self.of_reports(self.medals)

    @property
    def valid_percent(self) -> float | None:
        return self.of_reports(self.valid)

    @property
    def above_median_percent(self) -> float | None:
        return self.of_reports(self.above_median)

    @property
    def over_percent(self) -> float:
        return 100 * self.over / self.total if self.total else 0


@dataclass(frozen=True)
class Picture:
    state: RunState
    sections: Sequence[Section]
    legend: Sequence[tuple[Mark, int]]
    bar: SafeString
    figures: Figures
    causes: Sequence[FailedCause]
    hosts: Sequence[HostInUse]

    @property
    def lost(self) -> "list[Cell]":
        """Runs without contact, the longest first."""
        found = [
            cell
            for section in self.sections
            for row in section.rows
            for cell in row.cells
            if cell.lost_since
        ]
        return sorted(found, key=lambda cell: cell.lost_since.timestamp() if cell.lost_since else 0)

    @property
    def can_pick(self) -> int:
        """Runs that can be run again: failed, cancelled, cut short."""
        return sum(
            cell.can_rerun
            for section in self.sections
            for row in section.rows
            for cell in row.cells
        )

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def has_column_each(self) -> bool:
        """Whether each section can begin a column of its own."""
        return 1 < len(self.sections) <= COLUMNS

    @property
    def status(self) -> tuple[str, str]:
        return marks.GROUP_STATUS[self.state]

    @property
    def hosts_at_work(self) -> int:
        return sum(each.at_work > 0 for each in self.hosts)

    @property
    def needs_reason(self) -> bool:
        return any(cause.is_agents_own for cause in self.causes)

    @property
    def can_cancel(self) -> int:
        counts = dict(self.legend)
        return sum(
            counts.get(mark, 0)
            for mark in (marks.QUEUED, marks.STARTING, marks.RUNNING, marks.LOST_CONTACT)
        )


def attempts_of(runs: "QuerySet[Run]") -> "QuerySet[Attempt]":
    """Their attempts, oldest first, without the long texts that no list shows."""
    return (
        Attempt.objects.filter(run__in=runs)
        .select_related("host")
        .defer("artifacts", "left_out", "last_lines", "timings", "usage")
        .order_by("run", "number")
    )


def picture_of(group: RunGroup, *, order: str = "split", now: datetime) -> Picture:
    """Costs seven queries."""
    runs = list(group.runs.select_related("competition").order_by("competition__name", "seed"))
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in attempts_of(group.runs.all()):
        attempts[attempt.run_id].append(attempt)
    newest = {run_id: tries[-1] for run_id, tries in attempts.items()}
    looked = contact.as_of(now)
    run_marks = {
        run.pk: mark_of(
            run,
            outcome=newest[run.pk].outcome if run.pk in newest else "",
            is_lost=run.pk in newest and newest[run.pk].has_lost_contact(looked),
        )
        for run in runs
    }
    counted = Counter(run_marks.values())
    legend = [(mark, counted[mark]) for mark in marks.ALL if counted[mark]]
    figures = _figures(group, runs, newest, attempts, now)
    states = Counter(RunState(run.state) for run in runs)
    return Picture(
        state=group_state(states),
        sections=_sections(group, runs, run_marks, newest, order),
        legend=legend,
        bar=stacked_bar(
            [Part(mark.fill, count, mark.word) for mark, count in legend],
            label=f"{figures.over} of {figures.total} runs have ended",
        ),
        figures=figures,
        causes=_causes(runs, newest),
        hosts=_hosts(attempts),
    )


def _figures(
    group: RunGroup,
    runs: Sequence[Run],
    newest: dict[int, Attempt],
    attempts: dict[int, list[Attempt]],
    now: datetime,
) -> Figures:
    figures = Figures(total=len(runs))
    seconds = []
    for run in runs:
        figures.over += run.state in OVER
        figures.at_work += run.state in (RunState.STARTING, RunState.RUNNING, RunState.GRADING)
        if run.state == RunState.FAILED:
            figures.failed += 1
            last = newest.get(run.pk)
            if last is None or last.outcome == Outcome.INFRASTRUCTURE_FAILED:
                figures.infrastructure_failed += 1
        if run.counted_id:
            figures.with_report += 1
            figures.medals += run.result in MEDALS
            figures.valid += run.result not in (Result.INVALID, Result.NO_SUBMISSION, "")
            figures.above_median += run.result in (*MEDALS, Result.ABOVE_MEDIAN)
        for attempt in attempts.get(run.pk, ()):
            figures.attempts += 1
            figures.agent_seconds += attempt.own_seconds
            gpus = len(attempt.hardware.get("gpus") or ())
            if group.is_imported and not attempt.hardware:
                figures.gpu_hours = None
            if figures.gpu_hours is not None:
                figures.gpu_hours += gpus * attempt.own_seconds / 3600
            if attempt.pk == run.counted_id and attempt.active_seconds:
                seconds.append(attempt.active_seconds)
    figures.median_seconds = median(seconds) if seconds else None
    ends = [attempt.ended_at for attempt in newest.values() if attempt.ended_at]
    if figures.over == figures.total and ends:
        figures.wall = max(ends) - group.created_at
    elif not group.is_imported:
        figures.wall = now - group.created_at
    return figures


def _sections(
    group: RunGroup,
    runs: Sequence[Run],
    run_marks: dict[int, Mark],
    newest: dict[int, Attempt],
    order: str,
) -> list[Section]:
    by_competition: dict[Competition, list[Run]] = defaultdict(list)
    for run in runs:
        by_competition[run.competition].append(run)
    rows = []
    for competition, its_runs in by_competition.items():
        taken = [
            newest[run.pk].active_seconds
            for run in its_runs
            if run.pk in newest and newest[run.pk].active_seconds
        ]
        rows.append(
            Row(
                competition,
                [
                    Cell(
                        run,
                        run_marks[run.pk],
                        newest[run.pk].lease_until
                        if run_marks[run.pk] == marks.LOST_CONTACT
                        else None,
                    )
                    for run in its_runs
                ],
                median(taken) if taken else None,
            )
        )
    if order == "failed":
        rows.sort(key=lambda row: -sum(cell.mark.status == "bad" for cell in row.cells))
        return [Section(ORDERS[order], rows, len(rows))]
    if order == "slowest":
        rows.sort(key=lambda row: -(row.seconds or 0))
        return [Section(ORDERS[order], rows, len(rows))]
    return _by_split(group, rows)


def _by_split(group: RunGroup, rows: Sequence[Row]) -> list[Section]:
    """Low, medium and high where they say something; else the one split."""
    where = dict(
        Split.objects.filter(name__in=COMPLEXITY, competitions__runs__group=group)
        .distinct()
        .values_list("name", "title")
    )
    membership: dict[int, str] = dict(
        Split.competitions.through.objects.filter(split__name__in=list(where)).values_list(
            "competition_id", "split__name"
        )
    )
    rest = group.split.title if group.split and not where else "Others" if where else "Picked"
    sections = []
    for name, title in sorted(where.items(), key=lambda item: COMPLEXITY.index(item[0])):
        sections += _columns(
            title, [row for row in rows if membership.get(row.competition.pk) == name]
        )
    if others := [row for row in rows if row.competition.pk not in membership]:
        sections += _columns(rest, others)
    return sections


def _columns(title: str, rows: Sequence[Row]) -> list[Section]:
    """A split that is too long for one column, as equal parts."""
    parts = -(-len(rows) // COLUMN_ROWS) or 1
    size = -(-len(rows) // parts)
    return [
        Section(title, rows[at : at + size], None if at else len(rows))
        for at in range(0, len(rows), size)
    ]


def _causes(runs: Iterable[Run], newest: dict[int, Attempt]) -> list[FailedCause]:
    failed: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.state == RunState.FAILED and run.pk in newest:
            failed[newest[run.pk].cause].append(run)
    found = []
    for cause, its_runs in failed.items():
        tries = sorted(
            (newest[run.pk] for run in its_runs), key=lambda each: each.ended_at or each.queued_at
        )
        sentence, advice = EXPLAINED[Cause(cause)] if cause else ("No cause was recorded.", "")
        found.append(
            FailedCause(
                cause=cause,
                sentence=sentence,
                advice=advice,
                is_agents_own=any(each.outcome == Outcome.AGENT_FAILED for each in tries)
                or cause in AGENTS_OWN,
                runs=its_runs,
                hosts=sorted({each.host.name for each in tries if each.host}),
                example=tries[-1].cause_detail.strip().splitlines()[0][:200]
                if tries[-1].cause_detail.strip()
                else "",
                newest=tries[-1].ended_at,
            )
        )
    return sorted(found, key=lambda each: -len(each.runs))


def _hosts(attempts: dict[int, list[Attempt]]) -> list[HostInUse]:
    by_host: dict[Host, list[Attempt]] = defaultdict(list)
    for tries in attempts.values():
        for attempt in tries:
            if attempt.host:
                by_host[attempt.host].append(attempt)
    loads: dict[int, float | None] = dict(
        Gpu.objects.filter(host__in=list(by_host), is_present=True)
        .values_list("host")
        .annotate(Avg("utilisation"))
        .order_by()
    )
    return [
        HostInUse(
            host,
            at_work=sum(each.state not in (State.QUEUED, State.ENDED) for each in tries),
            all=len(tries),
            hardware=hardware_words(tries[-1].hardware),
            utilisation=loads.get(host.pk),
        )
        for host, tries in sorted(by_host.items(), key=lambda item: item[0].name)
    ]


def hardware_words(hardware: dict[str, Any]) -> str:
    """`1 x NVIDIA A10, 36 CPUs, 440 GiB` of Attempt.hardware; empty when nothing is known."""
    return str(leaderboard.hardware_of(hardware)) if hardware else ""
