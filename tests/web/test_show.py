"""How values are written, and the charts that are made of them. No database."""

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from runs.charts import (
    Part,
    Piece,
    Scored,
    Stretch,
    Thresholds,
    bar,
    number_line,
    score_curve,
    stacked_bar,
    timeline,
    whisker,
)
from runs.templatetags import show
from runs.templatetags.prose import prose


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (1.44, "1.4 s"),
        (9.96, "10 s"),
        (42, "42 s"),
        (59.7, "1 min 00"),
        (725, "12 min 05"),
        (3599.6, "1 h 00"),
        (9 * 3600 + 38 * 60 + 29, "9 h 38"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
        (None, "n/a"),
        (-5, "n/a"),
        (timedelta(minutes=90), "1 h 30"),
    ],
)
def test_durations(seconds: float | timedelta | None, words: str) -> None:
    assert show.duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(86400, "24 h"), (5400, "90 min"), (45, "45 s"), (None, "n/a")]
)
def test_limits(seconds: float | None, words: str) -> None:
    assert show.limit(None if seconds is None else timedelta(seconds=seconds)) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (2_100_000, "2.1 MB"),
        (158e9, "158 GB"),
        (999_600, "1.0 MB"),
        (None, "n/a"),
    ],
)
def test_sizes(count: float | None, words: str) -> None:
    assert show.size(count) == words


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "words"),
    [(2, "just now"), (42, "42 s ago"), (200, "3 min ago"), (7200, "2 h ago"), (-7200, "in 2 h")],
)
def test_ago(before: float, words: str) -> None:
    assert show.ago(NOW - timedelta(seconds=before), NOW) == words


def test_never_is_never() -> None:
    assert show.ago(None) == "never"


def svg(text: str) -> ElementTree.Element:
    """Parsed as XML, so every chart is whole and every text in it is escaped."""
    element = ElementTree.fromstring(text)
    assert element.get("role") == "img"
    assert element.get("aria-label")
    assert not [each for each in element.iter() if each.get("style")]
    return element


def test_a_stacked_bar_fills_its_width() -> None:
    parts = [Part("f-gold", 1, "gold"), Part("f-q", 3, "<queued>"), Part("f-bad", 0, "failed")]

    element = svg(stacked_bar(parts, label="1 & 3"))

    shown = [each for each in element if each.find("title") is not None]
    assert [float(each.get("x", 0)) for each in shown] == [0, 250]
    assert float(shown[-1].get("width", 0)) + 250 == pytest.approx(1000, abs=2)


def test_a_bar_never_leaves_its_track() -> None:
    for value in (0, 50, 1000, None):
        element = svg(bar(value, 100, label="x", width=90))
        assert 0 <= float(element[1].get("width", 0)) <= 90


def test_a_whisker_stays_on_its_scale() -> None:
    element = svg(whisker(99, 5, most=100))

    assert element.get("aria-label") == "99.0 % plus or minus 5.0"


LOWER = Thresholds(gold=0.08, silver=0.09, bronze=0.1, median=0.2, is_lower_better=True)
HIGHER = Thresholds(gold=0.97, silver=0.96, bronze=0.94, median=0.88, is_lower_better=False)


def marker(thresholds: Thresholds, score: float) -> float:
    """Where the score stands on its line."""
    element = svg(number_line(thresholds, score))
    return next(float(each.get("x1", 0)) for each in element if each.get("class") == "err")


@pytest.mark.parametrize(
    ("thresholds", "scores"),
    [
        pytest.param(LOWER, [0.3, 0.2, 0.1, 0.09, 0.08], id="lower is better"),
        pytest.param(HIGHER, [0.5, 0.88, 0.94, 0.96, 0.97], id="higher is better"),
    ],
)
def test_better_scores_stand_further_right(thresholds: Thresholds, scores: list[float]) -> None:
    places = [marker(thresholds, score) for score in scores]

    assert places == sorted(places)
    assert len(set(places)) > 3


def test_a_score_outside_the_line_stands_at_its_end_with_an_arrow() -> None:
    assert "◂ 9" in number_line(LOWER, 9.0)
    assert "▸" in number_line(LOWER, -5.0)


def test_there_is_no_line_without_thresholds() -> None:
    assert number_line(Thresholds(None, None, None, None, None), 0.5) == ""


