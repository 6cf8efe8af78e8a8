"""Secrets taken out of bytes that a program wrote. Pure."""

from collections.abc import Iterable, Sequence

REDACTED = "•••".encode()
# Shorter ones would take common words out of a log.
SECRET_LENGTH = 6
MOST_KEPT = 4 * 2**20


def usable(secrets: Iterable[str]) -> list[bytes]:
    """The secrets as bytes, without white space around them; too short ones are left out."""
    values = {secret.strip() for secret in secrets}
    return sorted(v.encode(errors="surrogateescape") for v in values if len(v) >= SECRET_LENGTH)


def redact(text: bytes, secrets: Iterable[str]) -> bytes:
    """`text` with every value of `secrets` of at least SECRET_LENGTH characters replaced."""
    return redacted(text, usable(secrets))


def redacted(data: bytes, secrets: Sequence[bytes]) -> bytes:
    parts, at = [], 0
    for start, stop in spans_of(data, secrets):
        parts += [data[at:start], REDACTED]
        at = stop
    return b"".join([*parts, data[at:]]) if at else data


def spans_of(data: bytes, secrets: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where secrets stand in `data`; those that touch or overlap are one span."""
    found = []
    for secret in secrets:
        at = data.find(secret)
        while at >= 0:
            found.append((at, at + len(secret)))
            at = data.find(secret, at + 1)
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def unfinished(data: bytes, secrets: Sequence[bytes]) -> int:
    """Length of the longest end of `data` that a secret begins with, and does not end with."""
    longest = 0
    for secret in secrets:
        for length in range(min(len(secret) - 1, len(data)), longest, -1):
            if data.endswith(secret[:length]):
                longest = length
                break
    return longest


class Stream:
    """Redacts data that comes in pieces, also where a secret lies across two of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self.secrets = secrets
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        """What can be written out now."""
        if not self.secrets:
            return data
        data = self._kept + data
        cut = len(data) - unfinished(data, self.secrets)
        # A secret that a second one may overlap waits with it.
        cut = next((a for a, b in spans_of(data, self.secrets) if a < cut < b), cut)
        if len(data) - cut > MOST_KEPT:
            # One span over megabytes: a file of nothing but repetitions, made to fill the memory.
            cut = len(data)
        self._kept = data[cut:]
        return redacted(data[:cut], self.secrets)

    def end(self) -> bytes:
        """What was held back."""
        kept, self._kept = self._kept, b""
        return redacted(kept, self.secrets)
