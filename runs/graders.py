"""Which grader a competition has, what it is asked, and what it is made of.

Competitions of ours are graded by the grade.py of their folder. Those of an mle-bench checkout are
graded by mle-bench itself: the `grade_fn` of their config.yaml, under MLEBENCH_PYTHON.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from django.conf import settings

from mlebench_web import __version__
from mlebench_web.catalog import data, git, official_data
from mlebench_web.catalog.models import Competition
from runs.grader_process import Request

GRADE_FN = re.compile(r"[\w.-]+:\w+")
# Of a competition's folder: what decides about a score. Descriptions and kernels do not.
DECIDING = ("*.py", "*.yaml", "leaderboard.csv")


class GraderFailed(Exception):
    """The grader itself, its data or its process failed; no word about the submission."""


class Unprepared(GraderFailed):
    """The competition's answers are not on this host."""


@dataclass(frozen=True)
class Provenance:
    """What a report was made with."""

    # For people: name and version of the grader and of the libraries that decide about a score.
    grader: str
    # Of the mle-bench checkout; "" where the grader is ours, or the checkout is no git repository.
    commit: str
    # SHA-256 over the code and leaderboard that decide about a score.
    files_digest: str
    # SHA-256 of the answers.
    data_digest: str


def missing_here(competition: Competition) -> str:
    """Why this host cannot grade it, the answers aside; "" when it can."""
    if not official_data.is_official(competition):
        return ""
    return official_data.cannot_grade()


# ---------------------------------------------------------------------------- asking


def request_for(competition: Competition, limit_seconds: float | None) -> Request:
    """What the grader process is asked. Raises GraderFailed saying what is missing."""
    folder = grader_folder(competition)
    if why := missing_here(competition):
        raise GraderFailed(why)
    answers = data.answers(competition)
    if not competition.answers_path or not answers.is_file():
        # Upstream's words.
        raise Unprepared(
            f"Dataset for competition `{competition.name}` is not prepared! Please run "
            f"`mlebench prepare -c {competition.name}` to prepare the dataset."
        )
    checkout = competition.checkout
    name = grade_fn(folder)
    return Request(
        folder=folder.resolve(),
        answers=answers.resolve(),
        checkout=Path(checkout.path).resolve() if checkout else None,
        function=name if checkout else name.partition(":")[2],
        memory_bytes=settings.GRADING_MEMORY_BYTES,
        limit_seconds=limit_seconds or settings.GRADING_TIME_LIMIT.total_seconds(),
    )


def controls(competition: Competition) -> Iterator[tuple[str, Path]]:
    """Submissions that a sound grader can grade: the sample, and where it differs the gold one."""
    yield "the sample submission", data.sample_submission(competition)
    gold = competition.gold_submission_path
    if gold and gold != competition.answers_path:
        yield "the gold submission", settings.COMPETITIONS_DIR / gold


def grader_folder(competition: Competition) -> Path:
    """The folder with grade.py. Raises GraderFailed saying what is missing."""
    folder = data.folder_of(competition)
    if folder is None:
        raise GraderFailed(
            f"There is no grader for {competition.name}, only its facts are known. "
            "Set MLEBENCH_DIR to an mle-bench checkout that has it."
        )
    if not official_data.is_official(competition) and not (folder / "grade.py").is_file():
        raise GraderFailed(f"There is no grade.py in {folder}, the folder of {competition.name}.")
    return folder


def grade_fn(folder: Path) -> str:
    """ "module:function" of config.yaml. Raises GraderFailed."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
        name = str(config["grader"]["grade_fn"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise GraderFailed(f"{path}: grader.grade_fn cannot be read: {error}") from error
    if not GRADE_FN.fullmatch(name):
        raise GraderFailed(f"{path}: grader.grade_fn should be module:function, not {name!r}.")
    return name


# ---------------------------------------------------------------------------- what it is made of


def provenance(competition: Competition, libraries: str = "") -> Provenance:
    """Read now: a checkout may have changed since the catalog was refreshed."""
    digest = files_digest(competition)
    checkout = competition.checkout
    if checkout is None:
        grader, commit = f"mlebench-web {__version__}", ""
    else:
        seen = git.revision(Path(checkout.path))
        commit = seen.commit
        words = seen.commit[:12] or "without git"
        grader = f"mlebench {words}{', changed' if seen.is_dirty else ''}"
        if libraries:
            grader += f"; {libraries}"
    return Provenance(grader[:100], commit, digest, answers_digest(competition))


def files_digest(competition: Competition) -> str:
    """Of what decides about a score besides the answers: of a checkout, mlebench's own code too."""
    folder = data.folder_of(competition)
    if folder is None:
        return ""
    folders = [folder]
    if competition.checkout:
        package = Path(competition.checkout.path) / "mlebench"
        folders += [package, package / "competitions"]
    files = sorted(
        {path for each in folders for pattern in DECIDING for path in each.glob(pattern)}
    )
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.parent.name}/{path.name}\0{digest_of(path)}\n".encode())
    return total.hexdigest()


def answers_digest(competition: Competition) -> str:
    return digest_of(data.answers(competition)) if competition.answers_path else ""


@lru_cache(maxsize=4096)
def digest(path: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file; size and time of change make a changed file another question."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, empty when it is not there."""
    try:
        found = path.stat()
        return digest(path, found.st_size, found.st_mtime_ns)
    except OSError:
        return ""
