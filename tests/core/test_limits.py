"""Active time, the first limit that is over, and the reaper's patience."""

from runs.core.failures import Cause
from runs.core.limits import ActiveClock, Reaping, limit_reached


def test_active_time_goes_on_from_what_had_passed_and_leaves_out_pauses() -> None:
    clock = ActiveClock(before=100, began=5000)
    clock.paused = 30

    assert clock.seconds(5060) == 130


def test_active_time_is_never_negative() -> None:
    assert ActiveClock(before=0, began=10, paused=5).seconds(11) == 0


def test_the_time_limit_comes_before_the_stall_limit() -> None:
    def reached(active: float, silent: float) -> Cause | None:
        return limit_reached(active=active, time_limit=100, silent=silent, stall_limit=50)

    assert reached(100, 60) == Cause.TIME_LIMIT
    assert reached(99, 50) == Cause.STALLED
    assert reached(99, 49) is None


def test_a_reaper_that_has_just_started_declares_no_host_lost() -> None:
    reaping = Reaping(ttl=90, lost_after=900)

    reaping.tick(database=1000, monotonic=50)
    assert not reaping.may_lose_hosts()

    for step in range(1, 31):
        reaping.tick(database=1000 + 30 * step, monotonic=50 + 30 * step)
    assert reaping.may_lose_hosts()


def calm() -> Reaping:
    reaping = Reaping(ttl=90, lost_after=900)
    for step in range(40):
        reaping.tick(database=1000 + 30 * step, monotonic=30 * step)
    assert reaping.may_lose_hosts()
    return reaping


def test_a_jump_of_the_databases_clock_makes_it_wait_again() -> None:
    reaping = calm()

    reaping.tick(database=1000 + 30 * 40 + 3600, monotonic=30 * 40)

    assert not reaping.may_lose_hosts()


def test_an_outage_between_two_ticks_makes_it_wait_again() -> None:
    reaping = calm()

    reaping.tick(database=1000 + 30 * 40 + 600, monotonic=30 * 40 + 600)

    assert not reaping.may_lose_hosts()
