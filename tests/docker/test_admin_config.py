"""Settings of an admin's container config reach the engine beside ours, never in their place."""

import docker
import pytest

from runs.core.container_config import limits_of
from tests.docker.conftest import Lab

pytestmark = pytest.mark.docker

SETTINGS = {
    "cap_add": ["SYS_PTRACE"],
    "ulimits": [{"Name": "nofile", "Soft": 512, "Hard": 1024}],
    "extra_hosts": {"model": "10.0.0.7"},
    "tmpfs": {"/scratch": "size=1m"},
    "dns": ["10.0.0.9"],
    "ipc_mode": "private",
}


def test_what_an_admin_opened_is_open_and_nothing_else(
    lab: Lab, engine: docker.DockerClient
) -> None:
    spec = lab.spec(engine_settings=limits_of(SETTINGS).admin)

    host = engine.api.inspect_container(lab.engine.create(spec))["HostConfig"]

    assert set(host["CapAdd"]) >= {"SYS_PTRACE", "CHOWN", "KILL"}
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host["Privileged"]
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 512, "Hard": 1024}]
    assert host["ExtraHosts"] == ["model:10.0.0.7"]
    assert host["Tmpfs"] == {"/scratch": "size=1m"}
    assert host["Dns"] == ["10.0.0.9"]
