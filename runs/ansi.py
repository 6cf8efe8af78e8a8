"""Lines of a terminal as HTML: colours as CSS classes, everything else escaped or dropped.

The lines come from a hostile program. The only markup that leaves this module is
<span class="a-r a-1"> with the classes below; cursor movements, titles and links of the terminal
are dropped, as are characters that turn the direction of writing. A progress bar that rewrites
its line (carriage return, backspace) shows its last state. No Django models, no I/O.

Classes: a-r a-g a-y a-b a-m a-c (red to cyan), a-1 bold, a-2 dim, a-4 underlined.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

# One token each: a control sequence, a terminal string (title, link), any other escape, runs of
# backspaces, a carriage return, other control characters, text. Possessive, so that no input
# makes it slow; a terminal string without an end loses its two first characters only.
TOKEN = re.compile(
    r"\x1b\[(?P<args>[0-?]*+)[ -/]*+(?P<end>[@-~])"
    r"|\x1b[\]PX^_][^\x07\x1b]*+(?:\x07|\x1b\\)"
    r"|\x1b[ -/]*+[0-~]?"
    r"|(?P<back>\x08++)"
    r"|(?P<start>\r++)"
    r"|[\x00-\x07\x0a-\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]++"
    r"|(?P<text>[^\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]++)"
)
# Colours 0 to 7. Black and white are the page's own ink, which follows its theme.
COLOURS = ("", "r", "g", "y", "b", "m", "c", "")
GREY = "2"
# Six steps of the 256-colour cube.
CUBE = (0, 95, 135, 175, 215, 255)
# Below this difference between its strongest and weakest part a colour is a grey.
GREY_BELOW = 48
MOST_ARGUMENTS = 64


@dataclass(frozen=True)
class Style:
    colour: str = ""
    bold: bool = False
    dim: bool = False
    underlined: bool = False

    @property
    def classes(self) -> str:
        is_dim = self.dim and self.colour != GREY
        marks = ((self.bold, "a-1"), (is_dim, "a-2"), (self.underlined, "a-4"))
        names = [f"a-{self.colour}"] if self.colour else []
        return " ".join(names + [name for is_set, name in marks if is_set])


@dataclass
class _Piece:
    """Text of one style. Backspaces make it shorter without copying it."""

    style: Style
    text: str
    length: int


def render(line: str) -> SafeString:
    """One line, without its line end, as safe HTML."""
    return _html(_pieces(line, Style())[0])


def render_lines(lines: Iterable[str]) -> list[SafeString]:
    """Lines that follow each other: a colour lasts until it is reset."""
    rendered, style = [], Style()
    for line in lines:
        pieces, style = _pieces(line, style)
        rendered.append(_html(pieces))
    return rendered


def plain(line: str) -> str:
    """One line as text: no colours, no control characters but the tab, a progress bar's last
    state."""
    return "".join(piece.text[: piece.length] for piece in _pieces(line, Style())[0])


def _pieces(line: str, style: Style) -> tuple[list[_Piece], Style]:
    """What is left on the line, and the style at its end."""
    pieces: list[_Piece] = []
    rewrites = False
    for token in TOKEN.finditer(line):
        if text := token["text"]:
            if rewrites:
                # Only text replaces: a carriage return at the end clears nothing.
                pieces.clear()
                rewrites = False
            pieces.append(_Piece(style, text, len(text)))
        elif token["start"]:
            rewrites = True
        elif backspaces := token["back"]:
            _take_back(pieces, len(backspaces))
        elif token["end"] == "m":
            style = _styled(style, token["args"])
    return pieces, style


def _take_back(pieces: list[_Piece], count: int) -> None:
    while count and pieces:
        last = pieces[-1]
        taken = min(count, last.length)
        last.length -= taken
        count -= taken
        if not last.length:
            pieces.pop()


def _html(pieces: list[_Piece]) -> SafeString:
    parts = []
    for classes, text in _joined(pieces):
        escaped = escape(text)
        parts.append(f'<span class="{classes}">{escaped}</span>' if classes else escaped)
    return mark_safe("".join(parts))  # noqa: S308 - escaped above, class names are ours


def _joined(pieces: list[_Piece]) -> Iterator[tuple[str, str]]:
    """Class names and text; pieces of one look as one."""
    texts: list[str] = []
    classes = ""
    for piece in pieces:
        if texts and piece.style.classes != classes:
            yield classes, "".join(texts)
            texts = []
        classes = piece.style.classes
        texts.append(piece.text[: piece.length])
    if texts:
        yield classes, "".join(texts)


def _styled(style: Style, args: str) -> Style:
    """The style after SGR (select graphic rendition) with these arguments."""
    # "38:2::255:0:0" is the same as "38;2;255;0;0"; nobody sends so many that it matters.
    codes = [_number(part) for part in args.replace(":", ";").split(";", MOST_ARGUMENTS)]
    at = 0
    while at < len(codes):
        code = codes[at]
        at += 1
        if code in (38, 48, 58):
            colour, used = _extended(codes[at:], has_space="::" in args)
            at += used
            if code == 38:
                style = replace(style, colour=colour)
        else:
            style = _simple(style, code)
    return style


def _number(part: str) -> int:
    """0 for nothing, -1 for what is no code."""
    if not part:
        return 0
    return int(part) if part.isascii() and part.isdigit() and len(part) <= 3 else -1


def _simple(style: Style, code: int) -> Style:
    match code:
        case 0:
            return Style()
        case 1:
            return replace(style, bold=True)
        case 2:
            return replace(style, dim=True)
        case 4 | 21:
            return replace(style, underlined=True)
        case 22:
            return replace(style, bold=False, dim=False)
        case 24:
            return replace(style, underlined=False)
        case 39:
            return replace(style, colour="")
        case 90:  # bright black is what tools use for what matters less
            return replace(style, colour=GREY)
    if 30 <= code <= 37:
        return replace(style, colour=COLOURS[code - 30])
    if 91 <= code <= 97:
        return replace(style, colour=COLOURS[code - 90])
    return style  # background, blinking, fonts: not shown


def _extended(codes: list[int], *, has_space: bool) -> tuple[str, int]:
    """The nearest colour of "5;<n>" or "2;<r>;<g>;<b>", and how many codes that took."""
    if codes[:1] == [5] and len(codes) >= 2:
        return _indexed(codes[1]), 2
    if codes[:1] == [2]:
        # With colons there may be a colour space, mostly empty, in front.
        first = 2 if has_space else 1
        if len(codes) >= first + 3:
            return _nearest(*codes[first : first + 3]), first + 3
    return "", len(codes)


def _indexed(number: int) -> str:
    if 0 <= number < 16:
        return COLOURS[number % 8]
    if 16 <= number < 232:
        cube = number - 16
        return _nearest(CUBE[cube // 36], CUBE[cube // 6 % 6], CUBE[cube % 6])
    return ""  # greys, and what is no colour


def _nearest(red: int, green: int, blue: int) -> str:
    """By hue; greys are the page's own ink."""
    most, least = max(red, green, blue), min(red, green, blue)
    spread = most - least
    if spread < GREY_BELOW:
        return ""
    if most == red:
        sector = (green - blue) / spread % 6
    elif most == green:
        sector = (blue - red) / spread + 2
    else:
        sector = (red - green) / spread + 4
    return "rygcbm"[round(sector) % 6]
