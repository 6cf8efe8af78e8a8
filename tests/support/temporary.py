"""One folder for all that a test session writes, and temporary files of its children.

It is removed at the end. A session that was killed leaves it; the next session finds that nobody
holds its lock any more, and removes it.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "mlw-"


def session_folder() -> Path:
    """A new folder, held by this process; TMPDIR leads into it from here on.

    Its path is short: a Unix socket's has at most 107 bytes.
    """
    sweep(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=PREFIX))
    hold(made)
    # Agents of the process runtime, PostgreSQL and containers run as other users.
    made.chmod(0o755)
    within = made / "t"
    within.mkdir(mode=0o755)
    # Folders of failed tests are for people, who look where pytest always has them.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    os.environ["TMPDIR"] = tempfile.tempdir = str(within)
    maker = os.getpid()
    # Forked children run this too, and must leave the folder alone.
    atexit.register(lambda: os.getpid() == maker and shutil.rmtree(made, ignore_errors=True))
    return made


def hold(folder: Path) -> None:
    """Lock it for as long as this process lives."""
    new = folder / "lock.new"
    handle = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    # Seen by others only now that it is locked.
    new.rename(folder / "lock")


def sweep(root: Path) -> None:
    """Remove folders of sessions that are over; what has no lock is none of ours."""
    for lock in root.glob(f"{PREFIX}*/lock"):
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # It has just ended, or it is another user's.
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(handle)
