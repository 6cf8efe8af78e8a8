"""Asks to import: an upload, or a path of the server. Small uploads are done in the request itself,
the rest by a host service.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import structlog
from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import default_storage
from django.db import InterfaceError, OperationalError, transaction

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from runs import import_files, importing
from runs.core.archives import ArchiveRefused, Limits, in_words, shown, unpack
from runs.core.reports import FILE_LIMIT_BYTES, ImportRefused, read_report
from runs.core.run_groups import FoundGroup
from runs.import_source import GroupFolder, Source, read_source, stem_of
from runs.importing import Done, Plan
from runs.models import Import

logger = structlog.get_logger(__name__)

# Larger uploads are a host service's work: a request should not last.
INLINE_BYTES = 4 * 2**20
UPLOADS = "imports"
BEAT_EVERY = 5.0
# An import must not take the last of what running agents write to.
DISK_LEFT_BYTES = 512 * 2**20
MOST_FILES = 200


class NoLongerOurs(Exception):
    """Somebody else works on this import now."""


Tick = Callable[[str], None]


def no_tick(_phase: str) -> None:
    pass


# ---------------------------------------------------------------------------- one path


@contextlib.contextmanager
def opened(path: Path, *, name: str = "", tick: Tick = no_tick) -> Iterator[Source]:
    """What a path holds: a folder, an archive or a grading report.

    `name` is what people call it, where the path is not. Raises ImportRefused.
    """
    name = name or path.name or str(path)
    if path.is_dir():
        yield read_source(path, name=path.resolve().name)
        return
    if name.lower().endswith(".json"):
        yield one_report(import_files.read_report_file(path), name)
        return
    try:
        with path.open("rb") as file, import_files.staging() as staging:
            yield unpacked(file, name, staging.unpacked, tick)
    except OSError as error:
        raise ImportRefused(f"{shown(name)}: {error.strerror or error}.") from error


def one_report(data: bytes, name: str) -> Source:
    report = read_report(data, name)
    found = FoundGroup(name=stem_of(report), reports=(report,))
    return Source(name=name, groups=[GroupFolder(found, None)])


def unpacked(file: BinaryIO, name: str, into: Path, tick: Tick) -> Source:
    """An archive's content. Raises ImportRefused naming the entry that is in the way."""

    def heard(done: int) -> None:
        tick(f"unpacking, {in_words(done)}")
        keep_disk_free()

    limits = Limits(total_bytes=settings.IMPORT_MAX_BYTES)
    try:
        unpack(file, into, limits=limits, tick=heard)
    except ArchiveRefused as error:
        raise ImportRefused(f"{shown(name)}: {error} Nothing was imported.") from error
    return read_source(into, name="")


def keep_disk_free() -> None:
    free = shutil.disk_usage(settings.RUN_GROUPS_DIR).free
    if free < DISK_LEFT_BYTES:
        raise ImportRefused(
            f"The disk of the run groups has only {in_words(free)} left. Nothing was imported."
        )


def import_path(
    path: Path,
    *,
    experiment: str = "",
    by: User | None,
    is_dry_run: bool = False,
    name: str = "",
    tick: Tick = no_tick,
) -> Done:
    """Import what a path holds; with `is_dry_run` only say what would be made.

    Raises ImportRefused, and then nothing was changed.
    """
    label = name or path.name or str(path)
    with opened(path, name=name, tick=tick) as source:
        tick("reading reports")
        plan = importing.plan(source, experiment=experiment)
        if is_dry_run:
            return Done(plan, ())
        return carry_out(plan, label, by=by, tick=tick)


def carry_out(plan: Plan, label: str, *, by: User | None, tick: Tick) -> Done:
    def heard() -> None:
        tick("copying files")
        keep_disk_free()

    try:
        return importing.carry_out(plan, source=label, by=by, tick=heard)
    except OSError as error:
        raise ImportRefused(f"{error.strerror or error}. Nothing was imported.") from error


# ---------------------------------------------------------------------------- asks


@dataclass(frozen=True)
class Upload:
    """One file of a form."""

    name: str
    size: int
    file: IO[bytes]


def ask_upload(uploads: Sequence[Upload], *, experiment: str, is_dry_run: bool, by: User) -> Import:
    """Import one archive, or grading reports in this order (each a seed, or several).

    Done at once where it is small; else it waits for a host service. Raises ImportRefused.
    """
    if not uploads:
        raise ImportRefused("Choose a tar, a tar.gz, a zip, or grading reports (.json).")
    if len(uploads) > MOST_FILES:
        raise ImportRefused(f"At most {MOST_FILES} files at once: pack them into one archive.")
    if experiment:
        experiment = importing.check_experiment(experiment)
    names = [base_name(upload.name) for upload in uploads]
    label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    row = Import(
        source=shown(label)[:300],
        size=sum(upload.size for upload in uploads),
        experiment=experiment,
        is_dry_run=is_dry_run,
        asked_by=by,
    )
    if all(name.lower().endswith(".json") for name in names):
        files = [(name, read_small(upload)) for name, upload in zip(names, uploads, strict=True)]
        return at_once(row, lambda: import_files_given(files, row))
    if len(uploads) > 1:
        raise ImportRefused("Send one archive, or grading reports (.json) alone.")
    [upload] = uploads
    if upload.size > settings.IMPORT_UPLOAD_MAX_BYTES:
        raise ImportRefused(
            f"{shown(names[0])} has {in_words(upload.size)}; uploads have at most "
            f"{in_words(settings.IMPORT_UPLOAD_MAX_BYTES)}. An admin can import it from a folder "
            "of the server."
        )
    if upload.size <= INLINE_BYTES:
        return at_once(row, lambda: import_archive(upload, names[0], row))
    row.upload = default_storage.save(f"{UPLOADS}/{by.pk}", File(upload.file))
    with transaction.atomic():
        row.save()
        audit.record(by, "ask for an import", row, detail={"source": row.source})
    return row


