"""Copying an agent's state aside while it may still be writing, and putting it back.

What is copied belongs to a hostile program: every look and every read goes by directory handles
below the attempt's folder, follows no link, and takes regular files only. The copies have numbers
for names. Nothing here knows of the database or of storage.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from runs.core.checkpoints import MAX_DEPTH, MAX_ENTRIES, Entry, Kind, Seen, Stand
from runs.workspace import Refused, open_beneath, remove_tree

CHUNK = 2**20
# Looks at the files before the agent is stopped for the copy of those that still change.
ROUNDS = 4
# A file that was written this recently may be half of itself, when nobody says that it is whole.
SETTLED_AFTER_SECONDS = 1.0


class Restless(Exception):
    """The files changed even while the agent stood still; says which."""


class TooMuch(Exception):
    """Over a limit; says which, and the setting for it."""


@dataclass
class Look:
    """All that is below the saved folders at one moment."""

    seen: dict[str, Seen]
    left_out: int = 0


@dataclass
class Copy:
    """The state as it was at one moment: what was seen, and copies of what had to be read."""

    look: Look
    files: dict[str, Path]
    # The agent stood still for so long; 0 when the files stood still by themselves.
    pause_seconds: float = 0


# ------------------------------------------------------------------------------ looking


def look_at(root: Path, folders: Sequence[str]) -> Look:
    """What is below `folders` of `root`. Raises TooMuch."""
    look = Look({})
    for name in folders:
        try:
            handle = _open_below(root, name)
        except FileNotFoundError:
            continue
        try:
            _look_into(handle, name, look, depth=name.count("/") + 1)
        finally:
            os.close(handle)
    return look


def _open_below(root: Path, relative: str) -> int:
    """A handle of a folder of ours below `root`, through no link."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in relative.split("/"):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            below = os.open(part, flags, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def _look_into(handle: int, path: str, look: Look, *, depth: int) -> None:
    for entry in _entries(handle):
        try:
            status = entry.stat(follow_symlinks=False)
            kind = _kind(status.st_mode)
            if kind is None:
                look.left_out += 1
                continue
            below = f"{path}/{entry.name}"
            target = os.readlink(entry.name, dir_fd=handle) if kind == Kind.LINK else ""
            look.seen[below] = _seen(kind, status, target)
            if len(look.seen) > MAX_ENTRIES:
                raise TooMuch(f"it has over {MAX_ENTRIES:,} files and folders")
            if kind == Kind.FOLDER:
                if depth >= MAX_DEPTH:
                    raise TooMuch(f"its folders are over {MAX_DEPTH} deep")
                _look_below(entry.name, handle, below, look, depth)
        except OSError as error:
            # It went away or was exchanged while it was looked at: the next round sees.
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EINVAL):
                raise


def _look_below(name: str, handle: int, path: str, look: Look, depth: int) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    inner = os.open(name, flags, dir_fd=handle)
    try:
        _look_into(inner, path, look, depth=depth + 1)
    finally:
        os.close(inner)


