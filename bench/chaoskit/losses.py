"""Faults after which a run must go on from its checkpoint: containers and hosts are lost.

Beside those of chaoskit/faults.py: a host without power, in the middle of a save too, and a
checkpoint that storage has lost a part of.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from chaoskit import faults
from chaoskit.engines import below
from chaoskit.faults import Kind
from chaoskit.processes import send
from chaoskit.resumed import AGENTS
from chaoskit.rows import Row
from chaoskit.world import Host, World

# How long a save is waited for.
SAVES_WITHIN = 20.0
# An attempt that was claimed is at its first step.
GOES_ON_WITHIN = 6.0
# Two intervals of marathon's checkpoints.
SAVED_AFTER = 6.0
# A save of some megabytes takes about so long.
SAVE_SECONDS = 0.15


def power_off(world: World, host: Host) -> str:
    """Nothing of the host runs on, and its disk stays; it comes back after HOST_LOST_AFTER."""
    return _off_and_on(world, host, _processes(host))


def power_off_while_saving(world: World, host: Host) -> str:
    """In the middle of a checkpoint: what is then in storage is half of it."""
    busy = _resumable(world, host)
    doomed = _processes(host)
    what = "no save was seen"
    before = _stored(world, busy)
    until = time.monotonic() + SAVES_WITHIN
    while time.monotonic() < until:
        if new := _stored(world, busy) - before:
            time.sleep(world.random.uniform(0, SAVE_SECONDS))
            what = f"saving {min(new).relative_to(_checkpoints(world)).as_posix()[:18]}"
            break
        time.sleep(0.005)
    world.ledger.faults[-1].begin = time.monotonic()
    return f"{_off_and_on(world, host, doomed)}, {what}"


def power_off_torn(world: World, host: Host) -> str:
    """Storage loses a part of the newest checkpoint as well: the one before must do."""
    world.wait_until(lambda: _have_two(world, host), SAVES_WITHIN, "two checkpoints of a run")
    busy = _resumable(world, host)
    world.ledger.faults[-1].begin = time.monotonic()

    def tear() -> str:
        return f", {sum(_tear(world, row) for row in busy)} checkpoints torn"

    return _off_and_on(world, host, _processes(host), then=tear)


def kill_worker(world: World, host: Host) -> str:
    """While nobody watches, nothing is saved: the next fault waits for the adopters' first save."""
    note = faults.kill_worker(world, host)
    world.wait_until(world.is_well, 60, "its attempts are adopted")
    world.wait(SAVED_AFTER)
    return note


def until_they_go_on(world: World) -> None:
    """What was lost runs again, and has shown by its first steps from where."""
    from runs.models import Attempt

    waiting = Attempt.objects.filter(state="queued", resumed_from__isnull=False)
    world.wait_until(lambda: not waiting.exists(), 60, "what was lost runs again")
    world.wait(GOES_ON_WITHIN)


def _have_two(world: World, host: Host) -> bool:
    """Whether a run of this host has a checkpoint to fall back to."""
    from runs.models import Attempt

    running = Attempt.objects.filter(pk__in=[row.id for row in _resumable(world, host)])
    return any(len(attempt.checkpoints_to_try()) > 1 for attempt in running)


def move_away(world: World, host: Host) -> str:
    """Checkpoint and move, as an operator does it; the host is used again afterwards."""
    world.ask("POST", f"/api/v1/hosts/{host.name}/drain", {"move": True})
    moving = {row.id for row in _resumable(world, host)}
    world.wait_until(
        lambda: not moving & {row.id for row in world.seen.on(host.name)}, 30, "they have moved"
    )
    world.ask("POST", f"/api/v1/hosts/{host.name}/undrain", {})
    return f"{len(moving)} attempts"


def _resumable(world: World, host: Host) -> list[Row]:
    from runs.models import Attempt

    running = {row.id: row for row in world.seen.running(host.name)}
    able = Attempt.objects.filter(pk__in=running, run__group__agent__name__in=AGENTS)
    return [running[key] for key in able.values_list("pk", flat=True)]


# ------------------------------------------------------------------------------ without power


def _processes(host: Host) -> list[psutil.Process]:
    """All that runs of a host: worker, host service, engine, containers."""
    found = [process for part in host.parts() for process in part.family()]
    for process in below(host.engine.folder):
        found.append(process)
        with contextlib.suppress(psutil.NoSuchProcess):
            # A container's processes are its shim's.
            found += process.children(recursive=True)
    return found


def _off_and_on(
    world: World, host: Host, doomed: list[psutil.Process], then: Callable[[], str] = str
) -> str:
    """`then`: what happens while it is off; a note."""
    parts = [*host.parts(), host.engine.part]
    for part in parts:
        part.held = True
    outage = world.ledger.begin_outage(host.name, "off")
    world.ledger.hit.update({process.pid: time.monotonic() for process in doomed})
    send(doomed, signal.SIGKILL)
    # What was started meanwhile.
    late = _processes(host)
    world.ledger.hit.update({process.pid: time.monotonic() for process in late})
    send(late, signal.SIGKILL)
    for part in parts:
        part.kill()
    note = then()
    seconds = faults.until_lost(world, host)
    for part in parts:
        part.held = False
    world.wait_until(host.engine.answers, 60, "the engine is back")
    world.ledger.end_outage(outage)
    return f"{host.name}, {seconds:.0f} s{note}"


# ------------------------------------------------------------------------------ storage


def _checkpoints(world: World) -> Path:
    return world.data / "media" / "checkpoints"


def _folder(world: World, run: int) -> Path:
    return _checkpoints(world) / str(run)


def _stored(world: World, busy: list[Row]) -> set[Path]:
    """Manifests and blobs of these runs."""
    found = set()
    for row in busy:
        for folder in (_folder(world, row.run), _folder(world, row.run) / "blobs"):
            try:
                found |= {folder / name for name in os.listdir(folder)}
            except FileNotFoundError:
                continue
    return {path for path in found if path.name != "blobs"}


def _tear(world: World, row: Row) -> bool:
    """Whether there was one to fall back to; only then the newest one is torn."""
    from runs.agent_manifest import of
    from runs.checkpoints import store as checkpoint_store
    from runs.models import Attempt

    attempt = Attempt.objects.get(pk=row.id)
    stored = attempt.checkpoints_to_try()
    if len(stored) < 2:
        return False
    saved = of(attempt.run.group.agent).saved_folders
    newest, before = (
        checkpoint_store.read_manifest(each.path, each.digest, roots=saved) for each in stored[:2]
    )
    blobs = _folder(world, row.run) / "blobs"
    for number, name in enumerate(sorted(newest.blobs() - before.blobs())):
        blob = blobs / name
        if (number + row.id) % 2:
            blob.unlink(missing_ok=True)
        elif blob.exists():
            blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    return True


KINDS = [
    Kind("container killed", faults.kill_container, weight=4),
    Kind("container removed", faults.remove_container, weight=3),
    Kind("engine restarted", faults.restart_engine, weight=1),
    Kind("engine killed", faults.kill_engine, weight=1),
    Kind("host frozen, lost", faults.freeze_host, weight=2),
    Kind("host off", power_off, weight=3),
    Kind("host off while it saves", power_off_while_saving, weight=3),
    Kind("host off, checkpoint torn", power_off_torn, weight=1),
    Kind("runs moved away", move_away, weight=1),
    Kind("worker killed", kill_worker, weight=1),
]
QUICK = {"container killed", "container removed", "host off while it saves"}
AGAINST = {"manifest": ["host off while it saves", "host off, checkpoint torn"]}
