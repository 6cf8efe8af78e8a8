"""Results that were made elsewhere -> run groups of experiments, ready for the leaderboard.

`plan` says what would be made and changes nothing; `carry_out` makes all of it or nothing. What is
known already is left alone, so that importing twice changes nothing.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.catalog.models import Agent, Competition, ContainerConfig, Split
from runs import import_files
from runs.core.archives import shown
from runs.core.reports import ImportRefused, Report, is_text, read_report
from runs.core.run_groups import (
    MOST_SHOWN,
    FoundGroup,
    Grading,
    GroupPlan,
    PlannedRun,
    Skipped,
    plan_group,
)
from runs.import_files import Staged, Staging
from runs.import_source import GroupFolder, Source, seconds_in_log
from runs.models import (
    Experiment,
    GradingReport,
    Run,
    RunGroup,
    SealedRun,
    seal_imported,
)

__all__ = ["Done", "ImportRefused", "Plan", "carry_out", "import_reports", "plan"]

LONGEST_NAME = 200
# Ids of runs whose source names none, or one that is taken: the same at each import.
RUNS = uuid.UUID("6f1ce5a2-55ba-4c0e-93b4-5a3d2d0a8f31")


@dataclass(frozen=True)
class PlannedGroup:
    """A run group that would be made, or that is known already."""

    experiment: str
    group: GroupPlan
    source: GroupFolder
    # Kept as the name that it stands under among the others; empty: in the order of the import.
    source_name: str
    # The file's name, where groups of one import come from several files.
    file: str = ""
    known: str = ""

    def as_json(self) -> dict[str, Any]:
        group = self.group
        return {
            "experiment": self.experiment,
            "name": group.name,
            "known": self.known,
            "runs": len(group.runs),
            "competitions": len(group.competitions),
            "seeds": group.seeds,
            "reports": len(self.source.found.reports),
            "gradings": group.gradings,
            "has_files": self.source.folder is not None,
            "made_at": group.made_at.isoformat() if group.made_at else None,
            "warnings": list(group.warnings)[:MOST_SHOWN],
            "skipped": [each.as_json() for each in group.skipped[:MOST_SHOWN]],
            "skipped_count": len(group.skipped),
        }


@dataclass(frozen=True)
class Plan:
    """What an import would make. `skipped` are whole run groups and files."""

    groups: tuple[PlannedGroup, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def new(self) -> list[PlannedGroup]:
        return [each for each in self.groups if not each.known]

    def as_json(self) -> dict[str, Any]:
        return {
            "run_groups": len(self.new),
            "runs": sum(len(each.group.runs) for each in self.new),
            "reports": sum(len(each.source.found.reports) for each in self.new),
            "known": len(self.groups) - len(self.new),
            "groups": [each.as_json() for each in self.groups[: 10 * MOST_SHOWN]],
            "skipped": [each.as_json() for each in self.skipped[: 10 * MOST_SHOWN]],
            "skipped_count": len(self.skipped),
            "warnings": list(self.warnings)[: 10 * MOST_SHOWN],
        }


@dataclass(frozen=True)
class Done:
    """What an import made."""

    plan: Plan
    groups: tuple[RunGroup, ...]

    def as_json(self) -> dict[str, Any]:
        ids = {(row.experiment.name, row.import_digest): row.pk for row in self.groups}
        answer = self.plan.as_json()
        for each, planned in zip(answer["groups"], self.plan.groups, strict=False):
            each["id"] = ids.get((planned.experiment, planned.group.digest))
        return answer


# ---------------------------------------------------------------------------- planning


def plan(source: Source, *, experiment: str = "") -> Plan:
    """What importing this folder would make.

    The experiment of a run group is the one that was asked for; else what
    run_group_experiments.csv says (a group may be in several); else what harness.json says; else
    the group's own name. Raises ImportRefused when there is nothing at all to import.
    """
    asked = check_experiment(experiment) if experiment else ""
    skipped = list(source.skipped)
    planned: list[PlannedGroup] = []
    for folder in source.groups:
        name = shown(folder.found.name)
        try:
            names = experiments_of(folder.found, source.experiments, asked=asked)
            group = plan_group(folder.found)
            refuse_unknown(group.competitions)
        except ImportRefused as error:
            skipped.append(Skipped(name, str(error)))
            continue
        planned += [
            PlannedGroup(each, group, folder, source_name=folder.found.name) for each in names
        ]
    warnings = missing_groups(source)
    if not planned:
        raise ImportRefused(nothing_found(skipped))
    return Plan(tuple(with_known(planned)), tuple(skipped), tuple(warnings))


def nothing_found(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return (
            "There is nothing to import: no folder with a metadata.json, and no file whose name "
            "matches *grading_report*.json."
        )
    told = " ".join(f"{each.what}: {each.why}" for each in skipped[:5])
    more = f" And {len(skipped) - 5} more." if len(skipped) > 5 else ""
    return f"Nothing of it can be imported. {told}{more}"


def check_experiment(name: str) -> str:
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or not is_text(name) or not name.isprintable():
        raise ImportRefused(
            f"An experiment has a name of 1 to {LONGEST_NAME} characters, on one line."
        )
    return name


def experiments_of(
    found: FoundGroup, pairs: Sequence[tuple[str, str]] | None, *, asked: str
) -> list[str]:
    if asked:
        return [asked]
    if pairs is not None:
        names = [experiment for experiment, group in pairs if group == found.name]
        if not names:
            raise ImportRefused(
                "run_group_experiments.csv gives it no experiment: name one, or add it there."
            )
    else:
        names = [(found.harness.experiment if found.harness else "") or found.name]
    return [check_experiment(name) for name in names]


def missing_groups(source: Source) -> list[str]:
    there = {each.found.name for each in source.groups} | {each.what for each in source.skipped}
    absent = [
        f"{shown(group)} of experiment {shown(experiment)} is in run_group_experiments.csv, but "
        "there is no such folder."
        for experiment, group in source.experiments or ()
        if group not in there
    ]
    return absent


def refuse_unknown(names: set[str]) -> None:
    known = set(Competition.objects.filter(name__in=names).values_list("name", flat=True))
    if unknown := sorted(names - known):
        listed = ", ".join(shown(name) for name in unknown[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ImportRefused(
            f"Unknown competitions: {listed}{more}. Add the checkout of mle-bench that has them."
        )


def with_known(planned: Sequence[PlannedGroup]) -> list[PlannedGroup]:
    """Mark what is here already, and what the import itself would bring twice."""
    seen: set[tuple[str, str]] = set()
    found = []
    for each in planned:
        known = why_known(each)
        key = (each.experiment, each.group.digest)
        if not known and key in seen:
            known = "The import itself has it twice: another group has the same reports."
        seen.add(key)
        found.append(replace(each, known=known))
    return found


def why_known(planned: PlannedGroup) -> str:
    """A sentence when its results are here; empty when they are not. Costs two queries."""
    groups = RunGroup.objects.filter(
        experiment__name=planned.experiment, import_digest=planned.group.digest
    )
    if row := groups.first():
        return f"It is here already, as run group {row.pk}."
    ids = [found for run in planned.group.runs if (found := uuid_of(run))]
    for start in range(0, len(ids), 500):
        some = Run.objects.filter(uuid__in=ids[start : start + 500]).select_related("group")
        for run in some:
            if not run.group.is_imported:
                return f"Its runs were run here, in run group {run.group_id}."
            if run.group.experiment.name == planned.experiment:
                return f"Its runs are here already, in run group {run.group_id}."
    return ""


def uuid_of(run: PlannedRun) -> uuid.UUID | None:
    text = run.run_id.partition("_")[2]
    try:
        found = uuid.UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None


# ---------------------------------------------------------------------------- making


def carry_out(
    plan: Plan, *, source: str, by: User | None, tick: Callable[[], None] = lambda: None
) -> Done:
    """Make what is new, all of it or nothing. `source` is the name that pages show.

    `tick` is called often while files are copied; what it raises ends the import. Raises
    ImportRefused; OSError when the disk does not take the files.
    """
    if not plan.new:
        return Done(plan, ())
    has_files = any(each.source.folder for each in plan.new)
    with import_files.staging() if has_files else nullcontext() as staging:
        ready = [Ready(each, ids) for each, ids in zip(plan.new, ids_of(plan.new), strict=True)]
        for each in ready:
            stage(each, staging, tick)
        try:
            made = make_all(ready, source=source, by=by)
        except IntegrityError as error:
            raise ImportRefused(
                "Somebody else imported some of it at the same time: nothing was imported. "
                "Try again."
            ) from error
    for row, _ in made:
        import_files.finish(row)
    return Done(plan, tuple(row for row, _ in made))


@dataclass
class Ready:
    """A run group on its way in: the ids of its runs, and its files, where it has some."""

    planned: PlannedGroup
    ids: list[uuid.UUID]
    files: Staged | None = None


def stage(ready: Ready, staging: Staging | None, tick: Callable[[], None]) -> None:
    """Copy the group's files to where a rename brings them into place."""
    planned = ready.planned
    if staging is None or planned.source.folder is None:
        return
    ready.files = staging.group(planned.source.folder, planned.source.originals)
    for run, unique in zip(planned.group.runs, ready.ids, strict=True):
        if run.run_id:
            ready.files.add_run(run.run_id, f"{run.competition}_{unique}", tick)


