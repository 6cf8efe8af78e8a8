"""Run groups -> mle-bench's layout, as a tar that is made while it is sent, or as folders.

    <group>/metadata.json  <stamp>_grading_report.json  harness.json
    <group>/<competition>_<uuid>/{run.log,submission,logs,code}
    run_group_experiments.csv                                    beside several groups

Of each run the attempt that counts. What is kept was redacted when it was collected; it is redacted
again here, since a secret may have been stored since. What no import would take (names that hide
something, files that are no files) is left out and named in harness.json.
"""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import agent_secrets, layout
from runs.core import tarring
from runs.core.archives import ArchiveRefused, Limits, check_name, shown
from runs.core.redaction import REDACTED, Stream, redact, usable
from runs.core.reports import ImportRefused, experiments_file, read_experiments, upstream_id
from runs.models import Run, RunGroup
from runs.workspace import OUTPUTS, Refused, open_beneath

CHUNK = 2**20
EXPERIMENTS = "run_group_experiments.csv"
# Of what was left out, lines in harness.json.
MOST_LEFT_OUT = 1000


class ExportRefused(Exception):
    """It cannot be exported there; the text says what to do."""


@dataclass(frozen=True)
class Entry:
    """A file of an export. `read` gives its bytes, as often as it is called."""

    name: str
    size: int
    modified: float
    read: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Folder:
    name: str
    modified: float


@dataclass(frozen=True)
class Export:
    """One run group, all that the database says of it read."""

    group: RunGroup
    name: str
    runs: Sequence[Run]
    documents: dict[str, tuple[dict[str, Any], int]]
    # Logs of ours by run; imported runs have theirs among their files.
    logs: dict[int, bytes]
    secrets: Sequence[str]

    @property
    def modified(self) -> float:
        return self.group.created_at.timestamp()


def prepare(group: RunGroup, *, name: str = "") -> Export:
    """Everything that needs the database: the rest may be read while it is sent."""
    name = name or folder_name(group)
    runs = layout.runs_of(group)
    counted = [run for run in runs if run.counted]
    logs = {
        run.pk: layout.run_log(run.counted).encode(errors="replace")
        for run in counted
        if run.counted and not group.is_imported
    }
    return Export(
        group=group,
        name=name,
        runs=counted,
        documents=layout.documents(group, runs, name=name),
        logs=logs,
        secrets=agent_secrets.words(group),
    )


def folder_name(group: RunGroup) -> str:
    """Upstream's name, where a folder of an archive may have it."""
    try:
        parts = check_name(group.upstream_name)
    except ArchiveRefused:
        parts = ()
    return group.upstream_name if len(parts) == 1 else group.folder


# ---------------------------------------------------------------------------- entries


def entries(export: Export) -> Iterator[Entry | Folder]:
    """metadata.json and the report first, harness.json last: it says what was left out."""
    left_out: list[dict[str, str]] = []
    yield Folder(export.name, export.modified)
    for name, (content, indent) in export.documents.items():
        if name != "harness.json":
            yield document(export, name, content, indent)
    for run in export.runs:
        yield from entries_of_run(export, run, left_out)
    content, indent = export.documents["harness.json"]
    content = content | {"left_out": left_out[:MOST_LEFT_OUT], "left_out_count": len(left_out)}
    yield document(export, "harness.json", content, indent)


def document(export: Export, name: str, content: dict[str, Any], indent: int) -> Entry:
    plain = without_secrets(
        content, [word.decode(errors="replace") for word in usable(export.secrets)]
    )
    data = json.dumps(plain, indent=indent, allow_nan=False).encode()
    return given(f"{export.name}/{name}", data, export.modified)


def without_secrets(value: Any, words: Sequence[str]) -> Any:
    """The same values, with secrets taken out of every text."""
    if isinstance(value, str):
        for word in words:
            value = value.replace(word, REDACTED.decode())
        return value
    if isinstance(value, dict):
        return {
            without_secrets(key, words): without_secrets(each, words) for key, each in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(each, words) for each in value]
    return value


def given(name: str, data: bytes, modified: float) -> Entry:
    return Entry(name, len(data), modified, lambda: iter((data,)))


