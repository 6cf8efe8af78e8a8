"""The validation relay, run as in a container: alone, with the host at the end of a socket."""

import ast
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RELAY = Path(__file__).parents[2] / "runs" / "containers" / "relay.py"


class Relay:
    def __init__(self, link: Path) -> None:
        self.link = link
        command = [sys.executable, "-I", "-S", str(RELAY), str(link), "127.0.0.1", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while not (link / "ready").exists():
            assert time.monotonic() < until, "the relay does not listen"
            time.sleep(0.01)
        self.port = int((link / "ready").read_text())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer; the connection is at its end after it."""
        with self.connect() as connection:
            connection.sendall(request)
            return read(connection)

    def validate(self, body: bytes, *headers: bytes) -> tuple[int, dict[str, str], bytes]:
        lines = [b"POST /validate HTTP/1.1", b"Host: localhost:5000", *headers]
        lines.append(b"Content-Length: %d" % len(body))
        return self.ask(b"\r\n".join(lines) + b"\r\n\r\n" + body)


def read(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


@pytest.fixture
def relay() -> Iterator[Relay]:
    # Short: a socket's path has at most 107 bytes.
    link = Path(tempfile.mkdtemp(prefix="mlr-"))
    relay = Relay(link)
    try:
        yield relay
    finally:
        relay.process.kill()
        relay.process.wait()
        shutil.rmtree(link)


Host = Callable[[socket.socket], None]


@pytest.fixture
def host(relay: Relay) -> Iterator[Callable[[Host], None]]:
    """The service on the host: what is given is done with each connection."""
    server = socket.socket(socket.AF_UNIX)
    threads: list[threading.Thread] = []
    over = threading.Event()

    def serve(act: Host) -> None:
        server.bind(str(relay.link / "v"))
        server.listen(64)

        def loop() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if over.is_set():
                        return
                    act(connection)

        threads.append(threading.Thread(target=loop))
        threads[0].start()

    yield serve
    over.set()
    if threads:
        # Wakes the thread that waits for a connection.
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(relay.link / "v"))
        threads[0].join(20)
    server.close()


def echo(connection: socket.socket) -> None:
    """Answers with the request's head and the size of its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    (length,) = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
    size = len(body)
    while size < length:
        size += len(connection.recv(65536))
    said = json.dumps({"size": size, "head": head.decode()}).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)


def test_health_is_upstreams_answer(relay: Relay) -> None:
    status, _, body = relay.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, json.loads(body)) == (200, {"status": "running"})


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /validate HTTP/1.1\r\n\r\n", 405),
        (b"POST /health HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /validate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /validate HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_not_understood_is_refused_and_the_relay_goes_on(
    relay: Relay, request_: bytes, status: int
) -> None:
    assert relay.ask(request_)[0] == status
    assert relay.ask(b"GET /health HTTP/1.1\r\n\r\n")[0] == 200


def test_a_submission_goes_through_whole_with_its_headers(
    relay: Relay, host: Callable[[Host], None]
) -> None:
    host(echo)
    status, _, body = relay.validate(b"x" * 5_000_000, b"Content-Type: multipart/form-data; b=1")
    seen = json.loads(body)
    assert (status, seen["size"]) == (200, 5_000_000)
    assert "Content-Type: multipart/form-data; b=1" in seen["head"]


def test_a_client_that_waits_for_leave_is_given_it(
    relay: Relay, host: Callable[[Host], None]
) -> None:
    host(echo)
    with relay.connect() as client:
        client.sendall(
            b"POST /validate HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"abc")
        status, _, body = read(client)
    assert (status, json.loads(body)["size"]) == (200, 3)
    assert "expect" not in json.loads(body)["head"].lower()


def test_a_refusal_in_the_middle_of_a_large_submission_reaches_the_client(
    relay: Relay, host: Callable[[Host], None]
) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        # The body stays unread: closing now resets the connection.

    host(refuse)
    assert relay.validate(b"x" * 5_000_000)[0] == 413


def test_without_a_host_the_client_is_told_when_to_come_back(
    relay: Relay, host: Callable[[Host], None]
) -> None:
    status, headers, _ = relay.validate(b"x" * 1_000_000)
    assert (status, headers["retry-after"]) == (503, "5")
    # A service that comes back is found: it is the folder that is mounted, not the socket.
    host(echo)
    assert relay.validate(b"abc")[0] == 200


def test_a_host_that_dies_in_the_middle_is_told_as_that(
    relay: Relay, host: Callable[[Host], None]
) -> None:
    host(lambda connection: None)
    status, headers, _ = relay.validate(b"abc")
    assert (status, headers["retry-after"]) == (503, "5")


def test_clients_that_say_nothing_do_not_keep_others_out(relay: Relay) -> None:
    silent = [relay.connect() for _ in range(10)]
    try:
        assert relay.ask(b"GET /health HTTP/1.1\r\n\r\n")[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_it_is_written_for_an_old_python() -> None:
    text = RELAY.read_text()
    ast.parse(text, feature_version=(3, 8))
    # Types stay unread, so that those of newer versions do no harm.
    assert "from __future__ import annotations" in text