def ask_folder(path: str, *, experiment: str, is_dry_run: bool, by: User) -> Import:
    """Import a folder or an archive of the server; a host service does it. Raises ImportRefused."""
    if not path.startswith("/") or "\0" in path or len(path) > 1000:
        raise ImportRefused("Write the whole path on the server, from its / on.")
    if not Path(path).exists():
        raise ImportRefused(f"{shown(path)}: there is no such file or folder on the web's machine.")
    if experiment:
        experiment = importing.check_experiment(experiment)
    with transaction.atomic():
        row = Import.objects.create(
            source=shown(path)[:300],
            folder=path,
            experiment=experiment,
            is_dry_run=is_dry_run,
            asked_by=by,
        )
        audit.record(by, "ask for an import", row, detail={"path": row.source})
    return row


def base_name(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1] or "upload"


def read_small(upload: Upload) -> bytes:
    return upload.file.read(FILE_LIMIT_BYTES + 1)


def at_once(row: Import, act: Callable[[], Done]) -> Import:
    """Do it now and keep the answer. A refusal leaves no row: whoever asked is told."""
    answer = act().as_json()
    row.save()
    row.end(Import.State.DONE, answer=answer)
    return row


def import_files_given(files: Iterable[tuple[str, bytes]], row: Import) -> Done:
    """Reports by hand. Without an experiment each gets one of its own name."""
    files = list(files)
    if row.experiment:
        plan = importing.plan_reports(row.experiment, files)
    else:
        groups = [group for name, data in files for group in one_report(data, name).groups]
        plan = importing.plan(Source(name=row.source, groups=groups))
    if row.is_dry_run:
        return Done(plan, ())
    return carry_out(plan, row.source, by=row.asked_by, tick=no_tick)


def import_archive(upload: Upload, name: str, row: Import) -> Done:
    with import_files.staging() as staging:
        path = staging.root / "upload"
        with path.open("wb") as copy:
            shutil.copyfileobj(upload.file, copy)
        return import_path(
            path,
            experiment=row.experiment,
            by=row.asked_by,
            is_dry_run=row.is_dry_run,
            name=name,
        )


# ---------------------------------------------------------------------------- the host service


def do_asked() -> None:
    """Do what waits, one after the other. Any host service may: storage and folders are shared."""
    while (row := Import.take_one()) is not None:
        do(row)
    remove_uploads()


def do(row: Import) -> None:
    beaten = 0.0

    def tick(phase: str) -> None:
        nonlocal beaten
        if time.monotonic() - beaten < BEAT_EVERY:
            return
        beaten = time.monotonic()
        if not row.beat(phase):
            raise NoLongerOurs(f"{row} is done by somebody else.")

    try:
        import_files.finish_left()
        with local_file(row) as path:
            done = import_path(
                path,
                experiment=row.experiment,
                by=row.asked_by,
                is_dry_run=row.is_dry_run,
                name=row.source if row.upload else "",
                tick=tick,
            )
    except ImportRefused as error:
        row.end(Import.State.REFUSED, error=str(error))
        logger.info("import.refused", id=row.pk, error=str(error)[:300])
    except NoLongerOurs as error:
        logger.info("import.left", id=row.pk, error=str(error))
    except (OperationalError, InterfaceError):
        # The database was away: whoever finds the lease expired does it again.
        raise
    except Exception:
        # The edge of the host service's loop. It would fail the same way for ever.
        row.end(
            Import.State.REFUSED,
            error="mlebench-web itself failed; the host service's log says how. "
            "Nothing was imported.",
        )
        raise
    else:
        row.end(Import.State.DONE, answer=done.as_json())
        logger.info("import.done", id=row.pk, groups=len(done.groups))


@contextlib.contextmanager
def local_file(row: Import) -> Iterator[Path]:
    """The upload as a file of this machine; or the path that was named."""
    if not row.upload:
        yield Path(row.folder)
        return
    with import_files.staging() as staging:
        path = staging.root / "upload"
        try:
            with default_storage.open(row.upload) as upload, path.open("wb") as copy:
                shutil.copyfileobj(upload, copy)
        except FileNotFoundError as error:
            raise ImportRefused("The upload is gone from the storage. Send it again.") from error
        yield path


def remove_uploads() -> None:
    """Of imports that are over."""
    over = Import.objects.filter(state__in=[Import.State.DONE, Import.State.REFUSED])
    for row in over.exclude(upload=""):
        default_storage.delete(row.upload)
        Import.objects.filter(pk=row.pk).update(upload="")
