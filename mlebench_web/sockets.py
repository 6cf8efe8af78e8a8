"""Where sockets are, for every process of one data folder."""

import hashlib
import os
import socket
from pathlib import Path

# A Unix socket's path has at most 107 bytes; the longest that comes after the folder is the host
# service's, before "/<attempt id>/v" and a private grader's.
LONGEST_FOLDER = 107 - len("/service.01234567")


def folder_for(data_dir: Path) -> Path:
    """`s` in the data folder, or a short folder in /tmp where that is too deep for a socket.

    The same for every process, since it follows from the data folder's path alone. Raises
    PermissionError when another user holds the short one.
    """
    usual = data_dir / "s"
    if len(os.fsencode(usual)) <= LONGEST_FOLDER:
        return usual
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    # Not TMPDIR: that may differ between processes, and be deep as well.
    short = Path(os.path.realpath("/tmp"), f"mlebench-web-{os.getuid()}-{name}")  # noqa: S108
    short.mkdir(mode=0o700, exist_ok=True)
    # Everybody may make a folder there: only one that is ours alone is taken.
    found = short.lstat()
    if short.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{short} is not a private folder of this user; the data folder {data_dir} is too deep "
            f"for sockets. Set SOCKETS_DIR to a short private folder, or use a shorter data folder."
        )
    return short


def tidy(folder: Path, data_dir: Path) -> None:
    """When the product has ended: a short folder in /tmp goes, unless somebody needs it yet.

    That is another worker of this data folder, or an agent that runs on: its folder is mounted in
    its container, and its worker comes back.
    """
    if folder == data_dir / "s" or not folder.is_dir():
        return
    entries = list(folder.iterdir())
    if any(entry.is_dir() or is_served(entry) for entry in entries):
        return
    for entry in entries:
        entry.unlink()
    folder.rmdir()


def is_served(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            # Busy, or of a kind of its own: somebody is there.
            return True
    return True
