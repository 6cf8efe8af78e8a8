"""What must hold, looked at all the time and once more at the end.

While faults go on (`Monitor`): no adoption from a live supervisor, no stale write, no run finished
twice, no host declared lost that was not out for long enough, no GPU or slot held twice, no two
containers that count for one run. At the end (`at_the_end`): every run has ended, logs are whole,
nothing is left, and how much agent time each fault has cost.
"""

import fcntl
import itertools
import json
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker

from chaoskit import rows
from chaoskit.agent import STEP_SECONDS
from chaoskit.ledger import Ledger
from chaoskit.processes import alive
from chaoskit.world import HEARTBEAT, LOST_AFTER, SLOTS, Host, World

if TYPE_CHECKING:
    from runs.models import Attempt

# The host's last sign of life may be this much older than the moment at which it went out, and
# this bench sees a seal so much later.
LOST_TOLERANCE = HEARTBEAT + 3
# The host service sweeps each 30 s, folders of private graders once they are two minutes old.
SWEPT_WITHIN = 200.0
GAP_SECONDS = 1.0
STANDING = ("grader.tmp", "official.tmp")
LINE = re.compile(r"^line (\d+) of", re.MULTILINE)
ENDED_WITHIN = 300.0
CANCELLED_WITHIN = 60.0


class Monitor:
    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger: Ledger = world.ledger
        self.audit = rows.Audit()
        self.adopted = 0
        self.host_lost: list[tuple[int, float]] = []
        self._ends: Counter[int] = Counter()
        self._suspects: dict[int, tuple[int | None, float]] = {}
        world.watchers.append(self.look)

    def look(self) -> None:
        self.leases()
        self.moves()
        for host in self.world.hosts:
            self.containers(host)

    # ------------------------------------------------------------------ the audit

    def leases(self) -> None:
        for lease in self.audit.leases():
            self.adopted += 1
            pid = lease.old_pid
            if pid is None or pid == lease.new_pid or not lease.was_valid:
                continue
            if pid not in self.ledger.hit and alive(pid) and not self.is_orphan_of_ours(pid):
                self.ledger.violate(
                    "an attempt with a live supervisor was adopted",
                    f"attempt {lease.attempt} ({lease.state}): supervisor {pid} was alive under a "
                    f"valid lease when {lease.new_pid} took it",
                )

    def is_orphan_of_ours(self, pid: int) -> bool:
        """A pool child of a worker that has been killed or told to end, on its way out."""
        return pid in self.ledger.hit

    def moves(self) -> None:
        for move in self.audit.moves():
            if move.old not in ("", "queued") and move.token != move.held:
                self.ledger.violate(
                    "a stale write was accepted",
                    f"attempt {move.attempt}: {move.old} -> {move.new} by {move.by} under token "
                    f"{move.token}, while the row had {move.held}",
                )
            if move.new == "ended":
                self._ends[move.attempt] += 1
                if self._ends[move.attempt] > 1:
                    self.ledger.violate("an attempt ended twice", f"attempt {move.attempt}")
                self.ended(move)
            if move.cause == "host_lost":
                self.lost(move)

    def ended(self, move: rows.Moved) -> None:
        """What its own end says at once; `at_the_end` looks at all of them again."""
        from runs.models import Attempt

        if move.outcome in ("graded", "agent_failed"):
            attempt = Attempt.objects.select_related("run__group__agent").get(pk=move.attempt)
            ended_well(self.world, attempt)

    def lost(self, move: rows.Moved) -> None:
        from runs.models import Attempt

        now = time.monotonic()
        self.host_lost.append((move.attempt, now))
        attempt = Attempt.objects.select_related("host").get(pk=move.attempt)
        host = attempt.host.name if attempt.host else ""
        out = self.ledger.longest_outage(host, before=now, within=5)
        if out < LOST_AFTER - LOST_TOLERANCE:
            self.ledger.violate(
                "an attempt was declared host lost although its host was not out for long enough",
                f"attempt {move.attempt} of {host}: out for {out:.1f} s, {LOST_AFTER:.0f} s are "
                f"asked for; {attempt.cause_detail}",
            )

    # ------------------------------------------------------------------ engines

    def containers(self, host: Host) -> None:
        found = self.world.containers(host)
        if found is None:
            return
        # Containers first, then the rows: a container whose attempt is unended afterwards counts.
        unended = {row.id: row for row in rows.look().attempts}
        counting: dict[int, list[str]] = defaultdict(list)
        gpus: dict[str, list[str]] = defaultdict(list)
        running = 0
        for container in found:
            labels = container["Labels"]
            if container["State"] not in ("running", "paused"):
                continue
            name = container["Names"][0]
            for gpu in filter(None, labels.get("mlebench-web.gpus", "").split(",")):
                gpus[gpu].append(name)
            row = unended.get(int(labels.get("mlebench-web.attempt", 0)))
            if row is None:
                continue
            running += 1
            counting[row.run].append(name)
            if row.host != host.name:
                self.ledger.violate(
                    "a container runs on another host than its attempt's",
                    f"{name} on {host.name}, attempt {row.id} on {row.host}",
                )
        for run, names in counting.items():
            if len(names) > 1:
                self.ledger.violate("two containers count for one run", f"run {run}: {names}")
        for gpu, names in gpus.items():
            if len(names) > 1:
                self.ledger.violate("a GPU is held twice", f"{gpu}: {names}")
        if running > SLOTS:
            self.ledger.violate("a slot is held twice", f"{host.name} runs {running} of {SLOTS}")


