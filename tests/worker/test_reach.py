"""Which addresses are closed to agents with the internet."""

import ipaddress
from pathlib import Path

import pytest
from pytest_django import Settings

from runs import checks
from runs.containers import reach

# As the kernel writes it.
FIB = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.1.0.0/16 2 0 2
        |-- 10.1.0.0
           /16 link UNICAST
        |-- 10.1.2.3
           /32 host LOCAL
        |-- 10.1.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
"""


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    (tmp_path / "fib_trie").write_text(FIB)
    monkeypatch.setattr(reach, "LOCAL", tmp_path / "fib_trie")
    settings.PUBLIC_URL = "http://127.0.0.1:8000"
    settings.CELERY_BROKER_URL = "redis+socket:///run/broker"


def is_closed(address: str, more: tuple[str, ...] = ()) -> bool:
    nets = [ipaddress.IPv4Network(each) for each in reach.closed(more)]
    return any(ipaddress.IPv4Address(address) in net for net in nets)


@pytest.mark.parametrize(
    ("address", "closed"),
    [
        pytest.param("10.1.2.3", True, id="this host"),
        pytest.param("10.1.2.4", False, id="its neighbour"),
        pytest.param("169.254.169.254", True, id="credentials of a cloud's machine"),
        pytest.param("169.254.170.2", True, id="credentials of a cloud's container"),
        pytest.param("168.63.129.16", True, id="Azure"),
        pytest.param("192.0.2.1", False, id="elsewhere"),
    ],
)
def test_the_host_and_the_clouds_own_are_closed(address: str, closed: bool) -> None:
    assert is_closed(address) == closed


def test_servers_of_the_product_are_closed_by_the_addresses_that_settings_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CELERY_BROKER_URL = "redis://:secret@192.0.2.10:6379/0"
    settings.PUBLIC_URL = "https://192.0.2.11/"
    monkeypatch.setitem(settings.DATABASES["default"], "HOST", "192.0.2.12")

    assert all(is_closed(f"192.0.2.{number}") for number in (10, 11, 12))


def test_a_database_on_a_socket_and_a_name_that_nobody_knows_close_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.DATABASES["default"], "HOST", "/run/postgresql")
    settings.PUBLIC_URL = "https://no-such-name.invalid/"

    assert reach.of_servers() == set()


@pytest.mark.parametrize("opened", ["169.254.169.254", "169.254.169.0/24", "0.0.0.0/0"])
def test_what_is_named_is_open_and_nothing_beside_it(opened: str, settings: Settings) -> None:
    settings.AGENTS_MAY_REACH = [opened]

    assert not is_closed("169.254.169.254")
    assert is_closed("169.254.1.1") == (opened != "0.0.0.0/0")
    assert not is_closed("10.1.2.3", ("10.1.2.3",))


@pytest.mark.parametrize(
    ("resolv_conf", "closed"),
    [
        ("nameserver 10.1.2.3\nsearch x\n", ["10.1.2.3"]),
        ("nameserver 169.254.169.254\nnameserver 192.0.2.53\n", ["169.254.169.254"]),
        # The engine asks these from its own network.
        ("nameserver 127.0.0.53\noptions edns0\n", []),
        ("nameserver fe80::1\nnameserver 192.0.2.53\n", []),
        (None, []),
    ],
)
def test_a_name_server_that_is_closed_is_said(
    resolv_conf: str | None, closed: list[str], tmp_path: Path
) -> None:
    if resolv_conf is not None:
        (tmp_path / "resolv.conf").write_text(resolv_conf)

    assert reach.closed_name_servers(tmp_path / "resolv.conf") == closed


def test_the_check_names_the_server_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(reach, "closed_name_servers", lambda: ["10.1.2.3"])
    settings.ENGINE_URL = ""

    (warning,) = checks.agents_reach_a_name_server()

    assert "10.1.2.3" in warning.msg
    assert "AGENT_NAMESERVERS" in str(warning.hint)
    settings.AGENT_NAMESERVERS = ["192.0.2.53"]
    assert list(checks.agents_reach_a_name_server()) == []
