"""The state of a run group, computed from the states of its runs. Pure."""

from collections.abc import Mapping

from runs.core.states import RunState

AT_WORK = (RunState.STARTING, RunState.RUNNING, RunState.GRADING)


def group_state(counts: Mapping[RunState, int]) -> RunState:
    """`counts`: runs by state. While one is at work or has ended before others, it is running.

    Over, the state names what needs somebody: failed before cancelled before finished.
    """
    present = {state for state, count in counts.items() if count}
    if not present or present == {RunState.QUEUED}:
        return RunState.QUEUED
    if RunState.QUEUED in present or present.intersection(AT_WORK):
        return RunState.RUNNING
    for state in (RunState.FAILED, RunState.CANCELLED):
        if state in present:
            return state
    return RunState.FINISHED
