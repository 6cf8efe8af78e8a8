"""What a checkpoint's manifest says, what has changed since the last one, which ones to keep. Pure.

A manifest is read back from storage and from other hosts, and the names in it came from a hostile
program: `decode` takes nothing that could be written outside the attempt's own folders.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

VERSION = 1
# What an attempt's own folder is cut into: a file that only grows is not stored again as a whole.
CHUNK_BYTES = 16 * 2**20
# What no honest agent reaches; a hostile one must not make a checkpoint endless.
MAX_ENTRIES = 100_000
MAX_DEPTH = 64
MAX_NAME_BYTES = 255
MAX_LINK_BYTES = 4096
MAX_MANIFEST_BYTES = 128 * 2**20
# Kept for each run: the newest, and the one to fall back to.
KEPT = 2
# Saves take at most this share of the time, however often an agent says "checkpoint".
LARGEST_SHARE = 0.25
SHORTEST_GAP_SECONDS = 1.0

# Why nothing is saved of an agent that has written nothing so far.
NOTHING_YET = "its checkpoint folder has no file yet"

SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestInvalid(Exception):
    """It is no manifest, or names what must not be restored; says what."""


class Kind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


@dataclass(frozen=True)
class Stand:
    """What tells one state of a file from another without reading it. An agent can set a file's
    mtime, but not its ctime."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class Seen:
    """One entry below the saved folders, as a look at them found it."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    # Files only.
    stand: Stand | None = None
    # Links only: the text of it, which nobody outside the container follows.
    target: str = ""


@dataclass(frozen=True)
class Chunk:
    """A piece of a file, stored under the SHA-256 of its content."""

    sha256: str
    size: int
    packed: bool

    @property
    def name(self) -> str:
        return f"{self.sha256}.z" if self.packed else self.sha256


@dataclass(frozen=True)
class Entry:
    path: str
    seen: Seen
    # Files only.
    sha256: str = ""
    chunks: tuple[Chunk, ...] = ()

    @property
    def size(self) -> int:
        return self.seen.stand.size if self.seen.stand else 0


@dataclass(frozen=True)
class Manifest:
    """All that a checkpoint holds. `host` and `attempt` say where `Stand`s mean something."""

    attempt: int
    host: str
    entries: tuple[Entry, ...]
    # Sockets, pipes, devices: not saved.
    left_out: int = 0

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)

    @property
    def files(self) -> int:
        return sum(1 for entry in self.entries if entry.seen.kind == Kind.FILE)

    def blobs(self) -> set[str]:
        return {chunk.name for entry in self.entries for chunk in entry.chunks}

    def by_path(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.entries}


# ------------------------------------------------------------------------------ to and from JSON


def encode(manifest: Manifest) -> bytes:
    """Deterministic JSON; odd bytes in names come back as they were."""
    body = {"v": VERSION, **asdict(manifest)}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode(data: bytes, *, roots: Sequence[str]) -> Manifest:
    """Raises ManifestInvalid for anything that is not to be restored below `roots`."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"it has over {MAX_MANIFEST_BYTES} bytes")
    try:
        body = json.loads(data)
        if body["v"] != VERSION:
            raise ManifestInvalid(f"its version is {body['v']!r}, this product reads {VERSION}")
        manifest = Manifest(
            attempt=_count(body["attempt"]),
            host=str(body["host"]),
            entries=tuple(_entry(each) for each in body["entries"]),
            left_out=_count(body["left_out"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestInvalid(f"{type(error).__name__}: {error}") from error
    _check_places(manifest.entries, roots)
    return manifest


def _entry(body: Mapping[str, object]) -> Entry:
    seen = body["seen"]
    if not isinstance(seen, dict):
        raise TypeError("an entry's `seen` is an object")
    kind = Kind(seen["kind"])
    stand = seen["stand"]
    if (stand is not None) != (kind == Kind.FILE):
        raise ValueError("files have a stand, and nothing else has")
    chunks = body["chunks"]
    if not isinstance(chunks, list):
        raise TypeError("an entry's `chunks` is a list")
    entry = Entry(
        path=str(body["path"]),
        seen=Seen(
            kind=kind,
            # Never set-user-id and the like.
            mode=_count(seen["mode"]) & 0o777,
            uid=_count(seen["uid"]),
            gid=_count(seen["gid"]),
            stand=Stand(**{name: int(value) for name, value in stand.items()}) if stand else None,
            target=str(seen["target"]),
        ),
        sha256=str(body["sha256"]),
        chunks=tuple(
            Chunk(str(each["sha256"]), _count(each["size"]), bool(each["packed"]))
            for each in chunks
        ),
    )
    _check_content(entry)
    return entry


def _check_content(entry: Entry) -> None:
    if entry.seen.kind == Kind.FILE and not SHA256.fullmatch(entry.sha256):
        raise ValueError(f"{entry.path!r} has no SHA-256")
    for chunk in entry.chunks:
        if not SHA256.fullmatch(chunk.sha256) or not 0 < chunk.size <= CHUNK_BYTES:
            raise ValueError(f"{entry.path!r} has a chunk that cannot be")
    if sum(chunk.size for chunk in entry.chunks) != entry.size:
        raise ValueError(f"the chunks of {entry.path!r} do not add up to its size")
    if len(entry.seen.target.encode("utf-8", "surrogateescape")) > MAX_LINK_BYTES:
        raise ValueError(f"{entry.path!r} is a link of over {MAX_LINK_BYTES} bytes")


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no number of anything")
    return value


def _check_places(entries: Sequence[Entry], roots: Sequence[str]) -> None:
    """Each entry is below one of the roots, in a folder that is itself an entry: not in a link."""
    if len(entries) > MAX_ENTRIES:
        raise ManifestInvalid(f"it has over {MAX_ENTRIES} entries")
    folders = set(roots)
    known = set(roots)
    for entry in sorted(entries, key=lambda each: each.path.count("/")):
        parent, _, name = entry.path.rpartition("/")
        raw = name.encode("utf-8", "surrogateescape")
        if name in ("", ".", "..") or "\0" in name or len(raw) > MAX_NAME_BYTES:
            raise ManifestInvalid(f"{entry.path!r} is no name of a file")
        if parent not in folders:
            raise ManifestInvalid(f"{entry.path!r} is in no folder of this checkpoint")
        if entry.path in known:
            raise ManifestInvalid(f"{entry.path!r} is there twice")
        if entry.path.count("/") > MAX_DEPTH:
            raise ManifestInvalid(f"{entry.path!r} is deeper than {MAX_DEPTH} folders")
        known.add(entry.path)
        if entry.seen.kind == Kind.FOLDER:
            folders.add(entry.path)


# ------------------------------------------------------------------------------ decisions


def unchanged(
    seen: Mapping[str, Seen], before: Manifest | None, *, attempt: int, host: str
) -> dict[str, Entry]:
    """Entries of the last manifest that need not be read again.

    Only those of the same attempt on the same host: elsewhere an inode says nothing.
    """
    if before is None or (before.attempt, before.host) != (attempt, host):
        return {}
    return {
        path: entry
        for path, entry in before.by_path().items()
        if path in seen and entry.seen.stand is not None and seen[path].stand == entry.seen.stand
    }


def refusal(seen: Iterable[Seen], *, quota_bytes: int) -> str:
    """Why this is not saved; "" when it is."""
    seen = list(seen)
    sizes = [each.stand.size if each.stand else 0 for each in seen]
    if not any(each.kind == Kind.FILE for each in seen):
        # Going on from nothing would charge the time and give nothing for it.
        return NOTHING_YET
    if len(sizes) > MAX_ENTRIES:
        return f"it has over {MAX_ENTRIES:,} files and folders, and no more are saved"
    if sum(sizes) > quota_bytes:
        return (
            f"it has {sum(sizes) / 2**30:.1f} GiB, and CHECKPOINT_QUOTA_GIB allows "
            f"{quota_bytes / 2**30:g}"
        )
    return ""


def gap_after(seconds: float) -> float:
    """How long to wait after a save that took `seconds`, before an agent's word starts the next."""
    return max(SHORTEST_GAP_SECONDS, seconds * (1 / LARGEST_SHARE - 1))


@dataclass(frozen=True)
class Stored:
    """A checkpoint's row, as far as it decides what is kept and what is tried."""

    key: int
    # Position among the attempts that the newest one goes on from; 0 is the newest.
    generation: int
    number: int
    is_corrupt: bool = False


def to_try(stored: Iterable[Stored]) -> list[int]:
    """Which to restore: the newest, then what to fall back to."""
    sound = [each for each in stored if not each.is_corrupt]
    return [each.key for each in sorted(sound, key=lambda one: (one.generation, -one.number))]


def to_drop(stored: Iterable[Stored]) -> list[int]:
    """All but the newest sound ones. A corrupt one helps nobody."""
    stored = list(stored)
    kept = set(to_try(stored)[:KEPT])
    return [each.key for each in stored if each.key not in kept]
