"""Active time and the limits over it; when silence becomes loss. Pure. Seconds throughout."""

from dataclasses import dataclass

from runs.core.failures import Cause


@dataclass
class ActiveClock:
    """Seconds that the agent itself was at work.

    `before` is what had passed when this supervisor began (the database's clock); from then on
    this host's monotonic clock counts, so that a jump of the wall clock charges nobody.
    """

    before: float
    began: float
    paused: float = 0

    def seconds(self, now: float) -> float:
        return max(0.0, self.before + (now - self.began) - self.paused)


def limit_reached(
    *, active: float, time_limit: float, silent: float, stall_limit: float
) -> Cause | None:
    """The first limit that is over. `silent`: seconds since any sign of life."""
    if active >= time_limit:
        return Cause.TIME_LIMIT
    if silent >= stall_limit:
        return Cause.STALLED
    return None


def pace(active: float) -> float:
    """How long the supervising loop sleeps: quick for short runs, calm for long ones."""
    if active < 10:
        return 0.02
    if active < 60:
        return 0.1
    return 0.5 if active < 600 else 1.0


@dataclass
class Reaping:
    """The reaper's patience: after an outage or a clock jump, silence proves nothing.

    Compares the database's clock with this process's own monotonic clock at each tick. Holds
    state between ticks of one process; a new process starts with patience, as after an outage.
    """

    ttl: float
    lost_after: float
    last_database: float | None = None
    last_monotonic: float | None = None
    may_lose_contact_at: float = 0
    may_lose_hosts_at: float = 0

    def tick(self, *, database: float, monotonic: float) -> None:
        if self.last_database is None or self.last_monotonic is None:
            unsure = True
        else:
            passed = monotonic - self.last_monotonic
            drift = abs((database - self.last_database) - passed)
            unsure = drift > self.ttl / 3 or passed > self.ttl
        if unsure:
            self.may_lose_contact_at = monotonic + self.ttl
            self.may_lose_hosts_at = monotonic + self.lost_after
        self.last_database, self.last_monotonic = database, monotonic

    def seconds_until_leases_count(self) -> float:
        """Until then an expired lease proves nothing: nobody could renew one."""
        return max(0.0, self.may_lose_contact_at - (self.last_monotonic or 0))

    def may_lose_hosts(self) -> bool:
        return (self.last_monotonic or 0) >= self.may_lose_hosts_at


def must_pause(*, cut_off: float, lost_after: float, ttl: float, could_be_replaced: bool) -> bool:
    """Whether a supervisor that has not reached the database for `cut_off` seconds pauses.

    One lease before the host may be declared lost: what is measured here began with the last
    heartbeat of this attempt, and the host's own may be a little older. Settings with a short
    `lost_after` leave at least half of it.
    """
    return could_be_replaced and cut_off >= max(lost_after - ttl, lost_after / 2)
