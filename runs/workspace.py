"""The folders of an attempt, and safe reads of what a hostile program left in them.

A running agent may do anything in its output folders: links to files of the host, named pipes,
a million files, a tree a thousand levels deep, names that are no text. So every read opens
component by component below the folder without following links, and takes regular files only.
"""

import errno
import itertools
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from django.conf import settings

from runs.core.redaction import Stream, usable

if TYPE_CHECKING:
    from runs.containers import Engine

OUTPUTS = ("submission", "logs", "code")
WRITTEN_BY_AGENT = (*OUTPUTS, "ckpt", "state")
# Ours among the agent's files: how it started and ended. They say nothing to a reader.
INTERNAL = frozenset({"logs/.started", "logs/agent.rc", "logs/agent.rc.tmp"})
# What no honest agent reaches; a hostile one must not make a collection endless.
MAX_DEPTH = 64
MAX_FILES = 500_000
# Rows that a page can show. Further files are kept, and counted.
MAX_LISTED = 5_000
CHUNK = 2**20
# The unit of st_blocks, whatever the file system's own is.
BLOCK = 512
# sun_path of a Unix socket, with its final zero byte.
SOCKET_PATH_BYTES = 107
# Counting what an attempt holds on disk is given up after this.
COUNT_SECONDS = 60


class Refused(Exception):
    """A link, a pipe, a device or a folder where a regular file should be."""


@dataclass(frozen=True)
class FoundFile:
    path: Path
    size: int


@dataclass
class Collected:
    """What was kept, and what was not and why. Lists end at MAX_LISTED; the counts do not."""

    artifacts: list[dict[str, object]] = field(default_factory=list)
    left_out: list[dict[str, object]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    left_out_count: int = 0

    def keep(self, path: str, size: int) -> None:
        self.files += 1
        self.bytes += size
        if len(self.artifacts) < MAX_LISTED:
            self.artifacts.append({"path": readable(path), "bytes": size})

    def leave_out(self, path: str, why: str) -> None:
        self.left_out_count += 1
        if len(self.left_out) < MAX_LISTED:
            self.left_out.append({"path": readable(path), "why": why})


def readable(name: str) -> str:
    """A file name as text that any database and page can hold; odd bytes become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def open_beneath(root: Path | int, relative: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file below `root` for reading, following no link on the way.

    Raises Refused for anything but a regular file, and for a path that leaves `root`;
    FileNotFoundError when there is nothing.
    """
    *folders, name = os.fspath(relative).split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)):
        raise Refused(f"{readable(os.fspath(relative))} is not a path below its folder")
    at = os.dup(root) if isinstance(root, int) else os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            below = _open_folder(part, at)
            os.close(at)
            at = below
        return os.fdopen(_open_regular(name, at), "rb")
    finally:
        os.close(at)


def names_beneath(root: Path, relative: str, *, at_most: int) -> list[str]:
    """Names in a folder below `root`, sorted, following no link; of very many, any `at_most`.

    Raises Refused where a link or something else stands on the way, FileNotFoundError when there
    is nothing.
    """
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in relative.split("/"):
            below = _open_folder(part, at)
            os.close(at)
            at = below
        return sorted(itertools.islice(_names(at, at_most), at_most))
    finally:
        os.close(at)


