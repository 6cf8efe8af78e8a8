"""Which snapshots go when there are too many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.core.thinning import Kept, to_drop


@pytest.mark.parametrize(
    ("times", "most", "dropped"),
    [
        pytest.param([0, 10, 20], 3, [], id="within"),
        pytest.param([0, 1, 10, 20], 3, [1], id="the densest goes"),
        pytest.param([0, 10, 19, 20], 3, [2], id="but never the newest"),
        pytest.param([0, 5, 10, 15, 20], 3, [1, 3], id="several"),
    ],
)
def test_too_many(times: list[float], most: int, dropped: list[int]) -> None:
    kept = [Kept(key, at, 1) for key, at in enumerate(times)]

    assert to_drop(kept, most=most, most_bytes=100) == dropped


def test_too_big() -> None:
    kept = [Kept(0, 0, 60), Kept(1, 1, 60), Kept(2, 2, 60)]

    assert to_drop(kept, most=9, most_bytes=130) == [1]
    assert to_drop(kept, most=9, most_bytes=70) == [1, 0]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), max_size=30),
    st.integers(2, 10),
    st.integers(0, 200),
)
def test_the_newest_always_stays(rows: list[tuple[float, int]], most: int, most_bytes: int) -> None:
    kept = [Kept(key, at, size) for key, (at, size) in enumerate(rows)]

    dropped = set(to_drop(kept, most=most, most_bytes=most_bytes))

    if kept:
        assert max(kept, key=lambda one: (one.at, one.key)).key not in dropped
    assert len(kept) - len(dropped) <= max(most, 2)