def ids_of(wanted: Sequence[PlannedGroup]) -> list[list[uuid.UUID]]:
    """Ids of the runs of each group: the source's own, where no other run has them."""
    own = {one for each in wanted for run in each.group.runs if (one := uuid_of(run))}
    listed = sorted(own)
    taken: set[uuid.UUID] = set()
    for start in range(0, len(listed), 500):
        some = Run.objects.filter(uuid__in=listed[start : start + 500])
        taken |= set(some.values_list("uuid", flat=True))
    found = []
    for each in wanted:
        ids = []
        for number, run in enumerate(each.group.runs):
            one = uuid_of(run)
            if one is None or one in taken:
                one = uuid.uuid5(RUNS, f"{each.experiment}/{each.group.digest}/{number}")
            taken.add(one)
            ids.append(one)
        found.append(ids)
    return found


def make_all(
    wanted: Sequence[Ready], *, source: str, by: User | None
) -> list[tuple[RunGroup, Staged | None]]:
    """One transaction; folders that were moved into place are taken back when it fails."""
    made: list[tuple[RunGroup, Staged | None]] = []
    try:
        with transaction.atomic():
            experiments = lock_experiments({each.planned.experiment for each in wanted}, by=by)
            for each in wanted:
                if why_known(each.planned):
                    # Since the plan was made: it is somebody's.
                    continue
                experiment = experiments[each.planned.experiment]
                row = make_group(each, experiment, source=source, by=by)
                made.append((row, each.files))
                if each.files:
                    each.files.move_to(row.folder)
    except BaseException:
        for _, files in made:
            if files:
                files.take_back()
        raise
    return made


