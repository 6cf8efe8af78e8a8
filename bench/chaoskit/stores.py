"""The servers behind the fleet: Valkey over TCP, and PostgreSQL where it is asked for."""

import shutil
import signal
import socket
from pathlib import Path

import psycopg

from chaoskit.processes import Part, send
from mlebench_web.launcher import broker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_answers(port: int, question: bytes = b"", answer: bytes = b"") -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as asking:
            asking.settimeout(1)
            if not question:
                return True
            asking.sendall(question)
            return answer in asking.recv(64)
    except OSError:
        return False


class Valkey:
    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.port = free_port()
        command = [
            broker.binary(),
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(folder)),
            *("--appendonly", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]
        self.part = Part("broker", command, env={}, cwd=folder, log=log, ready=self.answers)

    def answers(self) -> bool:
        return port_answers(self.port, b"PING\r\n", b"+PONG")

    def empty(self) -> None:
        """While it is down: all messages are gone."""
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


class Postgres:
    """A server over TCP. What it has committed outlives kill -9 (synchronous_commit is on)."""

    def __init__(self, folder: Path, log: Path, env: dict[str, str]) -> None:
        try:
            from tests.support import postgres
        except ImportError as error:
            raise SystemExit(f"PostgreSQL's binaries are not installed: {error}") from error
        folder.mkdir()
        folder.chmod(0o755)
        self.home = folder / "home"
        self.home.mkdir()
        identity = postgres.identity()
        if identity:
            shutil.chown(self.home, "nobody", "nogroup")
        binaries = postgres.installed(folder)
        data = self.home / "data"
        postgres.as_other(
            [
                *(str(binaries / "initdb"), "-D", str(data)),
                *("-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync"),
            ],
            self.home,
        )
        self.port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            # The machine itself does not crash here; processes do.
            "fsync": "off",
            "synchronous_commit": "on",
            "max_connections": "200",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.part = Part(
            "postgres",
            [str(binaries / "postgres"), "-D", str(data), *options],
            env={**postgres.environment(self.home), **env},
            cwd=self.home,
            log=log,
            ready=self.answers,
            identity=identity,
        )

    def url(self, port: int) -> str:
        return f"postgres://postgres@127.0.0.1:{port}/postgres"

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url(self.port), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def freeze(self) -> None:
        send(self.part.family(), signal.SIGSTOP)

    def thaw(self) -> None:
        send(self.part.family(), signal.SIGCONT)
