"""What an agent says of its steps: each kind of event, and each way to say it wrong."""

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.core.steps import (
    MAX_ERROR,
    MAX_LINE_BYTES,
    MAX_METRIC_NAME,
    MAX_NAME,
    MAX_NUMBER,
    MAX_STEPS,
    Event,
    Ledger,
    Metric,
    StepEnd,
    StepState,
    Word,
    best_of,
    clean,
    parse,
)


def line(**fields: object) -> bytes:
    return json.dumps({"v": 1, "t": 1.5, **fields}).encode()


# ------------------------------------------------------------------------------ one line


@pytest.mark.parametrize(
    ("text", "event"),
    [
        pytest.param(
            line(type="step_started", step=3, total=20, name="lgbm fold 2"),
            Event(Word.STEP_STARTED, 1.5, 3, 20, "lgbm fold 2"),
            id="step started",
        ),
        pytest.param(
            line(type="step_started", step=3, pid=41),
            Event(Word.STEP_STARTED, 1.5, 3, process=41),
            id="step started, with its process",
        ),
        pytest.param(
            line(
                type="step_finished",
                step=3,
                metric={"name": "auc", "value": 0.99, "maximize": True},
            ),
            Event(Word.STEP_FINISHED, 1.5, 3, metric=Metric("auc", 0.99, True)),
            id="step finished with a metric",
        ),
        pytest.param(
            line(type="step_finished", step=3, error="killed"),
            Event(Word.STEP_FINISHED, 1.5, 3, error="killed"),
            id="step failed",
        ),
        pytest.param(
            line(type="metric", metric={"value": 2}),
            Event(Word.METRIC, 1.5, metric=Metric("", 2.0)),
            id="metric without a name and a direction",
        ),
        pytest.param(
            line(type="checkpoint", step=3, path="/home/ckpt"),
            Event(Word.CHECKPOINT, 1.5, 3),
            id="checkpoint",
        ),
        pytest.param(b'{"type": "heartbeat"}', Event(Word.HEARTBEAT), id="the least there can be"),
        pytest.param(
            line(type="llm", tokens_in=1, tokens_out=2, cost_usd=0.01),
            Event(Word.LLM, 1.5),
            id="call of a model",
        ),
    ],
)
def test_an_event_is_read(text: bytes, event: Event) -> None:
    parsed = parse(text)

    assert (parsed.event, parsed.fault) == (event, "")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param(b"", "a line is no JSON", id="empty"),
        pytest.param(b"step 3 of 20", "a line is no JSON", id="plain text"),
        pytest.param(b'{"type": "step_st', "a line is no JSON", id="half"),
        pytest.param(b"\xff\xfe\x00", "a line is no JSON", id="bytes that are no text"),
        pytest.param(b"[" * 60_000, "a line is no JSON", id="nested without an end"),
        pytest.param(b"9" * 60_000, "a line is no JSON", id="a number of 60,000 digits"),
        pytest.param(b"{}" + b" " * MAX_LINE_BYTES, "a line is too long", id="too long"),
        pytest.param(b"[1]", "a line is no JSON object", id="list"),
        pytest.param(b"{}", "an event has no type", id="no type"),
        pytest.param(line(type=3), "an event has no type", id="a number as type"),
        pytest.param(line(type=["x"]), "an event has no type", id="a list as type"),
        pytest.param(line(type="dance"), "an event has an unknown type", id="unknown type"),
        pytest.param(line(v=2, type="log"), "an event is of another version", id="version"),
    ],
)
def test_a_line_that_is_no_event_says_what_is_wrong(text: bytes, fault: str) -> None:
    parsed = parse(text)

    assert (parsed.event, parsed.fault) == (None, fault)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        pytest.param({"step": -1}, "step is no whole number", id="negative"),
        pytest.param({"step": True}, "step is no whole number", id="truth as a number"),
        pytest.param({"step": 1.5}, "step is no whole number", id="fraction"),
        pytest.param({"step": "1"}, "step is no whole number", id="text"),
        pytest.param({"step": MAX_NUMBER + 1}, "step is no whole number", id="too large"),
        pytest.param({"total": [1]}, "total is no whole number", id="total"),
        pytest.param({"name": 7}, "name is no text", id="name"),
        pytest.param({"error": {}}, "error is no text", id="error"),
        pytest.param({"t": "now"}, "t is no number", id="time"),
        pytest.param({"t": math.inf}, "t is no number", id="endless time"),
        pytest.param({"t": 10**400}, "t is no number", id="time beyond a float"),
        pytest.param({"metric": 0.9}, "metric is no JSON object", id="metric"),
        pytest.param({"metric": {}}, "metric.value is no number", id="metric without a value"),
        pytest.param({"metric": {"value": math.nan}}, "metric.value is no number", id="NaN"),
        pytest.param({"metric": {"value": True}}, "metric.value is no number", id="truth"),
        pytest.param(
            {"metric": {"value": 1, "maximize": "yes"}}, "metric.maximize", id="direction"
        ),
        pytest.param({"metric": {"value": 1, "name": 2}}, "name is no text", id="its name"),
    ],
)
def test_a_wrong_part_is_left_out_and_the_step_ends_all_the_same(
    fields: dict[str, object], fault: str
) -> None:
    """A metric of NaN must not leave a step running until its timeout."""
    parsed = parse(line(type="step_finished", **fields))

    assert parsed.event is not None
    assert parsed.event.word == Word.STEP_FINISHED
    assert parsed.fault.startswith(fault)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fold 1", "fold 1"),
        ("  two\nlines\tand   gaps ", "two lines and gaps"),
        ("a\x00b\x1b[31mc\x7f", "ab[31mc"),
        ("left‮right​", "leftright"),
        ("half of a pair \ud800", "half of a pair"),
        ("ä" * 30, "ä" * 19 + "…"),
        ("x" * 20, "x" * 20),
    ],
)
def test_text_is_one_line_that_any_page_and_database_can_hold(text: str, shown: str) -> None:
    assert clean(text, 20) == shown