def entries_of_run(
    export: Export, run: Run, left_out: list[dict[str, str]]
) -> Iterator[Entry | Folder]:
    if run.counted is None:
        return
    top = f"{export.name}/{run.upstream_id}"
    yield Folder(top, export.modified)
    # Made also where there is none of them: upstream always has them.
    for name in OUTPUTS:
        yield Folder(f"{top}/{name}", export.modified)
    if log := export.logs.get(run.pk):
        yield given(f"{top}/run.log", redact(log, export.secrets), export.modified)
    root = layout.attempt_folder(run.counted)
    if not root.is_dir():
        return
    for path in sorted_files(root, root):
        name = f"{top}/{path}"
        if path.partition("/")[0] not in (*OUTPUTS, "run.log"):
            continue
        try:
            check_name(name, Limits())
            size, modified = measured(root, path, export.secrets)
        except ArchiveRefused as error:
            left_out.append({"path": shown(name), "why": error.why})
            continue
        except (OSError, Refused) as error:
            left_out.append({"path": shown(name), "why": str(error)})
            continue
        yield Entry(name, size, modified, reader(root, path, export.secrets))


def sorted_files(root: Path, folder: Path) -> Iterator[str]:
    """Paths below `root` of everything that is no folder, in one order. Follows no link."""
    with os.scandir(folder) as found:
        names = sorted(found, key=lambda entry: entry.name)
    for entry in names:
        if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
            yield from sorted_files(root, Path(entry.path))
        else:
            yield os.path.relpath(entry.path, root)


def reader(root: Path, path: str, secrets: Sequence[str]) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        with open_beneath(root, path) as file:
            stream = Stream(usable(secrets))
            while chunk := file.read(CHUNK):
                if data := stream.feed(chunk):
                    yield data
            if data := stream.end():
                yield data

    return read


def measured(root: Path, path: str, secrets: Sequence[str]) -> tuple[int, float]:
    """How long the file is without its secrets. It is read once more only where there are any."""
    with open_beneath(root, path) as file:
        status = os.fstat(file.fileno())
    if not usable(secrets):
        return status.st_size, status.st_mtime
    return sum(map(len, reader(root, path, secrets)())), status.st_mtime


# ---------------------------------------------------------------------------- tar


def tar_of(exports: Iterable[Export]) -> Iterator[bytes]:
    """A tar of these groups, piece by piece."""
    for export in exports:
        for entry in entries(export):
            if isinstance(entry, Folder):
                yield tarring.folder(entry.name, modified=entry.modified)
            else:
                yield from tarring.file(
                    entry.name, entry.read(), size=entry.size, modified=entry.modified
                )
    yield tarring.END


# ---------------------------------------------------------------------------- folders


def write(groups: Sequence[RunGroup], target: Path) -> list[Path]:
    """A folder for each group below `target`, and run_group_experiments.csv with their experiments.

    Each folder appears whole. Raises ExportRefused, and then no folder was added.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = names_for(groups)
    if there := [name for name in names.values() if (target / name).exists()]:
        raise ExportRefused(f"{', '.join(there[:5])}: there is such a folder in {target} already.")
    pairs = pairs_in(target)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as aside:
        for group in groups:
            write_one(prepare(group, name=names[group.pk]), Path(aside))
            pairs.append((upstream_id(group.experiment.name), names[group.pk]))
        made = [(Path(aside) / name).rename(target / name) for name in names.values()]
    (target / EXPERIMENTS).write_text(experiments_file(dict.fromkeys(pairs)))
    return made


def names_for(groups: Iterable[RunGroup]) -> dict[int, str]:
    """Names of folders, each once."""
    names: dict[int, str] = {}
    for group in groups:
        name = folder_name(group)
        names[group.pk] = group.folder if name in names.values() else name
    return names


def pairs_in(target: Path) -> list[tuple[str, str]]:
    """What the folder's run_group_experiments.csv says already."""
    path = target / EXPERIMENTS
    if not path.exists():
        return []
    try:
        return read_experiments(path.read_bytes(), str(path))
    except ImportRefused as error:
        raise ExportRefused(str(error)) from error


def write_one(export: Export, target: Path) -> None:
    for entry in entries(export):
        path = target / entry.name
        if isinstance(entry, Folder):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in entry.read():
                file.write(chunk)
        os.utime(path, (entry.modified, entry.modified))
