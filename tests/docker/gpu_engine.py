"""A second Docker Engine that takes GPU requests on a machine without a GPU.

dockerd offers its `nvidia` driver when a program `nvidia-container-runtime-hook` is in its PATH.
Ours plays the toolkit's part: it notes what the container was given, and refuses UUIDs that it
does not know in the toolkit's words. So tests see which GPUs a container got; whether CUDA works
in it, they cannot see.

The fixture `gpu_engine` comes by conftest.py, so that a session has one engine, not one a module.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

# The engine gives the hook the container's state on standard input; its environment is in the
# bundle's config.json.
HOOK = """\
#!/bin/sh
# A path with a space cannot stand in the first line, so sh starts Python on the rest.
''':'
exec "{python}" "$0" "$@"
'''
import json, pathlib, sys

here = pathlib.Path({folder!r})
state = json.load(sys.stdin)
config = json.loads(pathlib.Path(state["bundle"], "config.json").read_text())
env = dict(entry.split("=", 1) for entry in config["process"]["env"])
wanted = env.get("NVIDIA_VISIBLE_DEVICES", "")
with open(here / "calls", "a") as calls:
    calls.write(state["id"] + " " + wanted + "\\n")
known = (here / "known").read_text().split()
for uuid in wanted.split(","):
    if uuid not in known:
        sys.exit("nvidia-container-cli: device error: " + uuid + ": unknown device")
"""
# Of a private range that Docker's default pools do not use.
ADDRESS = "10.213.47.1/29"
START_SECONDS = 30
STOP_SECONDS = 30


class GpuEngine:
    """A running engine; `url` is for ENGINE_URL or DOCKER_HOST."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self.bridge = f"mlw{os.getpid()}"
        self.client: docker.DockerClient
        self._process: subprocess.Popen[bytes] | None = None
        self.knows()

    def knows(self, *uuids: str) -> None:
        """The devices that this machine has from now on."""
        (self.folder / "known").write_text("\n".join(uuids))

    def given(self, container_id: str) -> list[str]:
        """What the hook was asked to give to this container; [] when it did not run."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line.split(" ", 1)[1] for line in lines if line.startswith(container_id)]

    def load(self, source: docker.DockerClient, image_id: str) -> str:
        """Copy an image from another engine; its id stays."""
        (image,) = self.client.images.load(source.images.get(image_id).save())
        assert image.id == image_id
        return image_id

    def start(self) -> None:
        hook = self.folder / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir()
        hook.write_text(HOOK.format(python=sys.executable, folder=str(self.folder)))
        hook.chmod(0o755)
        self.restores_live(False)
        # A bridge of its own: with --bridge=none the start would delete docker0, the other
        # engine's.
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", ADDRESS, "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        self._run()

    def restores_live(self, yes: bool) -> None:
        """Whether containers outlive the engine from now on."""
        (self.folder / "daemon.json").write_text(json.dumps({"live-restore": yes}))
        if self._process:
            self._process.send_signal(signal.SIGHUP)
            until = time.monotonic() + START_SECONDS
            while self.client.info()["LiveRestoreEnabled"] != yes:
                assert time.monotonic() < until, "the engine did not read its settings again"
                time.sleep(0.1)

    def restart(self, *, away_seconds: float = 0) -> None:
        """As a package's upgrade does it."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_SECONDS)
        self.client.close()
        time.sleep(away_seconds)
        self._run()

    def _run(self) -> None:
        # Should the tests be killed, the engine ends as well.
        dies_with_us = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *dies_with_us,
                    "dockerd",
                    f"--host={self.url}",
                    f"--data-root={self.folder}/data",
                    f"--exec-root={self.folder}/exec",
                    f"--pidfile={self.folder}/pid",
                    f"--bridge={self.bridge}",
                    "--iptables=false",
                    "--ip-masq=false",
                    # Not the first engine's settings.
                    f"--config-file={self.folder}/daemon.json",
                ],
                env={**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
                stdout=log,
                stderr=log,
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        assert self._process
        until = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                log = (self.folder / "dockerd.log").read_text()
                raise AssertionError(f"The second engine did not start: {log[-2000:]}")
            time.sleep(0.1)
        self.client = docker.DockerClient(self.url, version="auto", timeout=60)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as asking:
            return asking.connect_ex(f"{self.folder}/docker.sock") == 0

    def stop(self) -> None:
        """Leave nothing: containers, the process, mounts, the bridge, the folder."""
        if hasattr(self, "client"):
            for container in self.client.containers.list(all=True):
                container.remove(force=True, v=True)
            # The bridge of a network outlives its engine and keeps the addresses from all others.
            self.client.networks.prune()
            self.client.close()
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for mount in reversed(mounts_below(self.folder)):
            subprocess.run(["umount", "--lazy", mount], check=False)
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [path for line in lines if (path := line.split()[1]).startswith(f"{folder}/")]


def why_not() -> str:
    """Why no second engine can be started here; "" if it can."""
    if os.geteuid():
        return "a second Docker Engine needs root"
    missing = [name for name in ("dockerd", "ip") if not shutil.which(name)]
    return f"a second Docker Engine needs {' and '.join(missing)}" if missing else ""


@pytest.fixture(scope="session")
def gpu_engine() -> Iterator[GpuEngine]:
    """A second engine with a stand-in for the NVIDIA toolkit; skipped where none can be, but in
    CI that fails."""
    if reason := why_not():
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    # Short: there are sockets below it.
    engine = GpuEngine(Path(tempfile.mkdtemp(prefix="mlw-gpu-", dir="/tmp")))
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()