def wait_for_the_end(world: World) -> None:
    """Until every run has ended. What waits out a long back-off is cancelled, as a person may."""
    world.is_feeding = False
    world.set_clock(world.clock_offset)
    until = time.monotonic() + max(ENDED_WITHIN, world.steps[1] + 120)
    while time.monotonic() < until:
        world.wait(1)
        if not world.seen.attempts and time.monotonic() - world.seen.at < 3:
            if not world.seen.queued:
                return
            if not _claimable():
                break
    _cancel_waiting(world)
    world.wait(3)


def _claimable() -> int:
    from runs.models import Attempt

    return Attempt.objects.claimable().count()


def _cancel_waiting(world: World) -> None:
    """Each group until it is answered: a server that is slow for a moment is no fault of a run."""
    from runs.models import Attempt

    until = time.monotonic() + CANCELLED_WITHIN
    waiting = Attempt.objects.filter(state="queued", not_before__isnull=False)
    while groups := sorted(set(waiting.values_list("run__group", flat=True))):
        for group in groups:
            path = f"/api/v1/run-groups/{group}/cancel"
            if world.ask("POST", path, {"queued_only": True}) is None:
                world.ledger.notes.append(f"no answer to {path}")
        if time.monotonic() > until:
            world.ledger.violate("what waits cannot be cancelled", f"run groups {groups}")
            return
        world.wait(1)


# ---------------------------------------------------------------------------- at the end


def at_the_end(world: World, monitor: Monitor) -> dict[str, Any]:
    """All that can only be seen once everything has ended; figures for the summary."""
    monitor.look()
    figures = every_run_ended(world)
    figures |= logs_are_whole(world)
    nothing_is_left(world)
    time_lost(world)
    for part in world.parts:
        if part.name.startswith(("engine", "postgres", "link")):
            continue
        world.ledger.notes += part.own_ends
    return figures


