"""Which of an agent's processes does a step. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AgentProcess:
    """A process of the agent, as it is called inside its container.

    The command line is the agent's own word: shortened, and good for no more than to tell its
    processes apart.
    """

    pid: int
    parent: int
    # With its id, what it is known by: an id is given anew.
    started: float
    command: str


def of_the_step(
    processes: Sequence[AgentProcess], pattern: str, named: int | None = None
) -> list[AgentProcess]:
    """A step's own processes: the one that the agent named, else those whose command
    line `pattern` begins, and of these none below another: copies that it made of itself.

    A named one that is not among the agent's processes is nobody's.
    """
    if by_name := [each for each in processes if each.pid == named]:
        return by_name
    if not pattern:
        return []
    wanted = re.compile(pattern)
    found = {each.pid for each in processes if wanted.match(each.command)}
    parents = {each.pid: each.parent for each in processes}
    return [
        each
        for each in processes
        if each.pid in found and not found & set(_above(each.pid, parents))
    ]


def with_all_below(
    tops: Sequence[AgentProcess], processes: Sequence[AgentProcess]
) -> list[AgentProcess]:
    """These and what they started."""
    parents = {each.pid: each.parent for each in processes}
    wanted = {each.pid for each in tops}
    return [
        each for each in processes if each.pid in wanted or wanted & set(_above(each.pid, parents))
    ]


def _above(pid: int, parents: dict[int, int]) -> Iterable[int]:
    """Its parent, that one's parent, and so on. A hostile list may go round in a circle."""
    seen = {pid}
    while (pid := parents.get(pid, 0)) and pid not in seen:
        seen.add(pid)
        yield pid
