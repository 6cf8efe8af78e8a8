"""Lists that come in pages."""

from collections.abc import Callable, Sequence
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from pydantic import BaseModel

from runs.api.objects import Page


def page[T: BaseModel](
    request: HttpRequest,
    rows: QuerySet[Any],
    show: Callable[[Sequence[Any]], list[T]],
    *,
    limit: int,
    offset: int,
) -> Page[T]:
    """`rows` are in a fixed order. `next` keeps the request's other parameters."""
    count = rows.count()
    more = offset + limit < count
    return Page(
        items=show(list(rows[offset : offset + limit])),
        count=count,
        next=_next(request, limit=limit, offset=offset + limit) if more else None,
    )


def _next(request: HttpRequest, **changed: int) -> str:
    query = request.GET.copy()
    for name, value in changed.items():
        query[name] = str(value)
    return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")
