"""Grade again what has ended: what people ask, and what came of it. Page, API and shell.

runs/regrade_jobs.py does the work. States and crash points: docs/states.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.catalog import official_data
from mlebench_web.catalog.models import Split
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host, PreparedData
from runs import leaderboard
from runs.layout import SUBMISSION
from runs.leaderboard import MixedSplit, Row
from runs.models import Attempt, GradingReport, Regrade, RegradeJob, Run, RunGroup
from runs.models.regrades import OVER, target_of
from runs.request import FieldError, RequestInvalid

# Of one press: what a transaction and a person can still answer for.
AT_MOST = 5000


class NothingToGrade(Exception):
    """Not one of the runs can be graded again; says why."""


@dataclass(frozen=True)
class Skipped:
    run: Run
    why: str


@dataclass(frozen=True)
class Asked:
    """What one press made. Of runs that are being graded again already, the earlier re-grade."""

    regrade: Regrade
    jobs: list[RegradeJob]
    skipped: list[Skipped]


# ---------------------------------------------------------------------------- asking


def why_not(run: Run) -> str:
    """Why this run cannot be graded again; "" when it can."""
    if run.state not in OVER:
        return "It has not ended."
    attempt = target_of(run)
    if attempt is None:
        return "It has no result that could be graded again."
    report = attempt.reports.filter(is_current=True).first()
    if report and report.submission_exists and not left_a_file(attempt):
        return "Only its report was imported: there is no submission to grade."
    return ""


def left_a_file(attempt: Attempt) -> bool:
    """Whether a submission was kept, or refused, when the attempt was collected."""
    names = {str(each.get("path")) for each in [*attempt.artifacts, *attempt.left_out]}
    return SUBMISSION in names or attempt.graded_snapshot_id is not None


def chosen(group: RunGroup, which: str | list[int]) -> list[Run]:
    """The runs that `which` means: "all", or ids of runs of the group. Raises RequestInvalid."""
    runs = group.runs.select_related("competition", "group").order_by("competition__name", "seed")
    if which == "all":
        return list(runs)
    if isinstance(which, str):
        raise RequestInvalid([FieldError("which", f"{which!r} is no choice of runs.", ["all"])])
    found = list(runs.filter(pk__in=which))
    if unknown := sorted(set(which) - {run.pk for run in found}):
        names = ", ".join(map(str, unknown[:20]))
        raise RequestInvalid([FieldError("which", f"The run group has no run {names}.")])
    return found


def ask(runs: Iterable[Run], *, by: User | None, reason: str = "") -> Asked:
    """Have each of these runs graded again; what cannot be is left alone and named.

    Safe to press twice: a run that waits for it or is at it gets no second job. Raises
    NothingToGrade, and RequestInvalid where the reason or the number of runs is too long.
    """
    reason = reason.strip()
    keys = sorted({run.pk for run in runs})
    if len(keys) > AT_MOST:
        raise RequestInvalid([FieldError("which", f"At most {AT_MOST} runs at once.")])
    if len(reason) > 500:
        raise RequestInvalid([FieldError("reason", "Write at most 500 characters.")])
    with transaction.atomic():
        # The lock keeps two presses from making two jobs; on SQLite the transaction does.
        locked = list(
            Run.objects.select_for_update(of=("self",))
            .filter(pk__in=keys)
            .select_related("competition", "group", "counted")
            .order_by("pk")
        )
        open_jobs = {
            job.run_id: job
            for job in RegradeJob.objects.open().filter(run__in=locked).select_related("regrade")
        }
        skipped, wanted = [], []
        for run in locked:
            if run.pk in open_jobs:
                continue
            if why := why_not(run):
                skipped.append(Skipped(run, why))
            else:
                wanted.append(run)
        if not wanted and not open_jobs:
            raise NothingToGrade(refusal(skipped))
        if not wanted:
            earlier = min(open_jobs.values(), key=lambda job: job.pk)
            return Asked(earlier.regrade, [], skipped)
        regrade = Regrade.objects.create(by=by, by_name=audit.name_of(by), reason=reason)
        jobs = [
            RegradeJob.objects.create(regrade=regrade, run=run, attempt=target, before=before)
            for run in wanted
            if (target := target_of(run))
            for before in [target.reports.filter(is_current=True).first()]
        ]
        audit.record(
            by, "grade again", regrade, reason=reason, detail={"runs": [run.pk for run in wanted]}
        )
    return Asked(regrade, jobs, skipped)


def refusal(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return "There is no run to grade again."
    if len(skipped) == 1:
        return skipped[0].why
    return f"None of the {len(skipped)} runs can be graded again. The first: {skipped[0].why}"


# ---------------------------------------------------------------------------- what came of it


@dataclass(frozen=True)
class Change:
    """One job, before and after."""

    job: RegradeJob
    before: GradingReport | None
    after: GradingReport | None

    @property
    def has_changed(self) -> bool:
        """Whether a reader of the leaderboard or the run sees another number or medal."""
        if self.after is None:
            return False
        if self.before is None:
            return True
        return (self.before.score, self.before.result) != (self.after.score, self.after.result)

    @property
    def has_other_medal(self) -> bool:
        was = self.before.result if self.before else None
        return self.after is not None and was != self.after.result


def changes(regrade: Regrade) -> list[Change]:
    """In the order of competitions and seeds. Costs one query."""
    jobs = regrade.jobs.select_related(
        "run__competition", "run__group__experiment", "attempt", "before", "after", "host", "made"
    ).order_by("run__competition__name", "run__seed", "pk")
    return [Change(job, job.before, job.after) for job in jobs]


def history_of(run: Run) -> list[GradingReport]:
    """Every report of the run, newest first: of each attempt, and each re-grade. One query."""
    return list(
        GradingReport.objects.filter(attempt__run=run)
        .select_related("attempt")
        .order_by("-created_at", "-pk")
    )


def moved_by(regrade: Regrade) -> list[dict[str, Any]]:
    """Rows of the leaderboard that the re-grade changed, all else equal.

    Computed by taking the reports before in place of those after, so that what other runs did
    meanwhile is no part of it.
    """
    done = list(
        regrade.jobs.filter(state=RegradeJob.State.DONE).select_related("before", "run__group")
    )
    if not done:
        return []
    before = {job.made_id or job.attempt_id: job.before for job in done}
    found = []
    splits = Split.objects.filter(competitions__runs__in=[job.run_id for job in done]).distinct()
    for split in splits.order_by("position", "name"):
        try:
            was = {row.experiment_id: row for row in leaderboard.rows(split, instead=before)}
            now = {row.experiment_id: row for row in leaderboard.rows(split)}
        except MixedSplit:
            continue
        for key, row in now.items():
            old = was.get(key)
            if old and (seen(old), old.rank) != (seen(row), row.rank):
                found.append(
                    {
                        "split": split.name,
                        "split_title": split.title,
                        "experiment": row.name,
                        "experiment_id": key,
                        "rank": [old.rank, row.rank],
                        "any_medal": [mean_of(old), mean_of(row)],
                    }
                )
    return found


def seen(row: Row) -> list[float]:
    return [summary.mean for summary in row.metrics.values()]


def mean_of(row: Row) -> float | None:
    return row.any_medal.mean if row.any_medal else None


def why_waiting(job: RegradeJob) -> str:
    """Why nobody has taken it, in a sentence; "" when a host will within seconds."""
    competition = job.run.competition
    at = hosts.now()
    online = [host for host in Host.objects.all() if host.is_online(at)]
    ready = set(
        PreparedData.objects.filter(
            competition=competition, state=PreparedData.State.READY, host__in=online
        ).values_list("host", flat=True)
    )
    able = [host for host in online if host.pk in ready]
    if not online:
        return "No worker host is online."
    if not able:
        return f"No online host has the answers of {competition.name}."
    if official_data.is_official(competition) and all(host.mlebench_error for host in able):
        return f"{able[0].name}: {able[0].mlebench_error}"
    return ""
