"""What a re-run asks for in place of its group's settings, and the stretches of a timeline."""

import pytest

from runs.core.interruptions import AT_MOST, Interruption, Kind, read, seconds_of, with_one_more
from runs.core.limits import must_pause
from runs.core.overrides import Overrides, is_class_of


@pytest.mark.parametrize(
    ("wanted", "model", "fits"),
    [
        ("A10", "NVIDIA A10", True),
        ("a10", "NVIDIA A10", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB", True),
        ("H100", "NVIDIA A10", False),
        ("Tesla T4", "Tesla T4", True),
    ],
)
def test_a_gpu_class_is_whole_words_of_the_model(wanted: str, model: str, fits: bool) -> None:
    assert is_class_of(wanted, model) is fits


def test_an_attempt_keeps_only_what_was_asked_for() -> None:
    asked = Overrides(gpu="A10", time_limit_s=5400, step_timeout_s=1800)

    assert asked.as_json() == {"gpu": "A10", "time_limit_s": 5400, "step_timeout_s": 1800}
    assert Overrides.of(asked.as_json()) == asked
    assert Overrides().as_json() == {}
    assert asked.words() == ["GPU A10", "time limit 1.5 h", "step timeout 0.5 h"]
    assert asked.changes_conditions
    assert not Overrides(host="box").changes_conditions


def test_a_timeline_keeps_the_newest_and_says_what_is_charged() -> None:
    rows: list = []
    for number in range(AT_MOST + 5):
        rows = with_one_more(rows, Interruption(Kind.PAUSED, number, 2))

    assert len(rows) == AT_MOST
    assert read(rows)[-1].at == AT_MOST + 4
    assert seconds_of(rows, Kind.PAUSED) == 2 * AT_MOST
    assert seconds_of(rows, Kind.DOWN) == 0
    assert [kind for kind in Kind if Interruption(kind, 0, 1).is_charged] == [Kind.UNWATCHED]


@pytest.mark.parametrize(
    ("cut_off", "could_be_replaced", "pauses"),
    [(809, True, False), (810, True, True), (5000, True, True), (5000, False, False)],
)
def test_a_cut_off_supervisor_pauses_one_lease_before_it_may_be_replaced(
    cut_off: float, could_be_replaced: bool, pauses: bool
) -> None:
    assert (
        must_pause(cut_off=cut_off, lost_after=900, ttl=90, could_be_replaced=could_be_replaced)
        is pauses
    )


def test_short_settings_leave_half_of_the_time() -> None:
    assert must_pause(cut_off=10, lost_after=20, ttl=15, could_be_replaced=True)
    assert not must_pause(cut_off=9, lost_after=20, ttl=15, could_be_replaced=True)
