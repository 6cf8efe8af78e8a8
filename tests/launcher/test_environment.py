"""What the command line means, and what every part is told."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from mlebench_web import base_image
from mlebench_web.launcher import environment
from mlebench_web.launcher.environment import Options

OPTIONS = Options("start", "127.0.0.1", 8000, Path("/data"), "python:3.12-slim")


def test_options_have_the_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLEBENCH_WEB_DATA", raising=False)
    monkeypatch.delenv("BASE_IMAGE", raising=False)

    options = environment.parse(["start"])

    assert options == replace(OPTIONS, data=environment.BASE_DIR / "var")


def test_the_base_image_comes_from_the_option_then_the_variable_then_the_last_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = ["start", "--data", str(tmp_path)]
    monkeypatch.delenv("BASE_IMAGE", raising=False)
    assert environment.parse(start).base_image == base_image.DEFAULT

    base_image.remember(tmp_path, "built-on-this")
    assert environment.parse(start).base_image == "built-on-this"

    monkeypatch.setenv("BASE_IMAGE", "from-variable")
    assert environment.parse(start).base_image == "from-variable"
    assert environment.parse([*start, "--base-image", "named"]).base_image == "named"


def test_the_default_base_image_is_followed_not_remembered(tmp_path: Path) -> None:
    base_image.remember(tmp_path, "built-on-this")

    base_image.remember(tmp_path, base_image.DEFAULT)

    assert base_image.of(tmp_path) == base_image.DEFAULT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["start", "--port", "eighty"], "--port", id="port is no number"),
        pytest.param(["start", "--port", "70000"], "0 to 65535", id="port too high"),
        pytest.param(["start", "--exit"], "--exit belongs to ./run demo", id="exit without demo"),
        pytest.param(["start", "--data", __file__], "not a folder", id="data is a file"),
        pytest.param(["start", "--colour"], "--colour", id="unknown option"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        environment.parse(arguments)

    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_listening_everywhere_allows_the_names_and_addresses_of_this_machine() -> None:
    hosts = environment.allowed_hosts("0.0.0.0")

    assert {"127.0.0.1", "localhost", socket.gethostname()} <= set(hosts)
    assert "0.0.0.0" not in hosts
    assert "*" not in hosts


def test_listening_on_one_address_allows_that_one() -> None:
    assert environment.allowed_hosts("192.0.2.7")[-1] == "192.0.2.7"
    assert environment.allowed_hosts("2001:db8::7")[-1] == "[2001:db8::7]"


def test_parts_are_told_the_address_and_the_data_folder() -> None:
    options = replace(OPTIONS, host="0.0.0.0", port=8123)

    env = environment.for_parts(options, {"PATH": "/bin", "PYTHONPATH": "/elsewhere"})

    assert env["MLEBENCH_WEB_DATA"] == "/data"
    assert env["PUBLIC_URL"] == "http://127.0.0.1:8123"
    assert f"http://{socket.gethostname()}:8123" in env["CSRF_TRUSTED_ORIGINS"].split(",")
    assert env["SOCKETS_DIR"] == "/data/s"
    assert "PYTHONPATH" not in env


def test_what_the_user_has_set_stays() -> None:
    mine = {"ALLOWED_HOSTS": "board.example.org", "PUBLIC_URL": "https://board.example.org"}

    env = environment.for_parts(OPTIONS, mine)

    assert {name: env[name] for name in mine} == mine


def test_a_remote_user_is_told_how_to_tunnel() -> None:
    seen = {"SSH_CONNECTION": "198.51.100.4 50000 192.0.2.7 22", "USER": "maria"}

    assert environment.tunnel_line(OPTIONS, seen) == "ssh -N -L 8000:127.0.0.1:8000 maria@192.0.2.7"
    assert " -p 2222 " in environment.tunnel_line(
        OPTIONS, seen | {"SSH_CONNECTION": "198.51.100.4 50000 192.0.2.7 2222"}
    )


def test_there_is_no_tunnel_line_on_a_local_terminal_or_a_public_address() -> None:
    seen = {"SSH_CONNECTION": "198.51.100.4 50000 192.0.2.7 22"}

    assert environment.tunnel_line(OPTIONS, {}) == ""
    assert environment.tunnel_line(replace(OPTIONS, host="0.0.0.0"), seen) == ""


def test_a_taken_port_is_refused_with_its_owner_and_another_one_offered() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(environment.PortTaken) as refused:
            environment.free_port("127.0.0.1", port)

    assert f"127.0.0.1:{port}" in str(refused.value)
    assert f"Process {os.getpid()} (" in str(refused.value)
    assert f"--port {port + 1}" in str(refused.value)


def test_a_server_is_known_by_its_process_not_by_its_port_alone() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        port = mine.getsockname()[1]
        assert not environment.listens(os.getpid(), port)
        mine.listen()

        assert environment.listens(os.getpid(), port)
        assert not environment.listens(os.getppid(), port)
    assert not environment.listens(os.getpid(), port)


def test_port_0_takes_a_free_one() -> None:
    port = environment.free_port("127.0.0.1", 0)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
