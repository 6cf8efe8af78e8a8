"""How long a host that drains still has work, at most."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mlebench_web.fleet.models import Host
from runs import draining
from runs.core.states import Result, State
from tests.factories import make_group, make_host, make_run

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@pytest.fixture
def box() -> Host:
    return make_host("box-1")


def hours_left(host: Host) -> float | None:
    left = draining.longest_left(host)
    return None if left is None else round(left / HOUR, 2)


def running_for(hours: float, host: Host, **fields: object) -> None:
    began = timezone.now() - hours * HOUR
    make_run(state=State.RUNNING, host=host, began=began, **fields)


def test_a_host_without_runs_has_none(box: Host) -> None:
    make_run(result=Result.VALID, host=box)
    make_run()
    running_for(1, make_host("other"))

    assert draining.longest_left(box) is None


def test_the_longest_of_its_runs_counts(box: Host) -> None:
    running_for(20, box)
    running_for(5, box)
    running_for(10, box)

    assert hours_left(box) == 19


def test_one_that_starts_has_its_whole_limit(box: Host) -> None:
    make_run(make_group(time_limit=2 * HOUR), state=State.STARTING, host=box)

    assert hours_left(box) == 2


def test_a_rerun_has_the_limit_that_it_was_asked_for(box: Host) -> None:
    running_for(1, box, overrides={"time_limit_s": 3 * 3600})

    assert hours_left(box) == 2


def test_time_that_is_not_charged_is_left_and_time_before_a_resume_is_not(box: Host) -> None:
    running_for(10, box, paused_seconds=3600, down_seconds=3600, charged_seconds=4 * 3600)

    assert hours_left(box) == 24 - (10 - 2 + 4)


def test_it_is_never_less_than_nothing(box: Host) -> None:
    running_for(30, box)

    assert draining.longest_left(box) == timedelta(0)


def test_many_hosts_cost_no_more_queries(box: Host) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            draining.longest_left_by_host(list(Host.objects.all()))
        return len(queries)

    running_for(1, box)
    one = cost()
    for number in range(5):
        running_for(1, make_host(f"more-{number}"))

    assert cost() == one
