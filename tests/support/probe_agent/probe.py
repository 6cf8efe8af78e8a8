"""Hunts, from inside an agent's container, for what no agent may see. Standard library only.

It is told two halves of words that stand in answers, secrets and files of others (PROBE_WORDS),
so that it carries none of them itself, and addresses at which parts of the product listen
(PROBE_ADDRESSES). What it found, and how it ended, goes to the file that its argument names.

It takes nothing and breaks nothing: where it could, it looks, says so and goes on.
"""

import contextlib
import ctypes
import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time

WORDS = [tuple(word.split("+")) for word in os.environ.get("PROBE_WORDS", "").split()]
ADDRESSES = os.environ.get("PROBE_ADDRESSES", "").split()
PATHS = os.environ.get("PROBE_PATHS", "").split()
# A file of the product's kind is smaller; a device has no end.
AT_MOST = 4 * 2**20
SECONDS = float(os.environ.get("PROBE_SECONDS", "60"))
PSEUDO = ("/proc", "/sys", "/dev")
NEAR_NAMES = (
    "localhost", "host.docker.internal", "gateway.docker.internal", "docker.host.internal",
    "host.containers.internal", "metadata.google.internal", "metadata", "valkey", "redis",
    "postgres", "db", "web", "mlebench-web",
)  # fmt: skip
CLOUD = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")
PORTS = (80, 443, 2375, 2376, 5432, 6379, 8000, 8080, 9323)

found: list[dict[str, str]] = []
tried: dict[str, int] = {}
_seen: set[tuple[int, int]] = set()


def count(what: str) -> None:
    tried[what] = tried.get(what, 0) + 1


def report(how: str, where: str, what: str) -> None:
    found.append({"how": how, "where": where, "what": what[:300]})


def words_in(data: bytes) -> list[str]:
    return [f"{one}+{two}" for one, two in WORDS if (one + two).encode() in data]


# ------------------------------------------------------------------------------------- files


def read(path: str, how: str) -> bytes:
    """The beginning of a file, looked through for the words; b"" where it cannot be read."""
    count(how)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    try:
        data = b""
        while len(data) < AT_MOST:
            chunk = os.read(handle, 2**16)
            if not chunk:
                break
            data += chunk
    except OSError:
        pass
    finally:
        os.close(handle)
    for word in words_in(data):
        report(how, path, word)
    return data


def walk(root: str, how: str, until: float) -> None:
    """Every file below `root` that is no pseudo file, each inode once."""
    folders = [root]
    while folders and time.monotonic() < until:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            for one, two in WORDS:
                if one + two in entry.name:
                    report(f"{how}: a name", entry.path, f"{one}+{two}")
            try:
                found_stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if (found_stat.st_dev, found_stat.st_ino) in _seen:
                continue
            _seen.add((found_stat.st_dev, found_stat.st_ino))
            if stat.S_ISDIR(found_stat.st_mode):
                if entry.path not in PSEUDO:
                    folders.append(entry.path)
            elif stat.S_ISREG(found_stat.st_mode):
                read(entry.path, how)
            elif stat.S_ISSOCK(found_stat.st_mode):
                unix(entry.path)
    if folders:
        report("gave up", root, f"{len(folders)} folders were not looked at in {SECONDS:.0f} s")


def mounts() -> list[str]:
    """Paths of the host that the kernel names for this container's mounts."""
    paths = []
    for line in read("/proc/self/mountinfo", "mountinfo").decode(errors="replace").splitlines():
        root, at = line.split()[3:5]
        paths += [root, at]
        if at.startswith("/") and root not in ("/", at):
            # A link or a climb out of a mount, and what lies beside it on the host.
            paths += [f"{at}/..", f"{at}/../private", os.path.dirname(root)]
    text = read("/proc/mounts", "mounts").decode(errors="replace")
    for option in re.findall(r"(?:lowerdir|upperdir|workdir)=([^, ]+)", text):
        paths += option.split(":")
    return sorted({path for path in paths if path.startswith("/") and path != "/"})


def files(until: float) -> None:
    walk("/", "files", until)
    for path in [*mounts(), *PATHS]:
        for place in (path, f"/proc/1/root{path}", f"/proc/self/root{path}", f"/proc/1/cwd{path}"):
            if place == path and path.startswith(PSEUDO):
                continue
            if os.path.isdir(place):
                if not inside(place):
                    walk(place, "paths of the host", until)
            else:
                read(place, "paths of the host")


def inside(path: str) -> bool:
    """Whether it is a folder that the walk over / has been through."""
    try:
        seen = os.stat(path)
    except OSError:
        return True
    return (seen.st_dev, seen.st_ino) in _seen or os.path.samestat(seen, os.stat("/"))


