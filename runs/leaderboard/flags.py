"""What a reader must know about a row."""

from datetime import timedelta
from typing import Any

from runs.core.comparability import Hardware
from runs.leaderboard.counting import Counted
from runs.leaderboard.row import Flag
from runs.models import RunGroup


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
