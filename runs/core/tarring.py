"""A tar written as a stream: what is sent is made as it goes, and nothing is held. Pure."""

import tarfile
from collections.abc import Iterable, Iterator

BLOCK = 512
# A tar ends with two empty blocks.
END = bytes(2 * BLOCK)


class WrongSize(Exception):
    """A file did not have as many bytes as its header said."""


def folder(name: str, *, modified: float) -> bytes:
    info = tarfile.TarInfo(f"{name}/")
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, int(modified)
    return info.tobuf(tarfile.PAX_FORMAT)


def file(name: str, chunks: Iterable[bytes], *, size: int, modified: float) -> Iterator[bytes]:
    """Header, content, padding. Raises WrongSize when `chunks` have not `size` bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, int(modified)
    yield info.tobuf(tarfile.PAX_FORMAT)
    written = 0
    for chunk in chunks:
        written += len(chunk)
        if written > size:
            break
        yield chunk
    if written != size:
        raise WrongSize(f"{name} has not the {size} bytes that were announced.")
    if size % BLOCK:
        yield bytes(BLOCK - size % BLOCK)
