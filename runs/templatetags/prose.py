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
ROW = re.compile(r"\s*\|(.*)\|\s*")
RULE = re.compile(r"[\s|:-]+")


@register.filter
def prose(text: str) -> SafeString:
    return mark_safe("\n".join(_blocks(text.splitlines())))  # noqa: S308 - all text is escaped


def _blocks(lines: list[str]) -> Iterator[str]:
    paragraph: list[str] = []
    items: list[str] = []
    rows: list[list[str]] = []
    indented: list[str] = []
    code: list[str] | None = None

    def ended() -> Iterator[str]:
        if indented:
            yield f"<pre>{escape(chr(10).join(indented))}</pre>"
            indented.clear()
        if paragraph:
            yield f"<p>{_inline(' '.join(paragraph))}</p>"
            paragraph.clear()
        if items:
            yield f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
            items.clear()
        if rows:
            yield _table(rows)
            rows.clear()

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
        elif line.startswith("    ") and not (paragraph or items):
            if rows:
                yield from ended()
            indented.append(line[4:])
        elif row := ROW.fullmatch(line):
            if not rows:
                yield from ended()
            if not RULE.fullmatch(row[1]):
                rows.append(row[1].split("|"))
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
            if rows or indented:
                yield from ended()
            paragraph.append(line.strip())
    yield from ended()
    if code:
        yield f"<pre>{escape(chr(10).join(code))}</pre>"


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    cells = "".join(f'<th scope="col">{_inline(cell.strip())}</th>' for cell in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{_inline(cell.strip())}</td>' for cell in row)}</tr>" for row in body
    )
    table = f"<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="scroll"><table class="tbl fit">{table}</table></div>'


def _inline(text: str) -> str:
    safe = str(escape(text))
    safe = BOLD.sub(r"<b>\1</b>", safe)
    for pattern, replacement in INLINE:
        safe = pattern.sub(replacement, safe)
    return safe
