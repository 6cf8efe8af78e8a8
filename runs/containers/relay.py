"""The validation relay: answers on port 5000 inside an agent's container.

It takes the place of mle-bench's grading server, so that no answer is ever in the container: it is
mounted over /private/grading_server.py and passes each POST /validate to a Unix socket of the
host. It answers GET /health itself. Standard library only, Python 3.8 or newer: it runs in the
image's own Python, and imports little, because an agent waits for it.

Usage: relay.py [LINK_DIR [HOST PORT]]; LINK_DIR holds the socket `v`, and gets the file `ready`
with the port once the relay listens.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

HEAD_LIMIT = 64 * 1024
CHUNK = 64 * 1024
# An agent may open as many connections as it likes; only so many are served at once.
AT_ONCE = 16
CLIENT_TIMEOUT = 60
# Grading a large submission takes a while.
ANSWER_TIMEOUT = 600

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def reply(client: socket.socket, status: int, body: bytes, *headers: str) -> None:
    head = ["HTTP/1.1 %d %s" % (status, REASONS[status]), "Content-Type: application/json"]
    head += ["Content-Length: %d" % len(body), "Connection: close", *headers]
    client.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def read_head(client: socket.socket) -> tuple[bytes, bytes] | None:
    """The request's head without its blank line, and what came after it. None: nothing came."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEAD_LIMIT:
            reply(client, 431, b'{"error": "headers are too long"}')
            return None
        chunk = client.recv(CHUNK)
        if not chunk:
            return None
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def serve(client: socket.socket, link: str) -> None:
    client.settimeout(CLIENT_TIMEOUT)
    read = read_head(client)
    if read is None:
        return
    head, rest = read
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3:
        return reply(client, 400, b'{"error": "this is not HTTP"}')
    method, path = words[0], words[1].split(b"?")[0]
    if path == b"/health":
        if method not in (b"GET", b"HEAD"):
            return reply(client, 405, b'{"error": "use GET"}', "Allow: GET, HEAD")
        return reply(client, 200, b'{"status": "running"}\n' if method == b"GET" else b"")
    if path != b"/validate":
        return reply(client, 404, b'{"error": "there is /health and /validate"}')
    if method != b"POST":
        return reply(client, 405, b'{"error": "use POST"}', "Allow: POST")
    forward(client, lines, rest, link)


def forward(client: socket.socket, lines: list[bytes], rest: bytes, link: str) -> None:
    """Pass one POST to the host and its answer back, 64 KB at a time."""
    kept, length, waits = [lines[0]], None, False
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        if name == b"content-length":
            if not value.strip().isdigit():
                return reply(client, 400, b'{"error": "Content-Length is no number"}')
            length = int(value)
        elif name == b"expect":
            # Answered here; the host need not know.
            waits = True
            continue
        elif name in (b"connection", b"keep-alive"):
            continue
        kept.append(line)
    if length is None:
        return reply(client, 411, b'{"error": "send a Content-Length"}')
    with socket.socket(socket.AF_UNIX) as host:
        host.settimeout(ANSWER_TIMEOUT)
        try:
            host.connect(os.path.join(link, "v"))
        except OSError:
            body = b'{"error": "validation is away for a moment; try again"}'
            return reply(client, 503, body, "Retry-After: 5")
        if waits:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = length - len(rest)
        try:
            host.sendall(b"\r\n".join(kept) + b"\r\nConnection: close\r\n\r\n" + rest[:length])
            while left > 0:
                chunk = client.recv(min(CHUNK, left))
                if not chunk:
                    return
                host.sendall(chunk)
                left -= len(chunk)
        except (BrokenPipeError, ConnectionResetError):
            # The host refused before it had read all (too big, too many): its answer counts.
            pass
        answered = False
        while True:
            try:
                chunk = host.recv(CHUNK)
            except OSError:
                # It went away, or said nothing for too long.
                break
            if not chunk:
                break
            answered = True
            client.sendall(chunk)
        if not answered:
            reply(client, 503, b'{"error": "validation ended; try again"}', "Retry-After: 5")


def handle(client: socket.socket, link: str, slots: threading.BoundedSemaphore) -> None:
    try:
        try:
            serve(client, link)
            # Read what the client still sends: closing on it would make its kernel drop our answer.
            client.shutdown(socket.SHUT_WR)
            client.settimeout(2)
            for _ in range(1024):
                if not client.recv(CHUNK):
                    break
        except OSError:
            # A client that went away in the middle is nobody's problem here.
            pass
        finally:
            client.close()
    finally:
        slots.release()


# All addresses of the container's own network, as upstream's grading server: it may be named by
# localhost or by the container's address.
def main(link: str = "/private/link", host: str = "0.0.0.0", port: str = "5000") -> None:  # noqa: S104
    if os.getpid() == 1:
        # Orphans of the agent become our children; the kernel buries them when nobody waits.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, int(port)))
    server.listen(128)
    ready = os.path.join(link, "ready")
    with open(ready + ".tmp", "w") as file:
        file.write(str(server.getsockname()[1]))
    os.replace(ready + ".tmp", ready)
    print("mlebench-web relay: listening on port %d" % server.getsockname()[1], flush=True)
    slots = threading.BoundedSemaphore(AT_ONCE)
    while True:
        slots.acquire()
        try:
            client, _ = server.accept()
        except OSError as error:
            # Out of file descriptors, or the client left: neither ends the relay.
            print("mlebench-web relay: %s" % error, flush=True)
            slots.release()
            continue
        try:
            threading.Thread(target=handle, args=(client, link, slots), daemon=True).start()
        except RuntimeError as error:
            # The container is at its limit of processes.
            print("mlebench-web relay: %s" % error, flush=True)
            client.close()
            slots.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
