"""The validation door of a container, on a real engine."""

import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from tests.docker.conftest import Lab, wait_for

pytestmark = pytest.mark.docker

LOOPS = "echo up; while :; do sleep 0.05; done"


class Validation(ThreadingMixIn, UnixStreamServer):
    """A stand-in for the validation service at the other end of the socket."""

    daemon_threads = True
    request_queue_size = 64


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said = b'{"result": "%d bytes to %s"}\n' % (len(body), self.path.encode())
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None: ...

    def address_string(self) -> str:
        return "unix"


ASK = """\
import json, sys, urllib.request, urllib.error
def ask(path, data=None):
    try:
        answer = urllib.request.urlopen("http://localhost:5000" + path, data, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    print(answer.status, answer.headers.get("Retry-After"), answer.read().decode().strip())
"""


def test_health_and_validation_work_on_localhost_without_a_network(lab: Lab) -> None:
    ask = ASK + (
        "ask('/health')\nask('/validate', b'x' * 3000000)\nask('/validate')\nask('/other')\n"
    )
    script = f"python3 - <<'E'\n{ask}E\n"
    spec, _ = lab.started(script)
    server = Validation(str(spec.workspace.socket_dir / "v"), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        lab.engine.start_agent(spec.name, spec)
        wait_for(lambda: spec.workspace.agent_exit_code() is not None)
    finally:
        server.shutdown()
        server.server_close()
    health, validated, wrong_method, unknown = lab.output(spec).splitlines()
    assert health == '200 None {"status": "running"}'
    assert validated == '200 None {"result": "3000000 bytes to /validate"}'
    assert wrong_method.startswith("405")
    assert unknown.startswith("404")


def test_validation_that_is_away_says_when_to_come_back(lab: Lab) -> None:
    spec, _ = lab.run(
        f"python3 - <<'E'\n{ASK}ask('/validate', b'x' * 3000000)\nask('/health')\nE\n"
    )
    away, health = lab.output(spec).splitlines()
    assert away.startswith("503 5 "), away
    assert health.startswith("200")
