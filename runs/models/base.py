"""What the models share."""

from collections.abc import Iterable


class Replaced(Exception):
    """Another supervisor holds the attempt, or it has moved on. That decision stands."""


def choices_of(enum: Iterable[str]) -> list[tuple[str, str]]:
    return [(str(value), str(value).replace("_", " ")) for value in enum]
