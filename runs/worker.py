"""Supervise one attempt: start its container, watch it, collect what it left, grade, seal.

The attempt's state says where to go on, so a supervisor that died between any two lines is
followed by one that adopts the attempt and continues (docs/states.md has the list of crash
points). Every write is conditional on the lease token.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models.functions import Now

from mlebench_web.catalog import data
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import (
    agent_manifest,
    agent_secrets,
    aside,
    checkpoints,
    cut_short,
    grading,
    guards,
    layout,
    queue,
    snapshots,
    specification,
)
from runs.attempt_disk import AttemptDisk
from runs.attempt_log import AttemptLog
from runs.checkpoints import CheckpointPart
from runs.containers import ContainerState, Engine, EngineFailure, engine_of
from runs.containers.diagnostics import evidence
from runs.core.failures import Cause, cause_of_end, is_infrastructure
from runs.core.retries import HOPELESS
from runs.core.states import Outcome, State, Verdict, verdict
from runs.engine_silence import EngineSilence
from runs.models import Attempt, GradingReport, Replaced, Run
from runs.patience import Heart, patiently
from runs.pausing import Pauser
from runs.queue import Lease
from runs.snapshots import SnapshotPart
from runs.step_timeouts import StepTimeoutPart
from runs.steps import StepPart
from runs.validation import ask_to_serve
from runs.watching import Ending, Part, Watch
from runs.workspace import Workspace

logger = structlog.get_logger(__name__)

# The one path that is graded, below an attempt's folder.
SUBMISSION = layout.SUBMISSION
# How often a supervisor looks whether another host could be given its run.
OTHERS_EVERY = 60.0
# The database takes writes and a step fails with its error again and again: then it is no outage.
OUTAGES_AT_MOST = 20
# Outages further apart than this have nothing to do with each other.
OUTAGES_WITHIN_SECONDS = 300
# How often the start-up wait looks for the relay; the relay needs some 0.1 s.
READY_POLL_SECONDS = 0.01


def work_while_there_is_some() -> None:
    """What a bell starts: take attempts of this host until there is none to take."""
    host = hosts.this_host()
    while lease := patiently(lambda: queue.take_work(host), what="take work"):
        supervise(lease)


def supervise(lease: Lease, engine: Engine | None = None) -> None:
    """Take one attempt to its end, from wherever it stands."""
    supervisor = Supervisor(lease, engine or engine_of(lease.attempt.run.group.runtime))
    supervisor.heart.start()
    supervisor.pauser.start()
    try:
        supervisor.go_on_through_outages()
    except Replaced:
        # Another supervisor holds it, or it was sealed while this host was lost. That stands.
        logger.info("attempt.left", attempt=lease.attempt.pk)
        supervisor.leave()
    except SystemExit:
        # The worker stops; the container goes on, and the worker's next start adopts it.
        logger.info("attempt.detached", attempt=lease.attempt.pk)
        raise
    except Exception as error:
        # The edge of the worker's loop: whatever our own fault is, the attempt must not hang.
        logger.exception("attempt.product_error", attempt=lease.attempt.pk)
        supervisor.give_up(error)
    finally:
        supervisor.pauser.stop()
        supervisor.heart.stop()


class Supervisor:
    """One attempt in the hands of this process."""

    def __init__(self, lease: Lease, engine: Engine) -> None:
        self.attempt = lease.attempt
        self.token = lease.token
        self.adopted = lease.adopted
        self.last_watched = lease.last_watched
        self.engine = engine
        self.run: Run = self.attempt.run
        self.group = self.run.group
        self.workspace = Workspace.for_attempt(self.attempt.pk)
        self.manifest = agent_manifest.of(self.group.agent)
        self.heart = Heart(
            self.beat,
            every=settings.HEARTBEAT.total_seconds(),
            stuck_after=settings.LOOP_STUCK_AFTER.total_seconds(),
            name=f"heart-{self.attempt.pk}",
        )
        self.pauser = Pauser(
            self.heart,
            engine,
            self.workspace.root,
            lost_after=settings.HOST_LOST_AFTER.total_seconds(),
            ttl=settings.LEASE_TTL.total_seconds(),
        )
        self.saving: CheckpointPart | None = None
        self._looked_for_others = -OTHERS_EVERY
        self.log = AttemptLog(self.attempt.pk, self.group, self.workspace.root, tick=self.tick)
        self.silence = EngineSilence(self)
        self.disk = AttemptDisk(self.workspace, tick=self.tick)
        # Seen while the container ran: a dead one's flag may be from long before its end.
        self.memory_kills = 0
        self.timings: dict[str, float] = dict(self.attempt.timings)

    # ------------------------------------------------------------------ small things

    @property
    def host(self) -> Host:
        return specification.host_of(self.attempt)

    @property
    def time_limit(self) -> timedelta:
        return queue.time_limit_of(self.attempt)

    def beat(self) -> bool:
        """Renew the lease; False when this token no longer holds it."""
        renewed = (
            Attempt.objects.filter(guards.fence(self.token), pk=self.attempt.pk)
            .exclude(state=State.ENDED)
            .update(lease_until=Now() + settings.LEASE_TTL)
        )
        if renewed and time.monotonic() - self._looked_for_others > OTHERS_EVERY:
            self.look_for_others()
        return bool(renewed)

    def look_for_others(self) -> None:
        """Whether this run could be given to another host, were this one cut off from here on."""
        self._looked_for_others = time.monotonic()
        self.pauser.could_be_replaced = queue.another_host_could_take(self.attempt)

    def tick(self) -> None:
        """The loop moves. Raises Replaced when the lease is known to be gone."""
        self.heart.tick()
        if self.heart.replaced:
            raise Replaced(f"Another supervisor holds {self.attempt}.")

    def save(self, **fields: object) -> None:
        patiently(lambda: self.attempt.save_held(self.token, **fields), tick=self.tick)

    def move(self, new: State, **fields: object) -> None:
        """Move by the one door, also through an outage of the database."""

        def act() -> None:
            self.attempt.refresh_from_db()
            if self.attempt.state == new and self.attempt.lease_token == self.token:
                # The outage came after the commit of an earlier try.
                return
            self.stay_holder()
            self.attempt.move(new, token=self.token, by=self.host.name, **fields)

        patiently(act, tick=self.tick, what=f"move to {new}")

    def timed(self, phase: str, began: float) -> None:
        self.timings[phase] = round(time.monotonic() - began, 4)

    def parts(self) -> list[Part]:
        """What is watched beside the container."""
        # A watch that an outage ended may have a save at work, and two at once would remove each
        # other's blobs: the next watch goes on with the same one.
        if self.saving is None or self.saving.has_left:
            self.saving = CheckpointPart(self)
        # Steps before checkpoints: the last one that the agent said is saved at its end.
        # A step that is ended goes on from what is saved by then.
        return [SnapshotPart(), StepPart(self), self.saving, StepTimeoutPart(self)]

    def leave(self) -> None:
        """Somebody else decides now. A container whose attempt has ended must not go on."""
        self.pauser.leave()
        row = patiently(
            lambda: Attempt.objects.filter(pk=self.attempt.pk).first(), what="leave an attempt"
        )
        container = self.attempt.container_id
        if row is None or not row.is_ended or not container:
            return
        try:
            # The janitor of this host keeps its outputs and removes it.
            self.engine.kill(container)
        except EngineFailure as failure:
            logger.warning("leave.not_killed", attempt=self.attempt.pk, text=failure.text)

    # ------------------------------------------------------------------ the road

    def go_on_through_outages(self) -> None:
        """Each step can be repeated, so an outage in the middle of one costs nothing but time."""
        outages, last = 0, float("-inf")
        while True:
            try:
                self.go_on()
                return
            except (OperationalError, InterfaceError) as error:
                outages = outages + 1 if time.monotonic() - last < OUTAGES_WITHIN_SECONDS else 1
                if outages > OUTAGES_AT_MOST:
                    raise
                logger.warning("attempt.step_repeated", attempt=self.attempt.pk, error=str(error))
                connection.close()
            # Reading is no proof: while somebody holds SQLite's lock, only writes fail.
            patiently(queue.prove_that_it_takes_writes, tick=self.tick, what="writes")
            last = time.monotonic()
            self.refresh()
            # What the step had done is found as an adopter finds it.
            self.adopted = True

    def go_on(self) -> None:
        """From the state in the row to the end."""
        if self.attempt.state == State.STARTING:
            self.start()
        if self.attempt.state == State.RUNNING:
            self.stop_with(Watch(self, self.parts()).until_the_end())
        if self.attempt.state == State.COLLECTING:
            self.collect()
        if self.attempt.state == State.GRADING:
            self.grade()

    def start(self) -> None:
        """Starting -> running, or -> collecting with the cause. Safe to repeat at any line."""
        began = time.monotonic()
        try:
            self.workspace.make(self.manifest.state_folders)
            checkpoints.begin_from(self)
            spec = specification.container_of(self.attempt, self.workspace, self.manifest)
            self.log.hide()
            self.timed("prepare", began)
            began = time.monotonic()
            container = self.silence.within_the_start_limit(lambda: self.engine.create(spec))
            self.timed("create", began)
            began = time.monotonic()
            if self.adopted:
                self.take_over_start(container)
            self.silence.within_the_start_limit(lambda: self.engine.start(container))
            self.timed("start", began)
            self.save(container_id=container, hardware=specification.hardware_of(self.attempt))
            ask_to_serve(self.attempt.pk)
            began = time.monotonic()
            self.wait_until_ready()
            self.timed("ready", began)
            began = time.monotonic()
            self.silence.within_the_start_limit(lambda: self.engine.start_agent(container, spec))
            # From here an agent is at work that must not be one of two.
            self.pauser.watch(container)
            self.timed("exec", began)
        except EngineFailure as failure:
            self.stop_with(Ending(cause=failure.cause, detail=failure.text))
            return
        except data.DataError as error:
            self.stop_with(Ending(cause=Cause.DATA_MISSING, detail=str(error)))
            return
        except agent_secrets.Unavailable as error:
            self.stop_with(Ending(cause=Cause.SECRET_MISSING, detail=str(error)))
            return
        except OSError as error:
            self.stop_with(Ending(cause=self.disk.cause_of(error), detail=str(error)))
            return
        self.log.say(f"Container {container[:12]} started on {self.host.name}; the agent runs.")
        self.move(State.RUNNING, agent_started_at=Now(), timings=self.timings)
        self.pauser.begin_anew()

    def take_over_start(self, container: str) -> None:
        """What a supervisor that died in the start left. Raises EngineFailure where it is over."""
        look = self.silence.within_the_start_limit(lambda: self.engine.look(container))
        if look.state == ContainerState.EXITED:
            # Starting it again would hide why it ended.
            self.save(container_id=container)
            raise self.dead_container()
        if look.state == ContainerState.PAUSED:
            # Cut off before the row said that the agent runs, it paused what it had started.
            self.silence.within_the_start_limit(lambda: self.engine.unpause(container))

    def wait_until_ready(self) -> None:
        """Until the relay listens in the container. Raises EngineFailure with the cause."""
        began = time.monotonic()
        looked = began
        while not self.workspace.relay_is_ready():
            self.tick()
            now = time.monotonic()
            if now - began > settings.START_LIMIT.total_seconds():
                raise EngineFailure(
                    Cause.START_LIMIT, f"No answer on port 5000 in {settings.START_LIMIT}."
                )
            if now - looked > 0.5:
                looked = now
                look = self.silence.within_the_start_limit(
                    lambda: self.engine.look(self.attempt.container_id)
                )
                if look.state not in (ContainerState.RUNNING, ContainerState.PAUSED):
                    raise self.silence.within_the_start_limit(self.dead_container)
                self.refresh()
                if self.attempt.cancel_requested_at:
                    raise EngineFailure(Cause.CANCELLED, "Cancelled during start-up.")
            time.sleep(READY_POLL_SECONDS)

    def dead_container(self) -> EngineFailure:
        """Why the container is not running, with evidence."""
        seen = evidence(self.engine, self.attempt.container_id, self.workspace)
        cause, detail = cause_of_end(
            seen,
            agent_started=self.attempt.agent_started_at is not None,
            earlier_memory_kills=self.memory_kills,
        )
        return EngineFailure(cause, f"{detail}\n{seen.last_lines}".strip())

    def refresh(self) -> None:
        """Read the row again. Raises Replaced when this token does not hold it any more."""
        patiently(self.attempt.refresh_from_db, tick=self.tick, what="refresh")
        self.stay_holder()

    def stay_holder(self) -> None:
        """Raises Replaced when the row, as it was read last, is another's, or has been sealed by
        somebody else: under this very token, when this host was silent for too long."""
        if not self.attempt.is_held_by(self.token):
            raise Replaced(f"Another supervisor holds {self.attempt}, or it was sealed.")

    def stop_with(self, ending: Ending) -> None:
        """Move to collecting with how it ended; from here the container is asked nothing more."""
        self.pauser.let_go()
        self.log.ship(final=True)
        last_lines = self.log.last_lines(20)
        self.log.say(ending.sentence())
        self.move(
            State.COLLECTING,
            cause=ending.cause or "",
            cause_detail=self.log.redact(ending.detail),
            exit_code=ending.exit_code,
            ended_by_itself=ending.ended_by_itself,
            memory_killed=ending.memory_killed,
            active_seconds=round(ending.active_seconds, 3),
            usage=ending.usage,
            last_lines="\n".join(last_lines),
            agent_ended_at=Now(),
            timings=self.timings,
        )

    def collect(self) -> None:
        """Kill the container, keep what it left, free what it held. Safe to repeat."""
        began = time.monotonic()
        container = self.attempt.container_id
        if container:
            self.silence.outlasted(lambda: self.engine.kill(container))
        self.log.ship(final=True)
        extra: dict[str, object] = {}
        self.open_outputs()
        try:
            extra = self.keep_outputs()
        except OSError as error:
            # The agent had ended by itself only if nothing of it is missing.
            extra = {
                "cause": self.disk.cause_of(error),
                "cause_detail": f"Outputs could not be kept: {error}",
                "ended_by_itself": False,
            }
        if container:
            self.silence.outlasted(lambda: self.engine.remove(container))
        self.timed("collect", began)
        self.save(timings=self.timings, **extra)
        self.refresh()
        self.save(has_submission=self.left_a_submission())
        sealed = self.verdict()
        if sealed.outcome == Outcome.GRADED:
            patiently(self.release, tick=self.tick, what="release")
            return
        if sealed.outcome == Outcome.AGENT_FAILED:
            grading.null_report(self.attempt)
        self.seal(sealed, try_again=sealed.cause not in HOPELESS)

    def open_outputs(self) -> None:
        """A worker that is not root could not read what the agent wrote for itself alone."""
        try:
            self.silence.outlasted_while_unreachable(
                lambda: self.workspace.make_readable(self.engine, self.attempt.image_id)
            )
        except EngineFailure as failure:
            # What cannot be read is left out, and named there.
            self.log.say(f"Outputs could not be opened: {failure.text}")

    def keep_outputs(self) -> dict[str, object]:
        """What was kept and what was left out. Raises OSError when the disk is full."""
        collected = self.workspace.collect(
            layout.attempt_folder(self.attempt), tick=self.tick, secrets=self.log.secrets
        )
        left_out = [item for item in collected.left_out if item["path"] != SUBMISSION]
        if refused := self.workspace.refused_submission():
            left_out.append({"path": SUBMISSION, "why": refused})
        return {"artifacts": collected.artifacts, "left_out": left_out}

    def release(self) -> None:
        self.attempt.refresh_from_db()
        if self.attempt.state == State.COLLECTING:
            self.attempt.release(token=self.token, by=self.host.name)

    @property
    def tries_left(self) -> int:
        return max(0, settings.MAX_TRIES - self.run.tries_used - 1)

    @property
    def ended_cleanly(self) -> bool:
        return self.attempt.ended_by_itself and self.attempt.exit_code == 0

    def left_a_submission(self) -> bool:
        """Whether there is something to grade: the file, or the newest valid snapshot."""
        end = self.attempt.end()
        if end.cause and is_infrastructure(end.cause) and not end.ended_by_itself:
            # With no try left a broken host's run is graded only if what it left is valid.
            return not self.tries_left and self.has_valid_snapshot()
        if self.workspace.submission_file() or self.workspace.refused_submission():
            return True
        return not self.ended_cleanly and self.has_valid_snapshot()

    def has_valid_snapshot(self) -> bool:
        try:
            return snapshots.newest_valid(self.attempt, tick=self.tick) is not None
        except grading.GraderFailed as error:
            # Grading will meet the same grader, and name it.
            logger.warning("snapshot.not_judged", attempt=self.attempt.pk, error=str(error))
            return True

    def verdict(self) -> Verdict:
        return verdict(self.attempt.end(), tries_left=self.tries_left)

    def grade(self) -> None:
        """Grading -> ended. Needs no container: only the collected files and the answers."""
        began = time.monotonic()
        folder = layout.attempt_folder(self.attempt)
        submission = folder / SUBMISSION
        refused = next(
            (str(item["why"]) for item in self.attempt.left_out if item["path"] == SUBMISSION),
            None,
        )
        sealed = self.verdict()
        try:
            report = grading.grade(
                self.attempt,
                submission if submission.exists() else None,
                tick=self.tick,
                refused=refused,
            )
            if not report.valid_submission and not self.ended_cleanly:
                report = self.grade_snapshot(submission) or report
        except grading.GraderFailed as error:
            # Another attempt of 24 hours would meet the same grader: none is queued.
            self.log.say(f"Grading failed: {error}")
            self.seal(
                Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.GRADER_FAILED),
                try_again=False,
                cause_detail=str(error),
            )
            return
        self.timed("grade", began)
        self.log.say(f"Graded: score {report.score}, {report.result.replace('_', ' ')}.")
        self.seal(sealed)

    def grade_snapshot(self, submission: Path) -> GradingReport | None:
        """Grade the newest valid snapshot in place of what was left; None when there is none.

        The snapshot becomes the file that upstream's tools see; what was left stays beside it.
        """
        snapshot = snapshots.newest_valid(self.attempt, tick=self.tick)
        if snapshot is None:
            return None
        self.save(graded_snapshot=snapshot)
        snapshots.put_in_place(snapshot, submission)
        self.log.say(f"Graded is the submission as it was after {snapshot.active_seconds:.0f} s.")
        return grading.grade(self.attempt, submission, tick=self.tick)

    def seal(self, sealed: Verdict, *, try_again: bool = True, cause_detail: str = "") -> None:
        """The one end of an attempt, then what only follows from it."""
        detail: dict[str, Any] = {"cause_detail": cause_detail} if cause_detail else {}
        self.log.ship(final=True)

        def act() -> None:
            self.attempt.refresh_from_db()
            sealed_as = (self.attempt.outcome, self.attempt.cause)
            if self.attempt.is_ended and sealed_as == (sealed.outcome, sealed.cause or ""):
                # The outage came after the commit of an earlier try.
                return
            self.stay_holder()
            with transaction.atomic():
                self.attempt.seal(
                    sealed,
                    token=self.token,
                    by=self.host.name,
                    try_again=try_again,
                    timings=self.timings,
                    **detail,
                )
                aside.judge(self.host, sealed.outcome)

        patiently(act, tick=self.tick, what="seal")
        logger.info(
            "attempt.sealed",
            attempt=self.attempt.pk,
            outcome=sealed.outcome,
            cause=sealed.cause or "",
        )
        layout.publish(self.attempt)
        if self.host.name != settings.HOST_NAME:
            # Only its grading was taken over; what it left elsewhere is swept there.
            return
        try:
            self.workspace.remove(self.engine, self.attempt.image_id)
        except (EngineFailure, OSError) as error:
            # The janitor goes on with it.
            logger.warning("attempt.not_swept", attempt=self.attempt.pk, error=str(error))
            return
        Attempt.objects.filter(pk=self.attempt.pk).update(swept_at=Now())

    def give_up(self, error: Exception) -> None:
        """An error of our own: seal it as that, and leave the rest to the janitor.

        The container's outputs are kept by the janitor before it removes the container.
        """
        detail = self.log.redact(f"{type(error).__name__}: {error}")
        try:
            self.attempt.refresh_from_db()
            self.stay_holder()
            sealed, try_again = self.verdict_of_our_own_error()
            with transaction.atomic():
                self.attempt.seal(
                    sealed,
                    token=self.token,
                    by=self.host.name,
                    release=False,
                    try_again=try_again,
                    cause_detail=detail,
                )
                cut_short.ask_for(self.attempt)
        except Replaced:
            logger.info("attempt.left", attempt=self.attempt.pk)

    def verdict_of_our_own_error(self) -> tuple[Verdict, bool]:
        """How it is sealed, and whether another try would help."""
        if self.attempt.cancel_requested_at:
            return Verdict(Outcome.CANCELLED, Cause.CANCELLED), False
        if self.attempt.state == State.GRADING:
            # The agent's work is kept: what is needed is another grading, not another agent.
            return Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.GRADER_FAILED), False
        return Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.PRODUCT_ERROR), True