PARTS = ("v", "t", "step", "total", "name", "metric", "error", "path")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.binary() | ANYTHING.map(lambda row: json.dumps(row).encode()))
def test_no_line_whatever_raises(text: bytes) -> None:
    parsed = parse(text)

    assert parsed.event is not None or parsed.fault


@given(
    st.fixed_dictionaries(
        {"type": st.sampled_from(list(Word))},
        optional=dict.fromkeys(PARTS, ANYTHING),
    )
)
def test_whatever_an_event_says_fits_a_database(row: dict[str, object]) -> None:
    event = parse(json.dumps(row).encode()).event

    if event is None:
        assert row.get("v", 1) != 1
        return
    for text, limit in ((event.name, MAX_NAME), (event.error, MAX_ERROR)):
        assert len(text) <= limit
        assert "\0" not in text
        text.encode()
    assert event.step is None or 0 <= event.step <= MAX_NUMBER
    assert event.at is None or math.isfinite(event.at)
    if event.metric:
        assert math.isfinite(event.metric.value)
        assert len(event.metric.name) <= MAX_METRIC_NAME


# ------------------------------------------------------------------------------ the steps


def started(step: int | None = None, **fields: object) -> Event:
    return Event(Word.STEP_STARTED, step=step, **fields)  # type: ignore[arg-type]


def finished(step: int | None = None, **fields: object) -> Event:
    return Event(Word.STEP_FINISHED, step=step, **fields)  # type: ignore[arg-type]


def told(*events: Event, after: int = 0) -> Ledger:
    """The first at 0 s, each other 10 s later."""
    ledger = Ledger(after=after)
    for number, event in enumerate(events):
        ledger.take(event, 10.0 * number)
    return ledger


def rows(ledger: Ledger) -> list[tuple[int, float | None, StepEnd | None]]:
    return [(step.number, step.seconds, step.end) for step in ledger.steps.values()]


def test_a_step_runs_from_its_start_to_its_end() -> None:
    ledger = told(started(1, name="fold 1"), finished(1), started(2))

    assert rows(ledger) == [(1, 10.0, StepEnd.FINISHED), (2, None, None)]
    assert ledger.steps[1].name == "fold 1"
    assert ledger.running == StepState(2, began=20.0)


def test_steps_without_numbers_are_counted_on_from_the_checkpoint() -> None:
    ledger = told(started(), finished(), started(), finished(), after=4)

    assert rows(ledger) == [(5, 10.0, StepEnd.FINISHED), (6, 10.0, StepEnd.FINISHED)]


def test_of_a_step_that_the_next_one_follows_nobody_said_how_it_ended() -> None:
    assert rows(told(started(1), started(2))) == [(1, 10.0, StepEnd.NOT_SAID), (2, None, None)]


def test_an_end_without_a_start_has_no_duration() -> None:
    assert rows(told(finished(7, name="all of it"))) == [(7, None, StepEnd.FINISHED)]


def test_an_error_makes_it_a_failed_step() -> None:
    assert rows(told(started(1), finished(1, error="no"))) == [(1, 10.0, StepEnd.FAILED)]


def test_a_step_that_was_ended_for_its_time_stays_timed_out() -> None:
    ledger = told(started(1))
    ledger.time_out(5.0)
    assert ledger.running is None

    ledger.take(finished(1, error="killed"), 6.0)

    assert rows(ledger) == [(1, 6.0, StepEnd.TIMED_OUT)]
    assert ledger.steps[1].error == "killed"


