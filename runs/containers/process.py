"""Containers played by plain processes, for machines without an engine.

Unsandboxed: the agent runs as the worker's user, sees this machine's files and network, and no CPU
limit is kept. Only built-in agents run here, and every page says so. Memory is watched by sampling.
"""

import contextlib
import fcntl
import json
import math
import os
import platform
import shutil
import signal as signals
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from django.conf import settings

from mlebench_web.process_start import started
from runs.containers import (
    AGENT_SCRIPT,
    ATTEMPT_LABEL,
    COMMAND_AT_MOST,
    HOST_LABEL,
    INSTALL_LABEL,
    PROCESSES_AT_MOST,
    AgentProcess,
    ContainerSpec,
    ContainerState,
    EngineFailure,
    EngineInfo,
    Look,
    OwnContainer,
    Usage,
)
from runs.containers.process_container import AGENT_MARK, MARK, members, write
from runs.core.failures import Cause
from runs.workspace import Workspace, remove_tree

WRAPPER = Path(__file__).with_name("process_container.py")
START_TIMEOUT = 30
GONE_TIMEOUT = 20
PREFIX = "process-"
# The folder of the pretended container, beside those that the agent writes to.
FOLDER = "container"


def environment(spec: ContainerSpec) -> dict[str, str]:
    """The agent's whole environment, from scratch: the worker's own holds secrets."""
    workspace = spec.workspace
    if spec.agent_folder is None:
        raise EngineFailure(Cause.ENGINE_ERROR, "the process runtime needs the agent's folder")
    places = {
        "/home/data": spec.data_dir,
        "/home/submission": workspace.submission,
        "/home/logs": workspace.logs,
        "/home/code": workspace.code,
        "/home/ckpt": workspace.checkpoint,
        "/home/agent": spec.agent_folder,
    }
    places |= spec.state_mounts
    if spec.hardware_file:
        places["/home/hardware.json"] = spec.hardware_file

    def here(value: str) -> str:
        """A path inside the container contract, as it is called on this machine."""
        for there, place in places.items():
            if value == there or value.startswith(f"{there}/"):
                return f"{place}{value[len(there) :]}"
        return value

    gpus = ",".join(spec.gpu_uuids)
    return {
        "PATH": f"{Path(settings.ML_PYTHON).parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **{name: here(value) for name, value in spec.env.items()},
        "HOME": str(workspace.state / "home"),
        "TMPDIR": str(workspace.state / "tmp"),
        "DATA_DIR": str(spec.data_dir),
        "SUBMISSION_DIR": str(workspace.submission),
        "LOGS_DIR": str(workspace.logs),
        "CODE_DIR": str(workspace.code),
        "AGENT_DIR": str(spec.agent_folder),
        "MLE_CHECKPOINT_DIR": str(workspace.checkpoint),
        "NVIDIA_VISIBLE_DEVICES": gpus or "void",
        # CUDA takes UUIDs too; empty hides every GPU.
        "CUDA_VISIBLE_DEVICES": gpus,
    }


