"""YAML and JSON files that others wrote, read with care: sizes bounded, entries with their lines.

mle-bench's files use anchors and merge keys, which YAML 1.1 loaders resolve. Pure; no database.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlebench_web.catalog.competition_config import Loader

# mle-bench's longest has 4 KB.
LARGEST_BYTES = 512 * 1024
# libyaml itself knows no limit, and its loader crashes the process at some 50,000.
DEEPEST = 50
# With every alias and merge key written out.
MOST_NODES = 50_000
POINTER = b"version https://git-lfs.github.com/spec/"


class Unreadable(Exception):
    """A file or one of its entries cannot be used; says why, and the line where it is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Entry:
    """One top-level key of a mapping: its value, or why it has none."""

    name: str
    line: int
    value: Any = None
    error: Unreadable | None = None


def read(path: Path) -> str:
    """The text of a small file. Raises Unreadable."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error
    if data.startswith(POINTER):
        raise Unreadable("is a Git LFS pointer, not the file: run `git lfs pull` in the checkout")
    if len(data) > LARGEST_BYTES:
        raise Unreadable(f"is larger than {LARGEST_BYTES // 1024} KB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable("is no UTF-8 text", line) from error


def is_pointer(path: Path) -> bool:
    """Whether the file is what git keeps in place of one that Git LFS holds."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def yaml_entries(text: str) -> list[Entry]:
    """The top-level keys in order, each built alone: a broken one harms no other.

    Raises Unreadable when the text is no YAML mapping.
    """
    _check_depth(text)
    loader = Loader(text)
    try:
        node = _compose(loader)
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise Unreadable("should be a mapping: `key: value` lines", _line(node))
        _check_size(node)
        loader.flatten_mapping(node)
        return [_entry(loader, key, value) for key, value in node.value]
    except yaml.YAMLError as error:
        raise _unreadable(error) from error
    finally:
        loader.dispose()


def yaml_mapping(text: str) -> dict[str, Any]:
    """The whole text as a mapping. Raises Unreadable."""
    values = {}
    for entry in yaml_entries(text):
        if entry.error:
            raise entry.error
        values[entry.name] = entry.value
    return values


def json_mapping(text: str) -> dict[str, Any]:
    """A JSON object; NaN and infinities are refused, as other readers would. Raises Unreadable."""

    def refuse(word: str) -> None:
        raise Unreadable(f"{word} is no JSON number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise Unreadable(f"is no JSON: {error.msg}", error.lineno) from error
    except RecursionError as error:
        raise Unreadable("is nested too deeply") from error
    if not isinstance(value, dict):
        raise Unreadable('should be an object: {"key": value}', 1)
    return {key: plain(item) for key, item in value.items()}


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can keep it; what JSON has no type for becomes its str().

    mle-bench hands every value on as str(), so that an agent hears the same. Raises Unreadable.
    """
    if depth > DEEPEST:
        raise Unreadable("is nested too deeply")
    if isinstance(value, dict):
        return {_text(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _text(str(value))


def _text(text: str) -> str:
    if "\0" in text:
        raise Unreadable("has a NUL character")
    # Half a surrogate pair, which no database and no terminal takes.
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        raise Unreadable("has a character that is no Unicode text")
    return text


def _entry(loader: Any, key: yaml.Node, value: yaml.Node) -> Entry:
    line = _line(key)
    name = key.value if isinstance(key, yaml.ScalarNode) else "?"
    try:
        return Entry(name, line, plain(loader.construct_object(value, deep=True)))
    except yaml.YAMLError as error:
        return Entry(name, line, error=_unreadable(error))
    except Unreadable as error:
        return Entry(name, line, error=Unreadable(error.message, error.line or line))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        # A date of day 32, a key that is a list.
        return Entry(name, line, error=Unreadable(str(error) or type(error).__name__, line))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _unreadable(error: yaml.YAMLError) -> Unreadable:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = getattr(error, "problem", None) or str(error)
    return Unreadable(f"is no YAML: {words}", mark.line + 1 if mark else None)


def _check_depth(text: str) -> None:
    """By events, which need no stack: composing deep text would overflow libyaml's."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader):
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                depth += 1
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                depth -= 1
            if depth > DEEPEST:
                mark = event.start_mark
                raise Unreadable("is nested too deeply", mark.line + 1 if mark else None)
    except yaml.YAMLError as error:
        raise _unreadable(error) from error


def _compose(loader: Any) -> yaml.Node | None:
    node: yaml.Node | None = loader.get_single_node()
    return node


def _check_size(root: yaml.Node) -> None:
    """Refuse what would be huge, or endless, with every alias written out."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_:
            raise Unreadable("an anchor refers to itself", _line(node))
        if key not in sizes:
            open_.add(key)
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes[key] = 1 + sum(size(child) for child in children)
            open_.remove(key)
        return sizes[key]

    if size(root) > MOST_NODES:
        raise Unreadable(f"has over {MOST_NODES} values with its aliases written out", 1)