def lock_experiments(names: set[str], *, by: User | None) -> dict[str, Experiment]:
    """In one order, so that two imports do not wait for each other."""
    found = {}
    for name in sorted(names):
        Experiment.objects.get_or_create(name=name, defaults={"created_by": by})
        found[name] = Experiment.objects.select_for_update().get(name=name)
    return found


def make_group(ready: Ready, experiment: Experiment, *, source: str, by: User | None) -> RunGroup:
    planned = ready.planned
    group, harness = planned.group, planned.group.harness
    at = group.made_at or timezone.now()
    agent = Agent.objects.filter(name=harness.agent).first() if harness else None
    config = (
        ContainerConfig.objects.filter(name=harness.container_config).first() if harness else None
    )
    row = RunGroup.objects.create(
        experiment=experiment,
        agent=agent,
        agent_kwargs=agent.kwargs if agent else {},
        split=Split.objects.filter(name=harness.split).first() if harness else None,
        container_config=config,
        container_settings=harness.container_settings if harness else {},
        runtime=harness.runtime if harness else "",
        time_limit=span(harness.time_limit_seconds if harness else None),
        step_timeout=span(harness.step_timeout_seconds if harness else None),
        created_by=by,
        team=by.team if by else None,
        created_at=at,
        seeds=group.seeds,
        folder=folder_name(planned, experiment),
        source_name=planned.source_name,
        imported_from=shown(planned.file or source)[:300],
        import_digest=group.digest,
        reported={
            key: value
            for key, value in (
                ("agent", harness.agent if harness else ""),
                ("container_config", harness.container_config if harness else ""),
                ("split", harness.split if harness else ""),
            )
            if value
        },
    )
    if agent and experiment.agent_id is None and not other_agents(experiment, row):
        experiment.agent = agent
        experiment.save(update_fields=["agent"])
    by_name = Competition.objects.in_bulk(group.competitions, field_name="name")
    seal_imported(
        row,
        [
            sealed_run(run, unique, by_name[run.competition], ready.files, at)
            for run, unique in zip(group.runs, ready.ids, strict=True)
        ],
        by=by.get_username() if by else "import",
        at=at,
    )
    audit.record(
        by,
        "import",
        row,
        detail={"source": row.imported_from, "runs": len(group.runs), "digest": group.digest},
    )
    return row


