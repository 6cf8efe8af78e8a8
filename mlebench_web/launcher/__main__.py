"""`./run`, `./run demo`, `./run doctor`, `./run setup-link`: the environment is ready by now."""

import http.client
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlebench_web
from mlebench_web import sockets
from mlebench_web.launcher import broker, environment, runfile
from mlebench_web.launcher.environment import BASE_DIR, Options, PortTaken
from mlebench_web.launcher.processes import RESULT, Job
from mlebench_web.launcher.supervisor import Stopped, Supervisor
from mlebench_web.launcher.terminal import Activity, Terminal

FIRST_PAGE_WITHIN = 60.0
BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
PYTHON = sys.executable
MANAGE = [PYTHON, str(BASE_DIR / "manage.py")]


class CannotStart(Exception):
    """Something that is needed is not there; the message is for the user."""


def main() -> int:
    options = environment.parse(sys.argv[1:])
    options.data.mkdir(parents=True, exist_ok=True)
    if options.command in ("doctor", "setup-link"):
        # Of a running product: its address is in the links.
        address = runfile.read(options.data).get("address", options.address)
        env = environment.for_parts(options) | {"PUBLIC_URL": address}
        os.chdir(BASE_DIR)
        os.execve(PYTHON, [*MANAGE, options.command.replace("-", "_")], env)  # noqa: S606
    terminal = Terminal()
    try:
        with runfile.hold(options.data):
            empty(environment.temporary_folder(options.data))
            port = environment.free_port(options.host, options.port)
            return Product(replace(options, port=port), terminal).run()
    except runfile.AlreadyRunning as running:
        return beside(running.info, options, terminal)
    except (CannotStart, PortTaken, broker.NoBroker, PermissionError) as error:
        terminal.say(f"✗ {error}")
        return 2


