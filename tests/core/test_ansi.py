"""Terminal lines as HTML: the right colours, and never any markup of the agent's."""

import re
import time
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import ansi


@pytest.mark.parametrize(
    ("line", "html"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;", id="escaped"),
        pytest.param("\x1b[31mred\x1b[0m on", '<span class="a-r">red</span> on', id="reset"),
        pytest.param("\x1b[31mred\x1b[m on", '<span class="a-r">red</span> on', id="empty reset"),
        pytest.param("\x1b[1;32mok", '<span class="a-g a-1">ok</span>', id="bold green"),
        pytest.param("\x1b[1mB\x1b[22mn", '<span class="a-1">B</span>n', id="bold ends"),
        pytest.param("\x1b[2;4mx", '<span class="a-2 a-4">x</span>', id="dim, underlined"),
        pytest.param("\x1b[90mgrey", '<span class="a-2">grey</span>', id="bright black"),
        pytest.param("\x1b[90mgrey\x1b[39mx", '<span class="a-2">grey</span>x', id="ink again"),
        pytest.param("\x1b[93my", '<span class="a-y">y</span>', id="bright"),
        pytest.param("\x1b[37mwhite", "white", id="white is ink"),
        pytest.param("\x1b[41mon red", "on red", id="background dropped"),
        pytest.param("\x1b[38;5;196mx", '<span class="a-r">x</span>', id="256 red"),
        pytest.param("\x1b[38;5;244mx", "x", id="256 grey"),
        pytest.param("\x1b[38;2;30;100;255mx", '<span class="a-b">x</span>', id="true blue"),
        pytest.param("\x1b[38:2::0:200:0mx", '<span class="a-g">x</span>', id="colons"),
        pytest.param("\x1b[38;2;0;200;0;1mx", '<span class="a-g a-1">x</span>', id="and bold"),
        pytest.param("\x1b[48;5;1;36mx", '<span class="a-c">x</span>', id="after background"),
        pytest.param("\x1b[31ma\x1b[31mb", '<span class="a-r">ab</span>', id="one span"),
        pytest.param("\x1b[2K\x1b[1Ga\x1b[5Cb", "ab", id="cursor codes dropped"),
        pytest.param("\x1b[?25lx\x1b[?25h", "x", id="private codes dropped"),
        pytest.param("\x1b]0;title\x07x", "x", id="title dropped"),
        pytest.param("\x1b]8;;javascript:alert(1)\x1b\\x\x1b]8;;\x1b\\", "x", id="link dropped"),
        pytest.param("\x1b]0;never ends", "0;never ends", id="unfinished title hides nothing"),
        pytest.param("\x1b[31", "31", id="unfinished colour"),
        pytest.param("\x1b(Bx\x1b=\x1b", "x", id="other escapes"),
        pytest.param("a\x00\x07\x9bb\x7f", "ab", id="controls dropped"),
        pytest.param("a\u202eb\u2066", "ab", id="direction marks dropped"),
        pytest.param("a\tb", "a\tb", id="tab kept"),
        pytest.param(" 10%\r 50%\r100%", "100%", id="progress bar"),
        pytest.param("done\r", "done", id="Windows line end"),
        pytest.param("50%\r\x1b[K", "50%", id="cleared at the end"),
        pytest.param("\x1b[32m 1%\r\x1b[0mok", "ok", id="colour of the old state ends"),
        pytest.param("\x1b[32m 1%\r 2%", '<span class="a-g"> 2%</span>', id="colour goes on"),
        pytest.param("abc\b\bX", "aX", id="backspace"),
        pytest.param("a\x1b[31mb\b\b\b\bx", '<span class="a-r">x</span>', id="too many of them"),
        pytest.param("\x1b[" + "9" * 5000 + "mx", "x", id="endless number"),
        pytest.param("\x1b[;;;mx", "x", id="empty codes"),
    ],
)
def test_a_line_becomes_this_html(line: str, html: str) -> None:
    assert ansi.render(line) == html


def test_a_colour_lasts_over_lines_until_it_is_reset() -> None:
    lines = ansi.render_lines(["\x1b[31ma", "b\x1b[0m", "c"])

    assert lines == ['<span class="a-r">a</span>', '<span class="a-r">b</span>', "c"]


def test_one_line_does_not_colour_the_next_call() -> None:
    ansi.render("\x1b[31ma")

    assert ansi.render("b") == "b"


def test_plain_text_has_neither_colours_nor_controls() -> None:
    assert ansi.plain("\x1b[31m 1%\r<b>\x00\tdone\x1b[0m") == "<b>\tdone"


PIECES = st.sampled_from(
    [
        "\x1b[",
        "\x1b]",
        "\x1b",
        "\r",
        "\b",
        "\x07",
        "\x1b\\",
        "m",
        ";",
        "38;5;",
        "31",
        "<",
        "&",
        '"',
        "ä",
    ]
)
LINES = st.lists(PIECES | st.text(max_size=5), max_size=40).map("".join)
TAGS = re.compile(r'<span class="a-[a-z0-9]( a-[a-z0-9])*">|</span>')


@given(LINES)
def test_no_input_makes_other_markup(line: str) -> None:
    html = ansi.render(line)

    assert html.count("<span") == html.count("</span>")
    rest = TAGS.sub("", html)
    assert not set("<>\"'") & set(rest)
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest)


@given(LINES)
def test_rendered_and_plain_text_are_the_same_text(line: str) -> None:
    assert unescape(TAGS.sub("", ansi.render(line))) == ansi.plain(line)


@pytest.mark.parametrize(
    "unit",
    [
        "\x1b]",
        "\x1b[",
        "\x1b[3",
        "\x1b[31m",
        "a\b",
        "\b\x00",
        "\x1b]0;x\x07",
        "\r",
        "<",
        "\x1b[1m\x1b",
        "1;",
    ],
)
def test_a_megabyte_of_anything_is_quick(unit: str) -> None:
    line = ("x" * 500_000 + unit * (500_000 // len(unit)))[:1_000_000]
    began = time.process_time()

    ansi.render(line)

    # What is not linear takes minutes; a loaded machine takes some seconds.
    assert time.process_time() - began < 20
