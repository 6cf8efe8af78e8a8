"""How a run is shown: a letter or sign, a colour class, and always the word."""

from dataclasses import dataclass

from runs.core.states import Outcome, Result, RunState
from runs.models import Run


@dataclass(frozen=True)
class Mark:
    """`css` of a grid cell, `fill` of a bar, `status` of a line of text."""

    name: str
    letter: str
    word: str
    css: str
    fill: str
    status: str


RESULTS = {
    Result.GOLD: Mark("gold", "G", "gold", "G", "f-gold", "ok"),
    Result.SILVER: Mark("silver", "S", "silver", "S", "f-silver", "ok"),
    Result.BRONZE: Mark("bronze", "B", "bronze", "B", "f-bronze", "ok"),
    Result.ABOVE_MEDIAN: Mark("above_median", "▴", "above median", "a", "f-a", "ok"),
    Result.VALID: Mark("valid", "·", "valid, below median", "b", "f-b", "ok"),
    Result.INVALID: Mark("invalid", "\u00d7", "invalid submission", "x", "f-bad", "warn"),
    Result.NO_SUBMISSION: Mark("no_submission", "∅", "no submission", "x", "f-bad", "warn"),
}
AGENT_FAILED = Mark("agent_failed", "A", "agent failed", "F", "f-bad", "bad")
INFRASTRUCTURE_FAILED = Mark(
    "infrastructure_failed", "!", "infrastructure failed", "f", "f-bad", "bad"
)
CANCELLED = Mark("cancelled", "\u2013", "cancelled", "k", "f-k", "idle")
STARTING = Mark("starting", "▹", "starting", "r", "f-run", "run")
RUNNING = Mark("running", "▸", "running", "r", "f-run", "run")
GRADING = Mark("grading", "≈", "grading", "r", "f-run", "run")
LOST_CONTACT = Mark("lost_contact", "?", "lost contact", "l", "f-warn", "warn")
QUEUED = Mark("queued", "", "queued", "q", "f-q", "idle")

# In the order of legend and bar.
ALL = (
    *RESULTS.values(),
    AGENT_FAILED,
    INFRASTRUCTURE_FAILED,
    CANCELLED,
    LOST_CONTACT,
    GRADING,
    RUNNING,
    STARTING,
    QUEUED,
)
BY_STATE = {
    RunState.QUEUED: QUEUED,
    RunState.STARTING: STARTING,
    RunState.RUNNING: RUNNING,
    RunState.GRADING: GRADING,
    RunState.CANCELLED: CANCELLED,
}
# Words of a whole group's state.
GROUP_STATUS = {
    RunState.QUEUED: ("idle", "Queued"),
    RunState.RUNNING: ("run", "Running"),
    RunState.FINISHED: ("ok", "Finished"),
    RunState.FAILED: ("bad", "Ended, some failed"),
    RunState.CANCELLED: ("idle", "Ended, some cancelled"),
}


def mark_of(run: Run, *, outcome: str = "", is_lost: bool = False) -> Mark:
    """`outcome`: of the newest attempt; `is_lost`: its lease has expired."""
    state = RunState(run.state)
    if is_lost:
        return LOST_CONTACT
    if state == RunState.FINISHED:
        return RESULTS[Result(run.result or Result.NO_SUBMISSION)]
    if state == RunState.FAILED:
        return AGENT_FAILED if outcome == Outcome.AGENT_FAILED else INFRASTRUCTURE_FAILED
    return BY_STATE[state]