def test_equal_thresholds_still_give_a_line() -> None:
    assert svg(number_line(Thresholds(1, 1, 1, 1, False), 1.0)) is not None


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "n/a"), (0.0812345, "0.081235"), (-6.8412, "-6.8412"), (3971433.25, "3971433")],
)
def test_a_score_has_no_power_of_ten(value: float | None, words: str) -> None:
    assert show.score(value) == words


def test_a_timeline_keeps_the_order_and_escapes_names() -> None:
    stretches = [
        Stretch("1 · <host>", [Piece(0, 100, "f-bad", "agent")], "host lost"),
        Stretch(
            "2 · b",
            [Piece(100, 120, "f-q", "waited in the queue"), Piece(120, 300, "f-run", "agent")],
            "running",
        ),
    ]

    element = svg(timeline(stretches, limit_seconds=400))

    bars = [each for each in element if each.tag == "rect"]
    assert len(bars) == 3
    starts = [float(each.get("x", 0)) for each in bars]
    assert starts == sorted(starts)
    said = element.get("aria-label") or ""
    assert "2 · b: waited in the queue 20 s, agent 3 min; running" in said


LOWER = Thresholds(gold=0.1, silver=0.2, bronze=0.3, median=0.4, is_lower_better=True)


@pytest.mark.parametrize("seconds", [1, 9, 154, 250, 301, 900, 5000, 7300, 40_000, 86_400])
def test_marks_on_the_axis_of_time_are_round_numbers(seconds: int) -> None:
    stretch = Stretch("1", [Piece(0, seconds, "f-run", "")], "")

    texts = [each.text or "" for each in svg(timeline([stretch], limit_seconds=None)).iter()]

    marks = [text for text in texts if text.endswith((" s", " min", " h"))]
    assert len(marks) >= 2
    assert all(len(mark.split()[0]) <= 4 for mark in marks), marks


def test_a_score_curve_rises_as_scores_get_better_and_says_so_in_words() -> None:
    points = [Scored(60, 0.5), Scored(600, 0.35), Scored(3000, 0.15)]

    element = svg(score_curve(points, LOWER, end_seconds=3600))

    dots = [each for each in element if each.tag == "circle"]
    heights = [float(each.get("cy", 0)) for each in dots]
    assert heights == sorted(heights, reverse=True), "better is higher, also where lower is better"
    lines = [each for each in element if each.get("class") == "ref"]
    named = [title.text for line in lines for title in line]
    assert named == ["gold 0.1", "silver 0.2", "bronze 0.3", "median 0.4"]
    assert element.get("aria-label") == (
        "3 scored submissions: first 0.5 after 60 s, best 0.15 after 50 min, last 0.15 after 50 min"
    )


def test_thresholds_far_away_do_not_flatten_a_score_curve() -> None:
    element = svg(score_curve([Scored(1, 100.0), Scored(2, 90.0)], LOWER, end_seconds=3))

    assert not {"gold", "median"} & {each.text for each in element if each.tag == "text"}


@pytest.mark.parametrize(
    ("points", "thresholds"),
    [
        ([], LOWER),
        ([Scored(1, 0.5)], Thresholds(None, None, None, None, is_lower_better=None)),
    ],
)
def test_there_is_no_score_curve_of_nothing(points: list[Scored], thresholds: Thresholds) -> None:
    assert score_curve(points, thresholds, end_seconds=10) == ""


def test_one_score_without_thresholds_is_a_curve_too() -> None:
    thresholds = Thresholds(None, None, None, None, is_lower_better=False)

    svg(score_curve([Scored(0, 0.5)], thresholds, end_seconds=0))


def test_a_description_becomes_text_never_markup() -> None:
    text = "# Title\n\nSome `code` and **bold** <script>alert(1)</script>\n\n- one\n- two\n"
    text += "\n| a | b |\n|---|---|\n| 1 | <b>2</b> |\n\n    x = 1\n\n```\n<i>\n```\n"

    html = prose(text)

    assert "<h3>Title</h3>" in html
    assert "<code>code</code>" in html
    assert "<ul><li>one</li><li>two</li></ul>" in html
    assert "<td>&lt;b&gt;2&lt;/b&gt;</td>" in html
    assert "<pre>x = 1</pre>" in html
    assert "<script" not in html
    assert "<i>" not in html
