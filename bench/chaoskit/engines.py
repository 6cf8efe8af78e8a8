"""Docker Engines of our own: one a host, each with its own socket, folders and bridge.

The machine's own engine is only asked for a base image, when it runs; so nothing else that uses it
is disturbed, and both kinds of engine are there: `live_restore` (containers outlive a restart of
the engine) and the usual one (they do not).
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import docker
import psutil

from chaoskit.processes import Part

STARTS_WITHIN = 60
# dockerd offers its driver `nvidia` when such a program is on its PATH; ours gives any device.
HOOK = "#!/bin/sh\nexit 0\n"


def why_not() -> str:
    """Why no engine can be started here; "" if it can."""
    if os.geteuid():
        return "Engines can only be started by root."
    missing = [name for name in ("dockerd", "ip", "mount") if not shutil.which(name)]
    return (
        f"{', '.join(missing)} not found: apt install docker.io iproute2 mount" if missing else ""
    )


class OwnEngine:
    def __init__(self, name: str, folder: Path, *, number: int, live_restore: bool) -> None:
        self.name = name
        self.folder = folder
        self.live_restore = live_restore
        self.url = f"unix://{folder}/sock"
        self.bridge = f"mlc{number}{os.getpid() % 10**6}"
        # A /29 of a private range that Docker's default pools do not use.
        self.address = f"10.213.{(2 * os.getpid() + number) % 250}.1/29"
        self.part: Part
        self._client: docker.DockerClient | None = None

    def prepare(self, log: Path) -> None:
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(parents=True)
        hook = bin_folder / "nvidia-container-runtime-hook"
        hook.write_text(HOOK)
        hook.chmod(0o755)
        # Pools of its own: the usual ones may be used up by other engines of this machine.
        pools = {"default-address-pools": [{"base": "10.214.0.0/16", "size": 28}]}
        (self.folder / "daemon.json").write_text(json.dumps(pools))
        # A bridge of its own: with --bridge=none the start would delete another engine's docker0.
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", self.address, "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        command = [
            "dockerd",
            f"--host={self.url}",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--bridge={self.bridge}",
            f"--config-file={self.folder}/daemon.json",
            "--iptables=false",
            "--ip-masq=false",
            "--shutdown-timeout=2",
        ]
        if self.live_restore:
            command.append("--live-restore")
        env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        self.part = Part(
            f"engine-{self.name}",
            command,
            env=env,
            cwd=Path("/"),
            log=log,
            ready=self.answers,
        )

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(2)
                asking.connect(f"{self.folder}/sock")
                asking.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b"200 OK" in asking.recv(200)
        except OSError:
            return False

    @property
    def client(self) -> docker.DockerClient:
        if self._client is None:
            self._client = docker.DockerClient(self.url, version="auto", timeout=20)
        return self._client

    def kill(self) -> None:
        """kill -9 of the engine; its containers' shims live on, as on a real machine."""
        self.part.kill(whole=False)
        # A pid file of a process that is gone: the next start must cope.

    def stop(self) -> None:
        """Leave nothing: containers, processes, mounts, the bridge, the folder."""
        if not hasattr(self, "part"):
            return
        if self.part.is_alive() and self.answers():
            with contextlib.suppress(docker.errors.DockerException, OSError):
                for container in self.client.containers.list(all=True):
                    with contextlib.suppress(docker.errors.APIError):
                        container.remove(force=True, v=True)
                # A network's bridge outlives its engine and keeps the addresses from all others.
                self.client.networks.prune()
                self.client.close()
        self.part.stop(within=20)
        for process in below(self.folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        unmount_below(self.folder)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self.bridge)


def below(folder: Path) -> list[psutil.Process]:
    """Processes that name the folder in their command line: containerd, shims."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(f"{folder}/" in word for word in words):
            found.append(process)
    return found


def unmount_below(folder: Path) -> None:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    mounts = [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}")]
    for mount in sorted(mounts, reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, stderr=sys.stderr)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