def links() -> None:
    """Leave links to the host's paths among the outputs: they must not be followed there."""
    for number, path in enumerate(PATHS):
        for folder in ("/home/code", "/home/logs", "/home/submission"):
            for name, make in (("soft", os.symlink), ("hard", os.link)):
                count("links")
                try:
                    make(path, f"{folder}/{name}-{os.getuid()}-{number}")
                except OSError:
                    continue
                if name == "hard":
                    report("hard link", path, "could be linked")


# ------------------------------------------------------------------------------------- /proc, /sys


def processes() -> None:
    me = os.getpid()
    for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
        for part in ("environ", "cmdline", "maps", "mountinfo", "stack"):
            if part == "environ" or int(pid) != me:
                data = read(f"/proc/{pid}/{part}", "processes")
                if part == "cmdline" and b"manage.py" in data:
                    report("processes", pid, "a process of the host")
        for part in ("root", "cwd"):
            path = f"/proc/{pid}/{part}"
            try:
                if not os.path.samestat(os.stat(path), os.stat("/")) and part == "root":
                    report("processes", path, "another root")
            except OSError:
                continue
        try:
            for handle in os.listdir(f"/proc/{pid}/fd"):
                if int(pid) != me:
                    target = os.readlink(f"/proc/{pid}/fd/{handle}")
                    if target.startswith("/"):
                        read(f"/proc/{pid}/fd/{handle}", "open files")
        except OSError:
            continue


def kernel() -> None:
    """Files through which a container breaks out, where its engine leaves them open."""
    for path in ("/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list", "/dev/mem"):
        count("kernel")
        data = read(path, "kernel")
        if path in ("/proc/kcore", "/dev/mem") and data:
            report("kernel", path, "could be read")
    for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
        "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/binfmt_misc/register",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent", "/dev/kmsg",
        "/sys/kernel/security", "/sys/power/state",
    ):  # fmt: skip
        count("kernel")
        try:
            # Opened, never written.
            os.close(os.open(path, os.O_WRONLY))
        except OSError:
            continue
        report("kernel", path, "could be opened for writing")
    for folder in ("/sys/fs/cgroup", "/sys/kernel/debug", "/sys/fs/bpf"):
        for at, _, names in os.walk(folder):
            for name in names:
                if name in ("release_agent", "cgroup.procs", "devices.allow"):
                    count("kernel")
                    try:
                        os.close(os.open(os.path.join(at, name), os.O_WRONLY))
                    except OSError:
                        continue
                    report("kernel", os.path.join(at, name), "could be opened for writing")


def devices(until: float) -> None:
    """The machine's disks by their numbers, and mounts of all that could be mounted."""
    numbers = set()
    for name in listed("/sys/class/block"):
        number = read(f"/sys/class/block/{name}/dev", "devices").decode().strip()
        if re.fullmatch(r"\d+:\d+", number):
            numbers.add((name, tuple(int(part) for part in number.split(":"))))
    # As the first disks are called, where /sys does not say.
    numbers |= {("sda", (8, 0)), ("vda", (254, 0)), ("nvme0n1", (259, 0))}
    for name, number in sorted(numbers):
        count("devices")
        for path in (f"/dev/{name}", f"/tmp/probe-{name}"):
            try:
                if path.startswith("/tmp/"):
                    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(*number))
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            try:
                data = os.read(handle, 4096)
            except OSError:
                data = b""
            os.close(handle)
            if data:
                report("devices", path, "a disk of the host could be read")
    libc = ctypes.CDLL(None, use_errno=True)
    target = "/tmp/probe-mount"
    os.makedirs(target, exist_ok=True)
    for source, kind in [
        ("proc", "proc"), ("sysfs", "sysfs"), ("cgroup", "cgroup"), ("cgroup2", "cgroup2"),
        ("tmpfs", "tmpfs"), ("overlay", "overlay"), ("devtmpfs", "devtmpfs"),
        *((f"/dev/{name}", kind) for name, _ in sorted(numbers) for kind in ("ext4", "xfs")),
    ]:  # fmt: skip
        count("mounts")
        # 1: read-only.
        if libc.mount(source.encode(), target.encode(), kind.encode(), 1, None) == 0:
            report("mounts", source, f"{kind} could be mounted")
            if source.startswith("/dev/"):
                walk(target, "files of a disk", until)
            libc.umount2(target.encode(), 2)
    for name, flag in (("mount", 0x20000), ("user", 0x10000000), ("net", 0x40000000)):
        count("namespaces")
        child = os.fork()
        if child == 0:
            os._exit(0 if libc.unshare(flag) == 0 else 1)
        if os.waitpid(child, 0)[1] == 0 and name != "user":
            report("namespaces", name, "a new namespace could be made")


