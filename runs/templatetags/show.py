"""Filters that say a value as people read it. None is said as "n/a", never as 0."""

import json
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.safestring import SafeString, mark_safe

from runs.core.comparability import gibibytes

register = template.Library()
MISSING = "n/a"
UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


@register.filter
def duration(value: timedelta | float | None) -> str:
    """`9 h 38`, `12 min 05`, `42 s`, `0.4 s`, from a timedelta or seconds."""
    if value is None or value == "":
        return MISSING
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 0:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02}"
    minutes = round(seconds / 60)
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60:02}"
    return f"{hours // 24} d {hours % 24} h"


@register.filter
def short_duration(value: timedelta | float | None) -> str:
    """For narrow cells: `9h38`, `12m`, `42s`; empty where there is none."""
    if value is None or value == "":
        return ""
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}" if minutes >= 60 else f"{minutes}m"


@register.filter
def limit(value: timedelta | None) -> str:
    """A limit that a person set: `24 h`, `90 min`, `45 s`."""
    if value is None:
        return MISSING
    seconds = round(value.total_seconds())
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return duration(value)


@register.filter
def size(value: float | None) -> str:
    """Bytes in decimal units, as disks are sold: `2.1 MB`."""
    if value is None or value == "":
        return MISSING
    amount = float(value)
    for unit in UNITS:
        if abs(amount) < 999.5 or unit == UNITS[-1]:
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


@register.filter
def gib(value: float | None) -> str:
    """Memory without needless decimals: `24 GiB`, `1.5 GiB`."""
    if value is None or value == "":
        return MISSING
    return gibibytes(float(value))


@register.filter
def ago(value: datetime | None, now: datetime | None = None) -> str:
    """`12 s ago`, `3 min ago`, `2 d ago`; in the future `in 3 min`; never `n/a ago`."""
    if value is None:
        return "never"
    seconds = ((now or timezone.now()) - value).total_seconds()
    amount, unit = abs(seconds), "s"
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if amount >= size:
            amount, unit = amount / size, name
            break
    if amount < 5 and unit == "s":
        return "just now"
    return f"in {amount:.0f} {unit}" if seconds < 0 else f"{amount:.0f} {unit} ago"


@register.filter
def moment(value: datetime | None) -> str:
    """`20 Nov 2026 09:14 UTC`."""
    if value is None:
        return MISSING
    return timezone.localtime(value).strftime("%-d %b %Y %H:%M %Z")


@register.filter
def percent(value: float | None) -> str:
    """One decimal and no sign: columns say "%"."""
    return MISSING if value is None or value == "" else f"{value:.1f}"


@register.filter
def score(value: float | None) -> str:
    """Five significant digits: enough to compare with a threshold; never as a power of ten."""
    if value is None or value == "":
        return MISSING
    return f"{value:.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"


@register.filter
def count_of(number: int, noun: str) -> str:
    """`1 run`, `3 runs`: {{ 3|count_of:"run" }}."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


@register.filter
def words(value: object) -> str:
    """`infrastructure_failed` as people say it."""
    return str(value or "").replace("_", " ")


@register.filter
def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


@register.simple_tag(takes_context=True)
def query(context: template.Context, **changes: object) -> str:
    """This page's query with some values changed; None takes one away. Filters live in the URL."""
    values = context["request"].GET.copy()
    for name, value in changes.items():
        if value is None or value == "":
            values.pop(name, None)
        else:
            values[name] = str(value)
    encoded = values.urlencode()
    return f"?{encoded}" if encoded else context["request"].path


@register.filter
def part(parts: dict[str, Any], name: str) -> Any:
    """One value of a mapping; None where it has none."""
    return parts.get(name)


@register.filter
def breakable(path: str) -> SafeString:
    """A path that a narrow column may break after each slash."""
    return format_html_join(mark_safe("/<wbr>"), "{}", ((part,) for part in path.split("/")))
