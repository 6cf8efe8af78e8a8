"""POST /validate for running agents, answered outside their containers.

One Unix socket for each running attempt of this host, in the folder that is mounted into its
container; the relay in there passes requests on. Part of the host service. Replies are upstream's
(environment/grading_server.py), less what could tell an answer (runs/grading.py).
"""

import hashlib
import json
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import BinaryIO, cast

import structlog
from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.core.files.uploadhandler import FileUploadHandler, SkipFile, StopFutureHandlers
from django.db import InterfaceError, OperationalError, connection
from django.db.models import F
from django.http.multipartparser import MultiPartParser, MultiPartParserError

from mlebench_web.catalog.models import Competition
from runs import grading, logs
from runs.core.states import State
from runs.models import Attempt, LogSegment
from runs.workspace import Workspace

logger = structlog.get_logger(__name__)

# Connections of one attempt at once, and of these, submissions that are graded at once. An agent
# that asks for more harms only itself.
CONNECTIONS_AT_ONCE = 8
GRADINGS_AT_ONCE = 1
READ_TIMEOUT_SECONDS = 60
# How long a client that was refused may go on sending before the connection is closed.
HEAR_OUT_SECONDS = 5
# What multipart puts around a file.
ENVELOPE_BYTES = 2**20
ASK_TIMEOUT_SECONDS = 1
BUSY = {"error": "Too many validations at once.", "details": "Wait for the answer to the first."}


def control_path() -> Path:
    """Where this host's service takes orders. Two hosts of one machine may share a folder."""
    host = hashlib.sha256(settings.HOST_NAME.encode()).hexdigest()[:8]
    return settings.SOCKETS_DIR / f"service.{host}"


def ask_to_serve(attempt_id: int) -> bool:
    """Tell this host's service of a new attempt; False when it does not answer within a second.

    It finds the attempt by itself within seconds; asking spares an agent that wait.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection_:
            connection_.settimeout(ASK_TIMEOUT_SECONDS)
            connection_.connect(str(control_path()))
            connection_.sendall(f"serve {attempt_id}\n".encode())
            return connection_.recv(16) == b"ok\n"
    except OSError:
        return False


class ValidationService:
    """Listens for the attempts of this host. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._servers: dict[int, AttemptServer] = {}
        self._lock = threading.Lock()
        self._control: ControlServer | None = None

    def start(self) -> None:
        """Take orders, and serve what runs here already."""
        settings.SOCKETS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._control = ControlServer(control_path(), self)
        self._control.begin()

    def stop(self) -> None:
        """Leave: relays answer 503 with Retry-After until the next start."""
        if self._control:
            self._control.end()
            self._control = None
        for attempt_id in list(self._servers):
            self.forget(attempt_id)

    def sync(self) -> None:
        """Serve what is starting or running on this host, and nothing else."""
        # Before the query: an attempt that is added after it must not be taken for an ended one.
        with self._lock:
            served = set(self._servers)
        wanted = set(
            Attempt.objects.filter(
                host__name=settings.HOST_NAME, state__in=[State.STARTING, State.RUNNING]
            ).values_list("pk", flat=True)
        )
        for attempt_id in served - wanted:
            self.forget(attempt_id)
        for attempt_id in wanted:
            self.serve(attempt_id)

    def serve(self, attempt_id: int) -> None:
        """Listen for an attempt; does nothing when its socket is there, or its folder is not.

        Raises OSError.
        """
        with self._lock:
            server = self._servers.get(attempt_id)
            if server and server.path.exists():
                return
            if server:
                server.end()
            attempt = Attempt.objects.select_related("run__competition").get(pk=attempt_id)
            folder = Workspace.for_attempt(attempt_id).socket_dir
            if not folder.is_dir():
                # Its supervisor makes it before the container, and removes it after the end: here
                # it would come back for good.
                return
            server = AttemptServer(folder / "v", attempt_id, attempt.run.competition)
            server.begin()
            self._servers[attempt_id] = server

    def forget(self, attempt_id: int) -> None:
        with self._lock:
            server = self._servers.pop(attempt_id, None)
        if server:
            server.end()


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A listening socket that only its user may open, with a thread for each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, handler: type[socketserver.BaseRequestHandler]) -> None:
        self.path = path
        # Of a service that was killed: nobody listens on it.
        path.unlink(missing_ok=True)
        super().__init__(str(path), handler)
        path.chmod(0o600)

    def begin(self) -> None:
        threading.Thread(
            target=self.serve_forever,
            # Also the longest time that end() waits.
            kwargs={"poll_interval": 0.2},
            name=f"serve {self.path.parent.name}",
            daemon=True,
        ).start()

    def end(self) -> None:
        self.path.unlink(missing_ok=True)
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """One broken connection ends alone."""
        if isinstance(sys.exception(), ConnectionError | TimeoutError):
            # An agent that did not wait for its answer.
            logger.info("validation.hung_up", socket=str(self.path))
        else:
            logger.exception("validation.failed", socket=str(self.path))


