#!/usr/bin/env python
"""What the product adds to a container: start-up, seconds per run, grading. No arguments needed.

Everything is measured side by side in one run against the bare Engine API on the same machine:

* start: seconds from the Start request to the engine's "start" event, against a bare create + start
  of the same image with the same limits, in turns;
* run: seconds per dummy run through the product with 1 and with 2 slots, against the floor
  (create, start, wait for /health, exec of the agent, kill, remove by the SDK), in turns of blocks;
* grade: one small submission in a warm, isolated child.

The last line is the summary; the exit status is 1 when an aim is missed.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import docker

ROOT = Path(__file__).resolve().parent.parent
AIM_START_MS = 150
AIM_RUN_RATIO = 1.1
AIM_GRADE_MS = 20
HEALTH = "http://localhost:5000/health"


class Product:
    """A `./run` of its own, in a folder of its own."""

    def __init__(self, *, slots: int, base_image: str | None) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="mlw-bench-"))
        self.data.chmod(0o755)
        self.env = {**os.environ, "SLOTS": str(slots), "MLEBENCH_WEB_DATA": str(self.data)}
        command = [str(ROOT / "run"), "--port", "0", "--data", str(self.data)]
        if base_image:
            command += ["--base-image", base_image]
        self.log = (self.data / "bench.log").open("wb")
        self.process = subprocess.Popen(
            command, env=self.env, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self.url = self._wait_for_address()
            self.token = self.manage("createtoken", "--user", "bench", "--role", "admin").strip()
            self._wait_for_image()
        except BaseException:
            self.stop()
            raise

    def _wait_for_address(self) -> str:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"./run ended: {(self.data / 'bench.log').read_text()[-2000:]}")
            try:
                address = json.loads((self.data / "run.json").read_text())["address"]
                with urllib.request.urlopen(f"{address}/healthz", timeout=5) as reply:
                    if reply.status == 200:
                        return str(address)
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.2)
        raise SystemExit("./run did not come up")

    def _wait_for_image(self) -> None:
        until = time.monotonic() + 900
        while time.monotonic() < until:
            plan = self.ask(
                "POST",
                "/api/v1/run-groups?dry_run=1",
                {"agent": "dummy", "split": "demo", "seeds": 1},
            )
            if plan.get("container_config") == "demo" and "dummy" in self.images():
                return
            time.sleep(1)
        raise SystemExit("the image of the dummy agent was not built")

    def images(self) -> str:
        code = (
            "from mlebench_web.catalog.models import AgentImage as A;"
            "print([(i.image_name, i.image_id) for i in A.objects.filter(state='ready')])"
        )
        return self.manage("shell", "-v", "0", "-c", code)

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *words],
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def ask(self, method: str, path: str, body: object = None) -> dict[str, object]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            answer: dict[str, object] = json.load(reply)
            return answer

    def start_group(self, seeds: int) -> int:
        group = self.ask(
            "POST",
            "/api/v1/run-groups",
            {
                "agent": "dummy",
                "competitions": ["demo-diamond-prices"],
                "container_config": "demo",
                "seeds": seeds,
                "experiment": "overhead",
            },
        )
        return int(str(group["id"]))

    def finished(self, group: int) -> list[dict[str, object]]:
        """Runs of the group once all have ended."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            answer = self.ask("GET", f"/api/v1/run-groups/{group}")
            if answer["state"] in ("finished", "failed", "cancelled"):
                if answer["state"] != "finished":
                    raise SystemExit(f"run group {group}: {answer['state']}")
                return self.attempts(group)
            time.sleep(0.1)
        raise SystemExit(f"run group {group} did not end")

    def attempts(self, group: int) -> list[dict[str, object]]:
        code = (
            "import json; from runs.models import Attempt as A;"
            f"rows = A.objects.filter(run__group={group});"
            "print(json.dumps([{'claimed': a.claimed_at.timestamp(),"
            "'ended': a.ended_at.timestamp(), 'timings': a.timings} for a in rows]))"
        )
        rows: list[dict[str, object]] = json.loads(self.manage("shell", "-v", "0", "-c", code))
        return rows

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.log.close()
        shutil.rmtree(self.data, ignore_errors=True)


