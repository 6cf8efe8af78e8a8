"""When a step has taken too long, and what is done about it. Pure. Seconds throughout.

docs/states.md has the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# Step timeouts with no finished step between; the last one ends the run.
IN_A_ROW = 3
# From SIGINT to SIGKILL. An agent that catches the first makes a timed-out step of it.
INTERRUPT_GRACE = 10.0
# From there until the agent must have gone on; else its container is stopped.
AFTER_KILL = 60.0
# An agent that ends its steps itself counts its program only, not the language model's answers
# around it, and takes a while to end it.
NATIVE_SPARE = 300.0
NATIVE_SPARE_SHARE = 0.1


class Act(StrEnum):
    WAIT = "wait"
    # SIGINT, SIGKILL: to the step's own process.
    INTERRUPT = "interrupt"
    KILL = "kill"
    # The container is stopped, and another attempt goes on from the last checkpoint.
    GO_ON = "go_on"
    # The limit: the run ends, and what is there is collected and graded.
    END = "end"


@dataclass(frozen=True)
class Overdue:
    """A step at one look."""

    # Since it began, of active time.
    seconds: float
    # Since it was marked as timed out, of active time; None: it has not been.
    ending_for: float | None = None
    # Timeouts in a row, this one too.
    in_a_row: int = 1
    # The manifest or the agent itself names a process of the step.
    has_own_process: bool = False
    # And it is there.
    process_is_there: bool = False
    can_go_on: bool = False


def limit_of(step_timeout: float, *, is_native: bool) -> float:
    """After how long the product steps in; later where the agent ends its steps itself."""
    if not is_native:
        return step_timeout
    return step_timeout + max(NATIVE_SPARE, NATIVE_SPARE_SHARE * step_timeout)


def what_to_do(step: Overdue, *, limit: float) -> Act:
    """The rungs of a ladder. Each look asks anew, so it does not matter who did the last one."""
    if step.ending_for is None and step.seconds < limit:
        return Act.WAIT
    if step.in_a_row >= IN_A_ROW:
        return Act.END
    if step.has_own_process:
        if step.ending_for is None:
            if step.process_is_there:
                return Act.INTERRUPT
        elif step.ending_for < INTERRUPT_GRACE:
            return Act.WAIT
        elif step.ending_for < INTERRUPT_GRACE + AFTER_KILL:
            return Act.KILL if step.process_is_there else Act.WAIT
    return Act.GO_ON if step.can_go_on else Act.END


def charged_seconds(checkpoint: float, timed_out: Iterable[float]) -> float:
    """Active time that a resumed attempt begins with: up to its checkpoint, and what the steps
    took that ran too long in attempts before. That is the agent's own doing and not the fleet's;
    were it free, an agent that hangs at every second step would never reach its time limit.
    """
    return max(checkpoint, *timed_out, 0.0)