def other_agents(experiment: Experiment, row: RunGroup) -> bool:
    """Whether groups of it say nothing about their agent: it may be another one."""
    return experiment.groups.exclude(pk=row.pk).exists()


def span(seconds: float | None) -> timedelta | None:
    return timedelta(seconds=seconds) if seconds else None


def folder_name(planned: PlannedGroup, experiment: Experiment) -> str:
    """Upstream's own name where it is free and a folder can have it."""
    digest = planned.group.digest[:12]
    name = planned.source_name
    if not name:
        # Groups stand in the order of these names: it keeps that of the arguments.
        position = experiment.groups.exclude(import_digest="").count()
        return f"imported_{experiment.pk:08d}_{position:06d}_{digest}"
    fits = len(name.encode()) <= LONGEST_NAME and name.isprintable() and not name.startswith(".")
    if fits and import_files.is_free(name) and not RunGroup.objects.filter(folder=name).exists():
        return name
    stem = "".join(each for each in name if each.isascii() and (each.isalnum() or each in "-_"))
    return f"{stem[:120]}~{experiment.pk}~{digest}"


def sealed_run(
    run: PlannedRun,
    unique: uuid.UUID,
    competition: Competition,
    files: Staged | None,
    at: datetime,
) -> SealedRun:
    facts = run.facts
    kept = files.kept(run.run_id) if files else None
    seconds = facts.active_seconds
    if seconds is None and files and kept:
        seconds = seconds_in_log(files.run_folder(run.run_id))
    said: dict[str, Any] = {
        "run_id": run.run_id,
        "success": run.success,
        "host": facts.host,
        "seconds": seconds,
        "wall_seconds": facts.wall_seconds,
        "resumed": facts.is_resumed,
        "run_again": facts.was_run_again,
    }
    return SealedRun(
        competition=competition,
        seed=run.seed,
        uuid=unique,
        outcome=run.outcome,
        cause=facts.cause,
        is_cut_short=facts.is_cut_short,
        reports=[report_of(grading, at) for grading in run.gradings],
        attempt={
            "exit_code": facts.exit_code,
            "hardware": facts.hardware,
            "image_id": facts.image_id,
            "active_seconds": seconds or 0,
            "has_submission": bool(run.current and run.current.row.submission_exists),
            "reported": {key: value for key, value in said.items() if value not in ("", None)},
            "artifacts": kept.artifacts if kept else [],
            "left_out": kept.left_out if kept else [],
        },
    )


