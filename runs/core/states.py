"""States of an attempt, how it may move, and how it is sealed. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from runs.core.failures import Cause, is_infrastructure


class State(StrEnum):
    """Moves forward only; a re-run or a resume is a new attempt."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    COLLECTING = "collecting"
    GRADING = "grading"
    ENDED = "ended"


class Outcome(StrEnum):
    """How an ended attempt was sealed: exactly one, written once."""

    GRADED = "graded"
    AGENT_FAILED = "agent_failed"
    INFRASTRUCTURE_FAILED = "infrastructure_failed"
    CANCELLED = "cancelled"
    CONTINUED = "continued"


class RunState(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    GRADING = "grading"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Result(StrEnum):
    """What a finished run achieved, from its grading report."""

    GOLD = "gold"
    SILVER = "silver"
    BRONZE = "bronze"
    ABOVE_MEDIAN = "above_median"
    VALID = "valid"
    INVALID = "invalid"
    NO_SUBMISSION = "no_submission"


# docs/states.md has the same table with the side effect of each move and who may ask for it.
MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.ENDED}),
    State.STARTING: frozenset({State.RUNNING, State.COLLECTING, State.ENDED}),
    State.RUNNING: frozenset({State.COLLECTING, State.ENDED}),
    State.COLLECTING: frozenset({State.GRADING, State.ENDED}),
    State.GRADING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}

# States in which an attempt holds its host's CPUs, memory and GPUs.
HOLDING = frozenset({State.STARTING, State.RUNNING, State.COLLECTING})
# States in which a supervisor must be at work.
SUPERVISED = frozenset({State.STARTING, State.RUNNING, State.COLLECTING, State.GRADING})


class IllegalMove(Exception):
    """The rules forbid this move: wrong code, not a lost race."""


def check_move(old: State, new: State) -> None:
    if new not in MOVES[old]:
        raise IllegalMove(f"An attempt does not move from {old} to {new}.")


def run_state(state: State, outcome: Outcome | None) -> RunState:
    """State of a run from its newest attempt."""
    if state != State.ENDED:
        # A reader need not know the difference between running and being collected.
        return RunState.RUNNING if state == State.COLLECTING else RunState(state)
    match outcome:
        case Outcome.GRADED:
            return RunState.FINISHED
        case Outcome.AGENT_FAILED | Outcome.INFRASTRUCTURE_FAILED:
            return RunState.FAILED
        case Outcome.CANCELLED:
            return RunState.CANCELLED
        case Outcome.CONTINUED:
            # The next attempt is queued in the same transaction and becomes the newest.
            return RunState.QUEUED
    raise IllegalMove("An ended attempt has an outcome.")


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, as its supervisor saw it and saved it."""

    cause: Cause | None = None
    # The agent had ended before anything else went wrong (agent.rc is there).
    ended_by_itself: bool = False
    exit_code: int | None = None
    memory_killed: bool = False
    # A submission file was left, or a valid snapshot counts in its place.
    has_submission: bool = False
    cancelled: bool = False
    goes_on_from_checkpoint: bool = False


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    cause: Cause | None = None
    # Graded although the infrastructure failed and no try was left.
    cut_short: bool = False


def verdict(end: AttemptEnd, *, tries_left: int) -> Verdict:
    """Seal an attempt. The order matters: an early submission must not turn a broken host into a
    score, and the exit code says little, since AIDE's start script ends with 0 after a failure.

    `tries_left` counts the infrastructure tries that remain after this one.
    """
    if end.cancelled:
        return Verdict(Outcome.CANCELLED, Cause.CANCELLED)
    if end.goes_on_from_checkpoint:
        return Verdict(Outcome.CONTINUED, end.cause)
    if end.cause and is_infrastructure(end.cause) and not end.ended_by_itself:
        if not tries_left and end.has_submission:
            return Verdict(Outcome.GRADED, end.cause, cut_short=True)
        return Verdict(Outcome.INFRASTRUCTURE_FAILED, end.cause)
    if end.has_submission:
        return Verdict(Outcome.GRADED, end.cause)
    if end.ended_by_itself and end.exit_code == 0 and not end.memory_killed:
        return Verdict(Outcome.GRADED, Cause.NO_SUBMISSION)
    return Verdict(Outcome.AGENT_FAILED, end.cause or Cause.AGENT_CRASHED)