def handles() -> None:
    """Files of the host by their inode numbers (open_by_handle_at), beside a mount of ours."""

    class Handle(ctypes.Structure):
        _fields_ = (
            ("bytes", ctypes.c_uint),
            ("kind", ctypes.c_int),
            ("data", ctypes.c_ubyte * 8),
        )

    libc = ctypes.CDLL(None, use_errno=True)
    for at in ("/home/data", "/home/code", "/etc/hosts", "/private/link"):
        try:
            mount = os.open(at, os.O_RDONLY)
        except OSError:
            continue
        for inode in (2, 64, 128):
            count("handles")
            handle = Handle(8, 1, (ctypes.c_ubyte * 8)(*inode.to_bytes(8, "little")))
            opened = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
            if opened >= 0:
                report("handles", at, f"inode {inode} of the host could be opened")
                os.close(opened)
        os.close(mount)


def listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# ------------------------------------------------------------------------------------ becoming root


def root() -> None:
    if os.getuid() == 0:
        return
    for command in (
        ["sudo", "-n", "id"], ["su", "-c", "id", "root"], ["pkexec", "id"], ["doas", "id"],
        ["chroot", "/proc/1/root", "id"], ["nsenter", "-t", "1", "-m", "id"],
    ):  # fmt: skip
        count("becoming root")
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=10, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if b"uid=0" in done.stdout:
            report("becoming root", " ".join(command), "worked")
    for place in ("/private", "/root", "/etc/shadow"):
        count("becoming root")
        if os.access(place, os.R_OK):
            report("becoming root", place, "can be read")


# ------------------------------------------------------------------------------------- environment


def environment() -> None:
    for name, value in os.environ.items():
        if name.startswith("PROBE_"):
            continue
        count("environment")
        for word in words_in(f"{name}={value}".encode()):
            report("environment", name, word)


# ------------------------------------------------------------------------------------- network


def unix(path: str) -> None:
    """A socket in a file: what answers, and with what."""
    count("sockets")
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(2)
    try:
        client.connect(path)
    except OSError:
        return
    finally:
        client.close()
    if path != "/private/link/v":
        report("sockets", path, "accepts connections")
        return
    # The one socket that root is meant to reach: it must know `/validate` alone.
    for method, target in (
        ("GET", "/"), ("GET", "/private/test.csv"), ("GET", "/../../etc/passwd"),
        ("POST", "/grade"), ("GET", "/answers"), ("POST", "/validate?competition=other"),
        ("POST", "/api/v1/run-groups"),
    ):  # fmt: skip
        count("sockets")
        body = ask(path, method, target)
        for word in words_in(body):
            report("sockets", f"{method} {target}", word)


def ask(path: str, method: str, target: str) -> bytes:
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    try:
        connection.sock.connect(path)
        connection.request(method, target, b"id,price\n1,1\n" if method == "POST" else None)
        return connection.getresponse().read(AT_MOST)
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def gateways() -> list[str]:
    """The host as this container's routes name it."""
    text = read("/proc/net/route", "routes").decode()
    return [
        socket.inet_ntoa(int(line.split()[2], 16).to_bytes(4, "little"))
        for line in text.splitlines()[1:]
        if int(line.split()[2], 16)
    ]


def own_addresses() -> set[str]:
    mine = {"127.0.0.1", "::1", "0.0.0.0"}
    with contextlib.suppress(OSError):
        mine |= {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    return mine


def connect(address: str, port: int) -> None:
    count("addresses")
    try:
        client = socket.create_connection((address, port), timeout=1.5)
    except (OSError, UnicodeError):
        return
    try:
        client.settimeout(1.5)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said = client.recv(200)
    except OSError:
        said = b""
    finally:
        client.close()
    report("network", f"{address}:{port}", f"answers {said[:80]!r}")


def network() -> None:
    mine = own_addresses()
    hosts = ["127.0.0.1", *gateways(), *CLOUD]
    for name in NEAR_NAMES:
        count("names")
        try:
            hosts += [str(info[4][0]) for info in socket.getaddrinfo(name, None)]
        except (OSError, UnicodeError):
            continue
    told = [address.rsplit(":", 1) for address in ADDRESSES]
    ports = {*PORTS, *(int(port) for _, port in told)}
    hosts += [host for host, _ in told]
    for host in dict.fromkeys(hosts):
        for port in sorted(ports):
            # Our own relay, at our own address.
            if not (host in mine and port == 5000):
                connect(host, port)


def main() -> None:
    until = time.monotonic() + SECONDS
    for hunt in (environment, root, processes, kernel, handles, links, network):
        try:
            hunt()
        except Exception as error:  # noqa: BLE001 - one hunt that fails hides none of the others
            report("failed", hunt.__name__, f"{type(error).__name__}: {error}")
    for search in (devices, files):
        try:
            search(until)
        except Exception as error:  # noqa: BLE001
            report("failed", search.__name__, f"{type(error).__name__}: {error}")
    answer = {"uid": os.getuid(), "found": found, "tried": tried}
    # By rename, so that nobody reads half of it.
    with open(sys.argv[1] + ".tmp", "w") as file:
        json.dump(answer, file, indent=1)
    os.rename(sys.argv[1] + ".tmp", sys.argv[1])
    print(f"uid {os.getuid()}: tried {sum(tried.values())}, found {len(found)}")


main()
