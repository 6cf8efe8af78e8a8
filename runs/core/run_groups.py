"""A run group in upstream's layout, as it was found -> the runs that it becomes. Pure.

Upstream's files tie a report's row to a run by the row's submission path alone; a row without a
submission goes to a run of its competition that no other row names, in metadata.json's order.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

from runs.core.harness_file import SEALED, Harness, HarnessRun
from runs.core.reports import ImportRefused, Metadata, Report, ReportRow, stamp_in
from runs.core.states import Outcome

NEVER = datetime(1, 1, 1, tzinfo=UTC)
# Of what was skipped, lines that are kept.
MOST_SHOWN = 50


@dataclass(frozen=True)
class FoundGroup:
    """A run group's folder, or one bare report. `run_folders` are names in their order."""

    name: str
    reports: tuple[Report, ...]
    metadata: Metadata | None = None
    harness: Harness | None = None
    run_folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    what: str
    why: str

    def as_json(self) -> dict[str, str]:
        return {"what": self.what, "why": self.why}


@dataclass(frozen=True)
class Grading:
    """One row of one report."""

    row: ReportRow
    report: str


@dataclass
class PlannedRun:
    """What becomes a run. `gradings` are the oldest first, and the last one counts."""

    competition: str
    seed: int
    # Upstream's: the folder's name; empty where the source names none.
    run_id: str = ""
    gradings: list[Grading] = field(default_factory=list)
    # metadata.json's word: ended without an error of the harness.
    success: bool | None = None
    facts: HarnessRun = field(default_factory=HarnessRun)

    @property
    def outcome(self) -> Outcome:
        """A report's row is a grading, whatever else went wrong; else the harness's word."""
        said = self.facts.outcome
        if self.gradings:
            return said if said == Outcome.AGENT_FAILED else Outcome.GRADED
        return said or Outcome.INFRASTRUCTURE_FAILED

    @property
    def current(self) -> Grading | None:
        return self.gradings[-1] if self.gradings else None


@dataclass(frozen=True)
class GroupPlan:
    """What a run group becomes."""

    name: str
    digest: str
    runs: tuple[PlannedRun, ...]
    made_at: datetime | None
    harness: Harness | None
    warnings: tuple[str, ...]
    skipped: tuple[Skipped, ...]

    @property
    def competitions(self) -> set[str]:
        return {run.competition for run in self.runs}

    @property
    def gradings(self) -> int:
        return sum(len(run.gradings) for run in self.runs)

    @property
    def seeds(self) -> int:
        return max((run.seed for run in self.runs), default=0) + 1


def plan_group(found: FoundGroup) -> GroupPlan:
    """Raises ImportRefused when the group has no report, or reports that contradict each other."""
    if not found.reports:
        raise ImportRefused("it has no grading report: run `mlebench grade` on it first.")
    warnings = [text for report in found.reports for text in report.warnings]
    if found.harness:
        warnings += found.harness.warnings
    runs = runs_of_reports(found, warnings)
    name_runs(runs, found, warnings)
    without = runs_without_report(runs, found)
    add_facts(runs, found)
    skipped: list[Skipped] = []
    if not take_seeds(runs, without):
        number_seeds(runs)
        skipped += [
            Skipped(run.run_id, "it has no seed of its own and no report.") for run in without
        ]
        without = []
    known = {run.run_id for run in (*runs, *without)}
    left = [run_id for run_id in named_runs(found) if run_id not in known]
    skipped += [Skipped(run_id, "no row of a grading report is about it.") for run_id in left]
    return GroupPlan(
        name=found.name,
        digest=digest_of(found.reports),
        runs=tuple(sorted([*runs, *without], key=lambda run: (run.competition, run.seed))),
        made_at=made_at(found),
        harness=found.harness,
        warnings=tuple(warnings),
        skipped=tuple(skipped),
    )


def digest_of(reports: Sequence[Report]) -> str:
    """Identity of what is imported: the same however it is packed. One report: that file's own."""
    digests = sorted(report.digest for report in reports)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def made_at(found: FoundGroup) -> datetime | None:
    """When it was run: its name says its start, metadata.json its end, a report comes after."""
    if started := stamp_in(found.name):
        return started
    if found.metadata and found.metadata.created_at:
        return found.metadata.created_at
    return min((at for one in found.reports if (at := one.made_at)), default=None)


# ---------------------------------------------------------------------------- rows to runs


def identity(row: ReportRow) -> str:
    """What the row graded, whatever folder the grader stood in; empty where nothing was graded."""
    if not row.has_path:
        return ""
    parts = path_parts(row.submission_path)
    at = next((n for n, part in enumerate(parts) if is_run_id(part, row.competition_id)), 0)
    return "/".join(parts[at:])


def path_parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path.replace("\\", "/")).parts


def is_run_id(text: str, competition: str) -> bool:
    """Upstream cuts a run id at its first _ to get the competition."""
    return text.partition("_")[0] == competition and "_" in text


def run_id_of(row: ReportRow) -> str:
    found = (
        part for part in path_parts(row.submission_path) if is_run_id(part, row.competition_id)
    )
    return next(found, "") if row.has_path else ""


def counts_of(rows: Iterable[ReportRow]) -> Counter[tuple[str, str]]:
    """How often each thing was graded; what has no path counts for its competition."""
    return Counter((row.competition_id, identity(row)) for row in rows)


