"""Containers on a Docker Engine, through its API."""

import contextlib
import functools
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import requests
import structlog
from django.conf import settings
from docker.types import DeviceRequest, LogConfig, Mount
from docker.utils import kwargs_from_env

from mlebench_web.locks import alone
from runs.containers import (
    AGENT_SCRIPT,
    AGENT_USER,
    ATTEMPT_LABEL,
    HOST_LABEL,
    INSTALL_LABEL,
    AgentProcess,
    ContainerSpec,
    ContainerState,
    EngineFailure,
    EngineInfo,
    Look,
    OwnContainer,
    Usage,
    cgroups,
    processes,
    reach,
)
from runs.containers.processes import output
from runs.core.failures import Cause, cause_of_engine_error
from runs.core.isolation import is_root_on_host
from runs.workspace import remove_tree

logger = structlog.get_logger(__name__)

TIMEOUT = 30
# Starting with a GPU hook, killing and removing take longer; still less than a lease.
SLOW_TIMEOUT = 60
GONE_TIMEOUT = 60
# Of what an exec prints.
EXEC_BYTES = 4 * 2**20
RELAY = Path(__file__).with_name("relay.py")
# What the image's entrypoint and `exec -u` need; everything else is dropped.
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]

# Whether a living process of the agent's user is left, beside this one (a dead one that nobody has
# buried yet is Z). Only for hosts whose cgroup files cannot be seen.
ALIVE = """\
for p in /proc/[0-9]*; do
  [ -O "$p" ] && [ "${p#/proc/}" != $$ ] && read -r line < "$p/stat" || continue
  case "${line##*) }" in Z*|X*) ;; *) exit 0 ;; esac
done 2>/dev/null
exit 1
"""


def gpu_requests(uuids: Sequence[str], mode: str) -> list[DeviceRequest]:
    """Exactly one request with all UUIDs: of two, the engine takes the last and forgets the other.

    Never a count (it always means the first GPUs), never an empty UUID (it means no GPU, silently).
    """
    if not uuids:
        return []
    if any(not uuid.strip() for uuid in uuids):
        raise EngineFailure(Cause.GPU_UNKNOWN, "a GPU without UUID cannot be requested")
    if mode == "cdi":
        ids = [f"nvidia.com/gpu={uuid}" for uuid in uuids]
        return [DeviceRequest(driver="cdi", device_ids=ids)]
    return [DeviceRequest(device_ids=list(uuids), capabilities=[["gpu", "compute", "utility"]])]


