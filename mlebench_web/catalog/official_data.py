"""Data of mle-bench's competitions, prepared by mle-bench's own code in a child process.

The child is the Python of MLEBENCH_PYTHON with the checkout in front of its path; nothing of it is
imported here. It cannot ask a question, and ends with this process or at PREPARE_LIMIT.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from django.conf import settings

from mlebench_web.catalog import data, folders
from mlebench_web.catalog.data import DataError
from mlebench_web.catalog.models import Competition
from mlebench_web.locks import alone

SCRIPT = folders.BUILTIN / "run_mlebench_prepare.py"
TRY_SCRIPT = folders.BUILTIN / "try_mlebench_graders.py"
TRY_LIMIT_SECONDS = 180
LOOK_EVERY_SECONDS = 1.0
LAST_LINES = 20
# What a child that runs other people's code has no use for.
OURS = ("SECRET_KEY", "DATABASE_URL", "CELERY_BROKER_URL", "EMAIL_BACKEND", "PYTHONPATH")
# Without these no grader of mle-bench's starts.
GRADING_MODULES = ("pandas", "sklearn")
# mle-bench's log lines -> what is being done. The first that matches.
PHASES = (
    (re.compile(r"Downloading the dataset"), "downloading"),
    (re.compile(r"Generating checksum"), "comparing checksums"),
    (re.compile(r"Extracting"), "extracting"),
    (re.compile(r"Preparing the dataset"), "preparing"),
    (re.compile(r"Removing the raw data"), "removing the raw data"),
)


class NeedsPerson(DataError):
    """It waits for somebody: `reason` is rules, credentials or checksums; `link` where to act."""

    def __init__(self, reason: str, message: str, link: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.link = link


@dataclass(frozen=True)
class Seen:
    """How far it is. Bytes: of everything in the competition's folder."""

    phase: str
    done_bytes: int


def is_official(competition: Competition) -> bool:
    """Whether mle-bench's own code prepares it."""
    return competition.checkout_id is not None


def disk_needed(competition: Competition) -> int | None:
    """Bytes while it is prepared: the archive, the raw files, and what is made of them, at once."""
    size = competition.dataset_size_bytes
    return 3 * size if size is not None else None


def missing() -> str:
    """Why mle-bench's own code cannot run on this machine; empty when it can."""
    if os.access(settings.MLEBENCH_PYTHON, os.X_OK):
        return ""
    return (
        "There is no Python with mle-bench's libraries: `./run mlebench` makes one, or "
        "MLEBENCH_PYTHON names one that you have."
    )


def cannot_grade() -> str:
    """Why competitions of a checkout cannot be graded on this machine; empty when they can.

    Quick: what only some graders need is named when they are loaded, and by `./run doctor`.
    """
    if why := missing():
        return why
    python = Path(settings.MLEBENCH_PYTHON)
    return _lacks(python, _state_of(python))


def _state_of(python: Path) -> float:
    """Changes when something is installed for this Python."""
    folders = [python, *python.parent.parent.glob("lib/python*/site-packages")]
    return max(folder.stat().st_mtime for folder in folders)


@lru_cache(maxsize=8)
def _lacks(python: Path, state: float) -> str:
    """Asked once for each state of the interpreter; finding modules is cheap, importing is not."""
    question = (
        "import importlib.util as u, sys;"
        "print(' '.join(m for m in sys.argv[1:] if u.find_spec(m) is None))"
    )
    try:
        answer = subprocess.run(
            [python, "-I", "-c", question, *GRADING_MODULES],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"The Python of MLEBENCH_PYTHON does not work: {error}"
    if lacking := answer.stdout.strip():
        return f"The Python of MLEBENCH_PYTHON lacks {lacking}: `./run mlebench` installs it."
    return ""


@dataclass(frozen=True)
class Tried:
    """Graders of a checkout that were loaded: how many there are, and why some cannot be."""

    graders: int
    broken: dict[str, str]


def try_graders(checkout: Path) -> Tried:
    """Load each grader of a checkout in a child; takes seconds. Raises DataError."""
    if why := cannot_grade():
        raise DataError(why)
    names, broken = grade_fns(checkout)
    with tempfile.TemporaryDirectory(prefix="mlebench-web-try-") as there:
        try:
            done = subprocess.run(
                [settings.MLEBENCH_PYTHON, "-B", TRY_SCRIPT, checkout, json.dumps(names)],
                cwd=there,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": there},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TRY_LIMIT_SECONDS,
                check=True,
            )
            said = json.loads(done.stdout.strip().splitlines()[-1])
            return Tried(len(names) + len(broken), broken | dict(said))
        except subprocess.TimeoutExpired as error:
            raise DataError(f"Loading the graders took over {TRY_LIMIT_SECONDS} s.") from error
        except subprocess.CalledProcessError as error:
            tail = "\n".join(str(error.stderr).strip().splitlines()[-3:])
            raise DataError(f"The graders of {checkout} cannot be loaded: {tail}") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"The graders of {checkout} cannot be loaded: {error}") from error


def grade_fns(checkout: Path) -> tuple[dict[str, str], dict[str, str]]:
    """ "module:function" of each competition of a checkout, and why some say none."""
    names, broken = {}, {}
    for config in sorted((checkout / "mlebench" / "competitions").glob("*/config.yaml")):
        name = config.parent.name
        try:
            names[name] = str(yaml.safe_load(config.read_text())["grader"]["grade_fn"])
        except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError) as error:
            broken[name] = f"{config}: grader.grade_fn cannot be read: {error}"[:300]
    return names, broken


