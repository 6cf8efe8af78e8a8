"""What all objects of the API share."""

import math
from collections.abc import Sequence

from django.conf import settings
from pydantic import BaseModel


class Page[T](BaseModel):
    """A list. `count` is of all items, `next` the address of the next page."""

    items: list[T]
    count: int
    next: str | None = None


def whole[T](items: Sequence[T]) -> Page[T]:
    """A list for which pages make no sense."""
    return Page(items=list(items), count=len(items))


def finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def address(path: str) -> str:
    return f"{settings.PUBLIC_URL}{path}"
