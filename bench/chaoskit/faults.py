"""What is done to the fleet. Each fault picks its target, does it, and undoes what must be undone.

A fault returns a short note. Kinds that cannot be done here say why in `why_not`.
"""

import itertools
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from docker.errors import DockerException

from chaoskit.processes import send
from chaoskit.world import LOST_AFTER, TTL, Host, World

Act = Callable[[World, Host], str]


@dataclass(frozen=True)
class Kind:
    name: str
    act: Act
    # "sqlite", "postgres", or "" for both.
    only: str = ""
    # Once in so many; the schedule has every kind at least once when there is room for all.
    weight: int = 2


def kill_worker(world: World, host: Host) -> str:
    """The worker's parent and all its pool children: what the kernel or an operator does."""
    children(world, host)
    host.worker.kill()
    return "parent and pool"


def kill_parent(world: World, host: Host) -> str:
    """The parent alone: its children are orphans that may go on."""
    children(world, host)
    host.worker.kill(whole=False)
    return "parent alone"


def kill_child(world: World, host: Host) -> str:
    busy = [row.pid for row in world.seen.running(host.name) if row.pid]
    if not busy:
        return "no child was busy"
    pid = world.random.choice(busy)
    world.ledger.hit[pid] = time.monotonic()
    _signal(pid, signal.SIGKILL)
    return f"pool child {pid}"


def freeze_child(world: World, host: Host) -> str:
    """A supervisor that stands still for longer than its lease: the next one adopts."""
    busy = [row.pid for row in world.seen.running(host.name) if row.pid]
    if not busy:
        return "no child was busy"
    pid = world.random.choice(busy)
    world.ledger.hit[pid] = time.monotonic()
    _signal(pid, signal.SIGSTOP)
    world.wait(TTL * 1.7)
    _signal(pid, signal.SIGCONT)
    world.wait(3)
    return f"pool child {pid}, {TTL * 1.7:.0f} s"


def children(world: World, host: Host) -> None:
    for process in host.worker.family():
        world.ledger.hit[process.pid] = time.monotonic()


def kill_service(world: World, host: Host) -> str:
    host.service.kill(whole=world.random.random() < 0.5)
    return ""


def kill_control(world: World, host: Host) -> str:
    world.control.kill()
    return ""


def kill_web(world: World, host: Host) -> str:
    world.web.kill()
    return ""


def upgrade_worker(world: World, host: Host) -> str:
    """SIGTERM and a new start, as an upgrade does it."""
    children(world, host)
    # Where others want the CPUs too, it takes longer by as much as they are wanted.
    allowed = 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    seconds = host.worker.terminate(within=3 * allowed)
    if seconds is None or seconds > allowed:
        why = f"{host.name}: {seconds} s, {allowed:.0f} s are allowed"
        world.ledger.violate("a worker ends within 5 s of SIGTERM", why)
    return "killed, it did not end" if seconds is None else f"ended in {seconds:.1f} s"


# ---------------------------------------------------------------------------- broker, database


def kill_broker(world: World, host: Host) -> str:
    world.broker.part.kill()
    return "kept"


def empty_broker(world: World, host: Host) -> str:
    world.broker.part.held = True
    world.broker.part.kill()
    world.broker.empty()
    world.broker.part.held = False
    return "emptied"


def freeze_broker(world: World, host: Host) -> str:
    send(world.broker.part.family(), signal.SIGSTOP)
    world.wait(12)
    send(world.broker.part.family(), signal.SIGCONT)
    return "12 s"


def kill_postgres(world: World, host: Host) -> str:
    assert world.postgres
    world.postgres.part.kill()
    return "all its processes"


def freeze_postgres(world: World, host: Host) -> str:
    """No answer for longer than HOST_LOST_AFTER: for everybody, so that nobody is lost."""
    assert world.postgres
    seconds = LOST_AFTER + 6
    world.database_is_silent = True
    world.postgres.freeze()
    world.wait(seconds)
    world.postgres.thaw()
    world.database_is_silent = False
    return f"{seconds:.0f} s"


