"""What follows from an infrastructure failure: how long to wait, and when a host is to blame. Pure.

docs/states.md has the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runs.core.failures import Cause
from runs.core.states import Outcome

# Seconds before the second, the third and every later attempt.
WAITS = (10.0, 60.0, 300.0)
# The run did nothing to these hosts: another try can start at once.
AT_ONCE = frozenset({Cause.HOST_LOST, Cause.CONTAINER_KILLED, Cause.CONTAINER_REMOVED})
# What a host itself is to blame for. Never an image, data, the network beyond it, or an agent.
HOSTS_OWN = frozenset(
    {
        Cause.ENGINE_UNREACHABLE,
        Cause.ENGINE_ERROR,
        Cause.RUNTIME_MISSING,
        Cause.GPU_TOOLKIT_MISSING,
        Cause.GPU_UNKNOWN,
        Cause.GPU_LOST,
        Cause.DISK_FULL,
    }
)
# Another try would meet the same: a person has to do something first.
HOPELESS = frozenset({Cause.SECRET_MISSING, Cause.PRIVILEGED_REFUSED})
# So many in a row, with no success between.
IN_A_ROW = 3


def wait_before_next(cause: Cause | None, failures: int) -> float:
    """Seconds before a run's next attempt. `failures`: infrastructure failures so far, this one
    too, since a person last queued the run."""
    if cause in AT_ONCE:
        return 0.0
    return WAITS[min(max(failures, 1), len(WAITS)) - 1]


@dataclass(frozen=True)
class Ended:
    """An ended attempt of a host."""

    outcome: Outcome
    cause: Cause | None = None
    detail: str = ""


def hosts_own_failures(newest_first: Iterable[Ended]) -> list[Ended]:
    """Failures by the host's own causes since its last success, newest first, at most IN_A_ROW.

    An agent that failed by its own doing ran: that is a success of the host. Cancelled attempts,
    and infrastructure failures that say nothing about the host, are looked over.
    """
    found: list[Ended] = []
    for ended in newest_first:
        if ended.outcome == Outcome.INFRASTRUCTURE_FAILED and ended.cause in HOSTS_OWN:
            found.append(ended)
            if len(found) == IN_A_ROW:
                break
        elif ended.outcome in (Outcome.GRADED, Outcome.AGENT_FAILED, Outcome.CONTINUED):
            break
    return found


def why_put_aside(newest_first: Iterable[Ended]) -> str:
    """The reason, when the host has failed IN_A_ROW attempts by its own causes; else ""."""
    found = hosts_own_failures(newest_first)
    if len(found) < IN_A_ROW:
        return ""
    causes = ", ".join(dict.fromkeys(str(one.cause).replace("_", " ") for one in found))
    newest = found[0].detail.strip().splitlines()
    said = f": {newest[0]}" if newest else ""
    return f"{IN_A_ROW} attempts in a row failed here ({causes}){said}"[:300]