def _open_folder(name: str, at: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    except OSError as error:
        # Linux says ENOTDIR for a link here, others ELOOP.
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            raise Refused(f"{readable(name)} is {_kind(name, at)}, not a folder") from error
        raise


def _open_regular(name: str, at: int) -> int:
    # Looked at before it is opened (opening a device can do something) and after (it may have
    # been exchanged in between). O_NONBLOCK: opening a pipe would wait for a writer.
    if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
        raise Refused(f"{readable(name)} is {_kind(name, at)}, not a regular file")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise Refused(f"{readable(name)} is {_kind(name, at)}, not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refused(f"{readable(name)} was exchanged while it was read")
    return handle


def remove_tree(path: Path) -> None:
    """Remove a folder as far as this user may; no error, look whether it is gone."""
    try:
        shutil.rmtree(path)
    except (OSError, RecursionError):
        # A hostile tree is deeper than Python recurses; rm is not troubled. (A process costs 20 ms,
        # so it is not the first choice.)
        command = ["rm", "-rf", "--", str(path)]
        subprocess.run(command, capture_output=True, check=False, timeout=600)


def kind_of(mode: int) -> str:
    for test, words in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    ):
        if test(mode):
            return words
    return "a file"


def _kind(name: str, at: int) -> str:
    try:
        return kind_of(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return "gone"


@dataclass(frozen=True)
class Workspace:
    """The folders of one attempt on this host."""

    attempt_id: int

    @classmethod
    def for_attempt(cls, attempt_id: int) -> "Workspace":
        return cls(attempt_id)

    @property
    def root(self) -> Path:
        return Path(settings.ATTEMPTS_DIR) / str(self.attempt_id)

    @property
    def submission(self) -> Path:
        return self.root / "submission"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def checkpoint(self) -> Path:
        return self.root / "ckpt"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def socket_dir(self) -> Path:
        """Mounted as a directory; the validation service listens on `v` in it."""
        return Path(settings.SOCKETS_DIR) / str(self.attempt_id)

    def make(self, more: Iterable[str] = ()) -> None:
        """Make what is not there, and `more` folders that an agent writes.

        Raises OSError; ENAMETOOLONG when a socket cannot live there.
        """
        path = os.fsencode(self.socket_dir / "v")
        if len(path) > SOCKET_PATH_BYTES:
            raise OSError(
                errno.ENAMETOOLONG,
                f"the path of a socket has at most {SOCKET_PATH_BYTES} bytes, this one has "
                f"{len(path)}: set SOCKETS_DIR to a shorter folder",
                os.fsdecode(path),
            )
        for private in (self.root, self.socket_dir):
            private.mkdir(parents=True, exist_ok=True)
            # Other users of this machine have no business here; containers enter by mounts.
            private.chmod(0o700)
        for name in (*WRITTEN_BY_AGENT, *more):
            folder = self.root / name
            folder.mkdir(exist_ok=True)
            if stat.S_IMODE(folder.stat().st_mode) != 0o777:
                # The image's own user (uid 1000) writes here.
                folder.chmod(0o777)

    # ------------------------------------------------------------------------ small reads

    def agent_exit_code(self) -> int | None:
        """What the agent's start script ended with; None while it has not, or if it cannot be read.

        An agent that deletes or forges the file harms itself alone: the exit code is no verdict,
        and the agent has also ended when none of its processes is left.
        """
        try:
            with open_beneath(self.logs, "agent.rc") as file:
                text = file.read(16).decode("ascii")
            return int(text)
        except (OSError, Refused, ValueError):
            return None

    def agent_ended_ago(self) -> float | None:
        """Seconds since the exit code was written; None while there is none that can be read."""
        if self.agent_exit_code() is None:
            return None
        try:
            with open_beneath(self.logs, "agent.rc") as file:
                return time.time() - os.fstat(file.fileno()).st_mtime
        except (OSError, Refused):
            return None

    def relay_is_ready(self) -> bool:
        return (self.socket_dir / "ready").exists()

    def submission_file(self) -> FoundFile | None:
        """submission.csv when it is a regular file; never what a link points to."""
        try:
            with open_beneath(self.submission, "submission.csv") as file:
                return FoundFile(
                    self.submission / "submission.csv", os.fstat(file.fileno()).st_size
                )
        except (OSError, Refused):
            return None

    def refused_submission(self) -> str | None:
        """A sentence when something is there that is not graded; None when all is well."""
        try:
            mode = (self.submission / "submission.csv").lstat().st_mode
        except OSError:
            return None
        if stat.S_ISREG(mode):
            return None
        kind = kind_of(mode)
        plural = "links" if stat.S_ISLNK(mode) else "only regular files"
        verb = "are not graded" if stat.S_ISLNK(mode) else "are graded"
        return f"submission.csv is {kind}; {plural} {verb}"

    def used_bytes(self, *, tick: Callable[[], None] = lambda: None) -> int:
        """What the agent's folders hold on disk: blocks, so a sparse file counts what it takes.

        `du` walks a tree of any depth that changes under it, follows no link and counts a hard
        link once. `tick` is called each second meanwhile. Raises OSError when it cannot be asked.
        """
        folders = [name for name in WRITTEN_BY_AGENT if (self.root / name).is_dir()]
        if not folders:
            return 0
        deadline = time.monotonic() + COUNT_SECONDS
        with subprocess.Popen(
            ["du", "-sk", "--", *folders],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as du:
            while True:
                try:
                    counted, _ = du.communicate(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    try:
                        tick()
                        if time.monotonic() > deadline:
                            raise OSError(
                                errno.ETIMEDOUT,
                                f"counting the output took over {COUNT_SECONDS} s",
                            ) from None
                    except BaseException:
                        du.kill()
                        raise
        # It ends with 1 when a file went away under it, and still says the sum.
        return 1024 * sum(int(line.split(b"\t")[0]) for line in counted.splitlines())

    # ------------------------------------------------------------------------ the end

    def collect(
        self, into: Path, *, tick: Callable[[], None], secrets: Iterable[str] = ()
    ) -> Collected:
        """Copy submission, logs and code into the run's folder; the workspace stays as it is.

        `secrets` are taken out of what is copied.
        `tick` is called often enough for a heartbeat. May be repeated: the result is the same.
        Each folder appears whole. Raises OSError when the disk is full or the target cannot be
        written; what was copied by then is in place.
        """
        into.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{into.name}.{self.attempt_id}."
        for dead in into.parent.glob(f"{prefix}*"):
            shutil.rmtree(dead, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=into.parent))
        try:
            collected = Collected()
            try:
                self._copy_outputs(temporary, collected, tick, usable(secrets))
            finally:
                _into_place(temporary, into)
            return collected
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _copy_outputs(
        self,
        target: Path,
        collected: Collected,
        tick: Callable[[], None],
        secrets: Sequence[bytes],
    ) -> None:
        for name in OUTPUTS:
            (target / name).mkdir()
        copier = _Copier(collected, tick, budget=settings.OUTPUT_QUOTA_BYTES, secrets=secrets)
        # The submission first: a quota or a full disk takes the least important.
        for name in OUTPUTS:
            try:
                source = os.open(self.root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError as error:
                collected.leave_out(name, os.strerror(error.errno or 0))
                continue
            destination = os.open(target / name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                copier.copy_folder(source, destination, name, depth=1)
            finally:
                os.close(source)
                os.close(destination)

    def make_readable(self, engine: "Engine", image_id: str = "") -> None:
        """Open the outputs to this user, once the agent has ended. Root can read them anyway.

        A file that was written aside and renamed (as tempfile does it) is its owner's alone, and
        in a container the owner is another user than the worker. Raises EngineFailure.
        """
        if os.geteuid() == 0:
            return
        for name in OUTPUTS:
            folder = self.root / name
            # BSD's find has no -readable, and then says so: better once too often.
            look = ["find", str(folder), "!", "-readable", "-print", "-quit"]
            found = subprocess.run(look, capture_output=True, check=False, timeout=60)
            if folder.exists() and (found.stdout or found.returncode):
                engine.make_readable(folder, image_id)

    def remove(self, engine: "Engine", image_id: str = "") -> None:
        """Remove everything of this attempt but what was collected. Files of the container's
        users go through a helper container of `image_id` where this user may not remove them.
        """
        engine.remove_folder(self.root, image_id)
        engine.remove_folder(self.socket_dir, image_id)


def copy_run(source: Path, into: Path, *, tick: Callable[[], None], budget: int) -> Collected:
    """Copy what a run left elsewhere, in upstream's layout: run.log, submission, logs, code.

    `into` is an empty folder. What else lies there is left out and named. Raises OSError.
    """
    collected = Collected()
    copier = _Copier(collected, tick, budget=budget)
    at = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    target = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in sorted(_names(at, MAX_FILES), key=lambda each: (each not in OUTPUTS, each)):
            copier.copy_output(name, at, target)
        return collected
    finally:
        os.close(at)
        os.close(target)


def _into_place(temporary: Path, into: Path) -> None:
    """Exchange the folders of `into` for the new ones, each by a rename."""
    into.mkdir(exist_ok=True)
    # mkdtemp makes 0700; what is here is for the web process and upstream's tools.
    into.chmod(0o755)
    for name in OUTPUTS:
        if not (temporary / name).exists():
            continue
        if (into / name).exists():
            os.rename(into / name, temporary / f"old-{name}")
        os.rename(temporary / name, into / name)


class _Copier:
    """Copies one tree by directory handles, within one budget of bytes and files."""

    def __init__(
        self,
        collected: Collected,
        tick: Callable[[], None],
        *,
        budget: int,
        secrets: Sequence[bytes] = (),
    ) -> None:
        self.collected = collected
        self.secrets = secrets
        self.tick = tick
        self.budget = budget
        self.seen = 0

    def copy_output(self, name: str, source: int, destination: int) -> None:
        """One of the names at the top of a run's folder."""
        try:
            mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
            if name in OUTPUTS and stat.S_ISDIR(mode):
                self._copy_subfolder(name, source, destination, name, depth=0)
            elif name == "run.log" and stat.S_ISREG(mode):
                self._copy_file(name, source, destination, name)
            else:
                self.collected.leave_out(name, f"{kind_of(mode)} that no run of mle-bench has")
        except Refused as error:
            self.collected.leave_out(name, str(error))

    def copy_folder(self, source: int, destination: int, path: str, *, depth: int) -> None:
        # submission.csv before anything else that could use up the budget.
        entries = sorted(
            _names(source, MAX_FILES), key=lambda name: (name != "submission.csv", name)
        )
        for name in entries:
            below = f"{path}/{name}"
            if below in INTERNAL:
                continue
            self.seen += 1
            if self.seen > MAX_FILES:
                self.collected.leave_out(path, f"over {MAX_FILES} files; the rest was left out")
                return
            if self.seen % 256 == 0:
                self.tick()
            try:
                mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    self._copy_subfolder(name, source, destination, below, depth)
                elif stat.S_ISREG(mode):
                    self._copy_file(name, source, destination, below)
                else:
                    self.collected.leave_out(below, kind_of(mode))
            except Refused as error:
                self.collected.leave_out(below, str(error))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                self.collected.leave_out(below, os.strerror(error.errno or 0))

    def _copy_subfolder(
        self, name: str, source: int, destination: int, path: str, depth: int
    ) -> None:
        if depth >= MAX_DEPTH:
            self.collected.leave_out(path, f"deeper than {MAX_DEPTH} folders")
            return
        inner = _open_folder(name, source)
        try:
            os.mkdir(name, 0o755, dir_fd=destination)
            target = _open_folder(name, destination)
            try:
                self.copy_folder(inner, target, path, depth=depth + 1)
            finally:
                os.close(target)
        finally:
            os.close(inner)

    def _copy_file(self, name: str, source: int, destination: int, path: str) -> None:
        handle = _open_regular(name, source)
        try:
            # Not the blocks: a sparse file is this big for whoever downloads or exports it.
            status = os.fstat(handle)
            size = status.st_size
            if size > self.budget:
                self.collected.leave_out(path, f"{size} bytes are over what an attempt may leave")
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o644, dir_fd=destination)
            try:
                copied = written = 0
                # As big as it was when it was opened, even when somebody still writes to it.
                whole = status.st_blocks * BLOCK >= size
                ranges = [(0, size)] if whole else _data_ranges(handle, size)
                for start, stop in ranges:
                    if not whole:
                        # Looking for data has moved us.
                        os.lseek(handle, start, os.SEEK_SET)
                        written = os.lseek(target, start - copied, os.SEEK_CUR)
                    written += self._copy_range(handle, target, stop - start)
                    copied = os.lseek(handle, 0, os.SEEK_CUR)
                    if copied < stop:
                        # It was cut short meanwhile.
                        size = copied
                if copied < size:
                    written += size - copied
                    copied = size
                    os.ftruncate(target, written)
            finally:
                os.close(target)
        finally:
            os.close(handle)
        self.budget -= copied
        self.collected.keep(path, written)

    def _copy_range(self, source: int, target: int, length: int) -> int:
        """Copy what comes next, at most `length`; the bytes written. No secret lies across two
        ranges: what is between them reads as zeros."""
        left, written = length, 0
        stream = Stream(self.secrets)
        while chunk := os.read(source, min(CHUNK, left)):
            left -= len(chunk)
            written += _write(target, stream.feed(chunk))
            if left:
                self.tick()
        return written + _write(target, stream.end())


def _data_ranges(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """From where to where a file of `size` bytes holds data; all of it where nobody can say."""
    at = 0
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
            stop = os.lseek(handle, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # A hole up to the end.
                return
            # A file system that knows no holes.
            start, stop = at, size
        if start >= size:
            return
        yield start, min(stop, size)
        at = max(stop, start + 1)


def _write(handle: int, data: bytes) -> int:
    """All of it; how much that was."""
    length = len(data)
    while data:
        data = data[os.write(handle, data) :]
    return length


def _names(folder: int, at_most: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count > at_most:
                return
            yield entry.name
