"""The whole product for a test: `./run` on a data folder of its own and a free port."""

import contextlib
import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException

from mlebench_web.launcher import runfile
from tests.support.docker import BASE_IMAGE

ROOT = Path(__file__).resolve().parent.parent.parent
# What tests/settings.py sets for this process is not the product's business.
OURS = (
    "MLEBENCH_WEB_DATA",
    "MLEBENCH_WEB_TEST_DATA",
    "TMPDIR",
    "DJANGO_SETTINGS_MODULE",
    "HOST_NAME",
    "SECRET_KEY",
    "LOG_LEVEL",
    "CELERY_BROKER_URL",
    "DATABASE_URL",
)
# On a loaded machine with two cores; an idle one needs three seconds.
STARTS_WITHIN = 120.0
STOPS_WITHIN = 40.0


class Product:
    """`start` and `stop` may be called again and again on the same data folder."""

    def __init__(self, **env: str) -> None:
        # Short: sockets are below it.
        self.data = Path(tempfile.mkdtemp(prefix="mlw-"))
        self.data.chmod(0o755)
        self.host = f"test-{secrets.token_hex(4)}"
        own = {name: value for name, value in os.environ.items() if name not in OURS}
        self.env = own | {"HOST_NAME": self.host} | env
        self.process: subprocess.Popen[bytes] | None = None
        self._output = self.data / "output"

    # ------------------------------------------------------------------ start and stop

    def begin(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start `./run` and return at once."""
        command = [str(ROOT / "run"), *arguments, "--data", str(self.data)]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=self.env, cwd="/", stdout=output, stderr=subprocess.STDOUT
            )
        return self.process

    def start(self, *arguments: str) -> "Product":
        """Returns once pages are served."""
        process = self.begin("start", "--port", "0", "--base-image", BASE_IMAGE, *arguments)
        # A killed one's run.json is there until the next one takes over.
        self.wait_for(
            lambda: (
                (self.info.get("pid") == process.pid and bool(self.address))
                or process.poll() is not None
            ),
            STARTS_WITHIN,
        )
        assert process.poll() is None, self.output
        return self

    def stop(self) -> int:
        """Ask it to end, as Ctrl-C does; the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=STOPS_WITHIN)

    def remove(self) -> None:
        """Leave nothing behind: no process, container, network or folder."""
        self.stop()
        with contextlib.suppress(DockerException):
            client = docker.from_env()
            mine = {"label": f"mlebench-web.host={self.host}"}
            for container in client.containers.list(all=True, filters=mine):
                with contextlib.suppress(APIError):
                    container.remove(force=True)
            for install in self.installations():
                of_it = {"label": f"mlebench-web.install={install}"}
                for network in client.networks.list(filters=of_it):
                    with contextlib.suppress(APIError):
                        network.remove()
            client.close()
        shutil.rmtree(self.data, ignore_errors=True)

    def installations(self) -> list[str]:
        """The name by which this product labels what it makes; none before its first start."""
        database = self.data / "db.sqlite3"
        if not database.exists():
            return []
        with contextlib.closing(sqlite3.connect(database)) as connection:
            try:
                return [row[0] for row in connection.execute("SELECT name FROM runs_installation")]
            except sqlite3.OperationalError:
                # It ended before its tables were made.
                return []

    # ------------------------------------------------------------------ looking at it

    @property
    def info(self) -> dict[str, Any]:
        """run.json."""
        return runfile.read(self.data)

    @property
    def address(self) -> str:
        return str(self.info.get("address", ""))

    @property
    def output(self) -> str:
        """What it has said in its terminal."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def setup_link(self) -> str:
        """The one-time link that makes the first admin."""
        found = re.search(r"http://\S+/setup/\S+", self.output)
        assert found, self.output
        return found.group()

    def manage(self, *arguments: str) -> str:
        """Standard output of a command of manage.py, on this product's data folder."""
        done = subprocess.run(
            [str(ROOT / "run"), "manage", *arguments, "--data", str(self.data)],
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, condition: Callable[[], bool], within: float = 60) -> None:
        """Until `condition()` holds; fails with what the product said."""
        end = time.monotonic() + within
        while not condition():
            assert time.monotonic() < end, f"It did not happen within {within} s.\n{self.output}"
            time.sleep(0.05)

    def wait_for_worker(self) -> None:
        """Until worker and host service run; the agents' image may still be building."""
        self.wait_for(lambda: {"worker", "host-service"} <= set(self.info.get("pids", {})))
