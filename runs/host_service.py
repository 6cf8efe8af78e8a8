"""The small process beside each worker: what this host has, its janitor, its data, validation.

It owns nothing of an attempt's state. A worker that dies leaves its containers to the next
worker; a host service that dies leaves /validate away for some seconds (503 with Retry-After).
"""

import threading
import time
from collections.abc import Callable

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.db.models.functions import Now

from mlebench_web.accounts import vault
from mlebench_web.catalog import checkouts, data, images, official_data
from mlebench_web.catalog.models import AgentImage, Checkout, Competition, ContainerConfig
from mlebench_web.fleet import hosts, inventory
from mlebench_web.fleet.gpus import GpuReader, IsOurs, owner_of_processes
from mlebench_web.fleet.inventory import EngineFacts
from mlebench_web.fleet.models import Host, PreparedData
from runs import agent_secrets, bell, checkpoints, grading, imports, layout, logs, snapshots
from runs.containers import Engine, EngineFailure, engine_of
from runs.core.states import State
from runs.data_jobs import DataJobs
from runs.grader_process import GraderProcess, GraderUnreachable, Kind, clear_private
from runs.models import Attempt, Installation, LogSegment
from runs.regrade_jobs import RegradeJobs
from runs.validation import ValidationService
from runs.worker_guard import WorkerGuard
from runs.workspace import Workspace

logger = structlog.get_logger(__name__)

JANITOR_EVERY = 30.0
SYNC_EVERY = 5.0
DATA_EVERY = 5.0


