"""A container gets exactly the GPUs that were leased to it: on an engine with the NVIDIA hook."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from pytest_django import Settings

from runs.containers import ContainerState, EngineFailure
from runs.containers.docker import DockerEngine
from runs.core.failures import Cause
from tests.docker.conftest import Lab, wait_for
from tests.support.gpu_engine import GONE, gpu_engine

pytestmark = pytest.mark.docker

# All that this image does: write down its environment and wait.
SHOW = r"""
#include <stdio.h>
#include <unistd.h>
extern char **environ;
int main(void) {
    FILE *file = fopen("/home/logs/env.tmp", "w");
    for (char **line = environ; *line; line++) fprintf(file, "%s\n", *line);
    fclose(file);
    rename("/home/logs/env.tmp", "/home/logs/env");
    for (;;) pause();
}
"""


@pytest.fixture(scope="module")
def address(engine: docker.DockerClient) -> Iterator[str]:
    with gpu_engine() as url:
        yield url


@pytest.fixture(scope="module")
def show_image(address: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("show")
    (folder / "show.c").write_text(SHOW)
    compiler = ["cc", "-static", "-O1", "-o", str(folder / "show"), str(folder / "show.c")]
    subprocess.run(compiler, check=True)
    dockerfile = b'FROM scratch\nCOPY show /show\nENTRYPOINT ["/show"]\n'
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        tar.addfile(entry, io.BytesIO(dockerfile))
        tar.add(folder / "show", "show")
    context.seek(0)
    client = docker.DockerClient(base_url=address, timeout=60)
    try:
        image, _ = client.images.build(fileobj=context, custom_context=True, rm=True)
        return str(image.id)
    finally:
        client.close()


@pytest.fixture
def gpu_lab(address: str, show_image: str, tmp_path: Path, settings: Settings) -> Iterator[Lab]:
    settings.ENGINE_URL = address
    settings.ATTEMPTS_DIR = tmp_path / "attempts"
    lab = Lab(DockerEngine(), show_image, tmp_path)
    try:
        yield lab
    finally:
        for spec in lab.specs:
            lab.engine.remove(spec.name)


def environment(lab: Lab, **fields: object) -> list[str]:
    spec = lab.spec(**fields)
    lab.engine.start(lab.engine.create(spec))
    path = spec.workspace.logs / "env"
    wait_for(path.exists)
    return [line for line in path.read_text().splitlines() if line.startswith("NVIDIA_")]


def test_a_container_sees_the_leased_gpus_and_no_other(gpu_lab: Lab) -> None:
    greedy = {"NVIDIA_VISIBLE_DEVICES": "all"}
    seen = environment(gpu_lab, gpu_uuids=("GPU-a", "MIG-b"), env=greedy)
    assert "NVIDIA_VISIBLE_DEVICES=GPU-a,MIG-b" in seen
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in seen
    assert not any(line.endswith("=all") for line in seen)


def test_a_container_without_a_lease_sees_none(gpu_lab: Lab) -> None:
    assert environment(gpu_lab, env={"NVIDIA_VISIBLE_DEVICES": "all"}) == [
        "NVIDIA_VISIBLE_DEVICES=void"
    ]


def test_a_gpu_that_the_engine_does_not_know_is_named(gpu_lab: Lab) -> None:
    container = gpu_lab.engine.create(gpu_lab.spec(gpu_uuids=(GONE,)))
    with pytest.raises(EngineFailure, match="unknown device") as caught:
        gpu_lab.engine.start(container)
    assert caught.value.cause == Cause.GPU_UNKNOWN
    assert gpu_lab.engine.look(container).state == ContainerState.CREATED