def batches(reports: Iterable[Report]) -> list[list[Report]]:
    """Reports of the same submissions together, in the order of their names.

    Rows without a path say nothing about whose they are: reports of such rows alone stay apart.
    """
    found: dict[object, list[Report]] = {}
    for report in sorted(reports, key=lambda each: each.name):
        counts = counts_of(report.rows)
        key = frozenset(counts.items()) if has_paths(counts) else report.name
        found.setdefault(key, []).append(report)
    return list(found.values())


def runs_of_reports(found: FoundGroup, warnings: list[str]) -> list[PlannedRun]:
    """A run for each row of the first report, in upstream's order; of further reports, those of
    the same submissions are later gradings, those of others are more runs."""
    apart = batches(found.reports)
    refuse_contradictions([batch[0] for batch in apart])
    runs: list[PlannedRun] = []
    for batch in apart:
        runs += runs_of_batch(batch, warnings)
    return runs


def refuse_contradictions(apart: Sequence[Report]) -> None:
    """Of reports that are not of the same submissions, all must be of others."""
    graded_by: dict[tuple[str, str], Report] = {}
    for report in apart:
        counts = counts_of(report.rows)
        if len(apart) > 1 and not has_paths(counts):
            other = next(each for each in apart if each is not report)
            raise ImportRefused(contradiction(report, other))
        for thing in counts:
            if thing[1] and graded_by.setdefault(thing, report) is not report:
                raise ImportRefused(contradiction(graded_by[thing], report))


def has_paths(counts: Counter[tuple[str, str]]) -> bool:
    return any(path for _, path in counts)


def contradiction(one: Report, other: Report) -> str:
    return (
        f"it has two grading reports, {one.name} and {other.name}, and it cannot be told whether "
        "they are about the same runs. Keep the one that counts (mle-bench takes one only)."
    )


def runs_of_batch(batch: Sequence[Report], warnings: list[str]) -> list[PlannedRun]:
    """Reports of the same submissions: the newest one counts, the others are its history."""
    by_age = sorted(batch, key=lambda each: (each.made_at or NEVER, each.name))
    if len(by_age) > 1:
        older = ", ".join(report.name for report in by_age[:-1])
        warnings.append(
            f"{by_age[-1].name} grades the submissions of {older} again: the newest one counts."
        )
    runs = [PlannedRun(row.competition_id, 0) for row in by_age[-1].rows]
    for report in by_age:
        # The rows of one thing, in the order of each report.
        places: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, row in enumerate(by_age[-1].rows):
            places[row.competition_id, identity(row)].append(number)
        for row in report.rows:
            place = places[row.competition_id, identity(row)].pop(0)
            runs[place].gradings.append(Grading(row, report.name))
    return runs


def named_runs(found: FoundGroup) -> list[str]:
    """Run ids in upstream's order: metadata.json's, then folders that it does not list."""
    listed = list(found.metadata.runs) if found.metadata else []
    more = [name for name in found.run_folders if name not in set(listed)]
    return [*listed, *more]


def name_runs(runs: Sequence[PlannedRun], found: FoundGroup, warnings: list[str]) -> None:
    """Give each run its folder."""
    taken: set[str] = set()
    for run in runs:
        row = run.gradings[-1].row
        name = run_id_of(row)
        if not name:
            continue
        if name in taken:
            warnings.append(
                f"{run.gradings[-1].report} has {name} twice: both rows count, as in mle-bench."
            )
            continue
        run.run_id = name
        taken.add(name)
    free: dict[str, list[str]] = defaultdict(list)
    for name in named_runs(found):
        if name not in taken:
            free[name.partition("_")[0]].append(name)
    for run in runs:
        if not run.run_id and not run.gradings[-1].row.has_path and free[run.competition]:
            run.run_id = free[run.competition].pop(0)


def runs_without_report(runs: Sequence[PlannedRun], found: FoundGroup) -> list[PlannedRun]:
    """Runs that our own harness sealed without a grading: they broke or were cancelled."""
    if not found.harness:
        return []
    known = {run.run_id for run in runs}
    return [
        PlannedRun(run_id.partition("_")[0], 0, run_id=run_id, facts=facts)
        for run_id, facts in found.harness.runs.items()
        if run_id not in known
        and facts.outcome in SEALED
        and facts.outcome not in (Outcome.GRADED, Outcome.AGENT_FAILED)
    ]


def add_facts(runs: Iterable[PlannedRun], found: FoundGroup) -> None:
    said: Mapping[str, HarnessRun] = found.harness.runs if found.harness else {}
    for run in runs:
        run.facts = said.get(run.run_id, run.facts)
        if found.metadata:
            run.success = found.metadata.runs.get(run.run_id)


# ---------------------------------------------------------------------------- seeds


def number_seeds(runs: Iterable[PlannedRun]) -> None:
    """As upstream pairs them: the n-th row of a competition is its n-th seed."""
    seen: Counter[str] = Counter()
    for run in runs:
        run.seed = seen[run.competition]
        seen[run.competition] += 1


def take_seeds(runs: Sequence[PlannedRun], without: Sequence[PlannedRun]) -> bool:
    """Use the harness's own numbers, where each run has one and they keep the reports' order."""
    everyone = [*runs, *without]
    numbers = [(run.competition, run.facts.seed) for run in everyone]
    if any(seed is None for _, seed in numbers) or len(set(numbers)) < len(numbers):
        return False
    last: dict[str, int] = {}
    for run in runs:
        seed = run.facts.seed or 0
        if seed <= last.get(run.competition, -1):
            return False
        last[run.competition] = seed
    for run in everyone:
        run.seed = run.facts.seed or 0
    return True
