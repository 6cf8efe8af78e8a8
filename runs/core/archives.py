"""An archive that a stranger made -> plain files below an empty folder, or one refusal. No Django.

`unpack` is the way in. It takes a tar (plain or gzipped) or a zip with folders and regular files;
anything else in it refuses the whole archive and names the entry. Sizes are counted while they are
read: what an archive says of itself is not believed.
"""

import gzip
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

KIB, MIB, GIB = 2**10, 2**20, 2**30
CHUNK = MIB
# What tarfile may read to understand one entry; it keeps all of that in memory.
HEADER_BYTES = MIB
# A zip's list of entries, which zipfile reads as a whole, and makes ten times as large in memory.
DIRECTORY_BYTES = 32 * MIB
BLOCK = 512
# After a tar's end: the rest of its last record, and no second archive.
AFTER_END_BYTES = MIB

DRIVE = re.compile(r"[A-Za-z]:")
FOREIGN = {
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}


class ArchiveRefused(Exception):
    """Nothing of the archive may be used. `entry` is the culprit; empty: the archive as a whole."""

    def __init__(self, entry: str, why: str) -> None:
        self.entry = shown(entry)
        self.why = why
        super().__init__(f"{self.entry}: {why}" if entry else f"The archive {why}")


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold."""

    # Files and folders, also folders that only stand in the paths of others.
    entries: int = 200_000
    total_bytes: int = 50 * GIB
    # How many times its own size it may become, once it has become large.
    ratio: int = 200
    ratio_from_bytes: int = 256 * MIB
    # What a run may leave is 64 folders deep; the group, the run and a wrapper stand above it.
    depth: int = 70
    path_bytes: int = 1024


@dataclass(frozen=True)
class Unpacked:
    files: int
    bytes: int


def shown(name: str) -> str:
    """A name as text for a page: what cannot be seen is written out, what is long is cut."""
    text = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )
    return text if len(text) <= 200 else f"{text[:197]}..."


def check_name(name: str, limits: Limits | None = None) -> tuple[str, ...]:
    """The parts of an entry's path, or ArchiveRefused. A leading "./" is left out."""
    limits = limits or Limits()
    if "\0" in name:
        raise ArchiveRefused(name, "the name has a NUL character.")
    # Control characters, those that turn the direction of writing or have no width, spaces that are
    # none, and bytes that are no UTF-8.
    if hidden := next((one for one in name if not one.isprintable()), None):
        code = hidden.encode("unicode_escape").decode()
        raise ArchiveRefused(name, f"the name has a character that cannot be seen ({code}).")
    if "\\" in name:
        raise ArchiveRefused(name, "the name has a backslash: write folders with /.")
    if name.startswith("/") or DRIVE.match(name):
        raise ArchiveRefused(name, "the name is an absolute path; paths begin inside the archive.")
    parts = tuple(name.removesuffix("/").split("/"))
    while parts and parts[0] == ".":
        parts = parts[1:]
    for part in parts:
        if part == "..":
            raise ArchiveRefused(name, "the name leads out of the archive (..).")
        if part in ("", "."):
            raise ArchiveRefused(name, "the name has an empty part.")
        if len(part.encode()) > 255:
            raise ArchiveRefused(name, "a part of the name is longer than 255 bytes.")
    if len(name.encode()) > limits.path_bytes:
        raise ArchiveRefused(name, f"the path is longer than {limits.path_bytes} bytes.")
    if len(parts) > limits.depth:
        raise ArchiveRefused(name, f"it lies deeper than {limits.depth} folders.")
    return parts


