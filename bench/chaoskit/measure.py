"""Figures that need a fleet in a known state: one fault of one kind, and a clock on it."""

import statistics
import time

from chaoskit.ledger import Fault
from chaoskit.world import LOST_AFTER, Host, World

# The product's defaults, in place of the bench's short ones.
USUAL_LEASES = {
    "HEARTBEAT_SECONDS": "15",
    "LEASE_TTL_SECONDS": "90",
    "LOOP_STUCK_AFTER_SECONDS": "60",
    "HOST_LOST_AFTER_MINUTES": "15",
    "RING_EVERY_SECONDS": "30",
    "WORKER_DEAF_AFTER_SECONDS": "60",
}


def host_losses(world: World, count: int) -> None:
    """A host with a run is lost while the other has room: seconds from the seal to the agent."""
    seconds = []
    for number in range(count):
        victim, other = world.hosts[number % 2], world.hosts[1 - number % 2]
        seconds.append(one_loss(world, victim, other))
        world.say(f"{number + 1:>3} host lost -> the new agent runs: {seconds[-1]:.1f} s")
    world.ledger.notes.append(
        f"proven host loss -> new agent: median {statistics.median(seconds):.1f} s, "
        f"max {max(seconds):.1f} s over {len(seconds)}"
    )


def one_loss(world: World, victim: Host, other: Host) -> float:
    from runs.models import Attempt, Move

    # Long ones, so that nothing ends by itself meanwhile.
    world.steps = (90, 90)
    world.is_feeding = True
    world.wait_until(lambda: len(world.seen.running()) == 4, 90, "four run")
    world.is_feeding = False
    # The other host's make room; what waits would only take it.
    for row in world.seen.on(other.name):
        world.ask("POST", f"/api/v1/runs/{row.run}/cancel", {})
    cancel_queued(world)
    world.wait_until(lambda: not world.seen.on(other.name), 60, "the other host has room")
    fault = begin(world, "host lost", victim)
    outage = world.freeze(victim)
    lost = Move.objects.filter(cause="host_lost")
    before = lost.count()
    world.wait_until(lambda: lost.count() > before, LOST_AFTER * 3, "host lost")
    move = lost.order_by("-pk")[0]
    again = Attempt.objects.filter(run=move.attempt.run, number__gt=move.attempt.number)
    running = again.filter(agent_started_at__isnull=False)
    world.wait_until(running.exists, 60, "it runs again")
    started = running[0].agent_started_at
    assert started
    world.thaw(victim, outage)
    fault.end = time.monotonic()
    for row in world.seen.attempts:
        world.ask("POST", f"/api/v1/runs/{row.run}/cancel", {})
    world.wait_until(lambda: not world.seen.attempts, 90, "idle")
    return (started - move.at).total_seconds()


def cancel_queued(world: World) -> None:
    for group in range(1, len(world.keys) + 1):
        world.ask("POST", f"/api/v1/run-groups/{group}/cancel", {"queued_only": True})


def network_cut(world: World, minutes: float) -> None:
    """One host without network, with the usual leases, for less than HOST_LOST_AFTER."""
    world.say(f"network of {world.hosts[0].name} cut for {minutes} min, with the usual leases")
    world.wait_until(lambda: len(world.seen.running()) == 4, 60, "four run")
    world.is_feeding = False
    cancel_queued(world)
    fault = begin(world, "network cut", world.hosts[0])
    outage = world.ledger.begin_outage(world.hosts[0].name, "cut off")
    world.hosts[0].switch("cut")
    world.wait(minutes * 60)
    world.hosts[0].switch("open")
    world.ledger.end_outage(outage)
    fault.end = time.monotonic()
    if world.wait_until(lambda: all(r.is_held for r in world.seen.attempts), 120, "all held"):
        fault.recovery = time.monotonic() - fault.end


def begin(world: World, kind: str, host: Host) -> Fault:
    fault = Fault(
        number=len(world.ledger.faults) + 1,
        kind=kind,
        target=host.name,
        begin=time.monotonic(),
        running=len(world.seen.running()),
    )
    world.ledger.faults.append(fault)
    return fault
