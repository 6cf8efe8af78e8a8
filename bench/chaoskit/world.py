"""A small fleet on one machine: every process of the product, each of which can be killed.

Shared by the two hosts, as on a real fleet: database, broker (TCP), media, run-groups, prepared
data. Each host's own: engine, attempts folder (a small tmpfs), sockets, temporary files, GPUs, and
its own network path to broker and PostgreSQL.
"""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException

from chaoskit import agent, rows
from chaoskit.crew import Crew, Worker
from chaoskit.engines import OwnEngine, unmount_below
from chaoskit.ledger import Ledger, Outage
from chaoskit.processes import Part, alive, in_cgroup_of, send
from chaoskit.stores import Postgres, Valkey, free_port, port_answers
from mlebench_web.launcher.__main__ import control_command, worker_command

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = sys.executable
SHARED = ROOT.parent / "shared"
HEARTBEAT, TTL, LOST_AFTER, RING_EVERY = 2.0, 8.0, 24.0, 3.0
SLOTS = 2
AGENT_SECONDS = (25, 45)
LOOK_EVERY = 0.5


class Host:
    """A worker host: Celery worker, host service, engine, and the folders that are its own."""

    def __init__(self, name: str, folder: Path, engine: OwnEngine) -> None:
        self.name = name
        self.folder = folder
        self.engine = engine
        self.attempts = folder / "attempts"
        self.sockets = folder / "s"
        self.temporary = folder / "tmp"
        self.links: list[Path] = []
        self.proxies: list[Part] = []
        self.worker: Part
        self.service: Part
        self.gpus: list[str] = []

    def parts(self) -> list[Part]:
        return [self.service, self.worker]

    def switch(self, state: str, *, only: str = "") -> None:
        """Cut the links of this host, or open them."""
        for link in self.links:
            if only in link.name:
                temporary = link.with_suffix(".new")
                temporary.write_text(state)
                temporary.replace(link)