def lock_sqlite(world: World, host: Host) -> str:
    """Another process's lock, held for longer than HOST_LOST_AFTER: nobody can write."""
    seconds = LOST_AFTER + 6
    connection = sqlite3.connect(world.data / "db.sqlite3", timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        world.wait(seconds)
    except sqlite3.OperationalError as error:
        return f"not locked: {error}"
    finally:
        connection.close()
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------------------- host, network


def freeze_host(world: World, host: Host) -> str:
    """For longer than HOST_LOST_AFTER: its runs go to the other host, and it learns of that."""
    outage = world.freeze(host)
    seconds = until_lost(world, host)
    world.thaw(host, outage)
    return f"{host.name}, {seconds:.0f} s"


def freeze_host_briefly(world: World, host: Host) -> str:
    """Longer than the lease, shorter than HOST_LOST_AFTER: lost contact, and it comes back."""
    seconds = TTL * 1.6
    outage = world.freeze(host)
    world.wait(seconds)
    world.thaw(host, outage)
    return f"{host.name}, {seconds:.0f} s"


def cut_broker(world: World, host: Host) -> str:
    seconds = TTL * 2
    host.switch("cut", only="broker")
    world.wait(seconds)
    host.switch("open", only="broker")
    return f"{host.name}, {seconds:.0f} s"


def reset_broker(world: World, host: Host) -> str:
    host.switch("refuse", only="broker")
    world.wait(5)
    host.switch("open", only="broker")
    return f"{host.name}, connections reset, 5 s"


def cut_briefly(world: World, host: Host) -> str:
    """From everything, for longer than the lease and not as long as HOST_LOST_AFTER."""
    return cut(world, host, TTL * 1.6)


def cut_for_long(world: World, host: Host) -> str:
    """From everything, for longer than HOST_LOST_AFTER: the containers must have been paused."""
    return cut(world, host, None)


def until_lost(world: World, host: Host) -> float:
    """Until its attempts are sealed; the reaper waits longer after an outage or a clock jump."""
    began = time.monotonic()
    world.wait(LOST_AFTER + 4)
    world.wait_until(
        lambda: not [row for row in world.seen.on(host.name) if row.state != "grading"],
        LOST_AFTER * 1.5,
        "its attempts are lost",
    )
    world.wait(2)
    return time.monotonic() - began


def cut(world: World, host: Host, seconds: float | None) -> str:
    outage = world.ledger.begin_outage(host.name, "cut off")
    host.switch("cut")
    if seconds is None:
        seconds = until_lost(world, host)
    else:
        world.wait(seconds)
    host.switch("open")
    world.ledger.end_outage(outage)
    return f"{host.name}, {seconds:.0f} s"


# ---------------------------------------------------------------------------- engine, container


def restart_engine(world: World, host: Host) -> str:
    host.engine.part.terminate(within=20)
    world.wait_until(host.engine.answers, 30, "the engine is back")
    kept = "live-restore" if host.engine.live_restore else "its containers end"
    return f"{host.engine.name}: {kept}"


def kill_engine(world: World, host: Host) -> str:
    host.engine.kill()
    world.wait_until(host.engine.answers, 30, "the engine is back")
    return f"{host.engine.name}: kill -9"


def kill_container(world: World, host: Host) -> str:
    return _to_a_container(world, host, "kill")


def remove_container(world: World, host: Host) -> str:
    return _to_a_container(world, host, "remove")


def _to_a_container(world: World, host: Host, what: str) -> str:
    busy = [row.container for row in world.seen.running(host.name) if row.container]
    if not busy:
        return "no container ran"
    try:
        container = host.engine.client.containers.get(world.random.choice(busy))
        container.kill() if what == "kill" else container.remove(force=True)
    except DockerException as error:
        return f"it was gone: {error}"[:60]
    return container.name


# ---------------------------------------------------------------------------- disk, clock


def fill_attempts(world: World, host: Host) -> str:
    """The folder in which this host's agents write."""
    return _fill(world, host.attempts, 8)


def fill_data(world: World, host: Host) -> str:
    """The shared folder: media, results and, with SQLite, the database."""
    return _fill(world, world.data, 8)


def _fill(world: World, folder: Path, seconds: float) -> str:
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(2**20)):
                pass
    except OSError:
        pass
    try:
        # What others free meanwhile is taken too.
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            world.wait(0.5)
            try:
                with ballast.open("ab", buffering=0) as file:
                    while file.write(bytes(2**16)):
                        pass
            except OSError:
                pass
    finally:
        ballast.unlink(missing_ok=True)
    return f"{folder.relative_to(world.folder)}, {seconds:.0f} s"


