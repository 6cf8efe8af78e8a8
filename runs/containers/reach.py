"""What an agent with the internet must not reach: this host, the product's servers, the cloud's
own services, whose answers can hold the host's credentials.

Its network lets it reach everything that the host reaches, and the host itself at the network's
gateway. Other machines of a private network stay open: a model may be served there.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import docker
import structlog
from django.conf import settings
from docker.types import Mount

from runs.containers import INSTALL_LABEL, EngineFailure
from runs.core.failures import Cause

logger = structlog.get_logger(__name__)

# Where clouds tell a machine its credentials and start-up scripts.
CLOUD = (
    "169.254.0.0/16",  # link-local: AWS, Google, Azure, Oracle, OpenStack and others
    "168.63.129.16/32",  # Azure
    "100.100.100.200/32",  # Alibaba
)
WALL = Path(__file__).with_name("wall.py")
# The environment that the built-in agents share.
ENVIRONMENT = "mlebench-web/env"
# Of mle-bench's own environment, beside the usual places.
PLACES_OF_PYTHON = "/usr/local/bin:/usr/bin:/opt/conda/bin:/opt/mlebench/python/bin"
LOCAL = Path("/proc/net/fib_trie")
RESOLV_CONF = Path("/etc/resolv.conf")
_ADDRESS = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


def wall_off(api: docker.APIClient, container_id: str) -> None:
    """Close to a running container what its agent must not reach. Safe to repeat.

    One that has ended meanwhile is left alone: its supervisor looks why. Raises EngineFailure when
    the wall did not work, for then no agent may start there. What the engine itself says is the
    caller's to catch.
    """
    seen = api.inspect_container(container_id)
    if seen["HostConfig"]["NetworkMode"] == "none":
        return
    # What an admin's container config names is open.
    hosts = (each.rpartition(":")[2] for each in seen["HostConfig"]["ExtraHosts"] or ())
    opened = [each for each in hosts if re.fullmatch(r"\d+\.\d+\.\d+\.\d+", each)]
    # Of a supervisor that died beside it.
    remove_helper(api, container_id)
    helper = api.create_container(
        _image_with_python(api, seen["Image"]),
        name=_helper_of(container_id),
        entrypoint=["sh", "-c", f'PATH="$PATH:{PLACES_OF_PYTHON}"; exec python3 -I -S "$@"', "-"],
        command=["/wall.py", *closed(opened)],
        user="root",
        host_config=api.create_host_config(
            network_mode=f"container:{seen['Id']}",
            mounts=[Mount("/wall.py", str(WALL), type="bind", read_only=True)],
            read_only=True,
            cap_drop=["ALL"],
            cap_add=["NET_ADMIN"],
            security_opt=["no-new-privileges"],
            mem_limit="128m",
        ),
        labels={INSTALL_LABEL: (seen["Config"]["Labels"] or {}).get(INSTALL_LABEL, "")},
    )
    try:
        api.start(helper["Id"])
        code = api.wait(helper["Id"])["StatusCode"]
        said = api.logs(helper["Id"], tail=5).decode("utf-8", "replace").strip() if code else ""
    except docker.errors.APIError:
        if _is_running(api, container_id):
            raise
        return
    finally:
        remove_helper(api, container_id)
    if code and _is_running(api, container_id):
        raise EngineFailure(
            Cause.NETWORK, f"this host could not be closed to the agent (exit {code}): {said}"
        )


def _helper_of(container_id: str) -> str:
    """One for a container: a second one is refused by the engine."""
    return f"mlebench-wall-{container_id[:12]}"


def remove_helper(api: docker.APIClient, container_id: str) -> None:
    """No error where there is none, or where somebody else removes it."""
    try:
        api.remove_container(_helper_of(container_id), force=True)
    except docker.errors.APIError as error:
        if error.response is None or error.response.status_code not in (404, 409):
            raise


def _is_running(api: docker.APIClient, container_id: str) -> bool:
    try:
        return bool(api.inspect_container(container_id)["State"]["Running"])
    except docker.errors.NotFound:
        return False


def _image_with_python(api: docker.APIClient, own: str) -> str:
    """An image that this product built, where there is one: an agent's own says what it likes."""
    built = api.images(name=ENVIRONMENT)
    return str(max(built, key=lambda image: image["Created"])["Id"]) if built else own


def closed(more: Iterable[str] = ()) -> list[str]:
    """IPv4 networks, as text; less `more` and what AGENTS_MAY_REACH names.

    Networks of agents have no IPv6.
    """
    nets = [
        *(ipaddress.IPv4Network(each) for each in CLOUD),
        *(ipaddress.IPv4Network(each) for each in sorted(of_this_host() | of_servers())),
    ]
    opened = [ipaddress.IPv4Network(each) for each in (*settings.AGENTS_MAY_REACH, *more)]
    left: list[ipaddress.IPv4Network] = []
    for net in nets:
        left += _without(net, opened)
    return [str(net) for net in dict.fromkeys(left) if not net.is_loopback]


def _without(
    net: ipaddress.IPv4Network, opened: Iterable[ipaddress.IPv4Network]
) -> list[ipaddress.IPv4Network]:
    """What is left of a network when others are taken out."""
    parts = [net]
    for hole in opened:
        parts = [
            piece
            for part in parts
            for piece in (
                []
                if part.subnet_of(hole)
                else part.address_exclude(hole)
                if hole.subnet_of(part)
                else [part]
            )
        ]
    return parts


def of_this_host() -> set[str]:
    """Every address at which this machine takes packets, also those of other networks."""
    try:
        return set(_ADDRESS.findall(LOCAL.read_text()))
    except OSError:
        # No Linux, where no container shares a network with us; the gateway is closed in any case.
        return set()


def of_servers() -> set[str]:
    """Addresses of database, broker and web, where they are reached by one."""
    database = settings.DATABASES["default"].get("HOST") or ""
    urls = (settings.CELERY_BROKER_URL, settings.PUBLIC_URL)
    names = {str(database), *(urlsplit(url).hostname or "" for url in urls)}
    found: set[str] = set()
    for name in names:
        if name and not name.startswith("/"):
            found |= addresses(name)
    return found


def addresses(name: str) -> set[str]:
    """IPv4 addresses of a name; none where it is not known."""
    try:
        infos = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        logger.warning("reach.unknown_name", name=name, error=str(error))
        return set()
    return {str(info[4][0]) for info in infos}


def closed_name_servers(resolv_conf: Path = RESOLV_CONF) -> list[str]:
    """Name servers of this machine that agents could not reach.

    The engine asks them from the agent's network; only those at a loopback address from its own.
    """
    try:
        text = resolv_conf.read_text()
    except OSError:
        return []
    nets = [ipaddress.IPv4Network(each) for each in closed()]
    found = []
    for address in re.findall(r"^nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*$", text, re.MULTILINE):
        at = ipaddress.IPv4Address(address)
        if not at.is_loopback and any(at in net for net in nets):
            found.append(address)
    return found