def every_run_ended(world: World) -> dict[str, Any]:
    from runs.models import Attempt, GradingReport, Run, RunGroup

    ledger = world.ledger
    for attempt in Attempt.objects.exclude(state="ended").select_related("host"):
        ledger.violate(
            "a run has not ended",
            f"run {attempt.run_id}, attempt {attempt.pk}: {attempt.state} on {attempt.host}, "
            f"not before {attempt.not_before}, supervisor {attempt.supervisor_pid}",
        )
    for run in Run.objects.prefetch_related("attempts").select_related("group__agent"):
        attempts = list(run.attempts.all())
        graded = [one for one in attempts if one.outcome == "graded"]
        if len(graded) > 1:
            ledger.violate("a run finished twice", f"run {run.pk}: {[one.pk for one in graded]}")
        if graded and graded[-1] is not attempts[-1]:
            ledger.violate("a finished run went on", f"run {run.pk}: attempts {len(attempts)}")
        earned = world.crew.of(run).earned(run) if graded else None
        if earned and (run.state, run.result, run.score) != (
            "finished",
            earned.result,
            earned.score,
        ):
            why = f"run {run.pk}: {run.state} {run.result} {run.score}, {graded[-1].cause}"
            ledger.violate("a whole run has another result than it earned", why)
        for one in attempts:
            one.run = run
            ended_well(world, one)
            if one.cause == "product_error":
                why = f"attempt {one.pk}: {one.cause_detail[:500]}"
                ledger.violate("an attempt ended by an error of the product", why)
    results_are_published(ledger)
    twice = GradingReport.objects.filter(is_current=True).values_list("attempt__run", flat=True)
    for run_id, count in Counter(twice).items():
        if count > 1:
            ledger.violate("a run has two reports", f"run {run_id}: {count}")
    groups = RunGroup.objects.count()
    if groups != len(world.keys) - (world._unanswered is not None) and groups != len(world.keys):
        ledger.violate(
            "a request that was sent again made a second group",
            f"{groups} groups of {len(world.keys)} keys",
        )
    states = Counter(Run.objects.values_list("state", flat=True))
    causes = Counter(
        Attempt.objects.exclude(outcome="graded").values_list("outcome", "cause", named=False)
    )
    return {
        "runs": Run.objects.count(),
        "states": dict(states),
        "attempts": Attempt.objects.count(),
        "causes": {f"{outcome}/{cause}": count for (outcome, cause), count in causes.items()},
    }


def ended_well(world: World, attempt: "Attempt") -> None:
    """Agents here do what they are told: no end is their own fault, or half of the work."""
    who = f"run {attempt.run_id}, attempt {attempt.pk}"
    if attempt.outcome == "agent_failed":
        why = f"{who}: {attempt.cause} {attempt.cause_detail[:300]}"
        world.ledger.violate("a fault of ours was blamed on the agent", why)
    if attempt.outcome == "graded" and (why := world.crew.of(attempt.run).wrong_with(attempt)):
        world.ledger.violate("a run was graded that is not whole", f"{who}: {why}")


def results_are_published(ledger: Ledger) -> None:
    """Each run that counts is in its group's folder, in upstream's layout, and in its report."""
    from runs import layout
    from runs.models import Run, RunGroup

    finished = Run.objects.filter(state="finished").select_related("group", "competition")
    for run in finished:
        if not (layout.run_folder(run) / "submission" / "submission.csv").exists():
            ledger.violate("a finished run's results are missing", f"run {run.pk}")
    for group in RunGroup.objects.all():
        expected = finished.filter(group=group).count()
        for path in layout.group_folder(group).glob("*_grading_report.json"):
            total = json.loads(path.read_text())["total_runs"]
            if total < expected:
                why = f"group {group.pk}: {total} of {expected} runs"
                ledger.violate("a group's grading report is old", why)


def logs_are_whole(world: World) -> dict[str, Any]:
    from runs import layout, logs
    from runs.models import Attempt

    ledger = world.ledger
    lines_seen = 0
    for attempt in Attempt.objects.select_related("run__group__agent", "run__competition"):
        text = b"".join(logs.raw(attempt.pk, "agent")).decode()
        numbers = [int(found) for found in LINE.findall(text)]
        lines_seen += len(numbers)
        who = f"attempt {attempt.pk} ({attempt.outcome} {attempt.cause})"
        first, last = world.crew.of(attempt.run).lines(attempt.run, text)
        if numbers != list(range(first, first + len(numbers))):
            at = next(i for i, n in enumerate(numbers) if n != first + i)
            near = numbers[max(0, at - 2) : at + 4]
            ledger.violate("log lines are lost, doubled or out of order", f"{who}: ...{near}...")
        if re.search(r"[^\n]line \d+ of", text):
            ledger.violate("a log line was cut in two", who)
        kept = layout.attempt_folder(attempt) / "logs" / "agent.stdout"
        written = len(LINE.findall(kept.read_text())) if kept.exists() else None
        if attempt.outcome == "graded" and last is not None:
            if first + len(numbers) - 1 != last:
                why = f"{who}: {len(numbers)} lines from {first}, the last one should be {last}"
                ledger.violate("log lines are lost in an attempt that lived", why)
        elif written is not None and attempt.cause != "host_lost" and len(numbers) < written:
            why = f"{who}: {len(numbers)} of {written} lines were shipped"
            ledger.violate("log lines are lost in an attempt that lived", why)
    return {"lines": lines_seen}


