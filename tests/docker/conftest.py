"""An image that keeps the container contract and little more, and the engine under test."""

import hashlib
import io
import itertools
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound
from pytest_django import Settings

from runs.containers import ContainerSpec
from runs.containers.docker import DockerEngine
from runs.models import Attempt
from runs.workspace import Workspace
from tests.docker.gpu_engine import gpu_engine
from tests.docker.road import START_SH, Road, derived

__all__ = ["gpu_engine"]

DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
    --no-install-recommends python3 procps && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 nonroot && mkdir -p /home/agent && install -d -m 0700 /private
COPY entrypoint.sh /entrypoint.sh
RUN chmod 0755 /entrypoint.sh && touch /private/grading_server.py
WORKDIR /home
ENTRYPOINT ["/entrypoint.sh"]
"""
# The shape of upstream's: root opens the folders, then serves in the foreground, below bash.
ENTRYPOINT = """\
#!/bin/bash
exec >> /home/logs/entrypoint.log 2>&1
chmod a+rwX /home/submission /home/logs /home/code
python3 -I -S /private/grading_server.py
"""


@pytest.fixture(scope="session")
def contract_image(engine: docker.DockerClient, base_image: str) -> str:
    """The id of an image with python3, ps, the user nonroot and an entrypoint."""
    digest = hashlib.sha256(f"{base_image}{DOCKERFILE}{ENTRYPOINT}".encode()).hexdigest()[:12]
    tag = f"mlebench-web-test-contract:{digest}"
    try:
        return str(engine.images.get(tag).id)
    except ImageNotFound:
        pass
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, text in (("Dockerfile", DOCKERFILE), ("entrypoint.sh", ENTRYPOINT)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    # The host's network: a build needs Debian's packages, and the default bridge may be missing.
    image, _ = engine.images.build(
        fileobj=context,
        custom_context=True,
        tag=tag,
        buildargs={"BASE_IMAGE": base_image},
        network_mode="host",
        rm=True,
    )
    return str(image.id)


def wait_for(condition: Callable[[], object], *, seconds: float = 20, what: str = "") -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what or condition}"
        time.sleep(0.02)


class Lab:
    """Makes specs whose agent is a script; removes everything it made."""

    def __init__(self, engine: DockerEngine, image: str, data: Path) -> None:
        self.engine = engine
        self.image = image
        self.data = data
        self.install = uuid.uuid4().hex[:12]
        self.host = "lab"
        self.numbers = itertools.count(1)
        self.specs: list[ContainerSpec] = []

    def spec(self, script: str = "true", **fields: object) -> ContainerSpec:
        number = next(self.numbers)
        workspace = Workspace.for_attempt(number)
        workspace.make()
        data = self.data / str(number)
        data.mkdir()
        (data / "start.sh").write_text(script)
        values: dict[str, object] = {
            "name": f"mlebench-{self.install}-{number}",
            "labels": {
                "mlebench-web.install": self.install,
                "mlebench-web.run": "1",
                "mlebench-web.attempt": str(number),
                "mlebench-web.host": self.host,
                "mlebench-web.gpus": "",
            },
            "image_id": self.image,
            "workspace": workspace,
            "data_dir": data,
            "env": {"COMPETITION_ID": "test-prices"},
            "cpus": 1.0,
            "memory_bytes": 256 * 2**20,
            "shm_bytes": 64 * 2**20,
            "pids_limit": 200,
            "start": "/home/data/start.sh",
            **fields,
        }
        spec = ContainerSpec(**values)  # type: ignore[arg-type]
        self.specs.append(spec)
        return spec

    def started(self, script: str = "true", **fields: object) -> tuple[ContainerSpec, str]:
        """A running container whose relay listens."""
        spec = self.spec(script, **fields)
        container = self.engine.create(spec)
        self.engine.start(container)
        wait_for(spec.workspace.relay_is_ready, what="the relay")
        return spec, container

    def run(self, script: str, **fields: object) -> tuple[ContainerSpec, str]:
        """A container whose agent has ended."""
        spec, container = self.started(script, **fields)
        self.engine.start_agent(container, spec)
        wait_for(lambda: spec.workspace.agent_exit_code() is not None, what="agent.rc")
        return spec, container

    def output(self, spec: ContainerSpec) -> str:
        path = spec.workspace.logs / "agent.stdout"
        return path.read_text() if path.exists() else ""

    def clear(self) -> None:
        for spec in self.specs:
            self.engine.remove(spec.name)
            spec.workspace.remove(self.engine, self.image)


@pytest.fixture
def lab(contract_image: str, tmp_path: Path, settings: Settings) -> Iterator[Lab]:
    settings.ATTEMPTS_DIR = tmp_path / "attempts"
    lab = Lab(DockerEngine(), contract_image, tmp_path)
    try:
        yield lab
    finally:
        lab.clear()


@pytest.fixture(scope="session")
def script_image(engine: docker.DockerClient, contract_image: str) -> str:
    """An agent that does what the variable SCRIPT says."""
    return derived(
        engine,
        contract_image,
        "script",
        "COPY start.sh /home/agent/start.sh",
        {"start.sh": START_SH},
    )


@pytest.fixture
def road(script_image: str, settings: object) -> Iterator[Road]:
    road = Road(script_image)
    yield road
    for attempt in Attempt.objects.all():
        if attempt.container_id:
            road.engine.remove(attempt.container_id)
