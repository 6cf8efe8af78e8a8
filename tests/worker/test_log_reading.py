"""Reading an agent's log: windows, search, the raw bytes."""

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from pytest_django import (
    DjangoAssertNumQueries,
    Settings,
)

from runs import logs
from runs.models import Attempt, LogSegment
from tests.support.log_streams import stream

AGENT = LogSegment.Source.AGENT
RUN = LogSegment.Source.RUN
NAME = "agent.stdout"


@pytest.fixture(autouse=True)
def media(tmp_path: Path, settings: Settings) -> Path:
    settings.MEDIA_ROOT = tmp_path / "media"
    return tmp_path / "media"


@pytest.fixture
def log(attempt: Attempt) -> Callable[..., None]:
    """Puts these bytes into the stream of the agent, one segment each."""

    def put(*segments: bytes) -> None:
        at = sum(row.length for row in LogSegment.objects.filter(attempt=attempt))
        line = 1 + sum(row.line_count for row in LogSegment.objects.filter(attempt=attempt))
        for data in segments:
            LogSegment.objects.create(
                attempt=attempt,
                source=AGENT,
                first_byte=at,
                length=len(data),
                first_line=line,
                line_count=data.count(b"\n"),
                path=default_storage.save("logs/test.log", ContentFile(data)),
            )
            at += len(data)
            line += data.count(b"\n")

    return put


def test_the_window_of_an_empty_log_is_empty(attempt: Attempt) -> None:
    window = logs.window(attempt.pk, AGENT)

    assert (window.text, window.start, window.end, window.total) == ("", 0, 0, 0)
    assert (window.first_line, window.lines) == (1, ())


def test_the_tail_begins_with_a_whole_line(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"one\ntwo\n", b"three\nfo", b"ur\n")

    window = logs.window(attempt.pk, AGENT, limit_bytes=10)

    assert window.text == "four\n"
    assert (window.start, window.end, window.total) == (14, 19, 19)
    assert (window.first_line, window.continues) == (4, False)
    assert [(line.number, line.text) for line in window.lines] == [(4, "four")]


def test_a_tail_that_begins_exactly_with_a_line_keeps_it(
    attempt: Attempt, log: Callable[..., None]
) -> None:
    log(b"one\ntwo\n")

    assert logs.window(attempt.pk, AGENT, limit_bytes=4).text == "two\n"


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 64, 1000])
def test_windows_that_follow_each_other_give_the_whole_text(
    attempt: Attempt, log: Callable[..., None], limit: int
) -> None:
    text = "größer\n日本 🎉\n" + "x" * 40 + "\nêtre\nfin"
    data = text.encode()
    draw = random.Random(5)
    cuts = sorted(draw.sample(range(1, len(data)), 8))
    log(*(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)))

    seen, offset = "", 0
    while True:
        window = logs.window(attempt.pk, AGENT, offset=offset, limit_bytes=limit)
        assert window.start == offset
        assert window.first_line == 1 + data[:offset].count(b"\n")
        if not window.text:
            break
        assert window.continues == (offset > 0 and data[offset - 1 : offset] != b"\n")
        seen += window.text
        offset = window.end

    assert offset == len(data)
    if limit >= 4:
        assert seen == text


def test_half_a_character_at_the_end_waits_for_its_other_half(
    attempt: Attempt, log: Callable[..., None]
) -> None:
    log(b"caf" + "é".encode()[:1])
    first = logs.window(attempt.pk, AGENT, offset=0)
    log("é".encode()[1:] + b"!\n")

    second = logs.window(attempt.pk, AGENT, offset=first.end)

    assert first.text + second.text == "café!\n"
    assert second.continues


def test_hostile_bytes_are_shown_as_replaced(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"\xff\xfe\x00<script>\n")

    assert logs.window(attempt.pk, AGENT).text == "\ufffd\ufffd\x00<script>\n"