def start_over(competition: Competition) -> None:
    """Forget the archive and what was made of it, so that the next preparation downloads anew."""
    home = settings.COMPETITIONS_DIR / competition.name
    for path in (*home.glob("*.zip"), home / "raw", home / "prepared"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def prepare(
    competition: Competition,
    progress: Callable[[Seen], None],
    *,
    ignores_checksums: bool = False,
    credentials: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Download and prepare it. `credentials`: KAGGLE_USERNAME and KAGGLE_KEY where they are stored.

    Raises NeedsPerson, DataError.
    """
    if why := missing():
        raise DataError(why)
    folder = data.folder_of(competition)
    if competition.checkout is None or folder is None:
        raise DataError(f"{competition.name} is of no checkout of mle-bench.")
    home = settings.COMPETITIONS_DIR / competition.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        with alone(home / ".lock") as lock:
            if not ignores_checksums:
                # Half of it may be there, from one that was killed.
                shutil.rmtree(home / "prepared", ignore_errors=True)
            _check_disk(competition, home)
            _run(
                competition,
                home,
                progress,
                checksums="ignore" if ignores_checksums else "compare",
                credentials=credentials or {},
                stop=stop or threading.Event(),
                lock=lock,
            )
            _open_up(home / "prepared")
    except OSError as error:
        raise DataError(f"{competition.name} could not be prepared: {error}.") from error
    if not data.is_prepared(competition):
        raise DataError(
            f"mle-bench prepared {competition.name}, and the answers or the sample submission are "
            f"not where its config.yaml says: {competition.answers_path}, "
            f"{competition.sample_submission_path}."
        )


def _check_disk(competition: Competition, home: Path) -> None:
    size = competition.dataset_size_bytes
    free = shutil.disk_usage(home).free
    if size and free < size and not any(home.glob("*.zip")):
        raise DataError(
            f"The disk of {settings.COMPETITIONS_DIR} has {free / 1e9:.1f} GB left, and "
            f"{competition.name} alone has {size / 1e9:.1f} GB. Make room, or set "
            "COMPETITIONS_DIR to another disk."
        )


def _run(
    competition: Competition,
    home: Path,
    progress: Callable[[Seen], None],
    *,
    checksums: str,
    credentials: Mapping[str, str],
    stop: threading.Event,
    lock: int,
) -> None:
    assert competition.checkout is not None  # noqa: S101 - checked by the caller
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {**credentials, "PYTHONDONTWRITEBYTECODE": "1", "BROWSER": "true"}
    command = [
        str(settings.MLEBENCH_PYTHON),
        "-B",
        str(SCRIPT),
        competition.checkout.path,
        competition.name,
        str(settings.COMPETITIONS_DIR),
        checksums,
    ]
    phase = "starting"
    last: deque[str] = deque(maxlen=LAST_LINES)
    # mle-bench makes a cache folder where it stands.
    with tempfile.TemporaryDirectory(prefix="mlebench-web-prepare-") as there:
        child = subprocess.Popen(
            command,
            cwd=there,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            # A child that outlives us keeps the lock, and nobody works beside it.
            pass_fds=[lock],
        )
        assert child.stderr is not None and child.stdout is not None  # noqa: S101, PT018 - pipes

        def listen() -> None:
            nonlocal phase
            assert child.stderr is not None  # noqa: S101 - a pipe
            for line in child.stderr:
                last.append(line.rstrip()[:500])
                phase = next((word for sign, word in PHASES if sign.search(line)), phase)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        until = time.monotonic() + settings.PREPARE_LIMIT.total_seconds()
        ended = ""
        try:
            while child.poll() is None:
                if stop.is_set():
                    ended = "The host service was stopped; it goes on when that starts again."
                elif time.monotonic() > until:
                    ended = f"It took longer than {settings.PREPARE_LIMIT} (PREPARE_LIMIT_HOURS)."
                if ended:
                    break
                progress(Seen(phase, used_bytes(home)))
                _wait(child, stop)
        finally:
            _end(child)
        said = child.stdout.read()
        child.stdout.close()
        listener.join(5)
        child.stderr.close()
    if ended:
        raise DataError(f"{competition.name}: {ended}")
    _judge(competition, said, list(last), child.returncode)


def _wait(child: "subprocess.Popen[str]", stop: threading.Event) -> None:
    """Until the child has ended, or it is time to look again."""
    try:
        child.wait(LOOK_EVERY_SECONDS)
    except subprocess.TimeoutExpired:
        stop.wait(0)


def _end(child: "subprocess.Popen[str]") -> None:
    """It and all that it started: they have a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _judge(competition: Competition, said: str, last: list[str], code: int) -> None:
    lines = said.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    if answer.get("ok"):
        return
    message = str(answer.get("message", ""))
    kind = answer.get("failed")
    if kind in ("rules", "credentials", "checksums"):
        raise NeedsPerson(str(kind), message, str(answer.get("link", "")))
    tail = "\n".join(last[-8:])
    if kind is None:
        raise DataError(
            f"mle-bench's preparation of {competition.name} died with {code} "
            f"(-9: killed, often for memory).\n{tail}".strip()
        )
    raise DataError(f"mle-bench could not prepare {competition.name}: {message}\n{tail}".strip())


def _open_up(prepared: Path) -> None:
    """A container's user, who is nobody here, reads public; only this user reads private."""
    public = prepared / "public"
    for path in (prepared, public, *public.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    (prepared / "private").chmod(0o700)


def used_bytes(folder: Path) -> int:
    """Of regular files below; what vanishes while it is counted is not counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