def report_of(grading: Grading, at: datetime) -> GradingReport:
    row = grading.row
    return GradingReport(
        score=row.score,
        gold_threshold=row.gold_threshold,
        silver_threshold=row.silver_threshold,
        bronze_threshold=row.bronze_threshold,
        median_threshold=row.median_threshold,
        any_medal=row.any_medal,
        gold_medal=row.gold_medal,
        silver_medal=row.silver_medal,
        bronze_medal=row.bronze_medal,
        above_median=row.above_median,
        submission_exists=row.submission_exists,
        valid_submission=row.valid_submission,
        is_lower_better=row.is_lower_better,
        created_at=row.created_at or at,
        submission_path=row.submission_path,
        grader=f"imported: {shown(grading.report)}"[:100],
    )


# ---------------------------------------------------------------------------- bare reports


@dataclass(frozen=True)
class Imported:
    """What an import of bare reports did. `known` are those that this experiment had already."""

    experiment: Experiment
    groups: tuple[RunGroup, ...]
    runs: int
    known: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_reports(experiment: str, files: Iterable[tuple[str, bytes]]) -> Plan:
    """Grading reports, each a run group, in this order. Raises ImportRefused for any bad one."""
    name = check_experiment(experiment)
    reports = [read_report(data, path) for path, data in files]
    if not reports:
        raise ImportRefused("Name at least one grading report.")
    refuse_unknown_by_file(reports)
    refuse_regrades(reports)
    planned = []
    for report in reports:
        found = FoundGroup(name=Path(report.name).name, reports=(report,))
        planned.append(
            PlannedGroup(name, plan_group(found), GroupFolder(found, None), "", file=found.name)
        )
    warnings = tuple(text for report in reports for text in report.warnings)
    return Plan(tuple(with_known(planned)), warnings=warnings)


def import_reports(experiment: str, paths: Iterable[Path], *, by: User | None) -> Imported:
    """Import each file as a run group of the experiment, which is made when there is none.

    Importing a file again changes nothing. All or nothing: raises ImportRefused.
    """
    files = [(str(path), import_files.read_report_file(path)) for path in paths]
    found = plan_reports(experiment, files)
    made = carry_out(found, source="", by=by).groups
    return Imported(
        experiment=Experiment.objects.get(name=check_experiment(experiment)),
        groups=made,
        runs=Run.objects.filter(group__in=made).count() if made else 0,
        known=tuple(each.source.found.reports[0].name for each in found.groups if each.known),
        warnings=found.warnings,
    )


def refuse_unknown_by_file(reports: Iterable[Report]) -> None:
    names: Mapping[str, str] = {
        row.competition_id: report.name for report in reports for row in report.rows
    }
    known = set(Competition.objects.filter(name__in=names).values_list("name", flat=True))
    if unknown := sorted(set(names) - known):
        listed = ", ".join(f"{shown(name)} ({names[name]})" for name in unknown[:10])
        raise ImportRefused(f"Unknown competitions: {listed}. Nothing was imported.")


def refuse_regrades(reports: Sequence[Report]) -> None:
    """Two reports of the same submissions are one seed graded twice, not two seeds.

    They differ in nothing but the time of grading (and both name their submissions).
    """
    seen: dict[tuple[object, ...], Report] = {}
    for report in reports:
        if not any(row.has_path for row in report.rows):
            continue
        facts = tuple(replace(row, created_at=None) for row in report.rows)
        other = seen.setdefault(facts, report)
        if other is not report and other.digest != report.digest:
            raise ImportRefused(
                f"{other.name} and {report.name} report the same submissions, graded twice: as two "
                "seeds they would count double. Give one of them."
            )