class World:
    def __init__(
        self,
        *,
        database: str,
        seed: int,
        crew: Crew,
        break_guard: str = "",
        leases: dict[str, str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.database = database
        self.crew = crew
        self.random = random.Random(seed)
        self.say = say
        self.ledger = Ledger()
        # Short: sockets are below it.
        self.folder = Path(tempfile.mkdtemp(prefix="mlc-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.data = self.folder / "d"
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self.clock = self.folder / "clock"
        self.has_moved_clock = False
        self.set_clock(0)
        self.env = self.common_env(break_guard, leases or {})
        self.hosts: list[Host] = []
        self.parts: list[Part] = []
        self.seen = rows.Seen()
        self.watchers: list[Callable[[], None]] = []
        self.keys: list[str] = []
        self.token = ""
        self.is_feeding = False
        # While its server is frozen a question to the database would hang us with it.
        self.database_is_silent = False
        self.steps: tuple[float, float] = AGENT_SECONDS
        self._looked = 0.0
        self._posted = 0.0
        self._unanswered: tuple[str, dict[str, object]] | None = None
        self.postgres: Postgres | None = None

    # ------------------------------------------------------------------ environments

    def common_env(self, break_guard: str, leases: dict[str, str]) -> dict[str, str]:
        ours = ("MLEBENCH_", "DATABASE_URL", "CELERY_", "DJANGO_", "DOCKER_", "PYTHONPATH")
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env |= {
            "DJANGO_SETTINGS_MODULE": "mlebench_web.settings",
            "PYTHONUNBUFFERED": "1",
            "MLEBENCH_WEB_DATA": str(self.data),
            "ML_PYTHON": str(ROOT / ".venv-ml" / "bin" / "python"),
            "HEARTBEAT_SECONDS": f"{HEARTBEAT}",
            "LEASE_TTL_SECONDS": f"{TTL}",
            "LOOP_STUCK_AFTER_SECONDS": "6",
            "HOST_LOST_AFTER_MINUTES": f"{LOST_AFTER / 60}",
            "RING_EVERY_SECONDS": f"{RING_EVERY}",
            "WORKER_DEAF_AFTER_SECONDS": "20",
            "STOP_GRACE_SECONDS": "3",
            "START_LIMIT_MINUTES": "1",
            "MAX_TRIES": "20",
            "SLOTS": f"{SLOTS}",
            "MEMORY_RESERVE_GIB": "0.1",
            "DISK_RESERVE_GIB": "0.02",
            "CHAOS": "1",
            "CHAOS_CLOCK": str(self.clock),
            "SOCKETS_DIR": str(self.folder / "s"),
            "HOST_NAME": "control",
            "ENGINE_URL": "none",
            **leases,
        }
        if break_guard:
            env["MLEBENCH_WEB_CHAOS_BREAK"] = break_guard
        return env

    def set_clock(self, seconds: float) -> None:
        """Move the wall clock of the fleet (and of PostgreSQL) by so much from the true one."""
        self.has_moved_clock = self.has_moved_clock or seconds != 0
        self.clock_offset = seconds
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        began = time.monotonic()
        mount_tmpfs(self.data, "1g")
        self.start_engines()
        self.image = self.provide_image()
        self.say(f"engines and image are there ({time.monotonic() - began:.0f} s)")
        self.clock_error = self.preload_clock()
        self.start_stores()
        self.prepare()
        self.start_fleet()
        for member in self.crew.members:
            member.begin(self)
        self.is_feeding = True
        if not self.wait_until(lambda: len(self.seen.running()) >= 2, 120, "two attempts run"):
            raise SystemExit(f"No two attempts run after 120 s.\n{self.last_words('web')}")
        self.say(f"the fleet runs ({time.monotonic() - began:.0f} s)")

    def start_engines(self) -> None:
        for number, name in enumerate(("a", "b")):
            folder = self.folder / name
            folder.mkdir()
            engine = OwnEngine(name, folder / "e", number=number, live_restore=name == "a")
            engine.prepare(self.logs / f"engine-{name}.log")
            host = Host(f"host-{name}", folder, engine)
            self.hosts.append(host)
            self.add(engine.part)
        for host in self.hosts:
            self.wait_until(host.engine.answers, 60, f"engine {host.engine.name} answers")

    def provide_image(self) -> str:
        first, second = (host.engine for host in self.hosts)
        image = agent.provide(first.client, first.url)
        agent.copy(first.client, second.client, image)
        return image

    def preload_clock(self) -> str:
        """A clock of the fleet's own that can be moved; why there is none, or ""."""
        library = self.folder / "clock.so"
        error = rows.library(Path(__file__).with_name("clock.c"), library, "-ldl")
        if not error:
            self.env["LD_PRELOAD"] = str(library)
        return error

    def start_stores(self) -> None:
        self.broker = Valkey(self.folder / "v", self.logs / "broker.log")
        self.add(self.broker.part)
        self.env["CELERY_BROKER_URL"] = f"redis://127.0.0.1:{self.broker.port}/0"
        if self.database == "postgres":
            moved = {k: v for k, v in self.env.items() if k in ("LD_PRELOAD", "CHAOS_CLOCK")}
            self.postgres = Postgres(self.folder / "p", self.logs / "postgres.log", moved)
            self.add(self.postgres.part)
            self.env["DATABASE_URL"] = self.postgres.url(self.postgres.port)
            self.wait_until(self.postgres.answers, 60, "PostgreSQL answers")
        self.wait_until(self.broker.answers, 20, "the broker answers")

    def prepare(self) -> None:
        done = subprocess.run(
            [PYTHON, "-m", "mlebench_web.launcher.prepare"],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"The fleet could not be prepared: {done.stdout}{done.stderr}")
        # Ours must not hang for long, and its clock is the true one.
        own = {k: v for k, v in self.env.items() if k not in ("LD_PRELOAD", "HOST_NAME")}
        if self.postgres:
            limit = "?connect_timeout=3&options=-c%20statement_timeout%3D4000"
            own["DATABASE_URL"] = self.env["DATABASE_URL"] + limit
        rows.begin(own)
        fake = SHARED / "nvml" / "fake_nvml.c"
        error = "there is no stand-in driver here"
        if fake.exists():
            (self.folder / "nvml").mkdir()
            target = self.folder / "nvml" / "libnvidia-ml.so.1"
            soname = "-Wl,-soname,libnvidia-ml.so.1"
            error = rows.library(fake, target, "-pthread", soname)
        self.gpu_error = error
        self.token = rows.set_up(gpus=not error)
        for member in self.crew.members:
            member.set_up(self)

    def start_fleet(self) -> None:
        self.port = free_port()
        web = [
            *(PYTHON, "-m", "uvicorn", "mlebench_web.asgi:application"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--timeout-graceful-shutdown", "2", "--no-access-log", "--lifespan", "off"),
        ]
        self.web = self.part("web", web, self.env, ready=lambda: port_answers(self.port))
        self.control = self.part("control", control_command(self.folder, "control"), self.env)
        for number, host in enumerate(self.hosts):
            self.start_host(host, number)
        self.wait_until(lambda: self.ask("GET", "/healthz") is not None, 60, "the web answers")

    def start_host(self, host: Host, number: int) -> None:
        host.sockets.mkdir()
        host.temporary.mkdir()
        mount_tmpfs(host.attempts, "200m")
        env = {
            **self.env,
            "HOST_NAME": host.name,
            "ENGINE_URL": host.engine.url,
            "ATTEMPTS_DIR": str(host.attempts),
            "SOCKETS_DIR": str(host.sockets),
            "TMPDIR": str(host.temporary),
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{self.link(host, 'broker')}/0",
        }
        if self.postgres:
            env["DATABASE_URL"] = self.postgres.url(self.link(host, "database"))
        if not self.gpu_error:
            host.gpus = [f"GPU-{host.name}-{index}" for index in range(SLOTS)]
            state = host.folder / "nvml"
            lines = [f"count={len(host.gpus)}"]
            for index, uid in enumerate(host.gpus):
                lines += [f"gpu{index}.uuid={uid}", f"gpu{index}.name=NVIDIA A10"]
            state.write_text("\n".join(lines) + "\n")
            env |= {
                "FAKE_NVML_STATE": str(state),
                "LD_LIBRARY_PATH": str(self.folder / "nvml"),
            }
        manage = [PYTHON, str(ROOT / "manage.py"), "host_service"]
        host.service = self.part(f"service-{host.engine.name}", manage, env)
        worker = worker_command(host.name, SLOTS + 1)
        host.worker = self.part(f"worker-{host.engine.name}", worker, env)

    def link(self, host: Host, kind: str) -> int:
        """A path of this host's own to a server; its port."""
        port = free_port()
        target = self.broker.port if kind == "broker" else self.postgres.port  # type: ignore[union-attr]
        switch = host.folder / f"link-{kind}"
        switch.write_text("open")
        host.links.append(switch)
        proxy = [PYTHON, str(Path(__file__).with_name("proxy.py")), str(port)]
        proxy += ["127.0.0.1", str(target), str(switch)]
        part = self.part(f"link-{host.engine.name}-{kind}", proxy, {"PATH": os.environ["PATH"]})
        host.proxies.append(part)
        self.wait_until(lambda: port_answers(port), 20, f"the link of {host.name} is up")
        return port

    def part(
        self,
        name: str,
        command: list[str],
        env: dict[str, str],
        ready: Callable[[], bool] = lambda: True,
    ) -> Part:
        log = self.logs / f"{name}.log"
        part = Part(name, command, env=env, cwd=ROOT, log=log, ready=ready)
        self.add(part)
        return part

    def add(self, part: Part) -> None:
        self.parts.append(part)
        part.start()

    # ------------------------------------------------------------------ the loop

    def turn(self) -> None:
        """One turn of all that goes on beside the faults."""
        for part in self.parts:
            part.tend()
        if time.monotonic() - self._looked >= LOOK_EVERY and self.token:
            self._looked = time.monotonic()
            self.look()
            if self.is_feeding:
                self.feed()

    def look(self) -> None:
        if self.database_is_silent:
            return
        try:
            self.seen = rows.look()
            for host, why in self.seen.put_aside.items():
                self.ledger.notes.append(f"{host} was put aside, and used again by an admin: {why}")
                rows.use_again(host)
            for watcher in self.watchers:
                watcher()
        except rows.errors():
            rows.forget_connection()

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn()
            time.sleep(0.1)

    def wait_until(self, condition: Callable[[], bool], within: float, what: str) -> bool:
        """Whether it came; when the fleet is not yet whole, it must."""
        until = time.monotonic() + within
        while not condition():
            if time.monotonic() > until:
                if not self.token or not self.is_feeding:
                    raise SystemExit(f"It did not happen within {within:.0f} s: {what}")
                return False
            self.turn()
            time.sleep(0.1)
        return True

    def is_well(self) -> bool:
        """All parts are up, all attempts are in the hands of living supervisors, and two run."""
        return (
            all(part.is_alive() and part.ready() for part in self.parts)
            and all(row.is_held and alive(row.pid) for row in self.seen.attempts)
            and len(self.seen.running()) >= 2
            and time.monotonic() - self.seen.at < 2
        )

    # ------------------------------------------------------------------ the API

    def feed(self) -> None:
        """Keep the queue filled, through the API; a request that got no answer is sent again."""
        if self._unanswered is None:
            if self.seen.ready >= self.crew.queued or time.monotonic() - self._posted < 1:
                return
            with_gpu = not self.gpu_error and self.random.random() < 0.5
            self.submit(self.crew.next(self.random), with_gpu=with_gpu)
            return
        self._send()

    def submit(self, member: Worker, *, with_gpu: bool) -> None:
        """A run group of its own, under a key of its own."""
        body: dict[str, object] = {
            "agent": member.name,
            "experiment": f"chaos {member.name}",
            "time_limit_s": 7200,
            "acknowledge_no_gpu": True,
            **member.order(self, with_gpu=with_gpu),
        }
        self._unanswered = (uuid.uuid4().hex, body)
        self.keys.append(self._unanswered[0])
        self._send()

    def _send(self) -> None:
        assert self._unanswered
        key, body = self._unanswered
        self._posted = time.monotonic()
        if self.ask("POST", "/api/v1/run-groups", body, key=key) is not None:
            self._unanswered = None

    def ask(
        self, method: str, path: str, body: object = None, *, key: str = ""
    ) -> dict[str, Any] | None:
        """The answer, None when there was none or a server error. Raises on a refusal."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, headers)
            reply = connection.getresponse()
            said = reply.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if reply.status >= 500 or reply.status == 409:
            # 409: the first one with this key is still at work.
            return None
        if reply.status >= 400:
            raise SystemExit(f"{method} {path}: {reply.status} {said.decode()[:500]}")
        answer: dict[str, Any] = json.loads(said)
        return answer

    # ------------------------------------------------------------------ hosts

    def containers(self, host: Host) -> list[Any] | None:
        """Raw rows of the engine's list; None while it does not answer."""
        try:
            return list(host.engine.client.api.containers(all=True))
        except (DockerException, OSError):
            return None

    def freeze(self, host: Host) -> Outage:
        """SIGSTOP for all of a host: worker, host service, graders, and its containers."""
        outage = self.ledger.begin_outage(host.name, "frozen")
        self._frozen = [process for part in host.parts() for process in part.family()]
        for row in self.containers(host) or []:
            with contextlib.suppress(docker.errors.APIError):
                pid = host.engine.client.api.inspect_container(row["Id"])["State"]["Pid"]
                self._frozen += in_cgroup_of(pid) if pid else []
        for part in host.parts():
            part.held = True
        send(self._frozen, signal.SIGSTOP)
        self.ledger.hit.update({process.pid: time.monotonic() for process in self._frozen})
        return outage

    def thaw(self, host: Host, outage: Outage) -> None:
        send(self._frozen, signal.SIGCONT)
        for part in host.parts():
            part.held = False
        self.ledger.end_outage(outage)

    # ------------------------------------------------------------------ the end

    def stop(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        send([process for part in self.parts for process in part.family()], signal.SIGCONT)
        for part in reversed(self.parts):
            if not part.name.startswith("engine-"):
                part.stop(within=3)
        for host in self.hosts:
            host.engine.stop()
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self, name: str, lines: int = 15) -> str:
        log = self.logs / f"{name}.log"
        return (
            "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
        )


def mount_tmpfs(folder: Path, size: str) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