def empty(folder: Path) -> None:
    """Only while the data folder is held: nobody of ours has a file there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def beside(info: dict[str, Any], options: Options, terminal: Terminal) -> int:
    """Another `./run` serves this data folder: say where; a demo runs on that one."""
    address = info.get("address")
    if not address:
        terminal.say(f"Another ./run is just starting on {options.data}.")
        return 3
    terminal.say(f"mlebench-web already runs on {options.data}: {address}")
    if options.command != "demo":
        return 0
    env = environment.for_parts(options) | {"PUBLIC_URL": address}
    status = subprocess.run(demo_command(exit=True), env=env, cwd=BASE_DIR).returncode
    terminal.say(f"In the browser: {address}/leaderboard/")
    return status


def demo_command(*, exit: bool) -> list[str]:
    command = [*MANAGE, "demo"]
    return [*command, "--exit"] if exit else command


class Product:
    """One `./run`, from the first part to the last."""

    def __init__(self, options: Options, terminal: Terminal) -> None:
        self.options = options
        self.terminal = terminal
        self.env = environment.for_parts(options)
        info = {
            "address": "",  # filled in once pages are served
            "host": options.host,
            "port": options.port,
            "data": str(options.data),
            "version": mlebench_web.__version__,
            "pid": os.getpid(),
            "started": runfile.now(),
        }
        self.supervisor = Supervisor(options.data, self.env, terminal, info)
        # The last answer of /healthz, for a start that does not succeed.
        self.health = ""

    def run(self) -> int:
        status = 0
        try:
            prepared = self.start_web()
            self.greet(prepared)
            self.start_worker(prepared)
            if self.options.command == "demo":
                status = self.demo()
                if self.options.exit:
                    return status
            self.supervisor.forever()
        except Stopped:
            self.terminal.say("Stopping; containers of runs go on, and the next start finds them.")
        finally:
            self.supervisor.stop()
            if "SOCKETS_DIR" not in os.environ:
                sockets.tidy(Path(self.env["SOCKETS_DIR"]), self.options.data)
        return status

    # ---------------------------------------------------------------- the steps

    def start_web(self) -> dict[str, Any]:
        """Broker, database, static files, web server: as little as the first page needs."""
        self.start_broker()
        title = self.terminal.begin("Preparing the database, the catalog and the static files")
        job = self.supervisor.job("prepare", [PYTHON, "-m", "mlebench_web.launcher.prepare"])
        self.follow(job, title)
        lines = [line for line in job.lines if line.startswith(RESULT)]
        if not lines:
            raise CannotStart(f"{said(job)}\nIts log: {job.log}")
        prepared: dict[str, Any] = json.loads(lines[-1].removeprefix(RESULT))
        title = self.terminal.begin("Starting the web server")
        self.supervisor.start("web", web_command(self.options))
        if not self.supervisor.until(self.serves, within=FIRST_PAGE_WITHIN):
            raise CannotStart(
                f"No page within {FIRST_PAGE_WITHIN:.0f} s. /healthz says: {self.health}\n"
                f"{self.supervisor.last_words('web')}"
            )
        self.terminal.end(title)
        self.supervisor.write_info(address=self.options.address)
        return prepared

    def start_broker(self) -> None:
        if self.env.get("CELERY_BROKER_URL"):
            return
        at = Path(self.env["SOCKETS_DIR"], "broker")
        at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if at.parent != self.options.data / "s":
            self.terminal.say(f"  sockets are in {at.parent}: the data folder's path is too long")
        data = self.options.data / "broker"
        data.mkdir(exist_ok=True)
        # Of a killed server; nobody listens there, since the data folder is ours alone.
        at.unlink(missing_ok=True)
        self.supervisor.start("broker", broker.command(data, at))
        if not self.supervisor.until(lambda: broker.answers(at), within=20):
            raise CannotStart(f"The broker does not start. {self.supervisor.last_words('broker')}")

    def start_worker(self, prepared: dict[str, Any]) -> None:
        """The rest of the parts, beside the first page; then the worker, which needs them."""
        self.supervisor.start("control", control_command(self.options.data, prepared["host"]))
        ml_title = self.terminal.begin("Checking the machine-learning libraries")
        ml = self.supervisor.job("install-ml", [PYTHON, str(BOOTSTRAP), "ml"])
        building: tuple[Job, Activity] | None = None
        if prepared["engine_error"]:
            self.terminal.say(
                f"! No Docker Engine: {prepared['engine_error']}\n"
                "  Runs use the process runtime, which is no sandbox. ./run doctor says more."
            )
        else:
            building = self.start_build()
        if self.follow(ml, ml_title):
            self.terminal.say(
                f"! {said(ml)}\n  Without these libraries no run can be graded, so no worker is "
                f"started. Repair it and start ./run again. Its log: {ml.log}"
            )
        else:
            self.supervisor.start("host-service", [*MANAGE, "host_service"])
            self.supervisor.start("worker", worker_command(prepared["host"], prepared["slots"]))
        if building and self.follow(*building):
            self.terminal.say(
                f"! The built-in agents' image could not be built: {said(building[0])}\n"
                f"  Its log: {building[0].log}"
            )

    def start_build(self) -> tuple[Job, Activity]:
        title = self.terminal.begin("Checking the built-in agents' image")
        command = [*MANAGE, "build_agent", "--builtin"]
        command += ["--base-image", self.options.base_image]
        return self.supervisor.job("build-agents", command), title

    def follow(self, job: Job, title: Activity) -> int:
        """Show what a job says until it ends; its exit status."""

        def ended() -> bool:
            title.detail = job.last_line
            return self.supervisor.is_over(job)

        self.supervisor.until(ended)
        status = self.supervisor.forget(job)
        self.terminal.end(title, failed=bool(status))
        return status

    def serves(self) -> bool:
        """Whether our own web server is up. Raises PortTaken when another program was quicker."""
        process = self.supervisor.parts["web"].process
        if process is None:
            environment.free_port(self.options.host, self.options.port)
            return False
        # Another product that listens there would answer just as well.
        return environment.listens(process.pid, self.options.port) and self.is_healthy()

    def is_healthy(self) -> bool:
        """Whether /healthz is 200: web, database and broker answer."""
        host = self.options.address.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=2)
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            self.health = f"{answer.status} {answer.read(200).decode(errors='replace')}".strip()
            return answer.status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException) as error:
            self.health = str(error)
            return False
        finally:
            connection.close()

    def greet(self, prepared: dict[str, Any]) -> None:
        say = self.terminal.say
        say()
        say(f"  mlebench-web {mlebench_web.__version__}   {self.options.address}")
        if line := environment.tunnel_line(self.options):
            say(f"  from your own machine: {line}")
        if line := environment.elsewhere(self.options):
            say(f"  from other machines: {line}, or this machine's address")
        if prepared["setup_path"]:
            say("  sign in: this link makes the first admin; it works once, within 24 hours")
            say(f"           {self.env['PUBLIC_URL']}{prepared['setup_path']}")
        say(f"  data: {self.options.data}   logs: {self.options.data / 'logs'}")
        say("  stop: Ctrl-C")
        say()

    # ---------------------------------------------------------------- the demo

    def demo(self) -> int:
        """Run the demo in a child with the terminal; its exit status."""
        if "worker" not in self.supervisor.parts:
            self.terminal.say("✗ There is no demo without a worker.")
            return 1
        status = self.supervisor.attached(demo_command(exit=self.options.exit))
        if self.options.exit:
            self.terminal.say("In the browser: start ./run on the same data folder.")
        return status


def said(job: Job) -> str:
    """The end of what a failed job wrote."""
    return "\n  ".join(job.lines[-12:]) or f"It ended with status {job.process.returncode}."


def web_command(options: Options) -> list[str]:
    return [
        *(PYTHON, "-m", "uvicorn", "mlebench_web.asgi:application"),
        *("--host", options.host, "--port", str(options.port)),
        # Pages that stream would hold the stop for as long as a reader looks at them.
        *("--timeout-graceful-shutdown", "2"),
        *("--no-access-log", "--lifespan", "off"),
    ]


def worker_command(host: str, slots: int) -> list[str]:
    return [
        *(PYTHON, "-m", "celery", "-A", "mlebench_web", "worker"),
        *("-n", f"worker@{host}", "-Q", f"bells.{host}", "-c", str(slots)),
        *("--without-gossip", "--without-mingle"),
    ]


def control_command(data: Path, host: str) -> list[str]:
    return [
        *(PYTHON, "-m", "celery", "-A", "mlebench_web", "worker"),
        *("-n", f"control@{host}", "-Q", "control", "-c", "1"),
        *("-B", "-s", str(data / "beat-schedule")),
        *("--without-gossip", "--without-mingle"),
    ]


if __name__ == "__main__":
    sys.exit(main())
