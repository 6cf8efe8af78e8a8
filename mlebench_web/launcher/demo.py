"""`./run demo`: the main job without a hand on the mouse, shown in the terminal.

Two run groups, `dummy` and `baseline`, with three seeds each on the competitions whose data
ships; their results as a table. Runs beside a started product, against its database.
"""

import statistics as plain
import sys
import time
from collections import Counter
from collections.abc import Sequence

from django.conf import settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from mlebench_web.catalog import importer
from mlebench_web.catalog.models import Competition
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import queue, submit
from runs.core import statistics
from runs.core.states import Result, RunState
from runs.models import Run, RunGroup
from runs.request import RequestInvalid, RunGroupRequest

AGENTS = ("dummy", "baseline")
SEEDS = 3
# Far more than either agent needs; a hung one must not hold up the answer for a day.
TIME_LIMIT_S = 600
LOOK_EVERY = 0.5
# Longer than a host takes from its start to the first word about itself.
HOST_MAY_TAKE = 60.0
# With --exit somebody waits for the answer, and no answer is one too.
ANSWER_WITHIN = 30 * 60
OVER = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)
MEDALS = (Result.GOLD, Result.SILVER, Result.BRONZE)


def main(*, ends: bool) -> int:
    """0 only when every run was graded. `ends`: nothing is started that must be downloaded."""
    # A file or a pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if not wait_for_host():
        console.print(f"✗ The worker of {settings.HOST_NAME} does not come online.")
        return 1
    try:
        groups = [start(agent, shipped(), seeds=SEEDS) for agent in AGENTS]
    except RequestInvalid as refused:
        console.print(f"✗ The demo cannot be started: {refused}")
        return 1
    introduce(console, groups)
    in_time = watch(console, groups, within=ANSWER_WITHIN if ends else None)
    runs = of(groups)
    console.print(leaderboard(groups))
    console.print(table_of_runs(runs))
    # With --exit only the caller knows whether anything goes on serving.
    if not ends:
        console.print(f"In the browser: {settings.PUBLIC_URL}/leaderboard/", soft_wrap=True)
    missed = [run for run in runs if not is_graded(run)]
    for run in missed:
        console.print(
            f"✗ {run.group.experiment.name} on {run}: {what_happened(run)}", soft_wrap=True
        )
    if not in_time:
        console.print(f"✗ Not over after {ANSWER_WITHIN // 60} minutes.")
    if not ends:
        start_downloads(console)
    return 1 if missed else 0


def shipped() -> list[str]:
    """Competitions of the demo split whose data lies in the repository."""
    found = Competition.objects.filter(splits__name="demo", ships_data=True)
    return list(found.values_list("name", flat=True))


def wait_for_host() -> bool:
    """Whether this host's worker and host service report within a minute."""
    end = time.monotonic() + HOST_MAY_TAKE
    while time.monotonic() < end:
        host = Host.objects.filter(name=settings.HOST_NAME).first()
        if host and host.service_seen_at and host.is_online(hosts.now()):
            return True
        time.sleep(LOOK_EVERY)
    return False


def start(agent: str, competitions: Sequence[str], *, seeds: int) -> RunGroup:
    """One run group. A second demo adds its seeds to the same experiment."""
    return submit.create_run_group(
        RunGroupRequest(
            agent=importer.builtin_name(agent),
            competitions=tuple(competitions),
            seeds=seeds,
            experiment=f"demo {agent}",
            time_limit_s=TIME_LIMIT_S,
        ),
        by=None,
    )


def introduce(console: Console, groups: Sequence[RunGroup]) -> None:
    for group in groups:
        count = group.runs.count()
        console.print(
            f"[bold]{group.experiment.name}[/]: {count} runs, {settings.PUBLIC_URL}"
            f"{group.get_absolute_url()}",
            soft_wrap=True,
        )
        if group.config_note:
            console.print(f"  {group.config_note}", soft_wrap=True)
    earlier = RunGroup.objects.filter(experiment__in=[group.experiment for group in groups])
    if earlier.count() > len(groups):
        console.print("  These seeds are added to those of earlier demos on this data folder.")


def of(groups: Sequence[RunGroup]) -> list[Run]:
    found = Run.objects.filter(group__in=groups).select_related(
        "group__experiment", "competition", "counted"
    )
    return list(found.order_by("group_id", "competition__name", "seed"))


# ---------------------------------------------------------------------------- progress


def watch(console: Console, groups: Sequence[RunGroup], *, within: float | None) -> bool:
    """Show how the runs move until all are over; False when that took too long."""
    end = time.monotonic() + within if within is not None else None
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bars = {
            group.pk: progress.add_task(group.experiment.name, total=group.runs.count(), words="")
            for group in groups
        }
        said: dict[int, str] = {}
        while True:
            runs = of(groups)
            show(progress, bars, runs)
            if not console.is_terminal:
                say_changes(console, runs, said)
            if all(run.state in OVER for run in runs):
                return True
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(LOOK_EVERY)


def show(progress: Progress, bars: dict[int, TaskID], runs: Sequence[Run]) -> None:
    for pk, bar in bars.items():
        mine = [run for run in runs if run.group_id == pk]
        counts = Counter(run.state for run in mine if run.state not in OVER)
        words = ", ".join(f"{count} {state}" for state, count in counts.items())
        if set(counts) == {RunState.QUEUED}:
            words = f"{words}: {queue.why_waiting(mine[-1].newest_attempt())}"
        done = sum(run.state in OVER for run in mine)
        progress.update(bar, completed=done, words=words)


