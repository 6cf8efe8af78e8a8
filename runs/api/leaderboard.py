"""The leaderboard of a split: the rows that the page and `manage.py leaderboard` show."""

from typing import Any

from ninja import Query, Router

from mlebench_web.catalog.models import Split
from runs import leaderboard
from runs.api.app import ApiRequest
from runs.api.objects import Page, whole
from runs.request import FieldError, RequestInvalid

router = Router(tags=["leaderboard"])


@router.get("/leaderboard", response=Page[dict[str, Any]])
def rows(
    request: ApiRequest,
    split: str,
    pad_missing: bool = Query(False, description="count a missing report as no submission"),
    first_outcomes: bool = Query(
        False, description="count each run's first end, whatever was run again later"
    ),
    published: bool = Query(False, description="with the rows of mle-bench's README"),
) -> Page[dict[str, Any]]:
    """Ranked rows first. Metrics have upstream's names, at full precision."""
    # Upstream's file of all 75 is split75; people say "all".
    row = Split.objects.filter(name="split75" if split == "all" else split).first()
    if row is None:
        allowed = [*Split.objects.values_list("name", flat=True), "all"]
        raise RequestInvalid([FieldError("split", f"There is no split {split!r}.", allowed)])
    try:
        found = leaderboard.rows(
            row,
            pad_missing=pad_missing,
            first_outcomes=first_outcomes,
            with_published=published,
        )
    except leaderboard.MixedSplit as error:
        raise RequestInvalid([FieldError("split", str(error))]) from error
    return whole([each.as_json() for each in found])
