"""The first half of `./run`: virtual environments with what the product needs, then the command.

Runs as a file on any Python 3.12 or newer, before anything is installed: standard library only,
and it imports nothing of the product.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = BASE_DIR / "requirements"

HELP = """\
./run                   start mlebench-web
./run demo              start it, run the demo, show its leaderboard, go on serving
./run demo --exit       the same, and stop: exit status 0 only if every run was graded
./run doctor            what is missing on this machine, and how to get it
./run setup-link        a new one-time link that makes the first admin
./run setup             only install what it needs
./run mlebench [DIR]    install what the graders of an mle-bench checkout need
./run test [arguments]  run the tests; arguments go to pytest
./run check             linters, types, migrations, deployment checks
./run manage [command]  a command of manage.py

Options of ./run and ./run demo:
  --port N              port of the web pages (8000); 0 takes a free one
  --host ADDRESS        address to listen on (127.0.0.1); 0.0.0.0 for every one of this machine
  --data DIR            folder for everything that is written (var)
  --base-image IMAGE    image that the built-in agents are built on
"""


class Environment:
    """A virtual environment of this checkout."""

    def __init__(self, folder: str) -> None:
        self.path = BASE_DIR / folder
        self.python = self.path / "bin" / "python"
        self._stamp = self.path / "installed.json"

    def installed(self) -> dict[str, str]:
        """Digest by the name of the requirements file that was installed last."""
        try:
            return dict(json.loads(self._stamp.read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def has(self, name: str) -> bool:
        return self.installed().get(name) == digest(name) and self.works()

    def works(self) -> bool:
        """False when there is none, its Python is gone, or the checkout was moved."""
        if not self.python.exists():
            return False
        done = subprocess.run(
            [self.python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True
        )
        return done.returncode == 0 and Path(done.stdout.strip()).resolve() == self.path.resolve()

    def make(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)
        run([sys.executable, "-m", "venv", str(self.path)])

    def mark(self, name: str) -> None:
        stamp = self.installed() | {name: digest(name)}
        if name == "test":
            # It contains the web's.
            stamp["web"] = digest("web")
        elif name == "web":
            stamp.pop("test", None)
        temporary = self._stamp.with_suffix(".new")
        temporary.write_text(json.dumps(stamp))
        temporary.replace(self._stamp)


WEB = Environment(".venv")
ML = Environment(".venv-ml")


class Failed(Exception):
    """A step of the installation failed; the message is for the user."""


def digest(name: str) -> str:
    return hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()


def run(command: list[str], **env: str) -> None:
    """Raises Failed with the command's own last words."""
    # Their output is for people who debug; on a failure it is shown.
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **env},
    )
    if done.returncode:
        words = "\n".join(done.stdout.strip().splitlines()[-25:])
        raise Failed(f"{words}\n\nfailed with exit status {done.returncode}: {' '.join(command)}")


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Says that something slow begins, and how long it took."""
    begin = time.monotonic()
    print(f"· {title} …", file=sys.stderr, flush=True)
    yield
    print(f"✓ {title} ({time.monotonic() - begin:.1f} s)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_one(name: str) -> Iterator[None]:
    """Of two `./run` at once, one installs and the other waits for it."""
    with (BASE_DIR / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("· Another ./run is installing; waiting for it …", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(environment: Environment, name: str, title: str) -> None:
    """Make `environment` hold requirements/<name>.txt; quick when it does already."""
    if environment.has(name):
        return
    with only_one(f"install-{environment.path.name.strip('.')}"):
        # Whoever held the lock may have done it.
        if environment.has(name):
            return
        with step(title):
            if not environment.works():
                environment.make()
            fill(environment, REQUIREMENTS / f"{name}.txt")
            environment.mark(name)


def fill(environment: Environment, requirements: Path) -> None:
    """By uv, which is ten times as quick; by pip where uv has no wheel or does not get through."""
    try:
        uv = [*installer(), "pip", "install", "--python", str(environment.python)]
        run([*uv, "--require-hashes", "-r", str(requirements)], **mirror())
    except Failed as failure:
        print(
            f"  uv did not manage; trying pip.\n    {str(failure).splitlines()[0]}", file=sys.stderr
        )
        pip = [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check"]
        run([*pip, "--require-hashes", "-r", str(requirements)])


def installer() -> list[str]:
    """uv, installed by pip with its own hashes into the web's environment."""
    if not WEB.works():
        with only_one("install-venv"):
            if not WEB.works():
                WEB.make()
    uv = WEB.path / "bin" / "uv"
    if not uv.exists():
        pip = [str(WEB.python), "-m", "pip", "install", "--disable-pip-version-check"]
        run([*pip, "--require-hashes", "-r", str(REQUIREMENTS / "bootstrap.txt")])
    return [str(uv)]


def mirror() -> dict[str, str]:
    """The package index that pip is told to use, for uv, which does not read pip's settings."""
    if "UV_DEFAULT_INDEX" in os.environ:
        return {}
    url = os.environ.get("PIP_INDEX_URL")
    if not url:
        asked = subprocess.run(
            [str(WEB.python), "-m", "pip", "config", "get", "global.index-url"],
            capture_output=True,
            text=True,
        )
        url = asked.stdout.strip() if asked.returncode == 0 else ""
    return {"UV_DEFAULT_INDEX": url} if url else {}


def install_web() -> None:
    # With the tests' requirements installed, the web's are there too.
    install(WEB, "web", "Installing the web and worker libraries")


def install_ml() -> None:
    install(ML, "ml", "Installing the machine-learning libraries that agents and graders use")


def install_test() -> None:
    install(WEB, "test", "Installing the test libraries")


def go(*arguments: str) -> None:
    """Become `python <arguments>` of the web's environment."""
    sys.stdout.flush()
    os.environ["PYTHONPATH"] = str(BASE_DIR)
    os.execv(WEB.python, [str(WEB.python), *arguments])  # noqa: S606 - no shell is the point


def main(arguments: list[str]) -> None:
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "start"
    rest = arguments[1:] if command != "start" or arguments[:1] == ["start"] else arguments
    asks_for_help = rest[:1] in (["-h"], ["--help"]) and command not in ("test", "manage")
    if command == "help" or asks_for_help:
        print(HELP, end="")
        return
    try:
        match command:
            case "ml":  # the supervisor's step, beside the first page
                install_ml()
            case "setup":
                install_web()
                install_ml()
                print("Ready: ./run starts mlebench-web.")
            case "mlebench":
                install_web()
                go("-m", "mlebench_web.launcher.mlebench", *rest)
            case "test":
                install_test()
                install_ml()
                os.chdir(BASE_DIR)
                go("-m", "tests.support.suite", *rest)
            case "check":
                install_test()
                os.chdir(BASE_DIR)
                go("-m", "mlebench_web.launcher.check", *rest)
            case "manage":
                install_web()
                go(str(BASE_DIR / "manage.py"), *rest)
            case "start" | "demo" | "doctor" | "setup-link":
                install_web()
                go("-m", "mlebench_web.launcher", command, *rest)
            case _:
                sys.exit(f"./run {command}: no such command\n\n{HELP}")
    except Failed as failure:
        sys.exit(f"\n{failure}")


if __name__ == "__main__":
    main(sys.argv[1:])
