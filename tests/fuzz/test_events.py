"""Lines of an agent's events file (JSON lines), as a hostile program may write them."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from runs.core import steps
from tests.fuzz.cases import count, fuzz
from tests.fuzz.strategies import dumped, mutated, with_changes

EVENT = {
    "v": 1,
    "t": 1767312000.5,
    "type": "step_finished",
    "step": 3,
    "total": 20,
    "name": "lgbm fold 2",
    "metric": {"name": "auc", "value": 0.99, "maximize": True},
    "tokens_in": 1,
    "tokens_out": 2,
    "cost_usd": 0.01,
    "path": "/home/ckpt/3",
}


@given(st.data())
@fuzz(300)
def test_a_line_of_events_is_taken_by_its_right_parts_or_named_as_a_fault(
    data: st.DataObject,
) -> None:
    if data.draw(st.booleans()):
        line = dumped(data.draw(with_changes(EVENT))).encode()
    else:
        line = data.draw(mutated(json.dumps(EVENT).encode()))

    parsed = steps.parse(line)

    count("events (jsonl)", "taken" if parsed.event else "refused")
    assert parsed.event or parsed.fault
    if parsed.event is None:
        return
    for name, value in vars(parsed.event).items():
        if isinstance(value, float):
            assert math.isfinite(value), name
        if isinstance(value, str):
            value.encode()
            assert "\0" not in value
            assert "\n" not in value
    said = json.loads(line)
    assert said["type"] == parsed.event.word, "wrong acceptance"
    for name, value in (("step", parsed.event.step), ("total", parsed.event.total)):
        if value is not None:
            assert said[name] == value
            assert not isinstance(said[name], bool | float)
            assert 0 <= value <= steps.MAX_NUMBER
    if parsed.event.metric is not None:
        assert float(said["metric"]["value"]) == parsed.event.metric.value
        assert said["metric"].get("maximize") in (True, False, None) or (
            parsed.event.metric.maximize is None
        )