def test_a_very_long_line_is_cut_for_display_only(
    attempt: Attempt, log: Callable[..., None]
) -> None:
    log(b"short\n" + "é".encode() * 10_000 + b"\n")

    window = logs.window(attempt.pk, AGENT)

    short, long = window.lines
    assert (short.cut, long.cut) == (False, True)
    assert (long.number, long.start, long.bytes) == (2, 6, 20_000)
    assert long.text == "é" * 2048
    assert len(window.text) == 10_007


def test_one_merge_may_lead_to_the_next(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"x" * 500_000, b"y" * 62_000, b"z" * 4_000)

    logs.append(attempt.pk, AGENT, "w" * 200)

    assert LogSegment.objects.filter(attempt=attempt).count() == 1
    assert len(stream(attempt)) == 566_000 + len("[2026-01-02 03:04:05] ") + 201


def test_who_merges_second_changes_nothing(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"a\n", b"b\n", b"c\n")
    rows = list(LogSegment.objects.order_by("first_byte"))
    assert logs.segments.join(rows[:2])

    assert not logs.segments.join(rows)

    assert stream(attempt) == b"a\nb\nc\n"


def test_a_window_costs_one_query_and_reads_only_what_it_shows(
    attempt: Attempt,
    log: Callable[..., None],
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    log(*(f"{number}\n".encode() * 1000 for number in range(30)))
    for row in LogSegment.objects.filter(first_line__lt=20_000):
        default_storage.delete(row.path)

    with django_assert_num_queries(1):
        window = logs.window(attempt.pk, AGENT, limit_bytes=300)

    assert window.lines[-1].number == 30_000
    assert window.lines[0].number == 29_901


def test_the_raw_log_is_the_bytes_that_were_written(
    attempt: Attempt, log: Callable[..., None]
) -> None:
    data = os.urandom(2 * 2**20 + 7)
    log(data[:100_000], data[100_000:])

    assert b"".join(logs.raw(attempt.pk, AGENT)) == data
    assert b"".join(logs.raw(attempt.pk, RUN)) == b""


def test_last_lines_are_plain_text(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"one\n\x1b[31mtwo\x1b[0m\x00\nthree")

    assert logs.last_lines(attempt.pk, AGENT, 2) == ["two", "three"]
    assert logs.last_lines(attempt.pk, AGENT, 0) == []


def test_search_counts_all_lines_over_all_segments(
    attempt: Attempt, log: Callable[..., None]
) -> None:
    log(b"an Error er", b"ror\nfine\nERR", b"OR\n", b"no\n" * 1000, b"last error")

    found = logs.search(attempt.pk, AGENT, "error", limit=2)

    assert (found.count, found.complete, found.total_lines) == (3, True, 1003)
    assert [(line.number, line.text) for line in found.lines] == [
        (1, "an Error error"),
        (3, "ERROR"),
    ]
    assert logs.search(attempt.pk, AGENT, "").count == 0


def test_search_finds_the_line_that_the_window_shows(
    attempt: Attempt, log: Callable[..., None]
) -> None:
    log(b"a\n" * 10 + b"needle\n", b"b\n")

    (line,) = logs.search(attempt.pk, AGENT, "needle").lines

    assert logs.window(attempt.pk, AGENT, offset=line.start).text == "needle\nb\n"


def test_a_search_that_runs_out_of_time_says_so(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"error\n")

    assert not logs.search(attempt.pk, AGENT, "error", seconds=-1).complete


def test_a_line_of_many_megabytes_counts_once(attempt: Attempt, log: Callable[..., None]) -> None:
    log(b"x" * (5 * 2**20) + b"needle" + b"y" * (5 * 2**20) + b"needle\n", b"needle\n")

    found = logs.search(attempt.pk, AGENT, "needle")

    assert found.count == 2
    assert [line.number for line in found.lines] == [1, 2]


def test_own_words_have_the_time_on_each_line(attempt: Attempt) -> None:
    logs.append(attempt.pk, RUN, "one\ntwo\n")
    logs.append(attempt.pk, RUN, "three")

    lines = stream(attempt, RUN).decode().splitlines()
    assert [line[22:] for line in lines] == ["one", "two", "three"]
    assert re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] one$", lines[0])
