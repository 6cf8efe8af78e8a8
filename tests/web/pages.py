"""What a page is made of, for tests: its tags, links and ids, as a browser would see them."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

from django.http import HttpResponse
from django.test import Client

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
# Self-closing in SVG.
CLOSED_IN_SVG = {"rect", "line", "path", "circle", "polyline", "use"}


@dataclass
class Tag:
    name: str
    attributes: dict[str, str]
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass
class Page(HTMLParser):
    """Parsed; `problems` names what the content security policy or plain HTML forbids."""

    tags: list[Tag] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[Tag] = []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        tag = Tag(name, {key: value or "" for key, value in attrs})
        self.tags.append(tag)
        for key, value in tag.attributes.items():
            if key == "style" or key.startswith("on") or key.startswith("hx-on"):
                self.problems.append(f"<{name} {key}={value!r}>")
            if value.strip().lower().startswith(("javascript:", "js:")):
                self.problems.append(f"<{name} {key}={value!r}> is a script")
        if name == "style":
            self.problems.append("<style>")
        if name not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(name, attrs)
        if name not in VOID:
            self.open.pop()

    def handle_endtag(self, name: str) -> None:
        if not self.open or self.open[-1].name != name:
            where = self.open[-1].name if self.open else "nothing"
            self.problems.append(f"</{name}> closes <{where}>")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            for tag in self.open:
                tag.parts.append(data)
            if self.open and self.open[-1].name == "script":
                self.problems.append("a script in the page")

    def check(self) -> list[str]:
        ids = [tag.attributes["id"] for tag in self.tags if "id" in tag.attributes]
        twice = {each for each in ids if ids.count(each) > 1}
        labelled = {tag.attributes.get("for") for tag in self.tags if tag.name == "label"}
        nameless = [
            tag.attributes.get("name", "?")
            for tag in self.tags
            if tag.name in ("input", "select", "textarea")
            and tag.attributes.get("type") not in ("hidden", "radio", "checkbox")
            and tag.attributes.get("id") not in labelled
            and "aria-label" not in tag.attributes
        ]
        return [
            *self.problems,
            *(f"<{tag.name}> is never closed" for tag in self.open),
            *(f"id {each!r} twice" for each in twice),
            *(f"field {name!r} has no label" for name in nameless),
        ]

    def links(self) -> set[str]:
        """Addresses of this site, without what follows the #."""
        found = {tag.attributes.get("href", "") for tag in self.tags if tag.name == "a"}
        return {href.partition("#")[0] for href in found if href.startswith(("/", "?"))} - {""}

    def with_id(self, name: str) -> Tag:
        return next(tag for tag in self.tags if tag.attributes.get("id") == name)

    def has_id(self, name: str) -> bool:
        return any(tag.attributes.get("id") == name for tag in self.tags)

    def posts_to(self, path: str) -> bool:
        return any(tag.name == "form" and tag.attributes.get("action") == path for tag in self.tags)


def parse(response: HttpResponse) -> Page:
    page = Page()
    page.feed(response.content.decode())
    page.close()
    return page


def get(client: Client, path: str, **headers: str) -> Page:
    response = client.get(path, headers=headers)
    assert response.status_code == 200, (path, response.status_code)
    return parse(response)
