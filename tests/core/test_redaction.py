"""Secrets taken out of streams of bytes, however they are cut into pieces."""

import random
import re
from itertools import pairwise

import pytest

from runs.core import redaction
from runs.core.redaction import REDACTED, Stream, redacted, usable

SECRETS = usable(["sk-12345678", "12345678-tail", "ababab"])


def joined(data: bytes) -> bytes:
    """Marks that touch as one: what is cut between two secrets has two marks, and hides as much."""
    return re.sub(b"(" + re.escape(REDACTED) + b")+", REDACTED, data)


def through(data: bytes, cuts: list[int]) -> bytes:
    stream = Stream(SECRETS)
    edges = [0, *sorted(cuts), len(data)]
    return joined(b"".join(stream.feed(data[a:b]) for a, b in pairwise(edges)) + stream.end())


@pytest.mark.parametrize(
    "text",
    ["a sk-12345678 b", "sk-12345678sk-12345678", "sk-12345678-tail", "sk-1234567", "ababababa",
     "", "xabab", "12345678-tailsk-12345678x"],
)  # fmt: skip
def test_a_stream_is_cleaned_as_the_whole_wherever_it_is_cut(text: str) -> None:
    data = text.encode()
    whole = redacted(data, SECRETS)
    assert not any(secret in whole for secret in SECRETS)
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            assert through(data, [first, second]) == joined(whole)


def test_random_streams_are_cleaned_as_the_whole() -> None:
    source = random.Random(7)
    pieces = [b"sk-1234", b"5678", b"-tail", b"ab", b"x", b"12345678"]
    for _ in range(2000):
        data = b"".join(source.choices(pieces, k=source.randint(0, 12)))
        cuts = [source.randint(0, len(data)) for _ in range(source.randint(0, 5))]
        assert through(data, cuts) == joined(redacted(data, SECRETS))


def test_without_secrets_nothing_is_held_back() -> None:
    assert Stream([]).feed(b"abc") == b"abc"


def test_a_file_of_repetitions_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # Megabytes, made small: how much is kept is the same rule.
    monkeypatch.setattr(redaction, "MOST_KEPT", 2**16)
    stream = Stream(SECRETS)
    out = sum(len(stream.feed(b"ab" * 2**13)) for _ in range(12))

    assert len(stream._kept) <= 2**16 + 2**14
    assert out >= len(REDACTED)
