"""Whether runs are sandboxed, said in one place: pages, API, leaderboard and worker ask here."""

from collections.abc import Mapping

from mlebench_web.catalog.models import Agent, ContainerConfig
from runs.core.isolation import what_opens

AS_PROCESSES = "runs are processes of the host"


def why_not(runtime: str, settings: Mapping[str, object], agent: Agent | None) -> str:
    """What keeps runs from being sandboxed, in a few words; "" when nothing does.

    `runtime` and `settings` are a container config's; "" is the runtime of runs from elsewhere,
    of which nothing is known.
    """
    if runtime == ContainerConfig.Runtime.PROCESS:
        return AS_PROCESSES
    if not runtime:
        return ""
    return "; ".join(what_opens(settings, privileged=bool(agent and agent.privileged)))
