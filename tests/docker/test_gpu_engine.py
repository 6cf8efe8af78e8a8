"""A container gets exactly the GPUs that its attempt has leased: seen from inside it."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from pytest_django import Settings

from mlebench_web.fleet import hosts, inventory
from mlebench_web.fleet.gpus import GpuReader
from mlebench_web.fleet.models import Gpu, Host
from runs.containers import ContainerState, EngineFailure
from runs.containers.docker import DockerEngine
from runs.core.failures import Cause
from runs.host_service import HostService
from runs.models import Installation
from tests.conftest import FakeNvml
from tests.docker.conftest import Lab
from tests.docker.gpu_engine import GpuEngine

pytestmark = pytest.mark.docker

SHOW = 'echo "gpus=[$NVIDIA_VISIBLE_DEVICES]"'


@pytest.fixture(scope="session")
def gpu_image(
    gpu_engine: GpuEngine,
    engine: docker.DockerClient,
    contract_image: str,
) -> str:
    return gpu_engine.load(engine, contract_image)


@pytest.fixture
def gpu_lab(
    gpu_engine: GpuEngine,
    gpu_image: str,
    tmp_path: Path,
    settings: Settings,
) -> Iterator[Lab]:
    """A lab on the second engine, which has the GPUs GPU-a, GPU-b and a slice."""
    settings.ENGINE_URL = gpu_engine.url
    settings.ATTEMPTS_DIR = tmp_path / "attempts"
    gpu_engine.knows("GPU-a", "GPU-b", "MIG-c")
    lab = Lab(DockerEngine(), gpu_image, tmp_path)
    try:
        yield lab
    finally:
        lab.clear()


@pytest.mark.parametrize("uuids", [("GPU-a",), ("GPU-b", "MIG-c")])
def test_a_container_gets_exactly_the_leased_gpus(
    gpu_lab: Lab,
    gpu_engine: GpuEngine,
    uuids: tuple[str, ...],
) -> None:
    spec, container = gpu_lab.run(SHOW, gpu_uuids=uuids)

    wanted = ",".join(uuids)
    assert gpu_lab.output(spec).strip() == f"gpus=[{wanted}]"
    assert gpu_engine.given(container) == [wanted]


def test_two_containers_at_once_get_each_its_own(
    gpu_lab: Lab,
    gpu_engine: GpuEngine,
) -> None:
    _, first = gpu_lab.started(gpu_uuids=("GPU-a",))
    _, second = gpu_lab.started(gpu_uuids=("GPU-b",))

    assert gpu_engine.given(first) == ["GPU-a"]
    assert gpu_engine.given(second) == ["GPU-b"]


def test_a_container_without_gpus_gets_none(
    gpu_lab: Lab,
    gpu_engine: GpuEngine,
) -> None:
    spec, container = gpu_lab.run(SHOW)

    assert gpu_lab.output(spec).strip() == "gpus=[void]"
    assert gpu_engine.given(container) == []


@pytest.mark.parametrize(("uuids", "got"), [((), "void"), (("GPU-b",), "GPU-b")])
def test_an_image_that_asks_for_all_gpus_gets_the_leased_ones(
    gpu_lab: Lab,
    gpu_engine: GpuEngine,
    uuids: tuple[str, ...],
    got: str,
) -> None:
    """CUDA's images have this variable in them."""
    made = gpu_engine.client.containers.create(gpu_lab.image)
    greedy = made.commit(changes="ENV NVIDIA_VISIBLE_DEVICES=all")
    made.remove()

    spec, _ = gpu_lab.run(SHOW, gpu_uuids=uuids, image_id=str(greedy.id))

    assert f"gpus=[{got}]" in gpu_lab.output(spec)


def test_an_agents_own_variable_does_not_widen_the_lease(gpu_lab: Lab) -> None:
    spec, _ = gpu_lab.run(
        SHOW, gpu_uuids=("GPU-a",), env={"NVIDIA_VISIBLE_DEVICES": "all", "COMPETITION_ID": "x"}
    )

    assert "gpus=[GPU-a]" in gpu_lab.output(spec)


def test_a_gpu_that_the_engine_does_not_know_is_named(gpu_lab: Lab) -> None:
    container = gpu_lab.engine.create(gpu_lab.spec(gpu_uuids=("GPU-gone",)))

    with pytest.raises(EngineFailure) as caught:
        gpu_lab.engine.start(container)

    assert caught.value.cause == Cause.GPU_UNKNOWN
    assert "GPU-gone: unknown device" in caught.value.text
    assert gpu_lab.engine.look(container).state == ContainerState.CREATED
    gpu_lab.engine.remove(container)
    assert gpu_lab.engine.look(container).state == ContainerState.MISSING


def test_what_nvml_reports_is_what_the_engine_takes(
    gpu_lab: Lab,
    gpu_engine: GpuEngine,
    fake_nvml: FakeNvml,
    host: Host,
) -> None:
    """From the driver's reading over the host's rows to the container, by UUID alone."""
    ctypes.CDLL(str(fake_nvml.library))
    fake_nvml.write(
        {"count": 2, "gpu0.uuid": "GPU-a", "gpu1.uuid": "GPU-b", "gpu1.mig": 1}
        | {"gpu1.migs": 1, "gpu1.mig0.uuid": "MIG-c"}
    )
    reader = GpuReader()
    hosts.publish(host, inventory.describe(gpu_reading=reader.read()))
    reader.close()
    leasable = Gpu.objects.filter(host=host, is_mig_parent=False, fault="", is_present=True)
    uuids = tuple(sorted(leasable.values_list("uuid", flat=True)))

    spec, _ = gpu_lab.run(SHOW, gpu_uuids=uuids)

    assert "gpus=[GPU-a,MIG-c]" in gpu_lab.output(spec)


def test_a_process_in_our_container_is_no_foreign_use_of_its_gpu(
    db: None,
    gpu_lab: Lab,
    gpu_engine: GpuEngine,
) -> None:
    gpu_lab.install, gpu_lab.host = Installation.this().name, hosts.this_host().name
    _, container = gpu_lab.started(gpu_uuids=("GPU-a",))
    pid = gpu_engine.client.api.inspect_container(container)["State"]["Pid"]

    is_ours = HostService().owner_of_processes()

    assert is_ours
    assert is_ours(pid) is True
    assert is_ours(1) is False