def test_nothing_is_timed_out_where_no_step_runs() -> None:
    ledger = told(started(1), finished(1))

    assert ledger.time_out(20.0) is None
    assert rows(ledger) == [(1, 10.0, StepEnd.FINISHED)]


def test_a_step_that_begins_again_begins_anew() -> None:
    ledger = told(started(1), finished(1, metric=Metric("auc", 0.9)), started(1))

    assert ledger.running == StepState(1, began=20.0)


def test_a_metric_belongs_to_the_running_step_and_after_all_of_them_to_the_whole() -> None:
    epoch, fold, whole = Metric("auc", 0.7), Metric("auc", 0.9), Metric("auc", 0.8)
    measured = [Event(Word.METRIC, metric=each) for each in (epoch, whole)]

    ledger = told(started(1), measured[0], finished(1, metric=fold), measured[1])

    assert ledger.steps[1].metric == fold
    assert ledger.overall == whole


def test_a_metric_may_come_after_the_end_of_its_step() -> None:
    late = Event(Word.METRIC, step=1, metric=Metric("auc", 0.9))

    assert told(started(1), finished(1), late).steps[1].metric == late.metric


def test_the_end_of_an_attempt_interrupts_its_running_step() -> None:
    ledger = told(started(1), finished(1), started(2))

    ledger.close(25.0, by_itself=False)

    assert rows(ledger) == [(1, 10.0, StepEnd.FINISHED), (2, 5.0, StepEnd.INTERRUPTED)]


def test_a_step_that_was_only_assumed_had_not_begun_when_the_agent_ended_by_itself() -> None:
    ledger = told(started(1), finished(1), started(2, is_assumed=True))
    ledger.taken()

    ledger.close(25.0, by_itself=True)

    assert rows(ledger) == [(1, 10.0, StepEnd.FINISHED)]
    assert ledger.taken() == ([], [2])


def test_only_what_has_changed_is_told() -> None:
    ledger = told(started(1), finished(1), started(2))
    assert [step.number for step in ledger.taken()[0]] == [1, 2]

    ledger.take(finished(2), 30.0)

    assert ledger.taken() == ([ledger.steps[2]], [])
    assert ledger.taken() == ([], [])


def test_of_very_many_steps_the_older_are_thinned_out_and_the_best_stays() -> None:
    ledger = Ledger()
    for number in range(1, 5 * MAX_STEPS):
        metric = Metric("loss", 0.0 if number == 2 else 1.0, maximize=False)
        ledger.take(started(number), number)
        ledger.take(finished(number, metric=metric), number + 0.5)
        ledger.thin_out()

    assert len(ledger.steps) <= MAX_STEPS
    assert 1 in ledger.steps
    assert 2 in ledger.steps
    newest = 5 * MAX_STEPS - 1
    assert list(ledger.steps)[-MAX_STEPS // 4 :] == list(
        range(newest - MAX_STEPS // 4 + 1, newest + 1)
    )


@pytest.mark.parametrize(
    ("values", "maximize", "best"),
    [
        ([0.7, 0.9, 0.9, 0.8], True, 2),
        ([0.7, 0.9, 0.6], False, 3),
        ([0.7], None, None),
    ],
)
def test_the_best_step_is_the_first_with_the_best_value(
    values: list[float], maximize: bool | None, best: int | None
) -> None:
    steps = [
        StepState(number, metric=Metric("auc", value, maximize))
        for number, value in enumerate(values, start=1)
    ]

    found = best_of([*steps, StepState(9)]).get("auc")

    assert (found.number if found else None) == best


@pytest.mark.parametrize(
    "number_of",
    [
        pytest.param(lambda place: 1 + place, id="it counts up"),
        pytest.param(lambda place: 99 - place, id="it counts down"),
        pytest.param(lambda place: 3, id="the same step again and again"),
        pytest.param(lambda place: 1 + place % 2, id="two steps in turn"),
    ],
)
@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ("", 0),
        ("f", 0),
        ("t", 1),
        ("tt", 2),
        ("tft", 1),
        ("fttf", 0),
        ("tet", 2),  # a step that failed is no finished step
        ("tnt", 2),  # nor is one of whose end nothing was said
        ("ttt-", 3),
        ("tf-", 0),
        ("tfet", 1),
    ],
)
def test_step_timeouts_count_until_a_finished_step(
    ends: str, count: int, number_of: Callable[[int], int]
) -> None:
    ledger = Ledger()
    for place, end in enumerate(ends):
        number, active = number_of(place), 10.0 * place
        ledger.take(started(number), active)
        if end == "t":
            ledger.time_out(active + 5)
            # What the agent makes of it does not count.
            ledger.take(finished(number), active + 6)
        elif end in "fe":
            ledger.take(finished(number, error="no" if end == "e" else ""), active + 5)

    assert (ledger.timeouts, ledger.has_finished) == (count, "f" in ends)
