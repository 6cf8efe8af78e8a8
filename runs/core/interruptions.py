"""Stretches of an attempt that were not watched, not running or paused, for its timeline. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

# A host that comes and goes all day must not fill a row.
AT_MOST = 200


class Kind(StrEnum):
    # The supervisor was cut off and paused the container.
    PAUSED = "paused"
    # A checkpoint was copied, of files that would not stand still.
    COPIED = "copied"
    # No worker watched, the agent went on: charged.
    UNWATCHED = "unwatched"
    # No worker watched, and the container was found ended: not charged.
    DOWN = "down"


WORDS = {
    Kind.PAUSED: "paused while its worker was cut off",
    Kind.COPIED: "paused while a checkpoint was copied",
    Kind.UNWATCHED: "worker away, the agent went on",
    Kind.DOWN: "host down",
}


@dataclass(frozen=True)
class Interruption:
    kind: Kind
    # Seconds since the agent's start, and how long.
    at: float
    seconds: float

    @property
    def is_charged(self) -> bool:
        return self.kind == Kind.UNWATCHED

    @property
    def words(self) -> str:
        return WORDS[self.kind]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": round(self.at, 3), "seconds": round(self.seconds, 3)}


def read(rows: Sequence[Mapping[str, Any]]) -> list[Interruption]:
    return [Interruption(Kind(row["kind"]), row["at"], row["seconds"]) for row in rows]


def with_one_more(rows: Sequence[Mapping[str, Any]], one: Interruption) -> list[Mapping[str, Any]]:
    """The newest AT_MOST; older ones are dropped, their sum is in the attempt's seconds."""
    return [*rows, one.as_json()][-AT_MOST:]


def seconds_of(rows: Sequence[Mapping[str, Any]], kind: Kind) -> float:
    return sum(one.seconds for one in read(rows) if one.kind == kind)
