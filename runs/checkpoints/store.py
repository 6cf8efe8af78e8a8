"""Checkpoints in Django storage: blobs by the hash of their content, then a manifest, last.

Another host reads the same storage. What is read back is believed only where its hash is right.
"""

import hashlib
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from runs import guards
from runs.checkpoints.files import Copy
from runs.core.checkpoints import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    Chunk,
    Entry,
    Kind,
    Manifest,
    ManifestInvalid,
    decode,
    encode,
)

# Fast rather than small: an agent's state is read back at most a few times.
ZLIB_LEVEL = 1
# Packed only if its first part shrinks to this; models and images do not.
WORTH_PACKING = 0.9
PROBE_BYTES = 64 * 2**10


class Corrupt(Exception):
    """What is stored is not what was saved; says which part. Not raised for a silent storage."""


# Stores a blob of a run; the bytes that it takes.
Put = Callable[[int, Chunk, bytes], int]


def folder_of(run: int) -> str:
    return f"checkpoints/{run}"


# ------------------------------------------------------------------------------ writing


def put(run: int, chunk: Chunk, content: bytes) -> int:
    """Store a blob, in place of whatever has its name; the bytes that it takes."""
    name = f"{folder_of(run)}/blobs/{chunk.name}"
    stored = zlib.compress(content, ZLIB_LEVEL) if chunk.packed else content
    default_storage.delete(name)
    actual = default_storage.save(name, ContentFile(stored))
    if actual != name:
        default_storage.delete(actual)
        raise OSError(f"somebody else is writing {name}")
    return len(stored)


def put_nothing(run: int, chunk: Chunk, content: bytes) -> int:
    """In place of `put`: only the manifest is made, before its data (bench/chaos.py)."""
    return 0


def store(
    run: int,
    copy: Copy,
    same: Mapping[str, Entry],
    *,
    attempt: int,
    host: str,
    sound: AbstractSet[str] = frozenset(),
    put: Put = put,
) -> tuple[Manifest, int]:
    """Store what is not there yet; the manifest, and the bytes that were added.

    `sound`: blobs of earlier checkpoints. Any other that is already there may be half of itself,
    left by a save that was cut off, and is stored anew. Raises OSError when storage refuses.
    """
    entries, added = [], 0
    there = set(sound)
    for path, seen in sorted(copy.look.seen.items()):
        if seen.kind != Kind.FILE:
            entries.append(Entry(path, seen))
        elif path in copy.files:
            sha256, chunks, new = _store_file(run, copy.files[path], there, put)
            added += new
            entries.append(Entry(path, seen, sha256, chunks))
        else:
            entries.append(same[path])
    return Manifest(attempt, host, tuple(entries), copy.look.left_out), added


def _store_file(
    run: int, path: Path, there: set[str], put: Put
) -> tuple[str, tuple[Chunk, ...], int]:
    whole = hashlib.sha256()
    chunks, added = [], 0
    with path.open("rb") as file:
        while content := file.read(CHUNK_BYTES):
            whole.update(content)
            packed = worth_packing(content)
            chunk = Chunk(hashlib.sha256(content).hexdigest(), len(content), packed)
            if chunk.name not in there:
                added += put(run, chunk, content)
                there.add(chunk.name)
            chunks.append(chunk)
    return whole.hexdigest(), tuple(chunks), added


def worth_packing(content: bytes) -> bool:
    """The same content is always packed alike, so that it is stored once."""
    probe = content[:PROBE_BYTES]
    return len(zlib.compress(probe, ZLIB_LEVEL)) < WORTH_PACKING * len(probe)


def write_manifest(run: int, manifest: Manifest) -> tuple[str, str]:
    """Where it is stored, and its SHA-256. Last: without it nothing of the rest is a checkpoint."""
    data = encode(manifest)
    if len(data) > MAX_MANIFEST_BYTES:
        raise OSError(f"its list of files has over {MAX_MANIFEST_BYTES / 2**20:.0f} MiB")
    name = f"{folder_of(run)}/{manifest.attempt}-{uuid.uuid4().hex[:12]}.json"
    return default_storage.save(name, ContentFile(data)), hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------ reading


def is_verified() -> bool:
    """Whether what is read back must be complete and have its hashes."""
    return guards.is_on(guards.Guard.MANIFEST)


def read_manifest(path: str, sha256: str, *, roots: list[str]) -> Manifest:
    """Raises Corrupt; OSError when storage does not answer."""
    try:
        with default_storage.open(path) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise Corrupt("its manifest is gone") from error
    if hashlib.sha256(data).hexdigest() != sha256 and is_verified():
        raise Corrupt("its manifest is not the one that was written")
    try:
        return decode(data, roots=roots)
    except ManifestInvalid as error:
        raise Corrupt(f"its manifest cannot be used: {error}") from error


def content(run: int, entry: Entry) -> Iterator[bytes]:
    """A file's content, piece by piece. Raises Corrupt before the end where a hash is wrong."""
    whole = hashlib.sha256()
    for chunk in entry.chunks:
        piece = _blob(run, chunk, entry.path)
        whole.update(piece)
        yield piece
    if whole.hexdigest() != entry.sha256 and is_verified():
        raise Corrupt(f"{entry.path} is not what was saved")


def _blob(run: int, chunk: Chunk, path: str) -> bytes:
    try:
        with default_storage.open(f"{folder_of(run)}/blobs/{chunk.name}") as file:
            # One byte more than it may have: what is too long is not read to its end.
            data = file.read(2 * CHUNK_BYTES)
    except FileNotFoundError as error:
        if not is_verified():
            return b""
        raise Corrupt(f"a part of {path} is gone") from error
    if chunk.packed:
        try:
            data = zlib.decompressobj().decompress(data, chunk.size + 1)
        except zlib.error as error:
            raise Corrupt(f"a part of {path} cannot be unpacked") from error
    is_same = len(data) == chunk.size and hashlib.sha256(data).hexdigest() == chunk.sha256
    if not is_same and is_verified():
        raise Corrupt(f"a part of {path} is not what was saved")
    return data


# ------------------------------------------------------------------------------ removing


def stored(run: int) -> set[str]:
    """The paths of the run's blobs and manifests."""
    folder = folder_of(run)
    found: set[str] = set()
    for where in (f"{folder}/blobs", folder):
        try:
            _, files = default_storage.listdir(where)
        except FileNotFoundError:
            continue
        found |= {f"{where}/{name}" for name in files}
    return found


def remove_unused(
    run: int, used: Iterable[str], manifests: Iterable[str], *, among: Iterable[str]
) -> int:
    """Remove blobs and manifests but these; the number removed. Repeatable.

    Only `among` what was stored while the caller held the run: it may have been replaced since,
    and what has come after that is another's.
    """
    keep = {f"{folder_of(run)}/blobs/{name}" for name in used} | set(manifests)
    needless = set(among) - keep
    for path in needless:
        default_storage.delete(path)
    return len(needless)


def remove_all(run: int) -> None:
    remove_unused(run, (), (), among=stored(run))
    # Empty folders are a thing of file systems; elsewhere this says that there is nothing.
    for where in (f"{folder_of(run)}/blobs", folder_of(run)):
        default_storage.delete(where)
