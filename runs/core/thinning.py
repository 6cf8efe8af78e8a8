"""Which submission snapshots to drop when there are too many or they are too big. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A snapshot that is stored: when, in active seconds, and how big, in bytes."""

    key: int
    at: float
    size: int


def to_drop(kept: Sequence[Kept], *, most: int, most_bytes: int) -> list[int]:
    """Keys to drop, oldest knowledge first lost where it is densest.

    The first and the newest always stay: the newest is what a broken run falls back to. Between
    them goes whichever leaves the smallest gap, so that the curve keeps its shape.
    """
    left = sorted(kept, key=lambda one: (one.at, one.key))
    dropped: list[int] = []
    while len(left) > 2 and (len(left) > most or sum(one.size for one in left) > most_bytes):
        gaps = [(left[i + 1].at - left[i - 1].at, i) for i in range(1, len(left) - 1)]
        _, index = min(gaps)
        dropped.append(left.pop(index).key)
    if len(left) == 2 and sum(one.size for one in left) > most_bytes:
        dropped.append(left.pop(0).key)
    return dropped