def _entries(handle: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(handle) as entries:
        yield from entries


def _kind(mode: int) -> Kind | None:
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    return Kind.LINK if stat.S_ISLNK(mode) else None


def _seen(kind: Kind, status: os.stat_result, target: str) -> Seen:
    stand = None
    if kind == Kind.FILE:
        stand = Stand(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return Seen(kind, mode, status.st_uid, status.st_gid, stand, target)


# ------------------------------------------------------------------------------ copying


def copy_aside(
    root: Path,
    folders: Sequence[str],
    into: Path,
    *,
    known: Callable[[Mapping[str, Seen]], Mapping[str, Entry]],
    refuse: Callable[[Iterable[Seen]], str],
    freeze: Callable[[], AbstractContextManager[None]] = nullcontext,
    settled: bool = False,
) -> Copy:
    """Copy what is not `known` already, until two looks before and after a copy are the same.

    So the copy is the state at one moment, without stopping the agent; where it keeps changing
    its files, it is stopped by `freeze` for the copy of those that changed since the last round,
    and no longer. `settled`: wait for files that were only just written, since nobody says that
    they are whole. Raises TooMuch, Restless, and OSError.
    """
    if into.exists():
        # A save that was cut off left it.
        remove_tree(into)
    into.mkdir(mode=0o700)
    copies: dict[str, tuple[Seen, Path]] = {}
    look = look_at(root, folders)
    for _ in range(ROUNDS):
        _copy_round(root, look, into, copies, known, refuse)
        if settled and (wait := _unsettled(look)) > 0:
            time.sleep(wait)
        again = look_at(root, folders)
        if again.seen == look.seen:
            return Copy(look, _files(look, copies))
        look = again
    began = time.monotonic()
    with freeze():
        look = look_at(root, folders)
        _copy_round(root, look, into, copies, known, refuse)
        again = look_at(root, folders)
    if again.seen != look.seen:
        changed = next(
            path
            for path in {**look.seen, **again.seen}
            if look.seen.get(path) != again.seen.get(path)
        )
        raise Restless(f"{changed} changed while it was copied")
    return Copy(look, _files(look, copies), pause_seconds=time.monotonic() - began)


def _unsettled(look: Look) -> float:
    """Seconds until the youngest file is old enough; 0 when it is, or lies about its age."""
    youngest = max((each.stand.mtime_ns for each in look.seen.values() if each.stand), default=0)
    age = time.time() - youngest / 1e9
    return max(0.0, SETTLED_AFTER_SECONDS - age) if age >= 0 else 0.0


def _copy_round(
    root: Path,
    look: Look,
    into: Path,
    copies: dict[str, tuple[Seen, Path]],
    known: Callable[[Mapping[str, Seen]], Mapping[str, Entry]],
    refuse: Callable[[Iterable[Seen]], str],
) -> None:
    if why := refuse(look.seen.values()):
        raise TooMuch(why)
    same = known(look.seen)
    to_copy = [
        (path, seen)
        for path, seen in look.seen.items()
        if seen.kind == Kind.FILE
        and path not in same
        and not (path in copies and copies[path][0] == seen)
    ]
    needed = sum(seen.stand.size for _, seen in to_copy if seen.stand)
    free = shutil.disk_usage(into).free
    if needed > free // 2:
        raise TooMuch(
            f"{needed / 2**30:.1f} GiB have to be copied aside, and {free / 2**30:.1f} GiB are "
            "free on the host"
        )
    for path, seen in to_copy:
        # A number of its own for each copy: no name of the agent's is used here.
        target = copies[path][1] if path in copies else into / str(len(copies))
        try:
            copy_file(root, path, target, size=seen.stand.size if seen.stand else 0)
        except (FileNotFoundError, Refused):
            # Gone or exchanged: the look after this round says the same.
            target.touch()
        copies[path] = (seen, target)


def copy_file(root: Path, path: str, target: Path, *, size: int) -> None:
    """Copy at most `size` bytes: a file that grows under it does not make it endless."""
    with open_beneath(root, path) as source, target.open("wb") as copy:
        left = size
        while left:
            done = _copy_range(source.fileno(), copy.fileno(), min(left, 64 * CHUNK))
            if not done:
                return
            left -= done


def _copy_range(source: int, target: int, size: int) -> int:
    """Bytes copied, 0 at the end. Where the file system shares blocks, no byte is read."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, size)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    chunk = os.read(source, min(size, CHUNK))
    written = 0
    while written < len(chunk):
        written += os.write(target, chunk[written:])
    return written


def _files(look: Look, copies: Mapping[str, tuple[Seen, Path]]) -> dict[str, Path]:
    return {path: copy for path, (seen, copy) in copies.items() if look.seen.get(path) == seen}


# ------------------------------------------------------------------------------ putting back


def put_back(
    entries: Sequence[Entry],
    into: Path,
    *,
    read: Callable[[Entry], Iterable[bytes]],
    tick: Callable[[], None],
) -> None:
    """Write a manifest's entries below `into`, an empty folder of ours that no agent can see yet.

    `decode` has seen to it that each is below a folder of the manifest. Links come last, so that
    nothing is written through one. Where this user may not give files away, everybody may write.
    """
    for entry in sorted(entries, key=lambda each: (each.seen.kind == Kind.LINK, each.path)):
        place = into / entry.path
        match entry.seen.kind:
            case Kind.FOLDER:
                place.mkdir(parents=True, exist_ok=True)
            case Kind.LINK:
                os.symlink(entry.seen.target, place)
            case Kind.FILE:
                with place.open("xb") as file:
                    for piece in read(entry):
                        file.write(piece)
                        tick()
        tick()
    # Rights last and from below: a folder may be read-only, and its time changes with its content.
    for entry in sorted(entries, key=lambda each: each.path, reverse=True):
        _give(into / entry.path, entry.seen)


def _give(place: Path, seen: Seen) -> None:
    mode = seen.mode | stat.S_IRUSR | stat.S_IWUSR
    if seen.kind == Kind.FOLDER:
        mode |= stat.S_IXUSR
    try:
        os.chown(place, seen.uid, seen.gid, follow_symlinks=False)
    except OSError:
        # Not root, or an owner that this file system does not know: open it to the image's user.
        mode |= 0o777 if seen.kind == Kind.FOLDER or mode & stat.S_IXUSR else 0o666
    if seen.kind == Kind.LINK:
        return
    os.chmod(place, mode)
    if seen.stand:
        os.utime(place, ns=(seen.stand.mtime_ns, seen.stand.mtime_ns))