class Gate:
    """Decides entry by entry what may be written, and how much."""

    def __init__(self, limits: Limits, archive_bytes: int) -> None:
        self.limits = limits
        self.archive_bytes = max(1, archive_bytes)
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.bytes = 0

    def admit(self, name: str, *, is_folder: bool) -> Path | None:
        """Where the entry goes, as a relative path; None: the archive's own top folder."""
        parts = check_name(name, self.limits)
        if not parts:
            return None
        # Two spellings of one letter are one name on some file systems.
        plain = [unicodedata.normalize("NFC", part) for part in parts]
        above = ["/".join(plain[:count]) for count in range(1, len(plain))]
        key = "/".join(plain)
        if inside := next((one for one in above if one in self.files), None):
            raise ArchiveRefused(name, f"it lies below {shown(inside)}, which is a file.")
        if key in self.files or (key in self.folders and not is_folder):
            raise ArchiveRefused(name, "the archive has this name twice.")
        self.folders.update(above)
        (self.folders if is_folder else self.files).add(key)
        if len(self.files) + len(self.folders) > self.limits.entries:
            raise ArchiveRefused(
                name, f"the archive has more than {self.limits.entries} files and folders."
            )
        return Path(*parts)

    def count(self, name: str, size: int) -> None:
        """Some more bytes of an entry. Raises ArchiveRefused at a limit."""
        self.bytes += size
        if self.bytes > self.limits.total_bytes:
            raise ArchiveRefused(
                name, f"the archive unpacks to more than {in_words(self.limits.total_bytes)}."
            )
        self.check_ratio(name, self.bytes)

    def check_ratio(self, name: str, unpacked: int) -> None:
        most = self.limits.ratio * self.archive_bytes
        if unpacked > self.limits.ratio_from_bytes and unpacked > most:
            why = f"unpacks to more than {self.limits.ratio} times its size."
            raise ArchiveRefused(name, f"with it the archive {why}" if name else why)


def in_words(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"


# ---------------------------------------------------------------------------- unpacking


def unpack(
    file: BinaryIO,
    into: Path,
    *,
    limits: Limits | None = None,
    tick: Callable[[int], None] = lambda _bytes: None,
) -> Unpacked:
    """Unpack into the empty folder `into`. `tick` hears how many bytes have been written.

    Raises ArchiveRefused; what was written by then is the caller's to remove. OSError when the
    disk does not take it.
    """
    limits = limits or Limits()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(BLOCK)
    file.seek(0)
    gate = Gate(limits, size)
    writer = _Writer(into, gate, tick)
    try:
        if _is_tar(head):
            _unpack_tar(file, writer)
        elif head.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as raw:
                _unpack_tar(raw, writer)
        elif zipfile.is_zipfile(file):
            _unpack_zip(file, writer)
        else:
            raise ArchiveRefused("", _no_archive(head))
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        ValueError,
        OverflowError,
        # A chain of headers without end.
        RecursionError,
        # A kind of compression or a flag that Python does not know.
        NotImplementedError,
    ) as error:
        raise ArchiveRefused("", f"is damaged: {shown(str(error)) or 'it cannot be read'}.") from (
            error
        )
    return Unpacked(len(gate.files), gate.bytes)


def _is_tar(head: bytes) -> bool:
    """By its header's checksum: older ones have no magic word."""
    if len(head) < BLOCK:
        return False
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _no_archive(head: bytes) -> str:
    kind = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
    if kind:
        return f"is compressed with {kind}: send a tar, a tar.gz or a zip."
    if not head:
        return "is empty."
    return "is neither a tar, a tar.gz nor a zip."


