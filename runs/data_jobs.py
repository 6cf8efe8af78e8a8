"""Data of mle-bench's competitions on this host: found where it is, prepared where somebody asks.

What ships with the product is prepared by the host service itself, unasked. mle-bench's own
competitions have hundreds of gigabytes and rules to accept: a person asks for each.
"""

import threading
import time

import structlog

from mlebench_web.accounts import audit, vault
from mlebench_web.accounts.models import User
from mlebench_web.catalog import data, official_data
from mlebench_web.catalog.models import Competition
from mlebench_web.catalog.official_data import NeedsPerson, Seen
from mlebench_web.fleet.models import Host, PreparedData
from runs import bell, grading

logger = structlog.get_logger(__name__)

KAGGLE = ("KAGGLE_USERNAME", "KAGGLE_KEY")
UNTOUCHED = (PreparedData.State.WANTED, PreparedData.State.PREPARING, PreparedData.State.WAITING)


class NotPreparable(Exception):
    """Why a competition's data cannot be asked for."""


# --------------------------------------------------------------------------------------- asking


def ask(
    competition: Competition, host: Host, *, by: User | None, ignore_checksums: bool = False
) -> PreparedData:
    """Have a host prepare it, or go on after a person did what it waited for.

    Pressed twice, it is prepared once. Raises NotPreparable.
    """
    if not official_data.is_official(competition) and data.folder_of(competition) is None:
        raise NotPreparable(
            f"Only facts of {competition.name} are known. Its recipe comes with a checkout of "
            "mle-bench: set MLEBENCH_DIR."
        )
    row, _ = PreparedData.objects.get_or_create(
        host=host, competition=competition, defaults={"state": PreparedData.State.WANTED}
    )
    if row.state in (PreparedData.State.READY, PreparedData.State.PREPARING):
        return row
    if ignore_checksums and row.waits_for != PreparedData.WaitsFor.CHECKSUMS:
        raise NotPreparable(f"{competition.name} does not wait for a word about its checksums.")
    row.state = PreparedData.State.WANTED
    row.ignores_checksums = ignore_checksums
    row.error = row.phase = ""
    row.asked_by = by
    row.save()
    detail = {"competition": competition.name, "host": host.name}
    if ignore_checksums:
        detail["checksums"] = "ignored"
    audit.record(by, "prepare data", row, detail=detail)
    return row


# --------------------------------------------------------------------------------------- doing


class DataJobs:
    """The host service's part: two loops, one that looks and one that works."""

    def __init__(self, host: Host, stop: threading.Event) -> None:
        self.host = host
        self.stop = stop

    def find(self) -> None:
        """Rows for data that is there already, and a word about data that is gone."""
        rows = {row.competition_id: row for row in PreparedData.objects.filter(host=self.host)}
        for competition in Competition.objects.filter(is_demo=False).exclude(answers_path=""):
            row = rows.get(competition.pk)
            if row and row.state in UNTOUCHED:
                continue
            is_there = data.is_prepared(competition)
            if is_there and (row is None or row.state != PreparedData.State.READY):
                row = row or PreparedData(host=self.host, competition=competition)
                self._ready(row)
            elif row and row.state == PreparedData.State.READY and not is_there:
                self._set(
                    row,
                    PreparedData.State.FAILED,
                    error=f"The data is gone from {data.prepared_dir(competition)}.",
                )

    def work(self) -> None:
        """Prepare what was asked for, one after the other, the oldest first."""
        # Left as "preparing" by a service that died: nobody else works for this host.
        wanted = PreparedData.objects.filter(
            host=self.host,
            competition__checkout__isnull=False,
            state__in=[PreparedData.State.WANTED, PreparedData.State.PREPARING],
        )
        for row in wanted.select_related("competition__checkout", "asked_by__team").order_by(
            "updated_at"
        ):
            if self.stop.is_set():
                return
            self.prepare(row)

    def prepare(self, row: PreparedData) -> None:
        competition = row.competition
        asked = row.waits_for
        self._set(row, PreparedData.State.PREPARING, phase="starting", error="")
        said = 0.0

        def progress(seen: Seen) -> None:
            nonlocal said
            if time.monotonic() - said > 1:
                said = time.monotonic()
                PreparedData.objects.filter(pk=row.pk).update(
                    phase=seen.phase, done_bytes=seen.done_bytes
                )

        try:
            if asked == PreparedData.WaitsFor.CHECKSUMS and not row.ignores_checksums:
                # The same archive would have the same checksum.
                official_data.start_over(competition)
            official_data.prepare(
                competition,
                progress,
                ignores_checksums=row.ignores_checksums,
                credentials=self._credentials(row.asked_by),
                stop=self.stop,
            )
        except NeedsPerson as waits:
            self._set(
                row,
                PreparedData.State.WAITING,
                error=str(waits),
                waits_for=waits.reason,
                link=waits.link,
                phase="",
            )
            logger.info("data.waits", competition=competition.name, reason=waits.reason)
        except data.DataError as error:
            if self.stop.is_set():
                # It is still wanted: the next service goes on.
                self._set(row, PreparedData.State.WANTED, phase="")
                return
            self._set(row, PreparedData.State.FAILED, error=str(error), phase="", waits_for="")
            logger.warning("data.failed", competition=competition.name, error=str(error)[:300])
        else:
            self._ready(row)

    def _credentials(self, user: User | None) -> dict[str, str]:
        """Of who asked, where they are stored; else the Kaggle client finds its own."""
        try:
            found = vault.values_of(user, user.team if user else None, KAGGLE)
        except vault.Sealed as error:
            logger.warning("data.credentials_sealed", error=str(error))
            return {}
        return found if len(found) == len(KAGGLE) else {}

    def _ready(self, row: PreparedData) -> None:
        self._set(
            row,
            PreparedData.State.READY,
            error="",
            phase="",
            waits_for="",
            link="",
            digest=grading.answers_digest(row.competition),
        )
        logger.info("data.ready", competition=row.competition.name)
        # Runs that waited for it can start now.
        bell.ring(only=self.host)

    def _set(self, row: PreparedData, state: PreparedData.State, **fields: str) -> None:
        row.state = state
        for name, value in fields.items():
            setattr(row, name, value)
        row.save()
