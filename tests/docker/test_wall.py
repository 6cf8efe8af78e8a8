"""What an agent with the internet reaches: other machines, never this one nor the cloud's keys."""

import socket
import threading
from collections.abc import Callable, Iterator

import docker
import pytest
from pytest_django import Settings

from runs.containers import EngineFailure, reach
from runs.core.failures import Cause
from tests.docker.conftest import Lab

pytestmark = pytest.mark.docker

KNOCK = """
import errno, socket, sys
for address in sys.argv[1:]:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
        print("open")
    except OSError as error:
        print(errno.errorcode.get(error.errno, error))
"""
# A route is looked up and no packet sent.
ROUTE = KNOCK.replace(
    "socket.create_connection((host, int(port)), 5).close()",
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((host, int(port)))",
)
GATEWAY = """
for line in open("/proc/net/route").read().splitlines()[1:]:
    gateway = int(line.split()[2], 16)
    if gateway:
        print(*gateway.to_bytes(4, "little"), sep=".")
"""
OTHERS = "192.0.2.77:80"


@pytest.fixture
def lab(lab: Lab, engine: docker.DockerClient) -> Iterator[Lab]:
    yield lab
    lab.clear()
    for network in engine.networks.list(names=[f"mlebench-{lab.install}"]):
        network.remove()


@pytest.fixture
def port() -> Iterator[int]:
    """Somebody of this machine who listens at all of its addresses, as a web may."""
    server = socket.create_server(("0.0.0.0", 0))
    threading.Thread(target=accept_all, args=(server,), daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def accept_all(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def ask(lab: Lab, container: str, script: str, *addresses: str, user: str = "nonroot") -> list[str]:
    code, said = lab.engine._exec(container, ["python3", "-c", script, *addresses], user=user)
    assert code == 0, said
    return said.split()


@pytest.mark.parametrize("user", ["nonroot", "root"])
def test_an_agent_with_the_internet_reaches_neither_its_host_nor_the_clouds_own(
    lab: Lab, port: int, user: str
) -> None:
    _, container = lab.started(network="internet")
    (gateway,) = ask(lab, container, GATEWAY)
    hosts = sorted({gateway, *reach.of_this_host()} - {"127.0.0.1"})

    assert ask(lab, container, KNOCK, *(f"{host}:{port}" for host in hosts), user=user) == [
        "EHOSTUNREACH"
    ] * len(hosts)
    assert (
        ask(lab, container, ROUTE, "169.254.169.254:80", "100.100.100.200:80", user=user)
        == ["EHOSTUNREACH"] * 2
    )
    assert ask(lab, container, ROUTE, OTHERS, user=user) == ["open"]


def test_root_in_the_container_cannot_open_what_is_closed(lab: Lab) -> None:
    _, container = lab.started(network="internet")
    undo = reach.WALL.read_text().replace("NEW_ROUTE, ERROR = 24, 2", "NEW_ROUTE, ERROR = 25, 2")

    code, said = lab.engine._exec(container, ["python3", "-c", undo, "169.254.0.0/16"], user="root")

    assert code != 0
    assert "PermissionError" in said


def test_what_is_named_stays_open(lab: Lab, port: int, settings: Settings) -> None:
    mine = sorted(reach.of_this_host() - {"127.0.0.1"})[0]
    settings.AGENTS_MAY_REACH = [mine]

    _, container = lab.started(network="internet")

    assert ask(lab, container, KNOCK, f"{mine}:{port}") == ["open"]
    assert ask(lab, container, ROUTE, "169.254.169.254:80") == ["EHOSTUNREACH"]


def test_a_host_that_an_admin_named_in_a_config_is_open(lab: Lab, port: int) -> None:
    mine = sorted(reach.of_this_host() - {"127.0.0.1"})[0]

    _, container = lab.started(network="internet", engine_settings={"extra_hosts": {"model": mine}})

    assert ask(lab, container, KNOCK, f"{mine}:{port}", f"model:{port}") == ["open", "open"]


def helpers(engine: docker.DockerClient, container: str) -> list[str]:
    named = {"name": f"mlebench-wall-{container[:12]}"}
    return [str(each.name) for each in engine.containers.list(all=True, filters=named)]


def test_closing_twice_is_no_error_and_leaves_no_helper(
    lab: Lab, engine: docker.DockerClient
) -> None:
    _, container = lab.started(network="internet")

    lab.engine.start(container)

    assert helpers(engine, container) == []
    assert ask(lab, container, ROUTE, "169.254.169.254:80") == ["EHOSTUNREACH"]


@pytest.mark.parametrize("then", ["start", "remove"])
def test_a_helper_that_its_supervisor_left_behind_goes_with_the_next_step(
    lab: Lab, engine: docker.DockerClient, then: str
) -> None:
    _, container = lab.started(network="internet")
    engine.containers.create(lab.image, name=f"mlebench-wall-{container[:12]}", network_mode="none")

    getattr(lab.engine, then)(container)

    assert helpers(engine, container) == []


def test_a_container_that_ended_at_once_is_left_to_whoever_looks_why(
    lab: Lab, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = lab.engine.create(lab.spec(network="internet"))
    real = docker.APIClient.inspect_container

    def inspect(api: docker.APIClient, which: str) -> object:
        """The container ends between the engine's start and our look."""
        seen = real(api, which)
        if seen["State"]["Running"]:
            monkeypatch.setattr(docker.APIClient, "inspect_container", real)
            lab.engine.kill(container)
        return seen

    monkeypatch.setattr(docker.APIClient, "inspect_container", inspect)

    lab.engine.start(container)

    assert lab.engine.look(container).exit_code == 137
    assert helpers(engine, container) == []


def test_a_container_that_could_not_be_closed_off_does_not_get_its_agent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: Callable[..., list[str]] = lambda *_: ["no address"]  # noqa: E731
    monkeypatch.setattr(reach, "closed", closed)
    container = lab.engine.create(lab.spec(network="internet"))

    with pytest.raises(EngineFailure) as failure:
        lab.engine.start(container)

    assert failure.value.cause == Cause.NETWORK
    assert "could not be closed" in failure.value.text
    assert "no address" in failure.value.text


def test_a_container_without_a_network_needs_no_wall(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> list[str]:
        raise AssertionError("there is nothing to close")

    monkeypatch.setattr(reach, "closed", closed)

    lab.started()


def test_name_servers_can_be_named(lab: Lab, settings: Settings) -> None:
    settings.AGENT_NAMESERVERS = ["192.0.2.53"]

    container = lab.engine.create(lab.spec(network="internet"))

    assert lab.engine._api.inspect_container(container)["HostConfig"]["Dns"] == ["192.0.2.53"]
