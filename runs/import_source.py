"""A folder with results in upstream's layout -> the run groups in it. Files, no database.

The folder may be one run group, a `runs` folder of many, or hold one of them some levels down.
Links are never followed: what lies in it was written by agents and by strangers.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runs.core import harness_file
from runs.core.archives import shown
from runs.core.reports import (
    FILE_LIMIT_BYTES,
    ImportRefused,
    Report,
    is_text,
    read_experiments,
    read_metadata,
    read_report,
)
from runs.core.run_groups import FoundGroup, Skipped, batches
from runs.workspace import Refused, open_beneath

REPORTS = "*grading_report*.json"
METADATA = "metadata.json"
EXPERIMENTS = "run_group_experiments.csv"
RUN_ID = re.compile(r"[^_]+_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# A checkout's runs folder is two levels down.
DEPTH = 4
# Folders that are looked into, and names in one of them.
MOST_FOLDERS = 20_000
MOST_NAMES = 100_000
# Reports, metadata and the like of all run groups; all that upstream has published is 20 MB.
MOST_BYTES = 64 * 2**20
# Of one run group.
MOST_REPORTS = 100


@dataclass(frozen=True)
class GroupFolder:
    """`folder` is None where there are no files of runs: one bare report."""

    found: FoundGroup
    folder: Path | None
    # Upstream's own files, by name: kept as they were.
    originals: tuple[str, ...] = ()


@dataclass
class Source:
    """What a folder holds. `experiments` is None where no run_group_experiments.csv is there."""

    # The folder's own name; empty: it was unpacked, and only its files say what it is.
    name: str = ""
    groups: list[GroupFolder] = field(default_factory=list)
    experiments: list[tuple[str, str]] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    folders: int = 0
    read_bytes: int = 0

    def read(self, folder: Path, name: str) -> bytes:
        """A small file; never what a link points to. Raises ImportRefused."""
        try:
            with open_beneath(folder, name) as file:
                data = file.read(FILE_LIMIT_BYTES + 1)
        except Refused as error:
            raise ImportRefused(f"{shown(name)}: {error}.") from error
        except OSError as error:
            raise ImportRefused(f"{shown(name)}: {error.strerror or error}.") from error
        self.read_bytes += len(data)
        if self.read_bytes > MOST_BYTES:
            raise TooMuch(
                f"{shown(name)}: reports and the like have more than {MOST_BYTES // 2**20} MiB "
                "together. Import fewer run groups at once."
            )
        return data


class TooMuch(ImportRefused):
    """Of the source as a whole, not of the group that is read."""


def read_source(root: Path, *, name: str) -> Source:
    """Everything in a folder. `name` is the folder's own; empty for one that was unpacked.

    Raises ImportRefused when it cannot be read, or is too large.
    """
    source = Source(name=name)
    try:
        _look(root, source, depth=0)
    except OSError as error:
        raise ImportRefused(f"{shown(name or root.name)}: {error.strerror or error}.") from error
    source.groups.sort(key=lambda each: each.found.name)
    return source


def _look(folder: Path, source: Source, *, depth: int) -> None:
    source.folders += 1
    name = folder.name if depth else source.name
    if source.folders > MOST_FOLDERS:
        raise TooMuch(f"{shown(name)}: there are more than {MOST_FOLDERS} folders.")
    files, folders = _names(folder, source)
    if EXPERIMENTS in files:
        pairs = read_experiments(source.read(folder, EXPERIMENTS), EXPERIMENTS)
        source.experiments = [*(source.experiments or []), *pairs]
    reports = fnmatch.filter(files, REPORTS)
    if METADATA in files or any(RUN_ID.fullmatch(each) for each in folders):
        _add_group(folder, name, files, folders, source)
        return
    # As upstream publishes them: a folder a run group, with nothing in it but the report.
    _add_bare(folder, reports, source, name=name if len(reports) == 1 else "")
    if depth < DEPTH:
        for each in folders:
            _look(folder / each, source, depth=depth + 1)


def _names(folder: Path, source: Source) -> tuple[list[str], list[str]]:
    """Names of files and folders, sorted; hidden ones are left out, links and the like named."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= MOST_NAMES:
                raise ImportRefused(f"{shown(folder.name)} holds more than {MOST_NAMES} names.")
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                folders.append(entry.name)
            elif stat.S_ISREG(mode):
                files.append(entry.name)
            else:
                source.skipped.append(Skipped(shown(entry.name), "it is a link or no file."))
    return sorted(files), sorted(folders)


def _add_group(
    folder: Path, name: str, files: Sequence[str], folders: Sequence[str], source: Source
) -> None:
    reports = fnmatch.filter(files, REPORTS)
    try:
        metadata = harness = None
        if METADATA in files:
            metadata = read_metadata(source.read(folder, METADATA), METADATA)
        if harness_file.NAME in files:
            data = source.read(folder, harness_file.NAME)
            harness = harness_file.read_harness(data, harness_file.NAME)
        name = name or (metadata.run_group if metadata else "")
        if not is_text(name) or not name:
            raise ImportRefused("the folder's name is no text.")
        if len(reports) > MOST_REPORTS:
            raise ImportRefused(f"it has more than {MOST_REPORTS} grading reports.")
        found = FoundGroup(
            name=name,
            reports=tuple(read_report(source.read(folder, each), each) for each in reports),
            metadata=metadata,
            harness=harness,
            run_folders=tuple(each for each in folders if "_" in each and is_text(each)),
        )
    except TooMuch:
        raise
    except ImportRefused as error:
        source.skipped.append(Skipped(shown(name or "run group"), str(error)))
        return
    originals = [*reports, *(each for each in (METADATA, harness_file.NAME) if each in files)]
    source.groups.append(GroupFolder(found, folder, tuple(originals)))


def _add_bare(folder: Path, names: Sequence[str], source: Source, *, name: str) -> None:
    """Reports without runs: each is a run group, and those of the same submissions are one."""
    reports = []
    for each in names:
        try:
            reports.append(read_report(source.read(folder, each), each))
        except TooMuch:
            raise
        except ImportRefused as error:
            source.skipped.append(Skipped(shown(f"{name}/{each}" if name else each), str(error)))
    for batch in batches(reports):
        found = FoundGroup(name=name or stem_of(batch[0]), reports=tuple(batch))
        source.groups.append(GroupFolder(found, None))


def stem_of(report: Report) -> str:
    return report.name.removesuffix(".json")[:200]


# ---------------------------------------------------------------------------- run.log

# Upstream's last line: the agent's time and that of the extraction.
TOOK = re.compile(
    rb"^\[[^\]\n]{10,40}\] \[(?:run|layout)\.py:\d+\] Run completed in (\d{1,12}\.\d+) seconds\.$"
)
TAIL_BYTES = 4096


def seconds_in_log(folder: Path) -> float | None:
    """What the harness wrote as the last line of a run's log; None where there is no such line."""
    try:
        with open_beneath(folder, "run.log") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).rstrip(b"\n").rsplit(b"\n", 1)
    except (OSError, Refused):
        return None
    match = TOOK.fullmatch(lines[-1])
    return float(match[1]) if match else None
