"""/validate over the sockets that are mounted into containers, with real HTTP bytes."""

import http.client
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from mlebench_web.catalog.models import Competition
from runs import logs, validation
from runs.core.states import Outcome, State
from runs.models import Attempt
from runs.validation import ValidationService, ask_to_serve
from runs.workspace import Workspace
from tests.conftest import SHARED, SHARED_IS_ABSENT
from tests.factories import make_competition, make_group, make_host, make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("warm_grader")]

CACTUS = "aerial-cactus-identification"
FOLDER = Path(__file__).resolve().parents[1] / "golden" / "competitions" / CACTUS
ANSWERS = "id,has_cactus\na,1\nb,0\n"


@pytest.fixture
def competition(settings: Settings, tmp_path: Path) -> Competition:
    settings.COMPETITIONS_DIR = tmp_path / "competitions"
    private = settings.COMPETITIONS_DIR / CACTUS / "prepared" / "private"
    private.mkdir(parents=True)
    (private / "test.csv").write_text(ANSWERS)
    return make_competition(
        CACTUS, folder=str(FOLDER), answers_path=f"{CACTUS}/prepared/private/test.csv"
    )


@pytest.fixture
def attempt(competition: Competition, settings: Settings) -> Attempt:
    host = make_host(settings.HOST_NAME)
    attempt = make_run(
        make_group(competitions=[competition]),
        competition=competition,
        state=State.RUNNING,
        host=host,
    ).newest_attempt()
    # Its supervisor makes it before the container.
    Workspace.for_attempt(attempt.pk).socket_dir.mkdir(parents=True, exist_ok=True)
    return attempt


@pytest.fixture
def service() -> Iterator[ValidationService]:
    service = ValidationService()
    service.start()
    yield service
    service.stop()


