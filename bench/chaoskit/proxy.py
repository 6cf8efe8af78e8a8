"""The network between one host and a server: a TCP relay that can be cut.

Usage: proxy.py PORT TARGET_HOST TARGET_PORT SWITCH_FILE. The file holds `open`, `cut` (bytes stop,
connections stay, new ones are taken and get no answer: what a dead link looks like) or `refuse`
(connections are reset). A relay of our own rather than a network namespace: the hosts are
processes of one machine, and their engines, sockets and SQLite file must stay reachable.
"""

import selectors
import socket
import sys
import time
from pathlib import Path

LOOK_EVERY = 0.1
CHUNK = 65536


class Relay:
    def __init__(self, port: int, target: tuple[str, int], switch: Path) -> None:
        self.target = target
        self.switch = switch
        self.selector = selectors.DefaultSelector()
        self.peers: dict[socket.socket, socket.socket] = {}
        self.server = socket.create_server(("127.0.0.1", port), backlog=128)
        self.server.setblocking(False)
        self.state = "open"
        self.selector.register(self.server, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            self.look()
            if self.state == "cut":
                time.sleep(LOOK_EVERY)
                continue
            for key, _ in self.selector.select(LOOK_EVERY):
                if key.fileobj is self.server:
                    self.accept()
                else:
                    self.pump(key.fileobj)  # type: ignore[arg-type]

    def look(self) -> None:
        state = self.switch.read_text().strip() or self.state
        if state == "refuse" and self.state != "refuse":
            for connection in list(self.peers):
                self.drop(connection)
        self.state = state

    def accept(self) -> None:
        try:
            client, _ = self.server.accept()
        except BlockingIOError:
            return
        if self.state == "refuse":
            client.close()
            return
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            one.settimeout(20)
            self.peers[one] = other
            self.selector.register(one, selectors.EVENT_READ)

    def pump(self, connection: socket.socket) -> None:
        if connection not in self.peers:
            return
        try:
            data = connection.recv(CHUNK)
            if data:
                self.peers[connection].sendall(data)
                return
        except OSError:
            pass
        self.drop(connection)

    def drop(self, connection: socket.socket) -> None:
        for one in (connection, self.peers.get(connection)):
            if one is not None and one in self.peers:
                del self.peers[one]
                self.selector.unregister(one)
                one.close()


if __name__ == "__main__":
    Relay(int(sys.argv[1]), (sys.argv[2], int(sys.argv[3])), Path(sys.argv[4])).run()
