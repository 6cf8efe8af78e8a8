"""The verdict (DESIGN: rules 0 to 4, in that order) and the moves of an attempt."""

import itertools

import pytest

from runs.core.failures import EXPLAINED, Cause
from runs.core.states import (
    MOVES,
    AttemptEnd,
    IllegalMove,
    Outcome,
    RunState,
    State,
    Verdict,
    check_move,
    run_state,
    verdict,
)


@pytest.mark.parametrize(
    ("end", "tries_left", "expected"),
    [
        pytest.param(
            AttemptEnd(ended_by_itself=True, exit_code=0, has_submission=True),
            2,
            Verdict(Outcome.GRADED),
            id="a clean end",
        ),
        pytest.param(
            AttemptEnd(
                ended_by_itself=True, exit_code=3, has_submission=True, cause=Cause.AGENT_CRASHED
            ),
            2,
            Verdict(Outcome.GRADED, Cause.AGENT_CRASHED),
            id="a submission counts whatever the exit code",
        ),
        pytest.param(
            AttemptEnd(cause=Cause.TIME_LIMIT, has_submission=True),
            2,
            Verdict(Outcome.GRADED, Cause.TIME_LIMIT),
            id="a submission counts at a time limit",
        ),
        pytest.param(
            AttemptEnd(cause=Cause.TIME_LIMIT),
            2,
            Verdict(Outcome.AGENT_FAILED, Cause.TIME_LIMIT),
            id="a limit without a submission is the agent's failure",
        ),
        pytest.param(
            AttemptEnd(ended_by_itself=True, exit_code=0),
            2,
            Verdict(Outcome.GRADED, Cause.NO_SUBMISSION),
            id="no submission after a clean end is a null score",
        ),
        pytest.param(
            AttemptEnd(
                ended_by_itself=True, exit_code=0, memory_killed=True, cause=Cause.OUT_OF_MEMORY
            ),
            2,
            Verdict(Outcome.AGENT_FAILED, Cause.OUT_OF_MEMORY),
            id="a memory kill that the start script hid",
        ),
        pytest.param(
            AttemptEnd(ended_by_itself=True, exit_code=3, cause=Cause.AGENT_CRASHED),
            2,
            Verdict(Outcome.AGENT_FAILED, Cause.AGENT_CRASHED),
            id="a crash",
        ),
        pytest.param(
            AttemptEnd(ended_by_itself=True, exit_code=None),
            2,
            Verdict(Outcome.AGENT_FAILED, Cause.AGENT_CRASHED),
            id="no process left and no exit code",
        ),
        pytest.param(
            AttemptEnd(cause=Cause.CONTAINER_KILLED, has_submission=True),
            2,
            Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.CONTAINER_KILLED),
            id="an early submission never turns a broken host into a score",
        ),
        pytest.param(
            AttemptEnd(cause=Cause.CONTAINER_KILLED, has_submission=True),
            0,
            Verdict(Outcome.GRADED, Cause.CONTAINER_KILLED, cut_short=True),
            id="with no try left it is graded and marked cut short",
        ),
        pytest.param(
            AttemptEnd(cause=Cause.CONTAINER_KILLED),
            0,
            Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.CONTAINER_KILLED),
            id="with no try left and nothing to grade it stays failed",
        ),
        pytest.param(
            AttemptEnd(
                cause=Cause.CONTAINER_REMOVED,
                ended_by_itself=True,
                exit_code=0,
                has_submission=True,
            ),
            2,
            Verdict(Outcome.GRADED, Cause.CONTAINER_REMOVED),
            id="an agent that had ended before the container went",
        ),
        pytest.param(
            AttemptEnd(cancelled=True, cause=Cause.HOST_LOST, has_submission=True),
            2,
            Verdict(Outcome.CANCELLED, Cause.CANCELLED),
            id="a cancel beats every other cause, also with a submission",
        ),
        pytest.param(
            AttemptEnd(goes_on_from_checkpoint=True, cause=Cause.STEP_TIMEOUT, has_submission=True),
            2,
            Verdict(Outcome.CONTINUED, Cause.STEP_TIMEOUT),
            id="going on from a checkpoint",
        ),
    ],
)
def test_the_verdict(end: AttemptEnd, tries_left: int, expected: Verdict) -> None:
    assert verdict(end, tries_left=tries_left) == expected


def test_an_attempt_only_moves_forward() -> None:
    order = list(State)

    for old, new in itertools.product(State, State):
        if new in MOVES[old]:
            assert order.index(new) > order.index(old)
        else:
            with pytest.raises(IllegalMove):
                check_move(old, new)


def test_every_state_can_end() -> None:
    for state in State:
        if state != State.ENDED:
            assert State.ENDED in MOVES[state]


def test_a_run_shows_what_its_newest_attempt_is() -> None:
    assert run_state(State.COLLECTING, None) == RunState.RUNNING
    assert run_state(State.ENDED, Outcome.GRADED) == RunState.FINISHED
    assert run_state(State.ENDED, Outcome.AGENT_FAILED) == RunState.FAILED
    assert run_state(State.ENDED, Outcome.INFRASTRUCTURE_FAILED) == RunState.FAILED
    assert run_state(State.ENDED, Outcome.CANCELLED) == RunState.CANCELLED
    with pytest.raises(IllegalMove):
        run_state(State.ENDED, None)


def test_every_cause_has_a_sentence() -> None:
    assert set(EXPLAINED) == set(Cause)