class HostService:
    """Runs until `stop` is called. One per host."""

    def __init__(self) -> None:
        self._stop_asked = threading.Event()
        self.host: Host = hosts.this_host()
        self.engine: Engine = engine_of(ContainerConfig.Runtime.DOCKER)
        self.gpus = GpuReader()
        self.graders = [GraderProcess(), GraderProcess(kind=Kind.OFFICIAL)]
        self.validation = ValidationService()
        self.data_jobs = DataJobs(self.host, self._stop_asked)
        self.regrade_jobs = RegradeJobs(self.host, self._stop_asked)
        self.worker_guard = WorkerGuard(self.host)

    def stop(self, *_: object) -> None:
        self._stop_asked.set()

    def run(self) -> None:
        """Blocks until stopped."""
        settings.SOCKETS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        threads = [
            threading.Thread(target=self._repeat, args=(act, every), name=act.__name__, daemon=True)
            for act, every in (
                (self.publish, settings.HEARTBEAT.total_seconds()),
                (self.keep_graders, SYNC_EVERY),
                (self.prepare_data, DATA_EVERY),
                (self.sweep, JANITOR_EVERY),
                (self.validation.sync, SYNC_EVERY),
                (self.score_snapshots, SYNC_EVERY),
                (self.tidy_checkpoints, JANITOR_EVERY),
                (self.worker_guard.look, SYNC_EVERY),
                (self.data_jobs.find, JANITOR_EVERY),
                (self.data_jobs.work, DATA_EVERY),
                (self.regrade_jobs.work, SYNC_EVERY),
                (self.build_images, SYNC_EVERY),
                (checkouts.do_asked, SYNC_EVERY),
                (imports.do_asked, SYNC_EVERY),
            )
        ]
        self.validation.start()
        for thread in threads:
            thread.start()
        logger.info("host_service.started", host=self.host.name)
        self._stop_asked.wait()
        self.validation.stop()
        for grader in self.graders:
            grader.stop()
        for thread in threads:
            thread.join(timeout=2)
        logger.info("host_service.stopped", host=self.host.name)

    def _repeat(self, act: Callable[[], None], every: float) -> None:
        """Call `act` at once and then each `every` seconds; an outage costs one turn."""
        try:
            while not self._stop_asked.is_set():
                try:
                    act()
                except (OperationalError, InterfaceError) as error:
                    logger.warning(
                        "host_service.database_silent", act=act.__name__, error=str(error)
                    )
                    connection.close()
                except Exception:
                    # The edge of this process's loops: one broken turn must not end the others.
                    logger.exception("host_service.turn_failed", act=act.__name__)
                self._stop_asked.wait(every)
        finally:
            connection.close()

    # ------------------------------------------------------------------ what this host has

    def publish(self) -> None:
        hosts.publish(
            self.host,
            inventory.describe(
                self.engine_facts(), gpu_reading=self.gpus.read(is_ours=self.owner_of_processes())
            ),
        )

    def owner_of_processes(self) -> IsOurs | None:
        """Tells foreign processes on GPUs from ours; None while the engine cannot be asked."""
        try:
            ours = self.engine.own_containers(Installation.this().name, self.host.name)
        except EngineFailure:
            return None
        return owner_of_processes([container.id for container in ours])

    def engine_facts(self) -> EngineFacts | None:
        try:
            info = self.engine.info()
        except EngineFailure as failure:
            return EngineFacts(error=failure.text)
        return EngineFacts(
            engine_id=info.engine_id,
            version=info.version,
            runtimes=tuple(info.runtimes),
            image_ids=tuple(info.image_ids),
        )

    def keep_graders(self) -> None:
        """That of mle-bench only where there is a checkout: it takes some 150 MB."""
        has_checkout = Checkout.objects.filter(is_listed=True).exists()
        for grader in self.graders:
            if grader.kind.missing or (grader.kind is Kind.OFFICIAL and not has_checkout):
                continue
            try:
                grader.ensure()
            except GraderUnreachable as error:
                # Whoever grades starts one for a single use, and hears the same.
                logger.warning("grader.not_started", kind=str(grader.kind), why=str(error))

    def tidy_checkpoints(self) -> None:
        """Of runs that need none any more. Every host does it: storage belongs to all."""
        checkpoints.tidy()

    def score_snapshots(self) -> None:
        """The score over time of runs that have ended; a running agent learns nothing of it."""
        snapshots.score_ended()

    def build_images(self) -> None:
        """What somebody asked for on a page or by the API."""
        wanted = AgentImage.objects.filter(
            state=AgentImage.State.WANTED, host_name__in=["", self.host.name]
        )
        if not wanted.exists() or self.host_has_no_engine():
            return
        with images.client() as client:
            images.do_wanted(client, host_name=self.host.name, base_image=settings.BASE_IMAGE)
        # Its runs can start now.
        bell.ring(only=self.host)

    # ------------------------------------------------------------------ data

    def prepare_data(self) -> None:
        """Prepare what ships, and what a queued attempt waits for; one after the other."""
        for competition in self.wanted():
            row, _ = PreparedData.objects.get_or_create(
                host=self.host,
                competition=competition,
                defaults={"state": PreparedData.State.WANTED},
            )
            if row.state == PreparedData.State.READY and data.is_prepared(competition):
                continue
            if row.state == PreparedData.State.FAILED and not self._asked_again(row):
                continue
            self.prepare(row)

    def wanted(self) -> list[Competition]:
        ships = Competition.objects.filter(ships_data=True)
        waiting = Competition.objects.filter(runs__attempts__state=State.QUEUED)
        known = Competition.objects.filter(prepared__host=self.host)
        return [
            competition
            for competition in (ships | waiting | known).distinct()
            if not official_data.is_official(competition)
            and (data.is_prepared(competition) or data.folder_of(competition) is not None)
        ]

    def _asked_again(self, row: PreparedData) -> bool:
        """A failed preparation is tried again when an attempt was queued after it."""
        return Attempt.objects.filter(
            state=State.QUEUED, run__competition=row.competition, queued_at__gt=row.updated_at
        ).exists()

    def prepare(self, row: PreparedData) -> None:
        said = 0.0

        def progress(done: int, total: int | None) -> None:
            nonlocal said
            if time.monotonic() - said > 0.5:
                said = time.monotonic()
                PreparedData.objects.filter(pk=row.pk).update(done_bytes=done, total_bytes=total)

        if not data.is_prepared(row.competition):
            self._set(row, PreparedData.State.PREPARING, error="")
            try:
                data.prepare(row.competition, progress)
            except data.DataError as error:
                self._set(row, PreparedData.State.FAILED, error=str(error))
                logger.warning("data.failed", competition=row.competition.name, error=str(error))
                return
        self._set(
            row, PreparedData.State.READY, error="", digest=grading.answers_digest(row.competition)
        )
        logger.info("data.ready", competition=row.competition.name)
        # Runs that waited for it can start now.
        bell.ring(only=self.host)

    def _set(self, row: PreparedData, state: PreparedData.State, **fields: str) -> None:
        row.state = state
        for name, value in fields.items():
            setattr(row, name, value)
        row.save()

    # ------------------------------------------------------------------ the janitor

    def sweep(self) -> None:
        """Keep the outputs of ended attempts whose supervisor could not, then remove the rest.

        Containers of another installation, or of another host of this one, are never touched.
        """
        vault.purge()
        clear_private()
        install = Installation.this().name
        for engine in self._engines():
            for container in engine.own_containers(install, self.host.name):
                attempt = Attempt.objects.filter(pk=container.attempt_id).first()
                if attempt is None:
                    logger.warning("janitor.stray", container=container.name)
                    engine.remove(container.id)
                elif attempt.is_ended:
                    self.clear(attempt, engine, container.id)
        for attempt in Attempt.objects.filter(
            host=self.host, state=State.ENDED, swept_at__isnull=True
        ):
            self.clear(attempt, engine_of(attempt.run.group.runtime), attempt.container_id)

    def _engines(self) -> list[Engine]:
        engines = [engine_of(ContainerConfig.Runtime.PROCESS)]
        if not self.host_has_no_engine():
            engines.append(self.engine)
        return engines

    def host_has_no_engine(self) -> bool:
        self.host.refresh_from_db()
        return not self.host.engine_id or bool(self.host.engine_error)

    def clear(self, attempt: Attempt, engine: Engine, container_id: str) -> None:
        """Outputs kept, container gone, folder gone, resources free. Safe to repeat."""
        workspace = Workspace.for_attempt(attempt.pk)
        try:
            if container_id:
                engine.kill(container_id)
            if workspace.root.exists() and not attempt.artifacts:
                workspace.make_readable(engine, attempt.image_id)
                collected = workspace.collect(
                    layout.attempt_folder(attempt),
                    tick=lambda: None,
                    secrets=agent_secrets.words(attempt.run.group),
                )
                Attempt.objects.filter(pk=attempt.pk).update(
                    artifacts=collected.artifacts, left_out=collected.left_out
                )
            if container_id:
                engine.remove(container_id)
            # Its supervisor may have died between the seal and the results' folder.
            layout.publish(attempt)
            workspace.remove(engine, attempt.image_id)
        except (EngineFailure, OSError) as error:
            logger.warning("janitor.not_cleared", attempt=attempt.pk, error=str(error))
            return
        if attempt.released_at is None:
            attempt.free_gpus()
        Attempt.objects.filter(pk=attempt.pk).update(
            swept_at=Now(), released_at=attempt.released_at or Now()
        )
        logs.remove_orphans(attempt.pk)
        if not attempt.swept_at:
            logs.append(attempt.pk, LogSegment.Source.RUN, "The host removed what was left of it.")