class _Writer:
    """Makes folders and files below an empty folder, by names that the gate has let pass."""

    def __init__(self, into: Path, gate: Gate, tick: Callable[[int], None]) -> None:
        self.into = into
        self.gate = gate
        self.tick = tick

    def folder(self, name: str) -> None:
        if path := self.gate.admit(name, is_folder=True):
            self._make(self.into / path, name)

    def file(self, name: str, source: IO[bytes]) -> None:
        path = self.gate.admit(name, is_folder=False)
        if path is None:
            raise ArchiveRefused(name, "the file has no name.")
        target = self.into / path
        self._make(target.parent, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(target, flags, 0o644)
        except (FileExistsError, IsADirectoryError) as error:
            # On a file system to which two names are one.
            raise ArchiveRefused(name, "the archive has this name twice.") from error
        with os.fdopen(handle, "wb") as out:
            while chunk := source.read(CHUNK):
                self.gate.count(name, len(chunk))
                out.write(chunk)
                self.tick(self.gate.bytes)

    def _make(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ArchiveRefused(name, "it lies below a file.") from error


# ---------------------------------------------------------------------------- tar


class _Meter:
    """What tarfile reads: counted, and no more at once than was allowed.

    A header may claim to be gigabytes long, and tarfile reads it into memory.
    """

    def __init__(self, raw: BinaryIO | gzip.GzipFile, gate: Gate) -> None:
        self._raw = raw
        self._gate = gate
        self._allowed = 0
        self._tail = b""
        self.read_bytes = 0
        self.entry = ""

    def allow(self, size: int) -> None:
        self._allowed = size + HEADER_BYTES

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self.read_bytes += len(data)
        self._allowed -= len(data)
        self._tail = (self._tail + data)[-4 * max(size, BLOCK) :]
        if self._allowed < 0:
            raise ArchiveRefused(
                self.entry, f"the header after it is larger than {in_words(HEADER_BYTES)}."
            )
        self._gate.check_ratio(self.entry, self.read_bytes)
        return data

    def block_at(self, offset: int) -> bytes:
        """512 bytes that were read a moment ago; less where the archive ended."""
        start = offset - (self.read_bytes - len(self._tail))
        return self._tail[start : start + BLOCK] if start >= 0 else b""

    def drain(self) -> None:
        """To the end, so that a gzip's checksum is compared."""
        self._allowed = AFTER_END_BYTES
        while self._allowed >= 0:
            if not (data := self._raw.read(64 * KIB)):
                return
            self._allowed -= len(data)
        raise ArchiveRefused("", "goes on after its end.")


def _unpack_tar(raw: BinaryIO | gzip.GzipFile, writer: _Writer) -> None:
    meter = _Meter(raw, writer.gate)
    meter.allow(0)
    # "r|": in one go, without seeking; what is skipped is read, and so counted.
    with tarfile.open(
        fileobj=meter,  # type: ignore[call-overload]
        mode="r|",
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        while True:
            meter.allow(0)
            info = tar.next()
            if info is None:
                break
            # tarfile remembers every entry, and what was said for all that follow.
            tar.members, tar.pax_headers = [], {}
            meter.entry = info.name
            _take_tar_entry(tar, info, meter, writer)
        _check_end(tar, meter)
    meter.drain()


def _take_tar_entry(
    tar: tarfile.TarFile, info: tarfile.TarInfo, meter: _Meter, writer: _Writer
) -> None:
    if info.issym() or info.islnk():
        kind = "symbolic" if info.issym() else "hard"
        raise ArchiveRefused(info.name, f"it is a {kind} link (to {shown(info.linkname)}).")
    if info.isdir():
        writer.folder(info.name)
        return
    if not info.isreg():
        kind = "a named pipe" if info.isfifo() else "a device" if info.isdev() else "no file"
        raise ArchiveRefused(info.name, f"it is {kind}; only files and folders are taken.")
    if info.issparse():
        raise ArchiveRefused(info.name, "it is a sparse file; pack it as a plain one.")
    if info.size < 0:
        raise ArchiveRefused(info.name, "its size is negative.")
    if writer.gate.bytes + info.size > writer.gate.limits.total_bytes:
        writer.gate.count(info.name, info.size)
    meter.allow(info.size)
    source = tar.extractfile(info)
    if source is None:
        raise ArchiveRefused(info.name, "it is no file.")
    with source:
        writer.file(info.name, source)


def _check_end(tar: tarfile.TarFile, meter: _Meter) -> None:
    """tarfile stops without a word at a header that it cannot read, and at a file cut short."""
    block = meter.block_at(tar.offset)
    if len(block) < BLOCK:
        raise ArchiveRefused(meter.entry, "the archive ends after it, too early.")
    if block.strip(b"\0"):
        raise ArchiveRefused(meter.entry, "what comes after it is damaged.")


# ---------------------------------------------------------------------------- zip


class _Bounded:
    """A file of which nobody reads much at once: zipfile reads the list of entries as a whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(DIRECTORY_BYTES + 1 if size < 0 else min(size, DIRECTORY_BYTES + 1))
        if len(data) > DIRECTORY_BYTES:
            raise ArchiveRefused("", f"has a directory larger than {in_words(DIRECTORY_BYTES)}.")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _unpack_zip(file: BinaryIO, writer: _Writer) -> None:
    with zipfile.ZipFile(_Bounded(file)) as archive:
        entries = archive.infolist()
        if len(entries) > writer.gate.limits.entries:
            most = writer.gate.limits.entries
            raise ArchiveRefused("", f"has {len(entries)} entries; {most} are the most.")
        for info in entries:
            _take_zip_entry(archive, info, writer)


def _take_zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, writer: _Writer) -> None:
    # zipfile cuts a name at a NUL character.
    name = info.orig_filename
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise ArchiveRefused(name, "it is a symbolic link.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveRefused(name, "it is a device or a pipe; only files and folders are taken.")
    if info.flag_bits & 0x1:
        raise ArchiveRefused(name, "it is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveRefused(name, "it is compressed in a way that is not taken: use deflate.")
    if name.endswith("/") or kind == stat.S_IFDIR:
        writer.folder(name)
        return
    try:
        with archive.open(info) as source:
            writer.file(name, source)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArchiveRefused(name, f"it is damaged: {shown(str(error))}.") from error