def say_changes(console: Console, runs: Sequence[Run], said: dict[int, str]) -> None:
    """For logs and pipes: one line whenever a run changes."""
    for run in runs:
        words = what_happened(run) if run.state in OVER else str(run.state)
        if said.get(run.pk) != words:
            said[run.pk] = words
            console.print(f"{run.group.experiment.name} on {run}: {words}", soft_wrap=True)


def is_graded(run: Run) -> bool:
    return run.state == RunState.FINISHED and bool(run.result)


def what_happened(run: Run) -> str:
    """A few words: the score, or why there is none."""
    if is_graded(run):
        score = "no score" if run.score is None else f"{run.score:.5g}"
        return f"{run.result.replace('_', ' ')}, {score}"
    attempt = run.newest_attempt()
    if run.state == RunState.QUEUED:
        return f"queued: {queue.why_waiting(attempt)}"
    return f"{run.state}: {attempt.cause_sentence} {attempt.cause_detail}".strip()


# ---------------------------------------------------------------------------- tables


def leaderboard(groups: Sequence[RunGroup]) -> Table:
    """A row an experiment, over all its seeds on the competitions that ship."""
    table = Table(title="Leaderboard: the demo competitions that ship", title_justify="left")
    for column in ("experiment", "any medal", "medals", "seeds", "median time", "hardware"):
        table.add_column(column, overflow="fold")
    rows = [row(group) for group in groups]
    for _, cells in sorted(rows, key=lambda found: -found[0]):
        table.add_row(*cells)
    return table


def row(group: RunGroup) -> tuple[float, tuple[str, ...]]:
    """The mean, to sort by, and the cells."""
    found = Run.objects.filter(
        group__experiment=group.experiment, competition__name__in=shipped(), counted__isnull=False
    ).select_related("counted", "competition")
    runs = list(found.order_by("group__created_at", "seed"))
    reports: dict[str, list[statistics.Graded]] = {}
    for run in runs:
        reports.setdefault(run.competition.name, []).append(graded(run))
    try:
        seeds = statistics.complete_seeds(reports, shipped())
    except statistics.IncompleteSeeds:
        return -1, (group.experiment.name, "no complete seed", "", "0", "", "")
    any_medal = statistics.summaries(seeds)["any_medal_percentage"]
    medals = Counter(run.result for run in runs if run.result in MEDALS)
    seconds = [run.counted.active_seconds for run in runs if run.counted]
    cells = (
        group.experiment.name,
        f"{any_medal.mean:.1f} ± {any_medal.standard_error:.1f} %",
        ", ".join(f"{medals[medal]} {medal}" for medal in MEDALS if medals[medal]) or "none",
        str(len(seeds)),
        f"{plain.median(seconds):.1f} s",
        " / ".join(sorted({hardware(run) for run in runs})),
    )
    return any_medal.mean, cells


def graded(run: Run) -> statistics.Graded:
    return statistics.Graded(
        submission_exists=run.result != Result.NO_SUBMISSION,
        valid_submission=run.result not in (Result.NO_SUBMISSION, Result.INVALID),
        above_median=run.result in (*MEDALS, Result.ABOVE_MEDIAN),
        gold=run.result == Result.GOLD,
        silver=run.result == Result.SILVER,
        bronze=run.result == Result.BRONZE,
    )


def table_of_runs(runs: Sequence[Run]) -> Table:
    table = Table(title="Runs", title_justify="left")
    for column in ("experiment", "competition", "seed", "score", "result", "time", "hardware"):
        table.add_column(column, overflow="fold")
    for run in runs:
        attempt = run.counted
        table.add_row(
            run.group.experiment.name,
            run.competition.name,
            str(run.seed),
            "" if run.score is None else f"{run.score:.5g}",
            run.result.replace("_", " ") or str(run.state),
            f"{attempt.active_seconds:.1f} s" if attempt else "",
            hardware(run),
        )
    return table


def hardware(run: Run) -> str:
    """What the attempt that counts had, as its host measured it."""
    had = run.counted.hardware if run.counted else {}
    if not had:
        return "not reported"
    memory = had.get("memory_bytes")
    cpus = had.get("cpus")
    words = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}" if cpus else "CPUs not limited"]
    if memory:
        words.append(f"{memory / 2**30:.0f} GiB")
    gpus = Counter(gpu["name"] for gpu in had.get("gpus", []))
    words += [f"{count} x {name}" for name, count in gpus.items()] or ["no GPU"]
    if had.get("sandboxed") is False:
        words.append("unsandboxed")
    return ", ".join(words)


# ---------------------------------------------------------------------------- what follows


def start_downloads(console: Console) -> None:
    """Groups on the competitions that must be downloaded; they hold up nobody."""
    others = Competition.objects.filter(splits__name="demo", ships_data=False)
    names = list(others.values_list("name", flat=True))
    if not names:
        return
    for agent in AGENTS:
        try:
            group = start(agent, names, seeds=SEEDS)
        except RequestInvalid as refused:
            console.print(f"! {agent} on {', '.join(names)} is not started: {refused}")
            continue
        console.print(
            f"{agent} goes on with {', '.join(names)}, once downloaded: {settings.PUBLIC_URL}"
            f"{group.get_absolute_url()}",
            soft_wrap=True,
        )
