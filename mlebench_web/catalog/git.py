"""What git says of a checkout, and clones of git URLs. No prompt, no hook, no LFS download."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 20
CLONE_SECONDS = 600
# Nothing that runs a program here (ext::) and no option.
URL = re.compile(r"(https?|ssh|git|file)://[^\s\x00-\x1f]+|[\w.-]+@[\w.-]+:[^\s\x00-\x1f]+")
REF = re.compile(r"[A-Za-z0-9][\w./+-]*")


class GitFailed(Exception):
    """git refused; says what it said."""


@dataclass(frozen=True)
class Revision:
    """Empty and None: the folder is no git repository, or git is not installed."""

    commit: str = ""
    branch: str = ""
    is_dirty: bool | None = None


def revision(folder: Path) -> Revision:
    """Commit, branch and whether files differ from the commit. Never raises."""
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        # A folder inside another repository has no commit of its own.
        if not Path(_git(folder, "rev-parse", "--show-toplevel").strip()).samefile(folder):
            return Revision()
        branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    except (GitFailed, OSError):
        return Revision()
    return Revision(commit, "" if branch == "HEAD" else branch, is_dirty=bool(changed.strip()))


def check_address(url: str, ref: str) -> None:
    """Raises GitFailed when these are no URL and no branch, tag or commit."""
    if not URL.fullmatch(url):
        raise GitFailed(f"{url!r} is no git URL: write https://host/owner/mle-bench")
    if ref and (not REF.fullmatch(ref) or ".." in ref):
        raise GitFailed(f"{ref!r} is no branch, tag or commit")


def fetch(url: str, ref: str, folder: Path) -> None:
    """Make `folder` a clone of `url` at `ref` (empty: its default branch), or bring it up to date.

    Only the newest state is fetched, without history. Raises GitFailed.
    """
    check_address(url, ref)
    if not (folder / ".git").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _git(folder, "init", "--quiet")
    wanted = ref or "HEAD"
    _git(folder, "fetch", "--quiet", "--depth=1", "--no-tags", url, wanted, limit=CLONE_SECONDS)
    _git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD", limit=CLONE_SECONDS)
    _git(folder, "clean", "--quiet", "-ffdx", limit=CLONE_SECONDS)


def _git(folder: Path, *arguments: str, limit: float = LOOK_SECONDS) -> str:
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "protocol.ext.allow=never",
        # The checkout may be another user's: it is only read.
        "-c",
        f"safe.directory={folder.resolve()}",
        *arguments,
    ]
    environment = {
        **os.environ,
        # A question would wait for ever.
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GitFailed(f"git {arguments[0]} took longer than {limit:g} s") from error
    except FileNotFoundError as error:
        raise GitFailed("git is not installed on this machine") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines[-3:]
        raise GitFailed(f"git {arguments[0]}: {' '.join(said) or done.returncode}")
    return done.stdout