class Bare:
    """The same container by the SDK alone: what nobody can be quicker than."""

    def __init__(self, client: docker.DockerClient, image: str, data: Path) -> None:
        self.client = client
        self.image = image
        self.data = data
        self.work = Path(tempfile.mkdtemp(prefix="mlw-floor-"))
        self.work.chmod(0o755)
        self.number = 0
        self.lock = threading.Lock()

    def create(self) -> tuple[object, Path]:
        with self.lock:
            self.number += 1
            folder = self.work / str(self.number)
        for name in ("submission", "logs", "code", "link"):
            (folder / name).mkdir(parents=True)
            (folder / name).chmod(0o777)
        relay = ROOT / "runs" / "containers" / "relay.py"
        container = self.client.containers.create(
            self.image,
            network_mode="none",
            nano_cpus=1_000_000_000,
            mem_limit="2g",
            volumes={
                str(self.data): {"bind": "/home/data", "mode": "ro"},
                str(folder / "submission"): {"bind": "/home/submission", "mode": "rw"},
                str(folder / "logs"): {"bind": "/home/logs", "mode": "rw"},
                str(folder / "code"): {"bind": "/home/code", "mode": "rw"},
                str(folder / "link"): {"bind": "/private/link", "mode": "rw"},
                str(relay): {"bind": "/private/grading_server.py", "mode": "ro"},
            },
        )
        return container, folder

    def one_start(self) -> float:
        """Seconds of create + start."""
        began = time.perf_counter()
        container, _ = self.create()
        container.start()  # type: ignore[attr-defined]
        took = time.perf_counter() - began
        container.remove(force=True)  # type: ignore[attr-defined]
        return took

    def one_run(self) -> float:
        """Seconds of create, start, wait for /health, exec, kill, remove."""
        began = time.perf_counter()
        container, _ = self.create()
        container.start()  # type: ignore[attr-defined]
        # As mle-bench's own runner asks, but every 50 ms in place of every second.
        while container.exec_run(["curl", "-fs", HEALTH]).exit_code:  # type: ignore[attr-defined]
            time.sleep(0.05)
        container.exec_run(["bash", "/home/agent/start.sh"], user="nonroot")  # type: ignore[attr-defined]
        container.kill()  # type: ignore[attr-defined]
        container.remove(force=True)  # type: ignore[attr-defined]
        return time.perf_counter() - began

    def block(self, runs: int, at_once: int) -> float:
        """Seconds per run of `runs` runs, `at_once` at a time."""
        left = list(range(runs))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if not left:
                        return
                    left.pop()
                self.one_run()

        began = time.perf_counter()
        threads = [threading.Thread(target=work) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - began) / runs

    def close(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


def started_after(client: docker.DockerClient, act: Callable[[], object]) -> float:
    """Seconds from the call of `act` to the engine's start event of a container of ours."""
    events = client.events(
        decode=True,
        filters={"type": "container", "event": "start", "label": "mlebench-web.attempt"},
    )
    began = time.time()
    act()
    for event in events:
        events.close()
        return float(event["timeNano"]) / 1e9 - began
    raise SystemExit("no start event")


def press_start(product: Product) -> None:
    groups.append(product.start_group(1))


def per_run(rows: list[dict[str, object]]) -> float:
    first = min(float(str(row["claimed"])) for row in rows)
    last = max(float(str(row["ended"])) for row in rows)
    return (last - first) / len(rows)


def image_of(product: Product) -> str:
    pairs = dict(eval(product.images()))
    return str(pairs["dummy"])


def measure(args: argparse.Namespace) -> int:
    client = docker.from_env(timeout=60)
    missed = []
    lines = []
    for slots in (1, 2):
        product = Product(slots=slots, base_image=args.base_image)
        bare = Bare(
            client,
            image_of(product),
            product.data / "competitions" / "demo-diamond-prices" / "prepared" / "public",
        )
        try:
            product.finished(product.start_group(2))
            bare.block(2, slots)
            if slots == 1:
                ours, floor = [], []
                for _ in range(args.starts):
                    floor.append(bare.one_start())
                    press = partial(press_start, product)
                    ours.append(started_after(client, press))
                    product.finished(groups[-1])
                added = (statistics.median(ours) - statistics.median(floor)) * 1000
                lines.append(
                    f"start: {statistics.median(ours):.3f} s, "
                    f"bare {statistics.median(floor):.3f} s, added {added:.0f} ms "
                    f"(aim {AIM_START_MS}), n={args.starts}"
                )
                if added > AIM_START_MS:
                    missed.append("start")
            ratios, ours, floor, phases = [], [], [], []
            for _ in range(args.blocks):
                floor.append(bare.block(args.runs, slots))
                rows = product.finished(product.start_group(args.runs))
                ours.append(per_run(rows))
                ratios.append(ours[-1] / floor[-1])
                phases += [row["timings"] for row in rows]
            ratio = statistics.median(ratios)
            lines.append(
                f"run, {slots} slot(s): {statistics.median(ours):.3f} s, floor "
                f"{statistics.median(floor):.3f} s, ratio {ratio:.2f} (aim {AIM_RUN_RATIO}), "
                f"{args.blocks} blocks of {args.runs}"
            )
            names = ("prepare", "create", "start", "ready", "exec", "collect", "grade")
            lines.append(
                "  phases, median ms: "
                + ", ".join(
                    f"{name} {1000 * statistics.median(p.get(name, 0) for p in phases):.0f}"
                    for name in names
                )
            )
            if ratio > AIM_RUN_RATIO:
                missed.append(f"run with {slots} slot(s)")
            if slots == 1:
                grade = 1000 * statistics.median(p["grade"] for p in phases)
                lines.append(f"grade, with the report's row: {grade:.1f} ms (aim {AIM_GRADE_MS})")
                if grade > AIM_GRADE_MS:
                    missed.append("grade")
        finally:
            product.stop()
            bare.close()
    print("\n".join(lines))
    print("missed: " + ", ".join(missed) if missed else "all aims met")
    return 1 if missed else 0


groups: list[int] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-image", default=os.environ.get("BASE_IMAGE"))
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--runs", type=int, default=10, help="runs in a block")
    parser.add_argument("--blocks", type=int, default=3)
    return measure(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
