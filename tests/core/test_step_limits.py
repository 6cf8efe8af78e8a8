"""When a step has taken too long, and what is done about it."""

import pytest

from runs.core.step_limits import (
    AFTER_KILL,
    INTERRUPT_GRACE,
    Act,
    Overdue,
    charged_seconds,
    limit_of,
    what_to_do,
)

OVER = INTERRUPT_GRACE + AFTER_KILL


@pytest.mark.parametrize(
    ("step", "act"),
    [
        pytest.param(Overdue(99), Act.WAIT, id="in time"),
        pytest.param(Overdue(100), Act.END, id="no process, no checkpoint"),
        pytest.param(Overdue(100, can_go_on=True), Act.GO_ON, id="first, with a checkpoint"),
        pytest.param(Overdue(100, in_a_row=2, can_go_on=True), Act.GO_ON, id="second"),
        pytest.param(Overdue(100, in_a_row=3, can_go_on=True), Act.END, id="third"),
        pytest.param(
            Overdue(100, has_own_process=True, process_is_there=True), Act.INTERRUPT, id="process"
        ),
        pytest.param(
            Overdue(100, has_own_process=True, can_go_on=True), Act.GO_ON, id="process is away"
        ),
        pytest.param(
            Overdue(100, has_own_process=True), Act.END, id="process is away, no checkpoint"
        ),
        pytest.param(
            Overdue(100, in_a_row=3, has_own_process=True, process_is_there=True),
            Act.END,
            id="third, with a process",
        ),
    ],
)
def test_what_is_done_about_a_step(step: Overdue, act: Act) -> None:
    assert what_to_do(step, limit=100) == act


@pytest.mark.parametrize("can_go_on", [True, False])
@pytest.mark.parametrize(
    ("ending_for", "there", "act"),
    [
        pytest.param(0, True, Act.WAIT, id="interrupted just now"),
        pytest.param(INTERRUPT_GRACE - 1, False, Act.WAIT, id="gone within its grace"),
        pytest.param(INTERRUPT_GRACE, True, Act.KILL, id="ignores it"),
        pytest.param(INTERRUPT_GRACE, False, Act.WAIT, id="gone, the agent has not gone on yet"),
        pytest.param(OVER - 1, True, Act.KILL, id="again, by whoever adopts"),
        pytest.param(OVER, True, None, id="outlives it"),
        pytest.param(OVER, False, None, id="the agent does not go on"),
    ],
)
def test_what_is_done_after_the_first_signal(
    ending_for: float, there: bool, act: Act | None, can_go_on: bool
) -> None:
    step = Overdue(
        # The pause for a checkpoint, or an adopter that began its clock anew: no matter.
        seconds=5,
        ending_for=ending_for,
        has_own_process=True,
        process_is_there=there,
        can_go_on=can_go_on,
    )
    stopped = Act.GO_ON if can_go_on else Act.END
    assert what_to_do(step, limit=100) == (act or stopped)


def test_a_container_that_was_to_be_stopped_is_stopped_by_whoever_adopts() -> None:
    assert what_to_do(Overdue(5, ending_for=1, can_go_on=True), limit=100) == Act.GO_ON
    assert what_to_do(Overdue(5, ending_for=1, in_a_row=3), limit=100) == Act.END


def test_an_agent_that_ends_its_steps_itself_has_time_to_do_so() -> None:
    assert limit_of(3600, is_native=False) == 3600
    assert limit_of(60, is_native=True) == 360
    assert limit_of(9 * 3600, is_native=True) == pytest.approx(9.9 * 3600)


def test_a_step_that_hung_is_charged_and_what_was_lost_otherwise_is_not() -> None:
    assert charged_seconds(100, []) == 100
    assert charged_seconds(100, [700, 400]) == 700
    assert charged_seconds(900, [700]) == 900