def nothing_is_left(world: World) -> None:
    """Containers, networks, volumes, folders, locks."""
    ledger = world.ledger
    began = time.monotonic()
    left = what_is_left(world)
    while left and time.monotonic() - began < SWEPT_WITHIN:
        world.wait(2)
        left = what_is_left(world)
    for what in left:
        ledger.violate("something is left behind", what)


def what_is_left(world: World) -> list[str]:
    from runs.models import Attempt, GpuLease, Installation

    left = []
    network = f"mlebench-{Installation.this().name}"
    for host in world.hosts:
        try:
            client = host.engine.client
            left += [f"container {c.name} on {host.name}" for c in client.containers.list(all=True)]
            left += [f"volume {v.name} on {host.name}" for v in client.volumes.list()]
            names = [n.name for n in client.networks.list()]
        except (docker.errors.DockerException, OSError) as error:
            left.append(f"engine of {host.name} does not answer: {error}")
            continue
        # The installation's own network stays for the next run; there is one of it.
        for name in ("bridge", "host", "none", network):
            if name in names:
                names.remove(name)
        left += [f"network {name} on {host.name}" for name in names]
        left += [f"{path.relative_to(world.folder)}" for path in host.attempts.iterdir()]
        # A grader that runs has a folder of its own there.
        sockets = [path for path in host.sockets.iterdir() if path.name not in STANDING]
        left += [f"{path.relative_to(world.folder)}" for path in sockets if path.is_dir()]
        # "pymp-": of Celery's library, one for each worker that runs or was killed.
        temporary = [path for path in host.temporary.iterdir() if not path.match("pymp-*")]
        left += [f"{path.relative_to(world.folder)}" for path in temporary]
    for path in (world.data / "run-groups").rglob(".*"):
        if path.name == ".publish.lock":
            if not _is_free(path):
                left.append(f"lock {path.relative_to(world.folder)} is held")
        elif path.name.startswith((".assemble-", ".writing-", ".collect", ".replaced")):
            left.append(f"{path.relative_to(world.folder)}")
    held = GpuLease.objects.filter(released_at__isnull=True).values_list("gpu__uuid", flat=True)
    left += [f"GPU lease of {uid}" for uid in held]
    left += [f"resources of {row}" for row in Attempt.objects.holding()]
    left += [f"checkpoints of finished run {run}" for run in with_checkpoints(world)]
    return left


def with_checkpoints(world: World) -> list[int]:
    """Finished runs whose checkpoints are still in storage; they need none."""
    from runs.models import Run

    folder = world.data / "media" / "checkpoints"
    if not folder.is_dir():
        return []
    keys = {int(path.name) for path in folder.iterdir() if any(path.rglob("*"))}
    return list(Run.objects.filter(pk__in=keys, state="finished").values_list("pk", flat=True))


def _is_free(path: Path) -> bool:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def time_lost(world: World) -> None:
    """Gaps between steps of agents, and the work of attempts that did not count, by fault."""
    from runs import layout
    from runs.models import Attempt

    ledger = world.ledger
    for attempt in Attempt.objects.exclude(host=None).select_related(
        "run__group", "run__competition"
    ):
        path = layout.attempt_folder(attempt) / "code" / "steps"
        if not path.exists():
            continue
        times = [float(line.split()[1]) for line in path.read_text().splitlines() if " " in line]
        for before, after in itertools.pairwise(times):
            gap = after - before
            if gap > GAP_SECONDS and (
                fault := ledger.fault_at(before + STEP_SECONDS + 0.1, slack=15)
            ):
                fault.paused += gap - STEP_SECONDS
        # The step that a fault has cut short began before it.
        fault = ledger.fault_at(times[-1] + STEP_SECONDS + 0.1, slack=15) if times else None
        if fault and attempt.outcome == "infrastructure_failed":
            fault.redone += times[-1] - times[0]
            fault.lost_attempts += 1