def environment(spec: ContainerSpec) -> dict[str, str]:
    env = dict(spec.env)
    # The request decides what the container gets. The variable is set nonetheless: the agent runs
    # by exec, which has the image's own value (often "all") and not the one of the request.
    env["NVIDIA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids) or "void"
    return env


def mounts(spec: ContainerSpec) -> list[Mount]:
    workspace = spec.workspace
    bound = [
        ("/home/data", spec.data_dir, True),
        ("/home/submission", workspace.submission, False),
        ("/home/logs", workspace.logs, False),
        ("/home/code", workspace.code, False),
        ("/home/ckpt", workspace.checkpoint, False),
        ("/private/grading_server.py", RELAY, True),
        # The directory, never the socket: a socket that is made again behind a mount is dead.
        ("/private/link", workspace.socket_dir, False),
    ]
    bound += [(target, source, False) for target, source in spec.state_mounts.items()]
    if spec.hardware_file:
        bound.append(("/home/hardware.json", spec.hardware_file, True))
    return [
        Mount(target, str(source), type="bind", read_only=read_only)
        for target, source, read_only in bound
    ]


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Turns whatever the SDK raises into an EngineFailure with a cause."""
    try:
        yield
    except docker.errors.APIError as error:
        text = str(error.explanation or error)
        raise EngineFailure(cause_of_engine_error(text), text) from error
    except docker.errors.DockerException as error:
        # What the SDK says when it cannot even ask the engine's version.
        raise EngineFailure(Cause.ENGINE_UNREACHABLE, str(error)) from error
    except (requests.exceptions.RequestException, OSError) as error:
        raise EngineFailure(Cause.ENGINE_UNREACHABLE, str(error)) from error


@functools.cache
def _client(pid: int, url: str, timeout: int) -> docker.APIClient:
    """One client a process, made after the fork: connections do not survive one."""
    if url == "none":
        raise EngineFailure(Cause.ENGINE_UNREACHABLE, "ENGINE_URL=none: this host has no engine")
    address = {"base_url": url} if url else kwargs_from_env()
    return docker.APIClient(**address, version="auto", timeout=timeout)


def _is(error: docker.errors.APIError, status: int) -> bool:
    return error.response is not None and error.response.status_code == status


class DockerEngine:
    kind = "docker"

    def __init__(self) -> None:
        self._networks: dict[str, str] = {}

    @property
    def _api(self) -> docker.APIClient:
        return _client(os.getpid(), settings.ENGINE_URL, TIMEOUT)

    @property
    def _slow(self) -> docker.APIClient:
        return _client(os.getpid(), settings.ENGINE_URL, SLOW_TIMEOUT)

    # ------------------------------------------------------------------------ create, start

    def create(self, spec: ContainerSpec) -> str:
        if not spec.data_dir.is_dir():
            raise EngineFailure(Cause.DATA_MISSING, f"{spec.data_dir} is not there")
        if (
            is_root_on_host(privileged=spec.privileged, engine_runtime=spec.runtime)
            and not settings.ACCEPTS_PRIVILEGED
        ):
            # The claim asks too; this is the last door, on the host itself.
            raise EngineFailure(
                Cause.PRIVILEGED_REFUSED,
                "the agent is privileged, and I_ACCEPT_RUNNING_PRIVILEGED_CONTAINERS is not set",
            )
        with engine_errors():
            limits: dict[str, Any] = {}
            if is_root_on_host(privileged=spec.privileged, engine_runtime=spec.runtime):
                limits["privileged"] = True
            elif not spec.privileged:
                # (A privileged agent in sysbox keeps what its own user namespace gives it.)
                limits["cap_drop"] = ["ALL"]
                limits["cap_add"] = CAPABILITIES
                limits["security_opt"] = ["no-new-privileges"]
            if spec.shm_bytes:
                limits["shm_size"] = spec.shm_bytes
            if spec.runtime:
                limits["runtime"] = spec.runtime
            if spec.network != "none" and settings.AGENT_NAMESERVERS:
                limits["dns"] = settings.AGENT_NAMESERVERS
            if requests_ := gpu_requests(spec.gpu_uuids, settings.GPU_REQUEST_MODE):
                limits["device_requests"] = requests_
            for key, value in spec.engine_settings.items():
                # Beside what the image's entrypoint needs, not in its place.
                limits[key] = [*limits.get(key, ()), *value] if key == "cap_add" else value  # type: ignore[misc]
            host_config = self._api.create_host_config(
                mounts=mounts(spec),
                network_mode=self._network(spec),
                mem_limit=spec.memory_bytes,
                # The same: no swap.
                memswap_limit=spec.memory_bytes,
                nano_cpus=int(spec.cpus * 1e9),
                pids_limit=spec.pids_limit,
                log_config=LogConfig(
                    type=LogConfig.types.JSON, config={"max-size": "10m", "max-file": "1"}
                ),
                **limits,
            )
            try:
                made = self._api.create_container(
                    spec.image_id,
                    name=spec.name,
                    environment=environment(spec),
                    labels=dict(spec.labels),
                    host_config=host_config,
                )
            except docker.errors.APIError as error:
                if _is(error, 409) and "is already in use" in str(error.explanation):
                    return self._existing(spec)
                raise
            return str(made["Id"])

    def _existing(self, spec: ContainerSpec) -> str:
        """An earlier supervisor of this attempt made it."""
        seen = self._api.inspect_container(spec.name)
        labels = seen["Config"]["Labels"] or {}
        if any(
            labels.get(name) != spec.labels.get(name) for name in (INSTALL_LABEL, ATTEMPT_LABEL)
        ):
            raise EngineFailure(
                Cause.ENGINE_ERROR, f"a container that is not ours has the name {spec.name}"
            )
        return str(seen["Id"])

    def _network(self, spec: ContainerSpec) -> str:
        if spec.network == "none":
            return "none"
        install = spec.labels[INSTALL_LABEL]
        if install not in self._networks:
            self._networks[install] = self._network_of(install)
        return self._networks[install]

    def _network_of(self, install: str) -> str:
        """The id of a bridge of our own, on which containers do not reach each other."""
        name = f"mlebench-{install}"
        # The engine lets two processes make two of one name, and then accepts neither by its name.
        with alone(settings.DATA_DIR / "locks" / f"network-{install}"):
            found = sorted(net["Id"] for net in self._named_networks(name))
            if found:
                return str(found[0])
            made = self._slow.create_network(
                name,
                driver="bridge",
                options={"com.docker.network.bridge.enable_icc": "false"},
                labels={INSTALL_LABEL: install},
                check_duplicate=True,
            )
            return str(made["Id"])

    def _named_networks(self, name: str) -> list[dict[str, Any]]:
        # The filter takes any name that contains this one.
        return [net for net in self._api.networks(names=[name]) if net["Name"] == name]

    def start(self, container_id: str) -> None:
        with engine_errors():
            try:
                self._slow.start(container_id)
            except docker.errors.NotFound as error:
                # Somebody removed our network; the next create makes it anew.
                self._networks.clear()
                raise error
            reach.wall_off(self._slow, container_id)

    def look(self, container_id: str) -> Look:
        with engine_errors():
            try:
                state = self._api.inspect_container(container_id)["State"]
            except docker.errors.NotFound:
                return Look(ContainerState.MISSING)
        found = _state(state["Status"])
        over = found == ContainerState.EXITED
        failed = found == ContainerState.CREATED and state["Error"]
        return Look(
            state=found,
            exit_code=state["ExitCode"] if over or failed else None,
            oom_killed=bool(state["OOMKilled"]),
            error=state["Error"],
            # The engine marks it before it kills it, so this tells a removal from a kill.
            is_being_removed=state["Status"] in ("removing", "dead"),
        )

    # ------------------------------------------------------------------------ the agent

    def start_agent(self, container_id: str, spec: ContainerSpec) -> None:
        command = ["bash", "-c", AGENT_SCRIPT, "/home/logs", spec.start, *spec.agent_args]
        with engine_errors():
            made = self._api.exec_create(
                container_id, command, user=AGENT_USER, stdout=False, stderr=False
            )
            self._slow.exec_start(made["Id"], detach=True)

    def agent_is_alive(self, container_id: str) -> bool:
        users = cgroups.users(container_id)
        if users is not None:
            return bool(users)
        with engine_errors():
            try:
                return self._exec(container_id, ["sh", "-c", ALIVE], user=AGENT_USER)[0] == 0
            except docker.errors.APIError as error:
                if "is paused" in str(error.explanation):
                    return True
                if _is(error, 404) or _is(error, 409):
                    return False
                raise

    def signal_agent(self, container_id: str, signal: str) -> None:
        if signal not in ("TERM", "KILL"):
            raise ValueError(f"{signal}: an agent gets TERM or KILL")
        with engine_errors():
            try:
                # -1: all that this user may signal. A signal to one process group would miss
                # what runs under `timeout`, which makes a group of its own.
                code, said = self._exec(
                    container_id, ["sh", "-c", f"kill -{signal} -1"], user=AGENT_USER
                )
            except docker.errors.APIError as error:
                if _is(error, 404) or _is(error, 409):
                    # No container, or none that runs: no agent.
                    return
                raise
        if code not in (0, 1):
            # 1: nobody left to signal. The caller's next step is to kill the container.
            logger.warning("agent.signal", container=container_id, code=code, said=said[:500])

    def agent_processes(self, container_id: str) -> list[AgentProcess]:
        said = self._as_agent(container_id, ["bash", "-c", processes.LIST])
        return processes.read_list(said)

    def signal_processes(
        self, container_id: str, wanted: Sequence[AgentProcess], signal: str
    ) -> int:
        if signal not in ("INT", "KILL"):
            raise ValueError(f"{signal}: a step's process gets INT or KILL")
        arguments = processes.send_arguments(wanted, signal)
        said = self._as_agent(container_id, ["bash", "-c", processes.SEND, "send", *arguments])
        return int(said) if said.strip().isdigit() else 0

    def _as_agent(self, container_id: str, command: list[str]) -> str:
        """What it printed; "" without a container that runs. Raises EngineFailure when paused."""
        with engine_errors():
            try:
                return self._exec(container_id, command, user=AGENT_USER)[1]
            except docker.errors.APIError as error:
                is_paused = "is paused" in str(error.explanation)
                if not is_paused and (_is(error, 404) or _is(error, 409)):
                    return ""
                raise

    def _exec(self, container_id: str, command: list[str], *, user: str) -> tuple[int | None, str]:
        made = self._api.exec_create(container_id, command, user=user)
        stream = self._api.exec_start(made["Id"], stream=True)
        said = output(stream, at_most=EXEC_BYTES, seconds=TIMEOUT)
        code = self._api.exec_inspect(made["Id"])["ExitCode"]
        return code, said.decode("utf-8", "replace")

    def memory_kills(self, container_id: str) -> int | None:
        if (count := cgroups.memory_kills(container_id)) is not None:
            return count
        script = "cat /sys/fs/cgroup/memory.events || cat /sys/fs/cgroup/memory/memory.oom_control"
        with engine_errors():
            try:
                _, said = self._exec(container_id, ["sh", "-c", script], user="root")
            except docker.errors.APIError as error:
                if _is(error, 404) or _is(error, 409):
                    return None
                raise
        return cgroups.field(said, "oom_kill")

    def usage(self, container_id: str) -> Usage:
        seconds = cgroups.cpu_seconds(container_id)
        if seconds is not None:
            return Usage(
                seconds,
                cgroups.memory_bytes(container_id),
                cgroups.memory_peak_bytes(container_id),
            )
        with engine_errors():
            try:
                stats = self._api.stats(container_id, stream=False, one_shot=True)
            except docker.errors.NotFound:
                return Usage()
        memory = stats.get("memory_stats", {})
        nanoseconds = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
        return Usage(
            nanoseconds / 1e9 if nanoseconds else None,
            memory.get("usage"),
            memory.get("max_usage"),
        )

    # ------------------------------------------------------------------------ pause, end

    def pause(self, container_id: str) -> None:
        with engine_errors():
            try:
                self._api.pause(container_id)
            except docker.errors.APIError as error:
                if "is already paused" not in str(error.explanation):
                    raise

    def unpause(self, container_id: str) -> None:
        with engine_errors():
            try:
                self._api.unpause(container_id)
            except docker.errors.APIError as error:
                if "is not paused" not in str(error.explanation):
                    raise

    def kill(self, container_id: str) -> None:
        with engine_errors():
            try:
                self._slow.kill(container_id)
            except docker.errors.APIError as error:
                if not (_is(error, 404) or _is(error, 409)):
                    raise

    def remove(self, container_id: str) -> None:
        with engine_errors():
            # Its supervisor may have died in the middle of a start.
            reach.remove_helper(self._slow, container_id)
            try:
                self._slow.remove_container(container_id, force=True, v=True)
                return
            except docker.errors.NotFound:
                return
            except docker.errors.APIError as error:
                if "is already in progress" not in str(error.explanation):
                    raise
            until = time.monotonic() + GONE_TIMEOUT
            while self.look(container_id).state != ContainerState.MISSING:
                if time.monotonic() > until:
                    raise EngineFailure(
                        Cause.ENGINE_ERROR, f"the container is not gone after {GONE_TIMEOUT} s"
                    )
                time.sleep(0.05)

    def log_tail(self, container_id: str, lines: int) -> str:
        with engine_errors():
            try:
                said = self._api.logs(container_id, tail=lines)
            except docker.errors.NotFound:
                return ""
        return bytes(said)[-64 * 1024 :].decode("utf-8", "replace")

    # ------------------------------------------------------------------------ the engine

    def own_containers(self, install: str, host: str) -> list[OwnContainer]:
        labels = [f"{INSTALL_LABEL}={install}", f"{HOST_LABEL}={host}", ATTEMPT_LABEL]
        with engine_errors():
            found = self._api.containers(all=True, filters={"label": labels})
        return [
            OwnContainer(
                id=row["Id"],
                name=row["Names"][0].lstrip("/") if row["Names"] else "",
                attempt_id=int(row["Labels"][ATTEMPT_LABEL]),
                state=_state(row["State"]),
            )
            for row in found
        ]

    def has_image(self, image_id: str) -> bool:
        with engine_errors():
            try:
                self._api.inspect_image(image_id)
            except docker.errors.ImageNotFound:
                return False
        return True

    def info(self) -> EngineInfo:
        with engine_errors():
            said = self._api.info()
            images = self._api.images(quiet=True)
        return EngineInfo(
            engine_id=said["ID"],
            version=said["ServerVersion"],
            runtimes=sorted(said.get("Runtimes") or {}),
            image_ids=sorted(set(images)),
        )

    def remove_folder(self, path: Path, image_id: str) -> None:
        if not path.exists():
            return
        remove_tree(path)
        if not path.exists():
            return
        self._as_root(path, image_id, "rm", "-rf")
        if path.exists():
            raise EngineFailure(Cause.ENGINE_ERROR, f"{shlex.quote(str(path))} cannot be removed")

    def make_readable(self, path: Path, image_id: str) -> None:
        self._as_root(path, image_id, "chmod", "-R", "a+rX")

    def _as_root(self, path: Path, image_id: str, *command: str) -> None:
        """Do to `path` what root in a container may and this process may not."""
        with engine_errors():
            made = self._api.create_container(
                image_id or next(iter(self._api.images(quiet=True)), ""),
                entrypoint=[*command, "--", f"/parent/{path.name}"],
                user="root",
                network_disabled=True,
                host_config=self._api.create_host_config(
                    mounts=[Mount("/parent", str(path.parent), type="bind")],
                    cap_drop=["ALL"],
                    cap_add=["DAC_OVERRIDE", "FOWNER"],
                    security_opt=["no-new-privileges"],
                ),
            )
            try:
                self._slow.start(made["Id"])
                self._slow.wait(made["Id"])
            finally:
                self._slow.remove_container(made["Id"], force=True)


def _state(status: str) -> ContainerState:
    match status:
        case "created":
            return ContainerState.CREATED
        case "running" | "restarting":
            return ContainerState.RUNNING
        case "paused":
            return ContainerState.PAUSED
        case _:
            # exited, dead, removing: there until it is gone.
            return ContainerState.EXITED