class Connection(http.client.HTTPConnection):
    """HTTP to the socket of an attempt."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__("localhost", timeout=30)
        self.socket_path = Workspace.for_attempt(attempt.pk).socket_dir / "v"

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self.socket_path))


def multipart(content: bytes, *, field: str = "file") -> tuple[bytes, dict[str, str]]:
    edge = "------------------------d74496d66958873e"
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="submission.csv"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={edge}"}


def ask(
    attempt: Attempt,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[int, str, dict[str, str]]:
    client = Connection(attempt)
    try:
        client.request(method, path, body, headers or {})
        response = client.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())
    finally:
        client.close()


def post(attempt: Attempt, content: bytes) -> tuple[int, dict[str, str]]:
    status, text, _ = ask(attempt, "POST", "/validate", *multipart(content))
    return status, json.loads(text)


def test_upstreams_replies_byte_by_byte(service: ValidationService, attempt: Attempt) -> None:
    if not SHARED.is_dir():
        pytest.skip(SHARED_IS_ABSENT)
    path = SHARED / "golden" / "upstream-synthetic" / "grading_server_responses.json"
    replies = json.loads(path.read_text())
    service.serve(attempt.pk)
    requests = {
        "GET /health": ("GET", "/health"),
        "GET /validate": ("GET", "/validate"),
        "POST /validate valid": ("POST", "/validate", *multipart(ANSWERS.encode())),
        "POST /validate wrong rows": ("POST", "/validate", *multipart(b"id,has_cactus\na,1\n")),
        "POST /validate empty file": ("POST", "/validate", *multipart(b"")),
        "POST /validate binary": ("POST", "/validate", *multipart(b"\xff\x00\xfe")),
        "POST /validate no file": ("POST", "/validate", *multipart(b"", field="other")),
    }

    for name, request in requests.items():
        status, text, _ = ask(attempt, *request)
        expected = replies[name]
        assert status == expected["status"], name
        if expected["json"] is None:
            assert text == expected["text"], name
        else:
            compact = json.dumps(expected["json"], separators=(",", ":"), sort_keys=True)
            assert text == f"{compact}\n", name


def test_an_unprepared_competition_is_upstreams_500(
    service: ValidationService, attempt: Attempt, settings: Settings, tmp_path: Path
) -> None:
    service.serve(attempt.pk)
    settings.COMPETITIONS_DIR = tmp_path / "nothing"

    status, answer = post(attempt, ANSWERS.encode())

    assert status == 500
    assert answer["error"] == "An unexpected error occurred."
    assert "is not prepared" in answer["details"]


def test_each_validation_is_counted_and_logged(
    service: ValidationService, attempt: Attempt
) -> None:
    service.serve(attempt.pk)

    post(attempt, ANSWERS.encode())
    post(attempt, b"id,has_cactus\n")

    attempt.refresh_from_db()
    assert attempt.validations == 2
    log = "\n".join(logs.last_lines(attempt.pk, "run", 5))
    assert "POST /validate 200: Submission is valid." in log
    assert "same number of rows" in log


def test_too_many_validations_in_a_minute_are_told_when_to_come_back(
    service: ValidationService, attempt: Attempt, settings: Settings
) -> None:
    settings.VALIDATIONS_PER_MINUTE = 2
    service.serve(attempt.pk)
    statuses = [post(attempt, ANSWERS.encode())[0] for _ in range(2)]

    status, _, headers = ask(attempt, "POST", "/validate", *multipart(ANSWERS.encode()))

    assert statuses == [200, 200]
    assert status == 429
    assert 50 <= int(headers["Retry-After"]) <= 61


def test_a_refusal_is_read_also_by_one_that_sends_its_file_late(
    service: ValidationService, attempt: Attempt, settings: Settings
) -> None:
    settings.VALIDATIONS_PER_MINUTE = 1
    service.serve(attempt.pk)
    post(attempt, ANSWERS.encode())
    body, headers = multipart(b"a" * 2**20)
    client = Connection(attempt)
    client.putrequest("POST", "/validate")
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        client.putheader(name, value)
    client.endheaders()
    # The answer is there before the first byte of the file is sent.
    client.sock.recv(1, socket.MSG_PEEK)

    client.send(body)

    assert client.getresponse().status == 429
    client.close()


def test_one_attempts_many_connections_leave_others_alone(
    service: ValidationService, attempt: Attempt, competition: Competition
) -> None:
    other = make_run(
        make_group(competitions=[competition]),
        competition=competition,
        state=State.RUNNING,
        host=attempt.host,
    ).newest_attempt()
    Workspace.for_attempt(other.pk).socket_dir.mkdir(parents=True, exist_ok=True)
    service.serve(attempt.pk)
    service.serve(other.pk)
    held = []
    for _ in range(validation.CONNECTIONS_AT_ONCE + 5):
        # Says nothing: each holds a thread of its attempt.
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(Workspace.for_attempt(attempt.pk).socket_dir / "v"))
        held.append(client)

    status, _ = post(other, ANSWERS.encode())

    assert status == 200
    # The ones above the limit were closed at once: their relay answers 503.
    held[-1].settimeout(10)
    assert held[-1].recv(1) == b""
    for client in held:
        client.close()


def test_a_submission_above_the_limit_is_refused_unread(
    service: ValidationService, attempt: Attempt, settings: Settings
) -> None:
    settings.SUBMISSION_MAX_BYTES = 1000
    service.serve(attempt.pk)
    client = Connection(attempt)
    client.putrequest("POST", "/validate")
    client.putheader("Content-Length", str(10 * 2**30))
    client.putheader("Content-Type", "multipart/form-data; boundary=x")
    client.endheaders()

    response = client.getresponse()

    assert "is larger than" in json.loads(response.read())["result"]
    client.close()


def test_a_body_that_lies_about_its_length_is_dropped(
    service: ValidationService, attempt: Attempt
) -> None:
    service.serve(attempt.pk)
    body, headers = multipart(ANSWERS.encode())
    client = Connection(attempt)
    client.putrequest("POST", "/validate")
    client.putheader("Content-Length", str(len(body) + 100))
    client.putheader("Content-Type", headers["Content-Type"])
    client.endheaders()
    client.sock.sendall(body)
    client.sock.shutdown(socket.SHUT_WR)

    assert client.sock.recv(100) == b""
    client.close()
    attempt.refresh_from_db()
    assert attempt.validations == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"\x00\xff\r\n\r\n", id="no HTTP"),
        pytest.param(b"POST /validate HTTP/1.1\r\n\r\n", id="no length"),
        pytest.param(b"POST /validate HTTP/1.1\r\nContent-Length: -5\r\n\r\n", id="negative"),
        pytest.param(b"POST /validate HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", id="no form"),
        pytest.param(
            b"POST /validate HTTP/1.1\r\nContent-Length: 4\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\nabcd",
            id="no part",
        ),
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", id="long path"),
    ],
)
def test_nonsense_is_a_4xx_and_the_next_request_works(
    request_bytes: bytes, service: ValidationService, attempt: Attempt
) -> None:
    service.serve(attempt.pk)
    client = Connection(attempt)
    client.connect()
    client.sock.sendall(request_bytes)

    reply = client.sock.recv(4096)

    assert b" 4" in reply[:100] or b"Error code: 4" in reply
    client.close()
    assert post(attempt, ANSWERS.encode())[0] == 200


def test_a_supervisor_asks_and_the_socket_is_there(
    service: ValidationService, attempt: Attempt
) -> None:
    assert ask_to_serve(attempt.pk)

    assert ask(attempt, "GET", "/health")[0] == 200
    socket_file = Workspace.for_attempt(attempt.pk).socket_dir / "v"
    assert socket_file.stat().st_mode & 0o077 == 0


def test_asking_for_an_attempt_that_is_not_there_is_no(service: ValidationService) -> None:
    assert not ask_to_serve(4711)


def test_asking_where_no_service_listens_is_no() -> None:
    assert not ask_to_serve(1)


def test_sync_serves_what_runs_here_and_forgets_what_ended(
    service: ValidationService, attempt: Attempt, competition: Competition
) -> None:
    elsewhere = make_run(
        make_group(competitions=[competition]),
        competition=competition,
        state=State.RUNNING,
        host=make_host("another"),
    ).newest_attempt()

    service.sync()

    def is_served(attempt_: Attempt) -> bool:
        return (Workspace.for_attempt(attempt_.pk).socket_dir / "v").exists()

    assert (is_served(attempt), is_served(elsewhere)) == (True, False)

    Attempt.objects.filter(pk=attempt.pk).update(state=State.ENDED, outcome=Outcome.CANCELLED)
    service.sync()

    assert not is_served(attempt)


def test_a_socket_that_was_swept_away_comes_back(
    service: ValidationService, attempt: Attempt
) -> None:
    service.sync()
    os.unlink(Workspace.for_attempt(attempt.pk).socket_dir / "v")

    service.sync()

    assert ask(attempt, "GET", "/health")[0] == 200


def test_the_folder_of_an_attempt_that_was_swept_stays_away(
    service: ValidationService, attempt: Attempt
) -> None:
    """Its row was read a moment before it ended; nobody would remove the folder again."""
    folder = Workspace.for_attempt(attempt.pk).socket_dir
    shutil.rmtree(folder)

    service.sync()

    assert not folder.exists()


def test_the_socket_of_a_killed_service_is_taken_over(
    service: ValidationService, attempt: Attempt
) -> None:
    folder = Workspace.for_attempt(attempt.pk).socket_dir
    folder.mkdir(parents=True, exist_ok=True)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(folder / "v"))
    stale.close()

    service.serve(attempt.pk)

    assert ask(attempt, "GET", "/health")[0] == 200


def test_two_submissions_of_one_attempt_at_once_are_both_answered(
    service: ValidationService, attempt: Attempt
) -> None:
    service.serve(attempt.pk)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(attempt, ANSWERS.encode())[0]))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [200] * 4


def test_nothing_of_an_upload_is_left(
    service: ValidationService, attempt: Attempt, settings: Settings
) -> None:
    service.serve(attempt.pk)

    post(attempt, ANSWERS.encode() * 1000)

    assert list(Path(settings.ATTEMPTS_DIR).glob("tmp*")) == []
