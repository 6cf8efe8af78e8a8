"""The curve of a metric over the steps of a run, as SVG; runs.charts says how charts are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, HEIGHT = 1000, 150
LEFT, RIGHT, TOP, BOTTOM = 70.0, 990.0, 18.0, 122.0
# More points than these are drawn as a line only.
MOST_DOTS = 300
# More attempts than these have no room for their words.
MOST_WORDS = 12


type _Place = Callable[[int], float]
type _Value = Callable[[float], float]


@dataclass(frozen=True)
class Measured:
    """A step with a value of the metric."""

    attempt: int
    number: int
    value: float


def step_curve(
    points: Sequence[Measured], *, name: str, maximize: bool | None, best: Measured | None
) -> SafeString:
    """Values in the order of the steps, one attempt after the other, better upwards.

    Where it is not known which way is better, larger values are. Empty without two points.
    """
    if len(points) < 2:
        return SafeString("")
    sign = -1 if maximize is False else 1
    values = [sign * point.value for point in points]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.08 * span, high + 0.08 * span

    def x(place: int) -> float:
        return LEFT + (RIGHT - LEFT) * place / (len(points) - 1)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (sign * value - low) / (high - low)

    parts = [
        _values(min(values), max(values), sign, y),
        *_attempts(points, x),
        _numbers(points, x),
        format_html(
            '<polyline class="ln" points="{}"/>',
            " ".join(f"{x(place):.1f},{y(point.value):.1f}" for place, point in enumerate(points)),
        ),
    ]
    if len(points) <= MOST_DOTS:
        parts.append(_dots(points, x, y))
    if best is not None and best in points:
        parts.append(
            format_html(
                '<circle class="pt" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>',
                f"{x(points.index(best)):.1f}",
                f"{y(best.value):.1f}",
                f"best: {best.value:.5g}, step {best.number}",
            )
        )
    return format_html(
        '<svg class="ch wide" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>',
        WIDTH,
        HEIGHT,
        _in_words(points, name, maximize, best),
        format_html_join("", "{}", ((part,) for part in parts)),
    )


def _values(low: float, high: float, sign: int, y: _Value) -> SafeString:
    """The worst and the best value at the axis; one line where they are the same."""
    marks = [low] if low == high else [low, high]
    return format_html_join(
        "",
        '<line class="ax" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        '<text x="{3}" y="{4}" text-anchor="end">{5}</text>',
        (
            (
                LEFT,
                RIGHT,
                f"{y(sign * mark):.1f}",
                LEFT - 6,
                f"{y(sign * mark) + 3:.1f}",
                f"{sign * mark:.5g}",
            )
            for mark in marks
        ),
    )


def _attempts(points: Sequence[Measured], x: _Place) -> list[SafeString]:
    """Where each attempt begins, if there are several."""
    begins = [
        place
        for place, point in enumerate(points)
        if place == 0 or point.attempt != points[place - 1].attempt
    ]
    if len(begins) < 2:
        return []
    drawn = []
    for place in begins:
        # Between two steps, and at the very left for the first.
        at = x(place) if place == 0 else (x(place - 1) + x(place)) / 2
        drawn.append(
            format_html(
                '<line class="ref" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>', f"{at:.1f}", TOP, BOTTOM
            )
        )
        if len(begins) <= MOST_WORDS:
            words = f"attempt {points[place].attempt}"
            drawn.append(
                format_html('<text x="{}" y="{}">{}</text>', f"{at + 3:.1f}", TOP - 8, words)
            )
    return drawn


def _numbers(points: Sequence[Measured], x: _Place) -> SafeString:
    """Step numbers below, at most ten."""
    every = -(-len(points) // 10)
    return format_html_join(
        "",
        '<text x="{}" y="{}" text-anchor="middle">{}</text>',
        (
            (f"{x(place):.1f}", BOTTOM + 16, point.number)
            for place, point in enumerate(points)
            if place % every == 0
        ),
    )


def _dots(points: Sequence[Measured], x: _Place, y: _Value) -> SafeString:
    return format_html_join(
        "",
        '<circle class="dot" cx="{}" cy="{}" r="2.5"><title>step {} of attempt {}: {}</title>'
        "</circle>",
        (
            (
                f"{x(place):.1f}",
                f"{y(point.value):.1f}",
                point.number,
                point.attempt,
                f"{point.value:.5g}",
            )
            for place, point in enumerate(points)
        ),
    )


def _in_words(
    points: Sequence[Measured], name: str, maximize: bool | None, best: Measured | None
) -> str:
    first, last = points[0], points[-1]
    attempts = len({point.attempt for point in points})
    words = f"{name or 'The metric'} over {len(points)} steps of {attempts} attempts"
    if maximize is not None:
        words += f", {'higher' if maximize else 'lower'} is better"
    words += f": first {first.value:.5g} at step {first.number}"
    if best is not None:
        words += f", best {best.value:.5g} at step {best.number} of attempt {best.attempt}"
    return f"{words}, last {last.value:.5g} at step {last.number}"
