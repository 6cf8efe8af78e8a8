"""The watch over a running agent: logs, limits, cancel, and how it ended."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

import structlog
from django.conf import settings

from mlebench_web.fleet import hosts
from mlebench_web.fleet.gpus import is_loss
from mlebench_web.fleet.models import Gpu, Host
from runs.containers import ContainerState, EngineFailure
from runs.core.failures import EXPLAINED, Cause
from runs.core.interruptions import Interruption, Kind, with_one_more
from runs.core.limits import ActiveClock, limit_reached, pace
from runs.patience import patiently

if TYPE_CHECKING:
    from runs.worker import Supervisor

logger = structlog.get_logger(__name__)

ROW_EVERY = 1.0  # cancel is seen within 2 s
SHIP_EVERY = 2.0
LOOK_EVERY = 2.0
USAGE_EVERY = 15.0
OUTPUT_EVERY = 60.0
# A detached exec takes a moment to appear; only then does "no process left" mean anything.
AGENT_APPEARS_WITHIN = 10.0
# A container that is dead after it was not seen for longer than this was down all that time.
UNSEEN_IS_DOWN = 10.0
# An agent that ended so soon after the disk was full has not failed by itself.
FULL_DISK_EXPLAINS = 30.0


@dataclass(frozen=True)
class Ending:
    """How the agent ended, before the verdict."""

    cause: Cause | None = None
    detail: str = ""
    ended_by_itself: bool = False
    exit_code: int | None = None
    memory_killed: bool = False
    active_seconds: float = 0
    usage: dict[str, object] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """The agent ended by itself and said that all was well."""
        return self.ended_by_itself and self.exit_code == 0

    def sentence(self) -> str:
        parts = []
        if self.ended_by_itself:
            code = "without an exit code" if self.exit_code is None else f"with {self.exit_code}"
            parts.append(f"The agent ended {code} after {self.active_seconds:.1f} s.")
        if self.cause:
            parts.append(EXPLAINED[self.cause][0])
        if self.detail:
            parts.append(self.detail)
        return " ".join(parts)


class Part(Protocol):
    """Something else that is watched beside the container: steps, checkpoints, snapshots.

    `look` is called every `every` seconds and may end the run; `last` once when the agent has
    ended, with the container still there and its files complete, and may say better how it ended.
    Neither may take longer than some seconds without calling `supervisor.tick()`.
    """

    every: float

    def look(self, watch: "Watch") -> Ending | None: ...

    def last(self, watch: "Watch", ending: Ending) -> Ending | None: ...


class Watch:
    def __init__(self, supervisor: "Supervisor", parts: Sequence[Part] = ()) -> None:
        self.parts = parts
        self.supervisor = supervisor
        self.attempt = supervisor.attempt
        self.engine = supervisor.engine
        self.workspace = supervisor.workspace
        self.container = supervisor.attempt.container_id
        self.pauser = supervisor.pauser
        before = patiently(self._active_before, tick=supervisor.tick, what="active time")
        now = time.monotonic()
        self.agent_began = now
        # A watch that begins anew after a fault may have pauses that the row does not know yet.
        self.clock = ActiveClock(before=before - self.pauser.unwritten(), began=now)
        self._paused_before = self.pauser.seconds()
        self.last_sign = now
        self.cpu_seconds: float | None = None
        # Both by this process's monotonic clock, whoever saw it.
        self.full_disk_at = float("-inf")
        self.seen_alive = now
        # Active seconds when it was last seen alive here, and when its exit code was last looked
        # for in vain: what came after may hold a pause, and the end of the agent.
        self.alive_active = self.looked_active = before
        # At the last look no process of the agent was left.
        self.was_gone = False
        self.usage: dict[str, object] = {}
        self.due: dict[object, float] = dict.fromkeys(
            ("row", "ship", "look", "usage", "output"), 0.0
        )
        self.due["output"] = now + OUTPUT_EVERY
        self.due |= dict.fromkeys(parts, 0.0)

    def _active_before(self) -> float:
        """Active seconds before this supervisor: the container ran on while nobody watched."""
        charged = self.attempt.charged_seconds
        if self.attempt.agent_started_at is None:
            return charged
        passed = (hosts.now() - self.attempt.agent_started_at).total_seconds()
        return charged + max(0.0, passed - self.attempt.paused_seconds - self.attempt.down_seconds)

    def active(self) -> float:
        self.clock.paused = self.pauser.seconds() - self._paused_before
        return self.clock.seconds(time.monotonic())

    # ------------------------------------------------------------------ the loop

    def until_the_end(self) -> Ending:
        """Watch until the agent ends, a limit is over, somebody cancels, or the container goes."""
        self.pauser.watch(self.container)
        patiently(
            self.supervisor.look_for_others, tick=self.supervisor.tick, what="look for others"
        )
        patiently(self.remember, tick=self.supervisor.tick, what="what was seen before")
        if self.supervisor.adopted:
            self.pick_up()
        self.alive_active = self.looked_active = self.active()
        while True:
            self.supervisor.tick()
            ending = self.look_once()
            if ending is not None:
                self.pauser.let_go()
                self.save_pauses()
                for part in self.parts:
                    ending = part.last(self, ending) or ending
                return ending
            time.sleep(pace(self.active()))

    def remember(self) -> None:
        """What was seen before this watch: a full disk, the agent at work, its start."""
        now, here = hosts.now(), time.monotonic()
        full_at = Host.objects.values_list("disk_full_at", flat=True).get(
            pk=self.supervisor.host.pk
        )
        if full_at is not None:
            self.full_disk_at = here - (now - full_at).total_seconds()
        if self.supervisor.last_watched is not None:
            self.seen_alive = here - (now - self.supervisor.last_watched).total_seconds()
        self.agent_began = here - self.since_start(now)

    def pick_up(self) -> None:
        """What went on while nobody watched: a pause that outlived its supervisor, and the time
        after a container's end, are not charged."""
        pause = self.pauser.left_behind()
        if pause is not None and (not pause.is_open or self.is_paused()):
            self.not_charged(pause.kind, pause.seconds, ended_ago=time.monotonic() - pause.ended)
        self.pauser.forget_what_was_left()
        last = self.supervisor.last_watched
        if last is None or self.attempt.agent_started_at is None:
            return
        # Taken once: a watch that begins anew in this process has watched all the time.
        self.supervisor.last_watched = None
        now = patiently(hosts.now, tick=self.supervisor.tick, what="clock")
        away = (now - max(last, self.attempt.agent_started_at)).total_seconds()
        down = self.down_seconds(away)
        if down > 0:
            self.not_charged(Kind.DOWN, down, ended_ago=0)
        if away - down > settings.HEARTBEAT.total_seconds():
            at = self.since_start(now) - away
            self.note(Interruption(Kind.UNWATCHED, max(0.0, at), away - down))

    def is_paused(self) -> bool:
        """Whether the container stands still, as far as the engine says."""
        try:
            return self.engine.look(self.container).state == ContainerState.PAUSED
        except EngineFailure as failure:
            self.supervisor.silence.begins(failure)
            return True

    def down_seconds(self, away: float) -> float:
        """Of the time that nobody watched, how much the container had ended already."""
        rc_age = self.workspace.agent_ended_ago()
        if rc_age is not None:
            return min(max(0.0, rc_age), max(0.0, away))
        try:
            is_over = self.engine.look(self.container).state not in (
                ContainerState.RUNNING,
                ContainerState.PAUSED,
            )
        except EngineFailure as failure:
            self.supervisor.silence.begins(failure)
            return 0.0
        # When it ended is not known, and an agent never pays for the fleet.
        return max(0.0, away) if is_over else 0.0

    def not_charged(self, kind: Kind, seconds: float, *, ended_ago: float) -> None:
        """Take a stretch that is over off the active time."""
        now = patiently(hosts.now, tick=self.supervisor.tick, what="clock")
        self.clock.before -= seconds
        at = max(0.0, self.since_start(now) - ended_ago - seconds)
        total = "down_seconds" if kind == Kind.DOWN else "paused_seconds"
        before = getattr(self.attempt, total)
        self.note(Interruption(kind, at, seconds), **{total: round(before + seconds, 3)})

    def since_start(self, now: datetime) -> float:
        if self.attempt.agent_started_at is None:
            return 0.0
        return (now - self.attempt.agent_started_at).total_seconds()

    def note(self, one: Interruption, **fields: object) -> None:
        self.supervisor.save(interruptions=with_one_more(self.attempt.interruptions, one), **fields)
        if one.kind != Kind.COPIED:
            # The checkpoint's own line says how long it took.
            self.supervisor.log.say(f"{one.words.capitalize()} for {one.seconds:.0f} s.")

    def save_pauses(self) -> None:
        """Write down pauses that are over; contact with the database is back."""
        for pause in list(self.pauser.taken):
            now = patiently(hosts.now, tick=self.supervisor.tick, what="clock")
            ago = time.monotonic() - pause.ended
            at = max(0.0, self.since_start(now) - ago - pause.seconds)
            self.note(
                Interruption(pause.kind, at, pause.seconds),
                paused_seconds=round(self.attempt.paused_seconds + pause.seconds, 3),
            )
            self.pauser.written(pause)
            self.last_sign = time.monotonic()

    def is_due(self, what: object, every: float) -> bool:
        now = time.monotonic()
        if now < self.due[what]:
            return False
        self.due[what] = now + every
        return True

    def look_once(self) -> Ending | None:
        if self.attempt.goes_on:
            # A supervisor that died while it stopped the agent: what the agent's end says is ours.
            return self.stop(Cause(self.attempt.cause), self.attempt.cause_detail)
        code = self.workspace.agent_exit_code()
        if code is not None:
            return self.ended_by_itself(code)
        self.looked_active = self.active()
        if self.is_due("row", ROW_EVERY):
            self.supervisor.refresh()
            self.save_pauses()
            if self.attempt.cancel_requested_at:
                return self.stop(
                    Cause.CANCELLED, f"Cancelled by {self.attempt.cancel_requested_by}."
                )
        if self.is_due("ship", SHIP_EVERY) and self.supervisor.log.ship():
            self.last_sign = time.monotonic()
        if self.is_due("look", LOOK_EVERY):
            self.look_at_disk()
            ending = self.look_at_container()
            if ending is not None:
                return ending
        if self.is_due("usage", USAGE_EVERY):
            self.measure()
            if fault := self.lost_gpu():
                return self.stop(Cause.GPU_LOST, fault)
            if self.look_at_disk():
                # An agent over its quota is the one that filled it.
                return self.over_quota() or self.stop(
                    Cause.DISK_FULL, "Next to nothing is free on the host."
                )
        if self.is_due("output", OUTPUT_EVERY) and (ending := self.over_quota()):
            return ending
        for part in self.parts:
            if self.is_due(part, part.every) and (ending := part.look(self)):
                return ending
        return self.over_a_limit()

    def over_quota(self) -> Ending | None:
        used, allowed = self.supervisor.disk.used_bytes(), settings.OUTPUT_QUOTA_BYTES
        if used <= allowed:
            return None
        return self.stop(
            Cause.OUTPUT_QUOTA,
            f"It wrote {used / 2**30:.1f} GiB; {allowed / 2**30:g} GiB are allowed.",
        )

    def over_a_limit(self) -> Ending | None:
        limit = self.supervisor.time_limit.total_seconds()
        if self.pauser.is_holding:
            # No clock of the agent goes on.
            return None
        silent = time.monotonic() - self.last_sign
        cause = limit_reached(
            active=self.active(),
            time_limit=limit,
            silent=silent,
            stall_limit=settings.STALL_LIMIT.total_seconds(),
        )
        if cause == Cause.TIME_LIMIT:
            return self.stop(cause, f"{limit:.0f} s of active time.")
        if cause == Cause.STALLED:
            return self.stop(cause, f"No line and no CPU time for {silent:.0f} s.")
        return None

    def look_at_container(self) -> Ending | None:
        try:
            look = self.engine.look(self.container)
            if look.state == ContainerState.PAUSED:
                if not self.pauser.is_holding:
                    self.engine.unpause(self.container)
                return None
            if look.state != ContainerState.RUNNING:
                # The agent may have ended, and then the container: its own end comes first.
                code = self.workspace.agent_exit_code()
                if code is not None:
                    return self.ended_by_itself(code)
                failure = self.supervisor.dead_container()
                unseen = self.active() - self.alive_active
                if unseen > UNSEEN_IS_DOWN:
                    # When it ended is not known, and an agent never pays for the fleet.
                    self.not_charged(Kind.DOWN, unseen, ended_ago=0)
                return self.ending(cause=failure.cause, detail=failure.text)
            self.supervisor.memory_kills = self.engine.memory_kills(self.container) or 0
            started = time.monotonic() - self.agent_began > AGENT_APPEARS_WITHIN
            if started and not self.engine.agent_is_alive(self.container):
                return self.agent_is_gone()
            self.seen_alive, self.alive_active = time.monotonic(), self.active()
        except EngineFailure as failure:
            # The container may well be healthy: losing sight of it is no reason to end it.
            self.was_gone = False
            self.supervisor.silence.begins(failure)
            return None
        self.was_gone = False
        self.supervisor.silence.ends()
        return None

    def agent_is_gone(self) -> Ending | None:
        """No process of the agent is left in a container that runs.

        Without an exit code it takes a second look: a container that is killed loses its processes
        a moment before the engine says so, and that is no end of the agent's own.
        """
        code = self.workspace.agent_exit_code()
        if code is None and not self.was_gone:
            self.was_gone = True
            return None
        return self.ended_by_itself(code)

    def measure(self) -> None:
        try:
            usage = self.engine.usage(self.container)
        except EngineFailure as failure:
            logger.warning("usage.not_read", attempt=self.attempt.pk, text=failure.text)
            return
        if usage.cpu_seconds is None or usage.cpu_seconds != self.cpu_seconds:
            self.last_sign = time.monotonic()
        self.cpu_seconds = usage.cpu_seconds
        self.usage = {
            "cpu_seconds": usage.cpu_seconds,
            "memory_bytes": usage.memory_bytes,
            "memory_peak_bytes": usage.memory_peak_bytes,
        }
        self.supervisor.save(usage=self.usage, active_seconds=round(self.active(), 3))

    def lost_gpu(self) -> str:
        """The fault of a leased GPU that has fallen away; "" while all are well."""
        leased = Gpu.objects.filter(leases__attempt=self.attempt, leases__released_at__isnull=True)
        return next((f"{gpu}: {gpu.fault}" for gpu in leased if is_loss(gpu.fault)), "")

    # ------------------------------------------------------------------ the end

    def ended_by_itself(self, code: int | None) -> Ending:
        killed = self.memory_was_killed()
        if code == 0:
            cause = Cause.OUT_OF_MEMORY if killed else None
        else:
            cause = Cause.OUT_OF_MEMORY if killed else Cause.AGENT_CRASHED
        active = self.active_at_the_end()
        if code != 0 and self.disk_explains():
            cause = self.supervisor.disk.cause_when_full()
            if cause == Cause.DISK_FULL:
                return self.ending(
                    cause=cause, exit_code=code, detail="The disk is full.", active=active
                )
        return self.ending(
            cause=cause,
            exit_code=code,
            ended_by_itself=True,
            memory_killed=killed,
            active=active,
        )

    def active_at_the_end(self) -> float:
        """Active seconds when the exit code was written: an outage may have come after it."""
        ago = self.workspace.agent_ended_ago() or 0.0
        # The wall clock may have jumped since; it had not ended when it was last looked for.
        return max(self.looked_active, self.active() - max(0.0, ago))

    def look_at_disk(self) -> bool:
        """Whether it is full now. A supervisor that follows this one is told."""
        is_full = self.supervisor.disk.is_full()
        if is_full:
            self.full_disk_at = time.monotonic()
            patiently(
                lambda: hosts.note_full_disk(self.supervisor.host),
                tick=self.supervisor.tick,
                what="note a full disk",
            )
        return is_full

    def disk_explains(self) -> bool:
        """Whether the disk is full, or was since shortly before the agent was last seen alive.

        An agent that could not write leaves no exit code, and is seen to be gone only later,
        perhaps by another supervisor.
        """
        before = self.full_disk_at
        self.look_at_disk()
        ago = self.workspace.agent_ended_ago()
        if ago is None:
            return self.full_disk_at > self.seen_alive - FULL_DISK_EXPLAINS
        # Not before it was last seen alive, whatever a clock that jumped makes of the file's time.
        ended = max(self.seen_alive, time.monotonic() - max(0.0, ago))
        # It may have been full all the time from before the end until now.
        return any(abs(at - ended) < FULL_DISK_EXPLAINS for at in (before, self.full_disk_at))

    def memory_was_killed(self) -> bool:
        try:
            return bool(self.engine.memory_kills(self.container))
        except EngineFailure:
            return False

    def go_on_from_checkpoint(self, cause: Cause, detail: str) -> Ending | None:
        """Stop the agent so that another attempt goes on (outcome *continued*).

        None, and nothing done, where no checkpoint is stored that it could begin with.
        """
        if not patiently(self.attempt.can_go_on, tick=self.supervisor.tick):
            return None
        # Before the signal: from then on the agent's own end says nothing.
        self.supervisor.save(goes_on=True, cause=cause, cause_detail=detail)
        return self.stop(cause, detail)

    def stop(self, cause: Cause, detail: str) -> Ending:
        """SIGTERM to the agent's processes, a grace period, then SIGKILL.

        Its exit code is no end of it from the first SIGTERM on: a start script dies at once while
        the agent still saves; only "no process left" counts.
        """
        active = self.active()
        self.pauser.let_go()
        self.signal("TERM")
        deadline = time.monotonic() + settings.STOP_GRACE.total_seconds()
        while time.monotonic() < deadline:
            self.supervisor.tick()
            try:
                if not self.engine.agent_is_alive(self.container):
                    break
            except EngineFailure as failure:
                logger.warning("stop.not_seen", attempt=self.attempt.pk, text=failure.text)
                break
            time.sleep(0.1)
        else:
            self.signal("KILL")
        return self.ending(cause=cause, detail=detail, active=active)

    def signal(self, name: Literal["TERM", "KILL"]) -> None:
        try:
            self.engine.signal_agent(self.container, name)
        except EngineFailure as failure:
            # Collecting kills the container in any case.
            logger.warning("signal.not_sent", attempt=self.attempt.pk, text=failure.text)

    def ending(
        self,
        *,
        cause: Cause | None,
        detail: str = "",
        exit_code: int | None = None,
        ended_by_itself: bool = False,
        memory_killed: bool = False,
        active: float | None = None,
    ) -> Ending:
        self.measure_last()
        return Ending(
            cause=cause,
            detail=detail,
            exit_code=exit_code,
            ended_by_itself=ended_by_itself,
            memory_killed=memory_killed,
            active_seconds=self.active() if active is None else active,
            usage=self.usage,
        )

    def measure_last(self) -> None:
        """A last reading, since a short run has had none."""
        try:
            usage = self.engine.usage(self.container)
        except EngineFailure:
            return
        if usage.cpu_seconds is not None or usage.memory_peak_bytes is not None:
            self.usage = {
                "cpu_seconds": usage.cpu_seconds,
                "memory_bytes": usage.memory_bytes,
                "memory_peak_bytes": usage.memory_peak_bytes,
            }
