"""The warm grader process: imports the heavy libraries once, grades each submission in a child.

    python -I runs/grader/server.py SOCKET ours|official

Runs under ML_PYTHON for competitions of ours, under MLEBENCH_PYTHON for those of mle-bench
checkouts; no Django here. It listens on a Unix socket that only its user may open.
A request is one line of JSON with the submission's open file beside it (SCM_RIGHTS):

    {"op": "grade", "folder", "checkout", "function", "answers", "memory_bytes", "cpu_seconds"}
    {"op": "ping"}

A child waits ready for the next request, so that nobody waits for a fork; each grades once. It
answers with lines of JSON (grade_one.py), the parent adds {"ended": {"exit", "signal"}} when
the child is gone and its process group killed. Who hangs up has its child killed. The
process ends when its standard input is closed, so it cannot outlive who started it.
"""

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import grade_one  # type: ignore[import-not-found]
import official  # type: ignore[import-not-found]

REQUEST_LIMIT = 64 * 1024
# A grader may write small temporary files; a submission may not fill the disk through it.
FILE_SIZE_LIMIT = 16 * 2**20
OPEN_FILES_LIMIT = 256
ALREADY_RUNNING = 3


class Client:
    """One connection: first its request is read, then its child grades."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.files: list[int] = []
        self.child: int | None = None

    def close(self) -> None:
        for file in self.files:
            os.close(file)
        self.files = []
        self.connection.close()


class Child:
    """A forked grader that waits for its one request."""

    def __init__(self) -> None:
        self.way, inner = socket.socketpair()
        server = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            become_grader(inner, server)
        inner.close()

    def is_alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG)[0] == 0

    def give(self, request: bytes, files: list[int]) -> None:
        socket.send_fds(self.way, [request], files)
        self.way.close()


class Server:
    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.ready = Child()
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, Client] = {}
        # Children whose client has hung up: killed, not yet gone.
        self.dying: set[int] = set()
        self.running = True

    def serve(self) -> None:
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write, self.listener):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: drain(wake_read))
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self.stop)
        while self.running:
            for key, _ in self.selector.select():
                key.data()
            self.reap()
        for client in list(self.clients.values()):
            self.drop(client)
        # Its request will never come: it ends by itself.
        self.ready.way.close()

    def stop(self, *_: object) -> None:
        self.running = False

    def accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self.listener.accept()
            connection.setblocking(False)
            client = Client(connection)
            self.clients[connection.fileno()] = client
            self.selector.register(connection, selectors.EVENT_READ, lambda: self.hear(client))

    def hear(self, client: Client) -> None:
        """More of a request, or the end of a connection."""
        try:
            data, files, _, _ = socket.recv_fds(client.connection, REQUEST_LIMIT, 1)
        except BlockingIOError:
            return
        except OSError:
            data, files = b"", []
        client.files += files
        client.received += data
        if not data or client.child or len(client.received) > REQUEST_LIMIT:
            self.drop(client)
        elif client.received.endswith(b"\n"):
            self.begin(client)

    def begin(self, client: Client) -> None:
        operation = operation_of(client.received)
        if operation != "grade" or not client.files:
            if operation == "ping":
                tell(client, {"exit": 0, "signal": None})
            self.drop(client)
            return
        if not self.ready.is_alive():
            self.ready = Child()
        self.ready.give(client.received, [client.connection.fileno(), *client.files])
        client.child = self.ready.pid
        for file in client.files:
            os.close(file)
        client.files = []
        self.ready = Child()

    def reap(self) -> None:
        """Tell each client whose child is gone how it went."""
        self.dying -= {child for child in self.dying if os.waitpid(child, os.WNOHANG)[0]}
        for client, child in [(one, one.child) for one in self.clients.values()]:
            if child is None:
                continue
            # WNOWAIT keeps the process id taken until its group is killed.
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            kill_group(child)
            _, status = os.waitpid(child, 0)
            client.child = None
            code = os.waitstatus_to_exitcode(status)
            ended = {"exit": code if code >= 0 else None, "signal": -code if code < 0 else None}
            tell(client, ended)
            self.drop(client)

    def drop(self, client: Client) -> None:
        self.selector.unregister(client.connection)
        del self.clients[client.connection.fileno()]
        if client.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.child, signal.SIGKILL)
            kill_group(client.child)
            # Its memory takes milliseconds to free; the next request need not wait for that.
            self.dying.add(client.child)
        client.close()


def tell(client: Client, ended: dict[str, int | None]) -> None:
    # The child made the shared connection a blocking one; the server waits for nobody.
    with contextlib.suppress(OSError):
        client.connection.send(json.dumps({"ended": ended}).encode() + b"\n", socket.MSG_DONTWAIT)


def operation_of(request: bytes) -> str:
    """What is asked; empty for what is no request, which must not end the server."""
    try:
        return str(json.loads(request)["op"])
    except (ValueError, KeyError, TypeError):
        return ""


def drain(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while end.recv(4096):
            pass


def kill_group(leader: int) -> None:
    """What the grader may have started dies with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def become_grader(way: socket.socket, server: int) -> None:
    """In the child: keep nothing of the server, wait for a request, take the limits, grade, end."""
    try:
        os.setsid()
        die_with(server)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        keep_only(way.fileno())
        received, files, _, _ = socket.recv_fds(way, REQUEST_LIMIT, 2)
        if len(files) < 2:
            return
        connection, submission = socket.socket(fileno=files[0]), files[1]
        connection.setblocking(True)
        request = json.loads(received)
        limit(request)
        # Where the kernel cannot: an end also for a child that only sleeps.
        signal.alarm(int(request["cpu_seconds"]) + 30)

        def say(message: dict[str, Any]) -> None:
            connection.sendall(json.dumps(message).encode() + b"\n")

        grade_one.grade_one(request, submission, say)
        os._exit(0)
    finally:
        # Not one line of the server may run in the child.
        os._exit(1)


def die_with(server: int) -> None:
    """Have the kernel end this child when a killed server cannot."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            # It died before the kernel knew.
            os._exit(1)


def keep_only(way: int) -> None:
    """Close other clients' connections; nothing that a grader prints goes anywhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.closerange(3, way)
    os.closerange(way + 1, 4096)


def limit(request: dict[str, Any]) -> None:
    """Memory on top of what the process has by now; CPU time; files; no core dump."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(request["cpu_seconds"])),
        (resource.RLIMIT_FSIZE, FILE_SIZE_LIMIT),
        (resource.RLIMIT_NOFILE, OPEN_FILES_LIMIT),
    ):
        _, hard = resource.getrlimit(what)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(what, (most, most))
    # macOS refuses RLIMIT_AS.
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(request["memory_bytes"])
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def listen(path: Path) -> socket.socket:
    """Bind, or leave with status 3 when another grader process holds the lock."""
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(ALREADY_RUNNING)
    if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0o077)
    listener.bind(str(path))
    return listener


def main(path: Path, kind: str) -> None:
    listener = listen(path)
    # Some graders' libraries write caches into the working directory. Beside the socket, whose lock
    # we hold, so that what a killed process has left is found and removed.
    scratch = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        os.chdir(scratch)
        if kind == "official":
            official.warm_up()
        else:
            grade_one.offer_grade_helpers()
            grade_one.warm_up()
        gc.collect()
        gc.freeze()
        # Only now: who can connect is answered at once.
        listener.listen(64)
        Server(listener).serve()
    finally:
        os.chdir("/")
        shutil.rmtree(scratch, ignore_errors=True)
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2])
