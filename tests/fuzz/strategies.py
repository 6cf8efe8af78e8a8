"""Texts, JSON and mutations that break readers."""

import json
from typing import Any

from hypothesis import strategies as st

# What has broken parsers before: signs of YAML, CSV and JSON, line ends, half characters, numbers.
PIECES = (
    "", "\0", "\r", "\r\n", "\n\n", "\t", " ", ",", ";", '"', "'", "\\", "#", "&a", "*a", "<<: *a",
    "---\n", "...", "!!python/object:os.system", "!!binary x", "? ", "- ", ": ", "[", "]", "{", "}",
    "|", ">", "%YAML 9.9\n", "\ufeff", "\u2028", "\ud800".encode("utf-8", "replace").decode(),
    "NaN", "nan", "Infinity", "-inf", "1e999", "-0", "0x1F", "1_000", "1:30", "2026-13-45", "null",
    "~", "true", "yes", "No", "=1+1", "../../etc/passwd", "/etc/passwd", "CON", "\uff41", "é", "🙂",
    "9" * 400, "a" * 5000, "[" * 60, "{a: " * 60,
)  # fmt: skip

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, 1, -1, 4e9, 2**63, 10**400, 1e308]),
)
texts = st.one_of(st.text(max_size=20), st.sampled_from(PIECES))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def dumped(value: Any) -> str:
    """As Python's json writes it, NaN and lone surrogates included."""
    return json.dumps(value)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """The data with some bytes changed, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(out)))
        kind = draw(st.sampled_from(["byte", "piece", "cut", "double", "line"]))
        if kind == "byte" and out:
            out[at % len(out)] = draw(st.integers(0, 255))
        elif kind == "piece":
            out[at:at] = draw(st.sampled_from(PIECES)).encode()
        elif kind == "cut":
            del out[at : at + draw(st.integers(1, 40))]
        elif kind == "double":
            out[at:at] = out[at : at + draw(st.integers(1, 40))]
        else:
            lines = bytes(out).splitlines(keepends=True)
            if lines:
                one, other = draw(st.tuples(*[st.integers(0, len(lines) - 1)] * 2))
                lines[one], lines[other] = lines[other], lines[one]
                out = bytearray(b"".join(lines))
    return bytes(out)


@st.composite
def with_changes(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with some of its parts replaced, taken away or added, at any depth."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(value))
        holder, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            holder[key] = draw(json_values)
        elif isinstance(holder, dict):
            if draw(st.booleans()):
                del holder[key]
            else:
                holder[draw(texts)] = draw(json_values)
        if not value:
            break
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield value, key
            yield from _places(inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield value, index
            yield from _places(inner)
