"""What was asked for on the command line, and the variables that every part gets from it."""

import argparse
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlebench_web import base_image, sockets

BASE_DIR = Path(__file__).resolve().parent.parent.parent
EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, never bound to


@dataclass(frozen=True)
class Options:
    command: str
    host: str
    port: int
    data: Path
    base_image: str
    exit: bool = False

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the pages."""
        host = "127.0.0.1" if self.host in EVERYWHERE else self.host
        return f"http://{bracketed(host)}:{self.port}"


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse(arguments: list[str]) -> Options:
    """Ends the process with a message when an argument is wrong."""
    parser = argparse.ArgumentParser(prog="./run", allow_abbrev=False)
    parser.add_argument("command", choices=["start", "demo", "doctor", "setup-link"])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--data", default=os.environ.get("MLEBENCH_WEB_DATA", BASE_DIR / "var"))
    parser.add_argument("--base-image", default="")
    parser.add_argument("--exit", action="store_true")
    found = parser.parse_args(arguments)
    if not 0 <= found.port <= 65535:
        parser.error(f"--port {found.port}: write a number from 0 to 65535; 0 takes a free one")
    if found.exit and found.command != "demo":
        parser.error("--exit belongs to ./run demo")
    data = Path(found.data).expanduser().resolve()
    if data.exists() and not data.is_dir():
        parser.error(f"--data {data}: that is a file, not a folder")
    image = found.base_image or os.environ.get("BASE_IMAGE") or base_image.of(data)
    return Options(found.command, found.host, found.port, data, image, found.exit)


def for_parts(options: Options, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of every part. What the user set stays."""
    env = {name: value for name, value in inherited.items() if name != "PYTHONPATH"}
    env["DJANGO_SETTINGS_MODULE"] = "mlebench_web.settings"
    env["PYTHONUNBUFFERED"] = "1"
    env["MLEBENCH_WEB_DATA"] = str(options.data)
    env.setdefault("SOCKETS_DIR", str(sockets.folder_for(options.data)))
    env["BASE_IMAGE"] = options.base_image
    # What a killed part leaves there is swept at the next start; in /tmp it would stay.
    env.setdefault("TMPDIR", str(temporary_folder(options.data)))
    env.setdefault("PUBLIC_URL", options.address)
    names = allowed_hosts(options.host)
    env.setdefault("ALLOWED_HOSTS", ",".join(names))
    origins = ",".join(f"http://{name}:{options.port}" for name in names)
    env.setdefault("CSRF_TRUSTED_ORIGINS", origins)
    return env


def temporary_folder(data: Path) -> Path:
    return data / "tmp"


def allowed_hosts(host: str) -> list[str]:
    """The names under which a server that listens on `host` can be asked for, as in a Host line."""
    names = ["127.0.0.1", "localhost", "[::1]"]
    if host in EVERYWHERE:
        names += [socket.gethostname(), socket.getfqdn(), *addresses()]
    else:
        names.append(bracketed(host))
    return list(dict.fromkeys(names))


def addresses() -> list[str]:
    """The machine's own addresses, as in a Host line."""
    return [
        bracketed(entry.address.partition("%")[0])
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]


class PortTaken(Exception):
    """Another program listens there; the message says so and what to do."""


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises PortTaken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the web server does: a port that only waits for old connections to end is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"Cannot listen on {bracketed(host)}:{port}: {error.strerror}."
                f"{who_listens(port)} "
                f"Choose another one: ./run --port {port + 1}; 0 takes a free one."
            ) from error
        return int(probe.getsockname()[1])


def listens(pid: int, port: int) -> bool:
    """Whether this process of ours listens on the port."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(
        each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections
    )


def who_listens(port: int) -> str:
    """A sentence that names the program, where this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                name = psutil.Process(connection.pid).name()
                return f" Process {connection.pid} ({name}) listens there."
    except (psutil.Error, PermissionError):
        pass
    return ""


def elsewhere(options: Options) -> str:
    """The address for other machines where every one of this machine's is listened on, or ""."""
    if options.host not in EVERYWHERE:
        return ""
    return f"http://{socket.gethostname()}:{options.port}"


def tunnel_line(options: Options, inherited: Mapping[str, str] = os.environ) -> str:
    """The command that brings the pages of a remote machine to the user's own, or ""."""
    connection = inherited.get("SSH_CONNECTION", "").split()
    if len(connection) != 4 or options.host not in ("127.0.0.1", "localhost", "::1"):
        return ""
    user = inherited.get("USER", "")
    target = f"{user}@{connection[2]}" if user else connection[2]
    port = "" if connection[3] == "22" else f" -p {connection[3]}"
    return f"ssh{port} -N -L {options.port}:{bracketed(options.host)}:{options.port} {target}"
