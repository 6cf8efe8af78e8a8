"""The log on the run page: a window of it, what comes after by polling, and the whole as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from django.contrib.auth.decorators import login_required
from django.db.models import Sum
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from mlebench_web.http import SignedInRequest
from runs import ansi, logs
from runs.models import Attempt, LogSegment
from runs.views.streaming import streamed

LINES_SHOWN = 2000
HISTORY_BYTES = 256 * 1024
CHUNK_BYTES = 1024 * 1024
FOUND_SHOWN = 200
LONGEST_SEARCH = 200


@login_required
@require_GET
@never_cache
def log_lines(request: SignedInRequest, pk: int, number: int) -> HttpResponse:
    """The poll of a live log: lines since `offset`, and the next poll. 204: nothing new.

    On a page that shows the `newest` attempt, the end of one leads to the log of the next one, for
    a reader who follows it.
    """
    attempt = get_object_or_404(Attempt.objects.select_related("run"), run=pk, number=number)
    source = _source(request.GET.get("source"))
    offset, seen = _number(request.GET.get("offset")), _number(request.GET.get("seen"))
    window = logs.window(attempt.pk, source, offset=offset)
    is_all_seen = window.total == seen
    has_next = (
        attempt.is_ended
        and "newest" in request.GET
        and attempt.run.newest_attempt().number > number
    )
    if is_all_seen and has_next and "follow" in request.GET:
        return render(request, "runs/_log.html#next", {"run_pk": pk, "source": source})
    is_said = not attempt.is_ended or (has_next and "ended" in request.GET)
    if is_all_seen and is_said:
        return HttpResponse(status=204)
    shown = _window_context(attempt, source, window, Part.NEXT)
    shown |= {"shows_newest": "newest" in request.GET, "has_next": has_next}
    return render(request, "runs/_log.html#more", shown)


@login_required
@require_GET
def raw_log(request: SignedInRequest, pk: int, number: int, source: str) -> StreamingHttpResponse:
    """The whole log as text, as it was written."""
    attempt = get_object_or_404(Attempt, run=pk, number=number)
    if source not in LogSegment.Source.values:
        raise Http404("There is no such log.")
    return streamed(
        request,
        _raw(attempt.pk, source),
        content_type="text/plain; charset=utf-8",
        filename=f"run-{pk}-attempt-{number}-{source}.log",
    )


def _raw(attempt_pk: int, source: str) -> Iterator[bytes]:
    offset = 0
    while True:
        window = logs.window(attempt_pk, source, offset=offset, limit_bytes=CHUNK_BYTES)
        yield window.text.encode()
        if window.end >= window.total or window.end <= offset:
            return
        offset = window.end


def _source(name: str | None) -> str:
    return name if name in LogSegment.Source.values else LogSegment.Source.AGENT


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 16 else 0


def context(request: SignedInRequest, attempt: Attempt) -> dict[str, object]:
    sizes: dict[str, int] = dict(
        LogSegment.objects.filter(attempt=attempt)
        .order_by()
        .values_list("source")
        .annotate(Sum("length"))
    )
    asked = request.GET.get("source")
    source = _source(asked) if asked else _best_source(attempt, sizes)
    text = request.GET.get("find", "").strip()[:LONGEST_SEARCH]
    try:
        window = _found(attempt, source, text) if text else _asked_window(request, attempt, source)
        error = ""
    except logs.LogStorageError as failure:
        window, error = {}, str(failure)
    return {
        **window,
        "shows_newest": "attempt" not in request.GET,
        "find": text,
        "log_error": error,
        "source": source,
        "sources": [
            (value, label, sizes.get(value, 0))
            for value, label in LogSegment.Source.choices
            # The header is not polled: while an attempt lives, any of the three may begin.
            if value in sizes or value in (source, LogSegment.Source.AGENT) or not attempt.is_ended
        ],
    }


def _asked_window(request: SignedInRequest, attempt: Attempt, source: str) -> dict[str, object]:
    """The tail, or the lines before or after a byte of the log. Raises LogStorageError."""
    if place := _number(request.GET.get("before")):
        start = max(0, place - HISTORY_BYTES)
        window = logs.window(attempt.pk, source, offset=start, limit_bytes=place - start)
        return _window_context(attempt, source, window, Part.BEFORE)
    if "after" in request.GET:
        place = _number(request.GET.get("after"))
        window = logs.window(attempt.pk, source, offset=place, limit_bytes=HISTORY_BYTES)
        return _window_context(attempt, source, window, Part.AFTER)
    window = logs.window(attempt.pk, source, limit_bytes=HISTORY_BYTES)
    return _window_context(attempt, source, window, Part.TAIL)


def _found(attempt: Attempt, source: str, text: str) -> dict[str, object]:
    """Lines of the whole log that hold a text, each with the place from which it is read on."""
    found = logs.search(attempt.pk, source, text, limit=FOUND_SHOWN)
    return {
        "attempt": attempt,
        "found": [(_shown(line), line.start) for line in found.lines],
        "found_count": found.count,
        "found_all": found.complete,
        "is_past": True,
        "log_is_over": True,
    }


def _best_source(attempt: Attempt, sizes: dict[str, int]) -> str:
    """Where the answer is: the agent's words; without any, the container's, then our own."""
    order = [LogSegment.Source.AGENT, LogSegment.Source.CONTAINER, LogSegment.Source.RUN]
    return next((source for source in order if sizes.get(source)), LogSegment.Source.AGENT)


@dataclass(frozen=True)
class ShownLine:
    number: int
    html: SafeString
    css: str
    is_cut: bool


class Part(StrEnum):
    """Which lines of a window are shown: a page holds LINES_SHOWN at most."""

    TAIL = "tail"  # the newest, and what comes after them by polling
    NEXT = "next"  # the first of a poll's answer
    BEFORE = "before"  # the last before a place, for reading back
    AFTER = "after"  # the first after a place, for reading on


def _window_context(
    attempt: Attempt, source: str, window: "logs.Window", part: Part
) -> dict[str, object]:
    """Whole lines, and apart from them a last line without an end, which may still grow."""
    lines, end = list(window.lines), window.end
    if part == Part.BEFORE and window.continues and len(lines) > 1:
        # The page before this one ends with the whole of it.
        del lines[0]
    if len(lines) > LINES_SHOWN:
        if part in (Part.TAIL, Part.BEFORE):
            lines = lines[-LINES_SHOWN:]
        else:
            end = lines[LINES_SHOWN].start
            lines = lines[:LINES_SHOWN]
    is_past = part in (Part.BEFORE, Part.AFTER)
    is_at_end = end >= window.total
    rest = None
    if lines and is_at_end and not window.text.endswith("\n"):
        rest = lines.pop()
        end = rest.start
    first = lines[0].start if lines else window.start
    return {
        "attempt": attempt,
        "source": source,
        "lines": [_shown(line) for line in lines],
        "rest": _shown(rest) if rest else None,
        "next_offset": end,
        # An answer of "nothing new" must not hide lines that are there but not shown yet.
        "seen": window.total if is_at_end else 0,
        "total": window.total,
        "before": first or None,
        "after": end if is_past and not is_at_end else None,
        "is_past": is_past,
        # Nothing is shipped any more, and all of it is on the page.
        "log_is_over": is_past or (attempt.is_ended and is_at_end),
    }


def _shown(line: "logs.Line") -> ShownLine:
    plain = ansi.plain(line.text)
    return ShownLine(line.number, ansi.render(line.text), _line_css(plain), line.cut)


ERROR_WORDS = ("Error:", "Exception:", "Traceback (most recent call last)", "Killed", "FATAL")


def _line_css(plain: str) -> str:
    if plain.startswith("[mlebench-web:"):
        return "note-line"
    return "e" if any(word in plain for word in ERROR_WORDS) else ""