def clock_forward(world: World, host: Host) -> str:
    seconds = LOST_AFTER * 3
    world.set_clock(world.clock_offset + seconds)
    world.wait(RING_AND_A_BIT)
    return f"{seconds:.0f} s forward"


def clock_back(world: World, host: Host) -> str:
    seconds = min(15.0, world.clock_offset)
    world.set_clock(world.clock_offset - seconds)
    world.wait(RING_AND_A_BIT)
    return f"{seconds:.0f} s back"


RING_AND_A_BIT = 5.0


def freeze_and_jump(world: World, host: Host) -> str:
    """A clock jump while a host is out for a moment: the reaper must not take it for lost."""
    outage = world.freeze(host)
    world.set_clock(world.clock_offset + LOST_AFTER * 3)
    world.wait(TTL * 0.9)
    world.thaw(host, outage)
    return f"{host.name} frozen {TTL * 0.9:.0f} s"


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


KINDS = [
    Kind("worker killed", kill_worker, weight=3),
    Kind("worker parent killed", kill_parent, weight=3),
    Kind("pool child killed", kill_child, weight=3),
    Kind("pool child frozen", freeze_child),
    Kind("worker upgraded", upgrade_worker, weight=3),
    Kind("host service killed", kill_service),
    Kind("control worker killed", kill_control),
    Kind("web killed", kill_web),
    Kind("broker killed", kill_broker),
    Kind("broker emptied", empty_broker),
    Kind("broker frozen", freeze_broker, weight=1),
    Kind("PostgreSQL killed", kill_postgres, only="postgres", weight=3),
    Kind("PostgreSQL frozen", freeze_postgres, only="postgres", weight=1),
    Kind("SQLite locked", lock_sqlite, only="sqlite", weight=1),
    Kind("host frozen, lost", freeze_host, weight=1),
    Kind("host frozen", freeze_host_briefly),
    Kind("broker link cut", cut_broker, weight=1),
    Kind("broker link reset", reset_broker, weight=1),
    Kind("host cut off", cut_briefly, only="postgres"),
    Kind("host cut off, lost", cut_for_long, only="postgres", weight=1),
    Kind("engine restarted", restart_engine),
    Kind("engine killed", kill_engine),
    Kind("container killed", kill_container),
    Kind("container removed", remove_container),
    Kind("disk full: attempts", fill_attempts, weight=1),
    Kind("disk full: data", fill_data, weight=1),
    Kind("clock forward", clock_forward, weight=1),
    Kind("clock back", clock_back, weight=1),
    Kind("host frozen, clock forward", freeze_and_jump, weight=1),
]
CLOCKS = {"clock forward", "clock back", "host frozen, clock forward"}
# Those that are over at once.
QUICK = {
    "worker killed",
    "worker parent killed",
    "pool child killed",
    "worker upgraded",
    "host service killed",
    "control worker killed",
    "web killed",
    "broker killed",
    "broker emptied",
    "PostgreSQL killed",
    "engine restarted",
    "engine killed",
    "container killed",
    "container removed",
    "host frozen, clock forward",
}
# The faults that a guard stands against.
AGAINST = {
    "fencing": ["pool child frozen", "host frozen, lost", "pool child frozen"],
    "grace": ["host frozen, clock forward", "clock forward"],
    "adoption": ["pool child killed", "broker emptied", "host service killed"],
}


def possible(kinds: list[Kind], world: World) -> list[Kind]:
    """Those that can be done here."""
    return [
        kind
        for kind in kinds
        if kind.only in ("", world.database) and not (kind.name in CLOCKS and world.clock_error)
    ]


def schedule(kinds: list[Kind], count: int, chance: random.Random) -> list[Kind]:
    """`count` kinds in the order of the seed: every kind once, then by weight."""
    plan = list(kinds)
    chance.shuffle(plan)
    weights = [kind.weight for kind in kinds]
    while len(plan) < count:
        plan.append(chance.choices(kinds, weights)[0])
    plan = plan[:count]
    chance.shuffle(plan)
    return plan


def against(kinds: list[Kind], names: list[str]) -> Iterator[Kind]:
    """The kinds of these names, again and again."""
    named = {kind.name: kind for kind in kinds}
    return itertools.cycle([named[name] for name in names if name in named])


def target(world: World) -> Host:
    """A host with something to lose: one that runs more than the other, or either."""
    busy = [host for host in world.hosts if world.seen.running(host.name)]
    return world.random.choice(busy or world.hosts)
