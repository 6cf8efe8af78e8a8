"""A second Docker Engine that has GPUs as far as an engine can tell, without a GPU.

An engine knows its `nvidia` driver by a program `nvidia-container-runtime-hook` on its PATH at its
start. Ours says yes to every device but those named gone. What a container then sees is what a
real engine would give it; that CUDA works is not shown here.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException

GONE = "GPU-gone"
HOOK = f"""\
#!/bin/sh
bundle=$(sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/')
if grep -q 'NVIDIA_VISIBLE_DEVICES=[^"]*{GONE}' "$bundle/config.json"; then
    echo "nvidia-container-cli: device error: {GONE}: unknown device" >&2
    exit 1
fi
"""


@contextmanager
def gpu_engine() -> Iterator[str]:
    """The address of a second engine on this machine; gone at the end. Needs root and dockerd.

    It shares nothing with the first one: own folders, own containerd, own bridge (with
    `--bridge=none` it would delete the first one's docker0 at its start).
    """
    # Short: an engine makes sockets below it.
    folder = Path(tempfile.mkdtemp(prefix="mlg-", dir="/tmp"))
    bridge = f"mlg{os.getpid() % 10**8}"
    (folder / "bin").mkdir()
    hook = folder / "bin" / "nvidia-container-runtime-hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    url = f"unix://{folder}/sock"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "172.31.251.1/24", "dev", bridge], check=True)
        with (folder / "log").open("wb") as log:
            engine = subprocess.Popen(
                [
                    "dockerd",
                    f"--data-root={folder}/data",
                    f"--exec-root={folder}/exec",
                    f"--pidfile={folder}/pid",
                    f"--host={url}",
                    f"--bridge={bridge}",
                    "--iptables=false",
                    "--ip-masq=false",
                ],
                env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait_until_up(url, engine, folder / "log")
            yield url
        finally:
            # It ends its own containerd; the test has removed its containers.
            engine.send_signal(signal.SIGTERM)
            engine.wait(30)
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(url: str, engine: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 30
    while True:
        assert engine.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < until, log.read_text()[-2000:]
        if Path(url.removeprefix("unix://")).exists():
            try:
                client = docker.DockerClient(base_url=url, version="1.41", timeout=10)
                client.ping()
                client.close()
                return
            except DockerException:
                pass
        time.sleep(0.05)
