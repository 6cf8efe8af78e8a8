"""Closes addresses to a container: run in its network, before its agent is started.

Usage: wall.py ADDRESS[/BITS]... ; each gets an "unreachable" route, and so does the gateway: it is
an address of the host. What goes to other places through it is not touched. A route takes effect
at once, also for connections that are open. Repeating it changes nothing.

Standard library only, Python 3.8 or newer. It runs in a helper container that shares the network
and has the one capability (NET_ADMIN) that the agent's container must not have.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

NEW_ROUTE, ERROR = 24, 2
# Asked for, to be answered, made or replaced.
FLAGS = 0x1 | 0x4 | 0x400 | 0x100
MAIN_TABLE, BY_ADMIN, UNREACHABLE = 254, 4, 7
DESTINATION, PRIORITY = 1, 6


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def request(number: int, net: ipaddress.IPv4Network) -> bytes:
    """RTM_NEWROUTE with one unreachable destination (rtnetlink(7))."""
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, net.prefixlen, 0, 0, MAIN_TABLE, BY_ADMIN, 0, UNREACHABLE, 0
    )
    body += attribute(DESTINATION, net.network_address.packed)
    return struct.pack("=IHHII", 16 + len(body), NEW_ROUTE, FLAGS, number, 0) + body


def gateways() -> list[ipaddress.IPv4Network]:
    found = []
    with open("/proc/net/route") as file:
        for line in file.read().splitlines()[1:]:
            gateway = int(line.split()[2], 16)
            if gateway:
                found.append(ipaddress.IPv4Network(gateway.to_bytes(4, "little")))
    return found


def close(nets: list[ipaddress.IPv4Network]) -> None:
    """Raises OSError with the kernel's reason."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.bind((0, 0))
        for number, net in enumerate(nets, 1):
            kernel.send(request(number, net))
            answer = kernel.recv(4096)
            (kind,) = struct.unpack_from("=H", answer, 4)
            (code,) = struct.unpack_from("=i", answer, 16)
            if kind != ERROR or code:
                raise OSError(-code, "the kernel refused the route", str(net))


def main(arguments: list[str]) -> None:
    close([*gateways(), *(ipaddress.IPv4Network(each) for each in arguments)])


if __name__ == "__main__":
    main(sys.argv[1:])
