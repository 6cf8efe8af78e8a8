"""When a worker is deaf."""

from collections.abc import Set

from runs.core.deafness import Deafness

NOTHING: Set[int] = frozenset()


def look(
    rule: Deafness,
    now: float,
    *,
    worker: str = "w",
    unclaimed: Set[int] = NOTHING,
    unwatched: Set[int] = NOTHING,
) -> str:
    return rule.look(now=now, worker=worker, unclaimed=unclaimed, unwatched=unwatched)


def test_work_that_fits_and_is_not_claimed_for_long_says_so() -> None:
    rule = Deafness(after=60)

    assert look(rule, 0, unclaimed={7}) == ""
    assert look(rule, 59, unclaimed={7}) == ""
    assert "attempt 7 fits and has not been claimed for 60 s" in look(rule, 60, unclaimed={7})


def test_an_attempt_without_a_supervisor_for_long_says_so() -> None:
    rule = Deafness(after=60)
    look(rule, 0, unwatched={3})

    assert "attempt 3 has had no live supervisor" in look(rule, 61, unwatched={3})


def test_a_busy_queue_is_no_deafness() -> None:
    """Something always fits, but never the same one for long."""
    rule = Deafness(after=60)

    assert [look(rule, 10 * step, unclaimed={step, step + 1}) for step in range(20)] == [""] * 20


def test_what_was_taken_up_in_between_waits_anew() -> None:
    rule = Deafness(after=60)
    look(rule, 0, unwatched={3})
    look(rule, 50)

    assert look(rule, 65, unwatched={3}) == ""
    assert look(rule, 125, unwatched={3}) != ""


def test_a_new_worker_has_its_own_time() -> None:
    rule = Deafness(after=60)
    look(rule, 0, unclaimed={7})

    assert look(rule, 65, worker="new", unclaimed={7}) == ""
    assert look(rule, 125, worker="new", unclaimed={7}) != ""
