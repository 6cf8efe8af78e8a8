"""Small charts as SVG: geometry in attributes, colour by class, a sentence for who cannot see it.

No inline style, so the content security policy needs no exception and dark mode comes free.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString


@dataclass(frozen=True)
class Part:
    """A share of a bar: its CSS class, how many, and what they are."""

    css: str
    count: int
    label: str


def stacked_bar(parts: Iterable[Part], *, label: str) -> SafeString:
    """A bar whose parts add up to its whole width."""
    shown = [part for part in parts if part.count]
    total = sum(part.count for part in shown) or 1
    rects, x = [], 0.0
    for part in shown:
        width = 1000 * part.count / total
        # A gap of 2 keeps two neighbours of one colour apart.
        rects.append((part.css, f"{x:.1f}", f"{max(width - 2, 1):.1f}", part.label, part.count))
        x += width
    return format_html(
        '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        'aria-label="{}"><rect class="f-q" width="1000" height="10"/>{}</svg>',
        label,
        format_html_join(
            "",
            '<rect class="{}" x="{}" width="{}" height="10"><title>{}: {}</title></rect>',
            rects,
        ),
    )


def bar(
    value: float | None, most: float, *, label: str, css: str = "f-run", width: int = 120
) -> SafeString:
    """One value against the most that it can be."""
    share = min(max((value or 0) / most, 0), 1) if most else 0
    return format_html(
        '<svg class="ch" width="{}" height="10" role="img" aria-label="{}">'
        '<rect class="f-q" width="{}" height="10"/><rect class="{}" width="{}" height="10"/></svg>',
        width,
        label,
        width,
        css,
        f"{share * width:.1f}",
    )


def whisker(
    mean: float, error: float | None, *, most: float = 100, width: int = 164, css: str = "f-bar"
) -> SafeString:
    """A percentage as a bar, with its standard error as a whisker."""
    scale = (width - 4) / most
    end = 1 + mean * scale
    low, high = 1 + max(mean - (error or 0), 0) * scale, 1 + min(mean + (error or 0), most) * scale
    marks = SafeString("")
    if error is not None:
        marks = format_html(
            '<path class="err" d="M{} 10H{}M{} 6v8M{} 6v8"/>',
            *(f"{x:.1f}" for x in (low, high, low, high)),
        )
    words = f"{mean:.1f} %" + (f" plus or minus {error:.1f}" if error is not None else "")
    return format_html(
        '<svg class="ch" width="{}" height="20" role="img" aria-label="{}">'
        '<rect class="{}" x="1" y="5" width="{}" height="10"/>{}'
        '<line class="ax" x1="1" x2="1" y1="0" y2="20"/></svg>',
        width,
        words,
        css,
        f"{max(end - 1, 0):.1f}",
        marks,
    )


@dataclass(frozen=True)
class Thresholds:
    """Of one competition; None where unknown."""

    gold: float | None
    silver: float | None
    bronze: float | None
    median: float | None
    is_lower_better: bool | None

    def known(self) -> list[float]:
        values = (self.gold, self.silver, self.bronze, self.median)
        return [value for value in values if value is not None]


def number_line(thresholds: Thresholds, score: float | None = None) -> SafeString:
    """Median and medal bands on a line, better to the right, and where a score lies.

    A score outside of the line stands at its end with an arrow. Empty without a gold threshold.
    """
    t = thresholds
    if t.gold is None or t.silver is None or t.bronze is None or t.is_lower_better is None:
        return SafeString("")
    left, right, y = 4.0, 286.0, 46
    sign = -1 if t.is_lower_better else 1
    known = [sign * value for value in t.known()]
    best, worst = max(known), min(known)
    span = (best - worst) or abs(best) or 1.0
    low, high = worst - 0.6 * span, best + 0.2 * span

    def at(value: float) -> float:
        share = (sign * value - low) / (high - low)
        return left + min(max(share, 0), 1) * (right - left)

    parts = [
        format_html(
            '<rect class="f-q" x="{}" y="{}" width="{}" height="10"/>',
            left,
            y,
            f"{right - left:.1f}",
        )
    ]
    edges = [at(t.bronze), at(t.silver), at(t.gold), right]
    for index, (css, letter) in enumerate((("bronze", "B"), ("silver", "S"), ("gold", "G"))):
        x, width = edges[index], edges[index + 1] - edges[index]
        parts.append(
            format_html(
                '<rect class="f-{}" x="{}" y="{}" width="{}" height="10"/>',
                css,
                f"{x:.1f}",
                y,
                f"{max(width, 0.5):.1f}",
            )
        )
        if width >= 10:
            parts.append(
                format_html(
                    '<text class="on-m" x="{}" y="{}" text-anchor="middle">{}</text>',
                    f"{x + width / 2:.1f}",
                    y + 8,
                    letter,
                )
            )
    if t.median is not None:
        x = at(t.median)
        parts.append(
            format_html(
                '<line class="ref" x1="{0}" x2="{0}" y1="26" y2="{1}"/>'
                '<text x="{0}" y="20" text-anchor="middle">median {2}</text>',
                f"{min(max(x, 40), 250):.1f}",
                y + 14,
                f"{t.median:.5g}",
            )
        )
    words = f"Gold from {t.gold:.5g}, silver {t.silver:.5g}, bronze {t.bronze:.5g}"
    if score is not None:
        x = at(score)
        outside = "◂ " if sign * score < low else ""
        beyond = " ▸" if sign * score > high else ""
        parts.append(
            format_html(
                '<line class="err" x1="{0}" x2="{0}" y1="38" y2="60"/>'
                '<path class="pt" d="M{0} {1}l-5 8h10z"/>'
                '<text class="lbl" x="{2}" y="80" text-anchor="middle">{3}{4}{5}</text>',
                f"{x:.1f}",
                y + 12,
                f"{min(max(x, 26), 264):.1f}",
                outside,
                f"{score:.5g}",
                beyond,
            )
        )
        words = f"Score {score:.5g}. {words}"
    return format_html(
        '<svg class="ch wide-line" viewBox="0 0 290 {}" role="img" aria-label="{}">{}</svg>',
        86 if score is not None else 64,
        words,
        format_html_join("", "{}", ((part,) for part in parts)),
    )


@dataclass(frozen=True)
class Piece:
    """A part of a row on the timeline, in seconds on its axis."""

    begin: float
    end: float
    css: str
    words: str


@dataclass(frozen=True)
class Stretch:
    """One attempt on the timeline: its pieces, drawn in this order, and how it ended."""

    label: str
    pieces: Sequence[Piece]
    words: str

    @property
    def begin(self) -> float:
        return min((piece.begin for piece in self.pieces), default=0.0)

    @property
    def end(self) -> float:
        return max((piece.end for piece in self.pieces), default=0.0)


def timeline(stretches: Sequence[Stretch], *, limit_seconds: float | None) -> SafeString:
    """Attempts under each other on one axis of time; the time limit where it is near."""
    if not stretches:
        return SafeString("")
    last = max(stretch.end for stretch in stretches) or 1.0
    show_limit = limit_seconds is not None and limit_seconds <= 3 * last
    whole = max(last, limit_seconds if show_limit and limit_seconds else 0) * 1.02
    left, right, row = 150.0, 1340.0, 26
    height = 22 + row * len(stretches)

    def at(seconds: float) -> float:
        return left + (right - left) * seconds / whole

    parts = []
    for mark in _marks(whole):
        parts.append(
            format_html(
                '<line class="ax" x1="{0}" x2="{0}" y1="14" y2="{1}"/>'
                '<text x="{0}" y="9" text-anchor="middle">{2}</text>',
                f"{at(mark):.1f}",
                height,
                _axis_words(mark, whole),
            )
        )
    for number, stretch in enumerate(stretches):
        y = 20 + number * row
        begin, end = at(stretch.begin), at(stretch.end)
        # Words stand behind the bar, or before it where there is no room.
        behind = end < right - 320
        drawn = format_html_join(
            "",
            '<rect class="{}" x="{}" y="{}" width="{}" height="14"><title>{}</title></rect>',
            (
                (
                    piece.css,
                    f"{at(piece.begin):.1f}",
                    y,
                    f"{max(at(piece.end) - at(piece.begin), 1):.1f}",
                    piece.words,
                )
                for piece in stretch.pieces
            ),
        )
        parts.append(
            format_html(
                '<text class="lbl" x="0" y="{}">{}</text>{}'
                '<text x="{}" y="{}" text-anchor="{}">{}</text>',
                y + 11,
                stretch.label,
                drawn,
                f"{end + 8 if behind else begin - 8 if begin > left + 320 else begin + 8:.1f}",
                y + 11,
                "start" if behind or begin <= left + 320 else "end",
                stretch.words if behind or begin > left + 320 else "",
            )
        )
    if show_limit and limit_seconds:
        parts.append(
            format_html(
                '<line class="ref" x1="{0}" x2="{0}" y1="14" y2="{1}"/>'
                '<text x="{2}" y="{3}" text-anchor="end">limit</text>',
                f"{at(limit_seconds):.1f}",
                height,
                f"{at(limit_seconds) - 6:.1f}",
                height - 2,
            )
        )
    words = ". ".join(
        f"{stretch.label}: "
        + ", ".join(
            f"{piece.words} {_in_words(piece.end - piece.begin)}" for piece in stretch.pieces
        )
        + f"; {stretch.words}"
        for stretch in stretches
    )
    return format_html(
        '<svg class="ch wide" viewBox="0 0 1360 {}" role="img" aria-label="{}">{}</svg>',
        height + 2,
        words,
        format_html_join("", "{}", ((part,) for part in parts)),
    )


@dataclass(frozen=True)
class Scored:
    """A submission as it stood at one moment: seconds of active agent time, and its score."""

    seconds: float
    score: float


def score_curve(
    points: Sequence[Scored], thresholds: Thresholds, *, end_seconds: float
) -> SafeString:
    """The score over active time as steps, better upwards, with the thresholds as lines.

    Empty without a point or without knowing which way is better.
    """
    if not points or thresholds.is_lower_better is None:
        return SafeString("")
    sign = -1 if thresholds.is_lower_better else 1
    scores = [sign * point.score for point in points]
    known = [sign * value for value in thresholds.known()]
    # Thresholds far away must not press the curve into a line: two of its heights at most.
    low, high = min(scores), max(scores)
    reach = (
        2 * (high - low) if high > low else max((abs(value - high) for value in known), default=0)
    )
    shown = [value for value in known if low - reach <= value <= high + reach]
    low, high = min([low, *shown]), max([high, *shown])
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.08 * span, high + 0.08 * span
    left, right, top, bottom = 8.0, 282.0, 8.0, 118.0
    whole = max(end_seconds, points[-1].seconds) or 1.0

    def x(seconds: float) -> float:
        return left + (right - left) * min(max(seconds / whole, 0), 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for mark in _marks(whole)[::2]:
        parts.append(
            format_html(
                '<line class="ax" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
                '<text x="{0}" y="{3}" text-anchor="{5}">{4}</text>',
                f"{x(mark):.1f}",
                top,
                bottom,
                bottom + 12,
                _axis_words(mark, whole),
                "middle" if mark else "start",
            )
        )
    names = (
        ("gold", thresholds.gold),
        ("silver", thresholds.silver),
        ("bronze", thresholds.bronze),
        ("median", thresholds.median),
    )
    labelled: list[float] = []
    for name, value in names:
        if value is None or sign * value not in shown:
            continue
        at = y(sign * value)
        # Names of lines that lie close would cover each other: the better one keeps its own.
        base = at + 9 if at < top + 8 else at - 2
        is_free = all(abs(base - other) >= 10 for other in labelled)
        labelled += [base] if is_free else []
        parts.append(
            format_html(
                '<line class="ref" x1="{0}" x2="{1}" y1="{2}" y2="{2}"><title>{5}</title></line>'
                '<text x="{3}" y="{4}">{6}</text>',
                left,
                right,
                f"{at:.1f}",
                left + 2,
                f"{base:.1f}",
                f"{name} {value:.5g}",
                name if is_free else "",
            )
        )
    path = f"M{x(points[0].seconds):.1f} {y(sign * points[0].score):.1f}"
    for point in points[1:]:
        path += f"H{x(point.seconds):.1f}V{y(sign * point.score):.1f}"
    path += f"H{x(end_seconds):.1f}"
    parts.append(format_html('<path class="ln" d="{}"/>', path))
    parts.append(
        format_html_join(
            "",
            '<circle class="pt" cx="{}" cy="{}" r="2.5"><title>{} after {}</title></circle>',
            (
                (
                    f"{x(point.seconds):.1f}",
                    f"{y(sign * point.score):.1f}",
                    f"{point.score:.5g}",
                    _in_words(point.seconds),
                )
                for point in points
            ),
        )
    )
    best = max(points, key=lambda point: sign * point.score)
    words = (
        f"{len(points)} scored submissions: first {points[0].score:.5g} after "
        f"{_in_words(points[0].seconds)}, best {best.score:.5g} after {_in_words(best.seconds)}, "
        f"last {points[-1].score:.5g} after {_in_words(points[-1].seconds)}"
    )
    return format_html(
        '<svg class="ch wide-line" viewBox="0 0 290 134" role="img" aria-label="{}">{}</svg>',
        words,
        format_html_join("", "{}", ((part,) for part in parts)),
    )


def _in_words(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"


STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def _marks(whole: float) -> list[float]:
    """At most ten round marks from 0."""
    step = next((step for step in STEPS if whole / step <= 10), whole / 10)
    return [step * number for number in range(int(whole / step) + 1)]


def _axis_words(seconds: float, whole: float) -> str:
    if whole > 2 * 3600:
        return f"{seconds / 3600:g} h"
    # Up to here the marks are 20 or 30 s apart.
    if whole > 300:
        return f"{seconds / 60:g} min"
    return f"{seconds:g} s"
