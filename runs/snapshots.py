"""Submission snapshots: a run that dies keeps its last good submission.

The supervisor copies the submission aside at each change and at each full hour. Nothing is scored
while the run lasts; afterwards the snapshots give the score over time.
"""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import structlog
from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import transaction

from runs import grading
from runs.core.grader_verdict import Fault
from runs.core.redaction import Stream, usable
from runs.core.states import Outcome, State
from runs.core.thinning import Kept, to_drop
from runs.models import Attempt, Replaced, SubmissionSnapshot
from runs.watching import Ending, Watch
from runs.workspace import Refused, open_beneath

logger = structlog.get_logger(__name__)

HOUR = 3600
CHUNK = 1 << 20


class SnapshotPart:
    """The watch's part that copies the submission aside."""

    every = 2.0

    def __init__(self) -> None:
        self._seen: tuple[int, int, int] | None = None
        self._taken: tuple[int, int, int] | None = None
        self._hour = 0

    def look(self, watch: Watch) -> Ending | None:
        """Copies a changed submission once it has stood still for one look: not a half file."""
        found = self._stand(watch)
        hour = int(watch.active() // HOUR)
        still = found is not None and found == self._seen
        self._seen = found
        if still and (found != self._taken or hour > self._hour):
            self._take(watch)
        return None

    def last(self, watch: Watch, ending: Ending) -> None:
        """After a clean end the file itself is graded, and no copy of it can be needed."""
        if not ending.is_clean and self._stand(watch) not in (None, self._taken):
            self._take(watch)

    def _stand(self, watch: Watch) -> tuple[int, int, int] | None:
        """What tells one state of the file from another; None: no regular file."""
        try:
            with open_beneath(watch.workspace.submission, "submission.csv") as file:
                status = os.fstat(file.fileno())
        except (OSError, Refused):
            return None
        if status.st_size == 0 or status.st_size > settings.SUBMISSION_MAX_BYTES:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _take(self, watch: Watch) -> None:
        self._hour = int(watch.active() // HOUR)
        self._taken = self._stand(watch)
        try:
            with open_beneath(watch.workspace.submission, "submission.csv") as file:
                take(
                    watch.attempt,
                    watch.supervisor.token,
                    file,
                    active_seconds=watch.active(),
                    tick=watch.supervisor.tick,
                    secrets=watch.supervisor.log.secrets,
                )
        except (OSError, Refused) as error:
            # The next change is another chance; the file itself is collected in any case.
            logger.warning("snapshot.not_taken", attempt=watch.attempt.pk, error=str(error))


def take(
    attempt: Attempt,
    token: uuid.UUID,
    file: BinaryIO,
    *,
    active_seconds: float,
    tick: Callable[[], None],
    secrets: Iterable[str] = (),
) -> SubmissionSnapshot | None:
    """Store the file as it is now, less these secrets.

    None when it is the newest snapshot's content again.

    Raises Replaced when `token` does not hold the attempt, OSError when storage refuses.
    """
    with tempfile.TemporaryFile(dir=settings.ATTEMPTS_DIR) as copy:
        digest = _copy(file, copy, tick, Stream(usable(secrets)))
        newest = attempt.snapshots.last()
        if newest and newest.digest == digest:
            # A full hour with nothing new: the curve goes on level, and needs no second file.
            path = newest.path
            if active_seconds - newest.active_seconds < HOUR:
                return None
        else:
            name = f"snapshots/{attempt.pk}/{int(active_seconds * 1000)}-{digest[:12]}.csv"
            path = default_storage.save(name, File(copy))
        size = copy.seek(0, os.SEEK_END)
    with transaction.atomic():
        held = Attempt.objects.filter(pk=attempt.pk, lease_token=token).exclude(state=State.ENDED)
        if not held.exists():
            raise Replaced(f"Another supervisor holds {attempt}.")
        snapshot = SubmissionSnapshot.objects.create(
            attempt=attempt, active_seconds=active_seconds, digest=digest, size=size, path=path
        )
    thin_out(attempt)
    return snapshot


def _copy(source: BinaryIO, target: BinaryIO, tick: Callable[[], None], clean: Stream) -> str:
    """Copy at most the size that is graded; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    left = settings.SUBMISSION_MAX_BYTES
    while left and (chunk := source.read(min(CHUNK, left))):
        left -= len(chunk)
        chunk = clean.feed(chunk)
        digest.update(chunk)
        target.write(chunk)
        tick()
    rest = clean.end()
    digest.update(rest)
    target.write(rest)
    target.seek(0)
    return digest.hexdigest()


def thin_out(attempt: Attempt) -> None:
    """Drop files beyond the limits; rows stay, so that the curve says when something changed."""
    stored = {snapshot.pk: snapshot for snapshot in attempt.snapshots.exclude(path="")}
    kept = [Kept(key, row.active_seconds, row.size) for key, row in stored.items()]
    dropped = to_drop(kept, most=settings.SNAPSHOTS_KEPT, most_bytes=settings.SNAPSHOTS_MAX_BYTES)
    for key in dropped:
        path = stored[key].path
        SubmissionSnapshot.objects.filter(pk=key).update(path="")
        if not SubmissionSnapshot.objects.filter(path=path).exists():
            default_storage.delete(path)


@contextmanager
def opened(snapshot: SubmissionSnapshot) -> Iterator[BinaryIO]:
    """The snapshot as a real file, wherever the storage is."""
    with default_storage.open(snapshot.path) as stored, tempfile.TemporaryFile() as copy:
        for chunk in stored.chunks():
            copy.write(chunk)
        copy.seek(0)
        yield copy


def put_in_place(snapshot: SubmissionSnapshot, submission: Path) -> None:
    """Make it the file that upstream's tools see; what was left stays beside it."""
    submission.parent.mkdir(parents=True, exist_ok=True)
    if submission.exists():
        os.replace(submission, submission.with_name("submission.as-left.csv"))
    with opened(snapshot) as file, submission.open("wb") as target:
        shutil.copyfileobj(file, target)


def judge(snapshot: SubmissionSnapshot, *, tick: Callable[[], None]) -> SubmissionSnapshot:
    """Score it, once. Raises GraderFailed when the grader is at fault."""
    if snapshot.is_valid is not None or not snapshot.path:
        return snapshot
    with opened(snapshot) as file:
        ended, verdict = grading.judge(snapshot.attempt.run.competition, file, tick=tick)
    if verdict.fault == Fault.GRADER:
        raise grading.GraderFailed(verdict.message)
    snapshot.is_valid = verdict.fault == Fault.NOBODY
    snapshot.score = ended.score if snapshot.is_valid else None
    snapshot.message = verdict.message
    snapshot.save(update_fields=["is_valid", "score", "message"])
    return snapshot


def newest_valid(attempt: Attempt, *, tick: Callable[[], None]) -> SubmissionSnapshot | None:
    """The newest snapshot of this attempt that can be graded, or of one that it goes on from."""
    while attempt is not None:
        for snapshot in attempt.snapshots.exclude(path="").order_by("-active_seconds", "-id"):
            if judge(snapshot, tick=tick).is_valid:
                return snapshot
        attempt = attempt.resumed_from  # type: ignore[assignment]
    return None


def score_ended(limit: int = 50) -> int:
    """Score what ended attempts have left unscored; the number scored. For the host service."""
    waiting = (
        SubmissionSnapshot.objects.filter(
            is_valid__isnull=True,
            attempt__state=State.ENDED,
            attempt__outcome__in=[Outcome.GRADED, Outcome.AGENT_FAILED],
        )
        .exclude(path="")
        .select_related("attempt__run__competition")[:limit]
    )
    scored = 0
    for snapshot in waiting:
        try:
            judge(snapshot, tick=lambda: None)
        except grading.GraderFailed as error:
            logger.warning("snapshot.not_scored", snapshot=snapshot.pk, error=str(error))
            continue
        scored += 1
    return scored
