"""An agent that says a checkpoint each second leaves no endless list of rows."""

import pytest
from django.conf import settings

from mlebench_web.fleet import hosts
from runs import checkpoints
from runs.core.failures import Cause
from runs.core.states import Outcome, State
from runs.models import Attempt, Checkpoint
from tests import factories

pytestmark = pytest.mark.django_db


def saved(attempt: Attempt, count: int) -> list[Checkpoint]:
    return Checkpoint.objects.bulk_create(
        Checkpoint(
            attempt=attempt,
            number=number,
            active_seconds=number,
            files=1,
            size=1,
            added_bytes=1,
            save_seconds=0.1,
            path=f"{number}.json",
            digest="0" * 64,
        )
        for number in range(1, count + 1)
    )


def test_rows_of_dropped_checkpoints_are_forgotten_but_those_that_matter() -> None:
    host = factories.make_host(settings.HOST_NAME, boot_id=hosts.boot_id())
    run = factories.make_run(
        outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.CONTAINER_KILLED, host=host
    )
    first = run.newest_attempt()
    of_first = saved(first, 150)
    second = factories.make_attempt(
        run,
        state=State.RUNNING,
        host=host,
        resumed_from=first,
        restored_checkpoint=of_first[40],
    )
    of_second = saved(second, 400)
    Checkpoint.objects.filter(pk=of_second[7].pk).update(fault="corrupt", path="")

    kept = checkpoints.drop_old(second, second.lease_token)  # type: ignore[arg-type]

    assert set(kept) == {of_second[-1].pk, of_second[-2].pk}
    left = set(Checkpoint.objects.values_list("pk", flat=True))
    # What is stored and what is remembered, what an attempt began with, the newest of the first,
    # and the corrupt one.
    matter = {of_first[40].pk, of_first[-1].pk, of_second[7].pk}
    assert left == {row.pk for row in of_second[-102:]} | matter
    second.refresh_from_db()
    assert second.restored_checkpoint == of_first[40]