# ---------------------------------------------------------------------------- orders


class ControlServer(UnixServer):
    def __init__(self, path: Path, service: ValidationService) -> None:
        self.service = service
        super().__init__(path, ControlHandler)


class ControlHandler(socketserver.StreamRequestHandler):
    timeout = ASK_TIMEOUT_SECONDS

    def handle(self) -> None:
        verb, _, number = self.rfile.readline(64).decode().strip().partition(" ")
        if verb != "serve" or not number.isdigit():
            self.wfile.write(b"unknown\n")
            return
        try:
            cast(ControlServer, self.server).service.serve(int(number))
        except Attempt.DoesNotExist:
            self.wfile.write(b"unknown attempt\n")
        else:
            self.wfile.write(b"ok\n")
        finally:
            connection.close()


# ---------------------------------------------------------------------------- one attempt


class AttemptServer(UnixServer):
    """The socket of one attempt, and what it may ask for."""

    def __init__(self, path: Path, attempt_id: int, competition: Competition) -> None:
        self.attempt_id = attempt_id
        self.competition = competition
        self.connections = threading.BoundedSemaphore(CONNECTIONS_AT_ONCE)
        self.gradings = threading.BoundedSemaphore(GRADINGS_AT_ONCE)
        self._asked: deque[float] = deque()
        self._lock = threading.Lock()
        super().__init__(path, ValidateHandler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()
            connection.close()

    def seconds_to_wait(self) -> int:
        """0 when one more validation is within the rate, else when to come back."""
        now = time.monotonic()
        with self._lock:
            while self._asked and now - self._asked[0] >= 60:
                self._asked.popleft()
            if len(self._asked) >= settings.VALIDATIONS_PER_MINUTE:
                return int(60 - (now - self._asked[0])) + 1
            self._asked.append(now)
        return 0

    def record(self, status: int, answer: dict[str, str]) -> None:
        """Count the call and log it; an outage of the database must not fail a validation."""
        said = " ".join(answer.get("result", answer.get("error", "")).split())
        try:
            Attempt.objects.filter(pk=self.attempt_id).update(validations=F("validations") + 1)
            logs.append(self.attempt_id, LogSegment.Source.RUN, f"POST /validate {status}: {said}")
        except (OperationalError, InterfaceError, OSError) as error:
            logger.warning("validation.not_recorded", attempt=self.attempt_id, why=str(error))


class ValidateHandler(BaseHTTPRequestHandler):
    timeout = READ_TIMEOUT_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "mlebench-web"
    sys_version = ""

    def do_GET(self) -> None:
        if self.route() == "/health":
            self.answer(200, {"status": "running"})
        elif self.route() == "/validate":
            self.page(
                405, "The method is not allowed for the requested URL.", Allow="POST, OPTIONS"
            )
        else:
            self.page(404, "There is /health and /validate.")

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_GET

    def do_POST(self) -> None:
        if self.route() != "/validate":
            self.page(404, "There is /health and /validate.")
            return
        attempt = cast(AttemptServer, self.server)
        if wait := attempt.seconds_to_wait():
            limit = settings.VALIDATIONS_PER_MINUTE
            answer = {"error": "Too many validations.", "details": f"{limit} a minute are allowed."}
            self.answer(429, answer, **{"Retry-After": str(wait)})
            return
        if not attempt.gradings.acquire(timeout=READ_TIMEOUT_SECONDS):
            self.answer(429, BUSY, **{"Retry-After": "10"})
            return
        try:
            self.validate(attempt)
        finally:
            attempt.gradings.release()

    def validate(self, attempt: "AttemptServer") -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.page(411, "A Content-Length is needed.")
            return
        if int(length) > settings.SUBMISSION_MAX_BYTES + ENVELOPE_BYTES:
            limit = settings.SUBMISSION_MAX_BYTES / 2**30
            words = f"The submission is larger than {limit:.3g} GiB."
            status, answer = 200, {"result": grading.INVALID + words}
        else:
            try:
                file = self.uploaded(int(length))
            except Truncated:
                # Nobody is there to read an answer.
                return
            except OSError as error:
                logger.warning("validation.not_kept", attempt=attempt.attempt_id, why=str(error))
                self.answer(500, grading.unexpected("The upload could not be kept."))
                return
            if file is None:
                self.page(
                    400,
                    "The browser (or proxy) sent a request that this server could not understand.",
                )
                return
            with file:
                status, answer = grading.validate_file(attempt.competition, file)
        attempt.record(status, answer)
        self.answer(status, answer)

    def uploaded(self, length: int) -> BinaryIO | None:
        """The multipart field `file`, at its start; None when the request has none.

        Raises Truncated when the body ends early, OSError when the disk does not take it.
        """
        body = Body(cast(BinaryIO, self.rfile), length)
        keeper = OneFile()
        meta = {"CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(length)}
        try:
            MultiPartParser(meta, body, [keeper]).parse()  # type: ignore[arg-type]
        except (MultiPartParserError, SuspiciousOperation):
            keeper.close()
            return None
        except BaseException:
            keeper.close()
            raise
        if keeper.kept:
            keeper.kept.flush()
        return keeper.kept

    # ------------------------------------------------------------------ replies

    def route(self) -> str:
        return self.path.partition("?")[0]

    def answer(self, status: int, content: dict[str, str], **headers: str) -> None:
        """JSON as Flask writes it: sorted, compact, with a line end."""
        text = json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n"
        self.reply(status, "application/json", text, headers)

    def page(self, status: int, sentence: str, **headers: str) -> None:
        """HTML as Werkzeug writes it."""
        title = self.responses[status][0]
        text = (
            f"<!doctype html>\n<html lang=en>\n<title>{status} {title}</title>\n"
            f"<h1>{title}</h1>\n<p>{sentence}</p>\n"
        )
        self.reply(status, "text/html; charset=utf-8", text, headers)

    def reply(self, status: int, kind: str, text: str, headers: dict[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def finish(self) -> None:
        """Hear the client out: one that still sends when the door closes never reads its answer.

        Bounded, since a refused upload may be as long as its sender likes.
        """
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(HEAR_OUT_SECONDS)
            until = time.monotonic() + HEAR_OUT_SECONDS
            while time.monotonic() < until and self.connection.recv(64 * 1024):
                pass
        except OSError:
            # It has gone, which is as good.
            logger.debug("validation.hung_up", socket=str(cast(UnixServer, self.server).path))
        super().finish()

    def address_string(self) -> str:
        return "agent"

    def log_message(self, *_: object) -> None:
        """Each validation is logged by `record`; the rest says nothing."""


class Truncated(Exception):
    """The body ended before its Content-Length."""


class Body:
    """At most `length` bytes of a stream. Raises Truncated when it ends early."""

    def __init__(self, stream: BinaryIO, length: int) -> None:
        self._stream = stream
        self._left = length

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        try:
            data = self._stream.read(wanted)
        except OSError as error:
            raise Truncated from error
        if len(data) < wanted:
            raise Truncated
        self._left -= len(data)
        return data


class OneFile(FileUploadHandler):
    """Keeps the field `file` in a temporary file without a name; other files are dropped.

    Not in an attribute `file`: the parser would close that at an error, also when it is None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: BinaryIO | None = None

    def new_file(self, field_name: str, *args: object, **kwargs: object) -> None:
        super().new_file(field_name, *args, **kwargs)  # type: ignore[arg-type]
        if field_name != "file" or self.kept:
            raise SkipFile
        Path(settings.ATTEMPTS_DIR).mkdir(parents=True, exist_ok=True)
        folder = settings.ATTEMPTS_DIR
        self.kept = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - kept open
        raise StopFutureHandlers

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if self.kept:
            self.kept.write(raw_data)

    def file_complete(self, file_size: int) -> None:
        return None

    def close(self) -> None:
        if self.kept:
            self.kept.close()
            self.kept = None
