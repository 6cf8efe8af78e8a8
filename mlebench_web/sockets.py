"""Where sockets are, for every process of one data folder."""

import hashlib
import os
from pathlib import Path

# A Unix socket's path has at most 107 bytes; "/<attempt id>/v" and "/service" come after this.
LONGEST_FOLDER = 107 - len("/0123456789/v")


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
