"""A competition's description.md as HTML: headings, lists, code and paragraphs; all else as it is.

Everything is escaped first, so nothing in the file becomes markup of its own. Links stay text.
"""

import re
from collections.abc import Iterator

from django import template
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

register = template.Library()
INLINE = ((re.compile(r"`([^`\n]+)`"), r"<code>\1</code>"),)
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
HEADING = re.compile(r"#{1,6}\s+(.*)")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s+(.*)")
FENCE = "```"


@register.filter
def prose(text: str) -> SafeString:
    return mark_safe("\n".join(_blocks(text.splitlines())))  # noqa: S308 - all text is escaped


def _blocks(lines: list[str]) -> Iterator[str]:
    paragraph: list[str] = []
    items: list[str] = []
    code: list[str] | None = None

    def ended() -> Iterator[str]:
        if paragraph:
            yield f"<p>{_inline(' '.join(paragraph))}</p>"
            paragraph.clear()
        if items:
            yield f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
            items.clear()

    for line in lines:
        if line.strip().startswith(FENCE):
            if code is None:
                yield from ended()
                code = []
            else:
                yield f"<pre>{escape(chr(10).join(code))}</pre>"
                code = None
        elif code is not None:
            code.append(line)
        elif heading := HEADING.fullmatch(line.strip()):
            yield from ended()
            yield f"<h3>{_inline(heading[1])}</h3>"
        elif item := ITEM.fullmatch(line):
            if paragraph:
                yield from ended()
            items.append(item[1])
        elif not line.strip():
            yield from ended()
        elif items:
            items[-1] += f" {line.strip()}"
        else:
            paragraph.append(line.strip())
    yield from ended()
    if code:
        yield f"<pre>{escape(chr(10).join(code))}</pre>"


def _inline(text: str) -> str:
    safe = str(escape(text))
    safe = BOLD.sub(r"<b>\1</b>", safe)
    for pattern, replacement in INLINE:
        safe = pattern.sub(replacement, safe)
    return safe
