"""Files of imported runs: copied aside, moved into place by a rename, taken back when that fails.

`.import-<random>/` in the folder of run groups is an import at work; it holds a lock as long as it
lives, and what has no holder is removed by the next import.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog
from django.conf import settings

from runs import layout, logs
from runs.core.reports import FILE_LIMIT_BYTES, ImportRefused
from runs.models import Attempt, LogSegment, RunGroup
from runs.workspace import Collected, Refused, copy_run, open_beneath, remove_tree

logger = structlog.get_logger(__name__)

PREFIX = ".import-"
LOCK = "lock"
# In a group's folder until all is done: names the import at work, and is locked by who finishes it.
# Such a folder may belong to no row yet.
MARKER = ".importing"
# The source's own metadata.json and reports, as they were.
ORIGINALS = "imported"
# Of a log on the page; the file itself is kept whole.
LOG_BYTES = 64 * 2**20


def is_free(name: str) -> bool:
    """Whether a group's folder may have this name."""
    target = groups_dir() / name
    return not target.exists() or is_abandoned(target)


def is_abandoned(folder: Path) -> bool:
    """Whether the import that moved it here died. Where a row names it, that is another matter."""
    try:
        name = (folder / MARKER).read_text()
    except OSError:
        return False
    root = groups_dir() / name
    return not root.name.startswith(PREFIX) or not root.exists() or is_dead(root)


def read_report_file(path: Path) -> bytes:
    """Raises ImportRefused."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ImportRefused(f"{path}: {error.strerror}.") from error


def groups_dir() -> Path:
    return Path(settings.RUN_GROUPS_DIR)


# ---------------------------------------------------------------------------- aside


@dataclass
class Staging:
    """The folder of one import at work."""

    root: Path
    count: int = 0

    @property
    def unpacked(self) -> Path:
        """Where an archive is unpacked to."""
        folder = self.root / "unpacked"
        folder.mkdir(exist_ok=True)
        return folder

    def group(self, source: Path, originals: Sequence[str]) -> "Staged":
        self.count += 1
        folder = self.root / f"group-{self.count}"
        (folder / ORIGINALS).mkdir(parents=True)
        (folder / MARKER).write_text(self.root.name)
        staged = Staged(source, folder)
        for name in originals:
            staged.keep_original(name)
        return staged


@contextlib.contextmanager
def staging() -> Iterator[Staging]:
    """A folder of an import's own, gone at the end. Removes what dead imports left."""
    base = groups_dir()
    base.mkdir(parents=True, exist_ok=True)
    remove_dead()
    root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        with (root / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Staging(root)
    finally:
        remove_tree(root)


def remove_dead() -> None:
    for folder in groups_dir().glob(f"{PREFIX}*"):
        if is_dead(folder):
            remove_tree(folder)


def is_dead(folder: Path) -> bool:
    """Whether nobody holds its lock. A folder without one is being made just now."""
    try:
        with (folder / LOCK).open("r+") as lock:
            return lock_now(lock)
    except OSError:
        return False


def lock_now(lock: IO[str]) -> bool:
    """Take the lock of an open file; False: somebody has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@dataclass
class Staged:
    """Files of one run group, ready to be moved into place."""

    source: Path
    folder: Path
    runs: dict[str, str] = field(default_factory=dict)
    collected: dict[str, Collected] = field(default_factory=dict)

    def keep_original(self, name: str) -> None:
        try:
            with (
                open_beneath(self.source, name) as original,
                (self.folder / ORIGINALS / name).open("xb") as copy,
            ):
                shutil.copyfileobj(original, copy)
        except Refused as error:
            raise ImportRefused(f"{name}: {error}.") from error

    def add_run(self, run_id: str, new_id: str, tick: Callable[[], None]) -> None:
        """Copy the run's folder, where there is one; links and the like are left out and named."""
        if "/" in run_id or not (self.source / run_id).is_dir():
            return
        into = self.folder / "attempts" / f"{new_id}-1"
        into.mkdir(parents=True)
        self.runs[run_id] = new_id
        self.collected[run_id] = copy_run(
            self.source / run_id, into, tick=tick, budget=settings.IMPORT_MAX_BYTES
        )

    def kept(self, run_id: str) -> Collected | None:
        return self.collected.get(run_id)

    def run_folder(self, run_id: str) -> Path:
        return self.folder / "attempts" / f"{self.runs[run_id]}-1"

    def move_to(self, name: str) -> None:
        """Into place, inside the transaction that makes its rows."""
        target = groups_dir() / name
        if not is_free(name):
            raise ImportRefused(f"{target.name} is in the way in the folder of run groups.")
        if target.exists():
            # Of an import that died before its rows were committed: no row names it.
            remove_tree(target)
        self.folder.chmod(0o755)
        self.folder.rename(target)
        self.folder = target

    def take_back(self) -> None:
        if self.folder.parent == groups_dir():
            remove_tree(self.folder)


# ---------------------------------------------------------------------------- after the commit


def finish(group: RunGroup) -> None:
    """The run folders that upstream's tools read, and the logs for the pages; once.

    The results are in the database by now: what fails here is logged, the files are whole, and the
    next import tries it again.
    """
    marker = layout.group_folder(group) / MARKER
    try:
        with marker.open("r+") as lock:
            if not lock_now(lock):
                return
            publish(group)
            marker.unlink(missing_ok=True)
    except FileNotFoundError:
        # It came without files, or is done.
        return
    except OSError as error:
        logger.warning("import.not_published", group=group.pk, error=str(error))


def publish(group: RunGroup) -> None:
    attempts = Attempt.objects.filter(run__group=group).select_related(
        "run__group", "run__competition"
    )
    for attempt in attempts:
        if layout.attempt_folder(attempt).is_dir():
            layout.assemble(attempt.run, attempt)
            ship_logs(attempt)
    layout.publish_group(group)


def finish_left() -> None:
    """What imports that died after their commit have not done."""
    for marker in groups_dir().glob(f"*/{MARKER}"):
        if group := RunGroup.objects.filter(folder=marker.parent.name).first():
            finish(group)


def ship_logs(attempt: Attempt) -> None:
    folder = layout.attempt_folder(attempt)
    for source, path in (
        # What the harness of there wrote; most of it is the container's.
        (LogSegment.Source.CONTAINER, "run.log"),
        (LogSegment.Source.AGENT, "logs/agent.log"),
    ):
        try:
            with open_beneath(folder, path) as file:
                size = os.fstat(file.fileno()).st_size
        except (OSError, Refused):
            continue
        if size > LOG_BYTES:
            logs.append(
                attempt.pk, source, f"{path} has {size} bytes; it is among the files of this run."
            )
            continue
        logs.Shipper(attempt.pk, source, folder, path).ship(final=True)
