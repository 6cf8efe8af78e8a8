"""What a Dockerfile of a checkout may COPY from: a folder, less what .dockerignore names.

Streamed, never held in memory: the context may be a whole checkout.
"""

import hashlib
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from docker.utils import exclude_paths

# No source of an image; the first is large, and changes when nothing did.
NEVER = (".git", "**/__pycache__", "**/.DS_Store")
# Where our copy of the Dockerfile stands in the archive.
DOCKERFILE = ".mlebench-web.Dockerfile"
BASE_NAME = "mlebench-env"
FROM = re.compile(
    rf"^(\s*FROM\s+(?:--\S+\s+)*)(?:{BASE_NAME})(?::latest)?(?=\s|$)", re.IGNORECASE | re.MULTILINE
)


class ContextFailed(Exception):
    """The folder cannot be sent to an engine; says why."""


def needs_base(dockerfile: str) -> bool:
    """Whether it starts from mle-bench's environment, which is built first."""
    return bool(FROM.search(dockerfile))


def with_base(dockerfile: str, image: str) -> str:
    """`FROM mlebench-env` names this very image: a tag of that name may be anything."""
    return FROM.sub(lambda match: match[1] + image, dockerfile)


@dataclass(frozen=True)
class _Member:
    name: str
    path: Path
    status: os.stat_result


@dataclass(frozen=True)
class Context:
    root: Path
    # Only these below the root; empty: all.
    only: tuple[str, ...] = ()

    def _members(self) -> Iterator[_Member]:
        ignore = self.root / ".dockerignore"
        patterns = [
            line.strip()
            for line in (ignore.read_text().splitlines() if ignore.is_file() else ())
            if line.strip() and not line.startswith("#")
        ]
        for name in sorted(exclude_paths(str(self.root), [*patterns, *NEVER])):
            if not name or (self.only and not _is_below(name, self.only)):
                continue
            path = self.root / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or path.is_symlink():
                yield _Member(name, path, status)

    def signature(self) -> str:
        """Names, sizes and times: says cheaply whether the digest must be made anew."""
        try:
            seen = [(m.name, m.status.st_size, m.status.st_mtime_ns) for m in self._members()]
        except OSError as error:
            raise ContextFailed(f"{self.root} cannot be read: {error}") from error
        return hashlib.sha256(repr(seen).encode()).hexdigest()

    def digest(self) -> str:
        """Of names, contents, links and what may be run. Raises ContextFailed."""
        total = hashlib.sha256()
        try:
            for member in self._members():
                if member.path.is_symlink():
                    content = os.readlink(member.path)
                elif stat.S_ISDIR(member.status.st_mode):
                    continue
                else:
                    with member.path.open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                runs = bool(member.status.st_mode & stat.S_IXUSR)
                total.update(f"{member.name}\0{content}\0{runs}\n".encode())
        except OSError as error:
            raise ContextFailed(f"{self.root} cannot be read: {error}") from error
        return total.hexdigest()

    def archive(self, extra: Mapping[str, bytes]) -> IO[bytes]:
        """A tar in a temporary file that is gone when it is closed. Owners and times are fixed,
        so that the engine's cache knows equal files as equal. Raises ContextFailed.
        """
        made = tempfile.TemporaryFile(prefix="mlebench-web-context-")  # noqa: SIM115 - returned
        try:
            with tarfile.open(fileobj=made, mode="w") as archive:
                for member in self._members():
                    info = archive.gettarinfo(str(member.path), arcname=member.name)
                    info.uid = info.gid = 0
                    info.uname = info.gname = ""
                    info.mtime = 0
                    if info.islnk():
                        # The second name of a file that is in already: sent as a file of its own.
                        info.type = tarfile.REGTYPE
                        info.size = member.status.st_size
                    if info.isreg():
                        with member.path.open("rb") as file:
                            archive.addfile(info, file)
                    else:
                        archive.addfile(info)
                for name, content in sorted(extra.items()):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, BytesIO(content))
        except (OSError, tarfile.TarError) as error:
            made.close()
            raise ContextFailed(f"{self.root} cannot be read: {error}") from error
        made.seek(0)
        return made


def _is_below(name: str, parts: Iterable[str]) -> bool:
    return any(
        name == part or name.startswith(f"{part}/") or part.startswith(f"{name}/") for part in parts
    )