class ProcessEngine:
    kind = "process"

    def _folder(self, container_id: str) -> Path:
        attempt = container_id.removeprefix(PREFIX)
        if not container_id.startswith(PREFIX) or not attempt.isdigit():
            raise EngineFailure(Cause.CONTAINER_REMOVED, f"{container_id!r} is not of this engine")
        return Workspace.for_attempt(int(attempt)).root / FOLDER

    # ------------------------------------------------------------------------ create, start

    def create(self, spec: ContainerSpec) -> str:
        if not spec.data_dir.is_dir():
            raise EngineFailure(Cause.DATA_MISSING, f"{spec.data_dir} is not there")
        env = environment(spec)
        assert spec.agent_folder is not None  # environment() has looked  # noqa: S101
        start = spec.agent_folder / Path(spec.start).name
        if not start.is_file():
            raise EngineFailure(Cause.IMAGE_MISSING, f"{start} is not there")
        if not Path(settings.ML_PYTHON).exists():
            raise EngineFailure(
                Cause.IMAGE_MISSING,
                f"{settings.ML_PYTHON} is not there: run ./run setup, or set ML_PYTHON",
            )
        container_id = f"{PREFIX}{spec.workspace.attempt_id}"
        folder = self._folder(container_id)
        for private in (folder, spec.workspace.state / "home", spec.workspace.state / "tmp"):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "spec.json").exists():
            logs = str(spec.workspace.logs)
            command = ["bash", "-c", AGENT_SCRIPT, logs, str(start), *spec.agent_args]
            fields = {
                "name": spec.name,
                "labels": dict(spec.labels),
                "env": env,
                "command": command,
                "cwd": str(spec.workspace.state / "home"),
                "logs": logs,
                "link": str(spec.workspace.socket_dir),
                "memory_bytes": spec.memory_bytes,
            }
            # The folder is 0700: the environment may hold keys.
            write(folder / "spec.json", json.dumps(fields))
        return container_id

    def start(self, container_id: str) -> None:
        folder = self._folder(container_id)
        name = self._spec(container_id)["name"]
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", MARK: str(name)}
        try:
            # -P: this package's folder would hide the real `docker` and others.
            done = subprocess.run(
                [sys.executable, "-P", str(WRAPPER), str(folder)],
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineFailure(Cause.ENGINE_ERROR, str(error)) from error
        if done.returncode:
            raise EngineFailure(Cause.ENGINE_ERROR, done.stderr.strip()[-2000:])

    def _spec(self, container_id: str) -> dict[str, object]:
        try:
            text = (self._folder(container_id) / "spec.json").read_text()
        except FileNotFoundError as error:
            raise EngineFailure(
                Cause.CONTAINER_REMOVED, f"No such container: {container_id}"
            ) from error
        fields: dict[str, object] = json.loads(text)
        return fields

    def _is_running(self, folder: Path) -> bool:
        """Whether somebody holds the lock: no process id can be mistaken for another's."""
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def look(self, container_id: str) -> Look:
        folder = self._folder(container_id)
        if not (folder / "spec.json").exists():
            return Look(ContainerState.MISSING)
        if self._is_running(folder):
            paused = (folder / "paused").exists()
            return Look(ContainerState.PAUSED if paused else ContainerState.RUNNING)
        if not (folder / "pid").exists():
            return Look(ContainerState.CREATED)
        # It writes `exit` when it ends by itself; without that, somebody killed it.
        code = _number(folder / "exit")
        return Look(ContainerState.EXITED, exit_code=137 if code is None else code)

    # ------------------------------------------------------------------------ the agent

    def start_agent(self, container_id: str, spec: ContainerSpec) -> None:
        folder = self._folder(container_id)
        if not self._is_running(folder):
            raise EngineFailure(Cause.CONTAINER_EXITED, f"{container_id} is not running")
        write(folder / "start", "")
        # Come back when there is an agent, so that "no process left" means that it has ended.
        mark = spec.workspace.logs / ".started"
        until = time.monotonic() + START_TIMEOUT
        while not mark.exists():
            if time.monotonic() > until:
                raise EngineFailure(Cause.ENGINE_ERROR, "the agent did not start")
            if not self._is_running(folder):
                raise EngineFailure(Cause.CONTAINER_EXITED, f"{container_id} is not running")
            time.sleep(0.01)

    def _members(self, container_id: str, mark: str) -> list[psutil.Process]:
        try:
            name = str(self._spec(container_id)["name"])
        except EngineFailure:
            return []
        return members(mark, name)

    def agent_is_alive(self, container_id: str) -> bool:
        return bool(self._members(container_id, AGENT_MARK))

    def signal_agent(self, container_id: str, signal: str) -> None:
        number = {"TERM": signals.SIGTERM, "KILL": signals.SIGKILL}[signal]
        self._send(self._members(container_id, AGENT_MARK), number)

    def agent_processes(self, container_id: str) -> list[AgentProcess]:
        found = []
        for process in self._members(container_id, AGENT_MARK)[:PROCESSES_AT_MOST]:
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())[:COMMAND_AT_MOST]
                found.append(
                    AgentProcess(process.pid, process.ppid(), started(process.pid), command)
                )
        return found

    def signal_processes(
        self, container_id: str, processes: Sequence[AgentProcess], signal: str
    ) -> int:
        number = {"INT": signals.SIGINT, "KILL": signals.SIGKILL}[signal]
        wanted = {process.pid: process.started for process in processes}
        sent = 0
        # Only what bears this container's mark, whatever the ids say.
        for process in self._members(container_id, AGENT_MARK):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid in wanted and started(process.pid) == wanted[process.pid]:
                    process.send_signal(number)
                    sent += 1
        return sent

    def _send(self, processes: list[psutil.Process], number: signals.Signals) -> None:
        for process in processes:
            # psutil compares the start time first: an id that was given anew is left alone.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def memory_kills(self, container_id: str) -> int | None:
        return _number(self._folder(container_id) / "memory_kills")

    def usage(self, container_id: str) -> Usage:
        folder = self._folder(container_id)
        processes = self._members(container_id, MARK)
        if not processes:
            return Usage(memory_peak_bytes=_number(folder / "memory_peak"))
        seconds, used = 0.0, 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                # Own time and that of children that have ended.
                seconds += math.fsum(process.cpu_times()[:4])
                used += process.memory_info().rss
        return Usage(seconds, used, _number(folder / "memory_peak"))

    # ------------------------------------------------------------------------ pause, end

    def pause(self, container_id: str) -> None:
        folder = self._folder(container_id)
        self._spec(container_id)
        (folder / "paused").touch()
        # A process may start another while we stop it: until nobody is left that runs.
        for _ in range(20):
            awake = [
                process
                for process in self._members(container_id, MARK)
                if _status(process) != psutil.STATUS_STOPPED
            ]
            if not awake:
                return
            self._send(awake, signals.SIGSTOP)
            time.sleep(0.01)
        raise EngineFailure(Cause.ENGINE_ERROR, f"{len(awake)} processes do not stop")

    def unpause(self, container_id: str) -> None:
        self._send(self._members(container_id, MARK), signals.SIGCONT)
        (self._folder(container_id) / "paused").unlink(missing_ok=True)

    def kill(self, container_id: str) -> None:
        until = time.monotonic() + GONE_TIMEOUT
        while processes := self._members(container_id, MARK):
            if time.monotonic() > until:
                raise EngineFailure(
                    Cause.ENGINE_ERROR, f"{len(processes)} processes outlive SIGKILL"
                )
            self._send(processes, signals.SIGKILL)
            psutil.wait_procs(processes, timeout=0.5)
        with contextlib.suppress(FileNotFoundError):
            (self._folder(container_id) / "paused").unlink()

    def remove(self, container_id: str) -> None:
        self.kill(container_id)
        shutil.rmtree(self._folder(container_id), ignore_errors=True)
        if self.look(container_id).state != ContainerState.MISSING:
            raise EngineFailure(Cause.ENGINE_ERROR, f"{container_id} cannot be removed")

    def log_tail(self, container_id: str, lines: int) -> str:
        try:
            text = (self._folder(container_id) / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    # ------------------------------------------------------------------------ the engine

    def own_containers(self, install: str, host: str) -> list[OwnContainer]:
        found = []
        for path in Path(settings.ATTEMPTS_DIR).glob(f"*/{FOLDER}/spec.json"):
            container_id = f"{PREFIX}{path.parent.parent.name}"
            try:
                spec = self._spec(container_id)
                state = self.look(container_id).state
            except EngineFailure:
                # Removed while we looked.
                continue
            labels = spec["labels"]
            assert isinstance(labels, dict)  # noqa: S101
            if labels.get(INSTALL_LABEL) == install and labels.get(HOST_LABEL) == host:
                attempt = int(labels[ATTEMPT_LABEL])
                found.append(OwnContainer(container_id, str(spec["name"]), attempt, state))
        return found

    def has_image(self, image_id: str) -> bool:
        """There are no images here; the agent's folder takes their place."""
        return not image_id

    def info(self) -> EngineInfo:
        return EngineInfo(engine_id=PREFIX + platform.node(), version=platform.python_version())

    def remove_folder(self, path: Path, image_id: str) -> None:
        if not path.exists():
            return
        remove_tree(path)
        if path.exists():
            raise EngineFailure(Cause.ENGINE_ERROR, f"{path} cannot be removed")

    def make_readable(self, path: Path, image_id: str) -> None:
        # The agent is the same user as this process, and may have shut itself out.
        command = ["chmod", "-R", "u+rwX", "--", str(path)]
        subprocess.run(command, capture_output=True, check=False, timeout=60)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.Error:
        return str(psutil.STATUS_STOPPED)
