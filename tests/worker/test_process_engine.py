"""ProcessEngine: containers played by processes, with the same verbs as on an engine."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pytest_django import Settings

from mlebench_web.process_start import started
from runs.containers import AgentProcess, ContainerSpec, ContainerState, EngineFailure, diagnostics
from runs.containers.process import ProcessEngine
from runs.core.failures import Cause, cause_of_end
from runs.workspace import Workspace

LOOPS = "echo up; while :; do sleep 0.05; done"

ENGINE = ProcessEngine()


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s"
        time.sleep(0.02)


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.specs: list[ContainerSpec] = []

    def spec(self, script: str, **fields: object) -> ContainerSpec:
        number = len(self.specs) + 1
        workspace = Workspace.for_attempt(number)
        workspace.make()
        agent = self.folder / f"agent-{number}"
        agent.mkdir()
        (agent / "start.sh").write_text(script)
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        values: dict[str, object] = {
            # Unlike any other's, so that no test sees another's processes.
            "name": f"mlebench-{os.getpid()}-{time.time_ns()}-{number}",
            "labels": {
                "mlebench-web.install": "here",
                "mlebench-web.attempt": str(number),
                "mlebench-web.host": "lab",
            },
            "image_id": "",
            "workspace": workspace,
            "data_dir": data,
            "env": {"MLE_EVENTS_FILE": "/home/logs/events.jsonl", "MLE_SEED": "3"},
            "cpus": 1.0,
            "memory_bytes": 2**30,
            "shm_bytes": None,
            "pids_limit": 200,
            "agent_folder": agent,
            **fields,
        }
        spec = ContainerSpec(**values)  # type: ignore[arg-type]
        self.specs.append(spec)
        return spec

    def started(self, script: str, **fields: object) -> tuple[ContainerSpec, str]:
        spec = self.spec(script, **fields)
        container = ENGINE.create(spec)
        ENGINE.start(container)
        wait_for(spec.workspace.relay_is_ready)
        return spec, container

    def run(self, script: str, **fields: object) -> tuple[ContainerSpec, str]:
        spec, container = self.started(script, **fields)
        ENGINE.start_agent(container, spec)
        wait_for(lambda: spec.workspace.agent_exit_code() is not None)
        return spec, container

    def output(self, spec: ContainerSpec) -> str:
        path = spec.workspace.logs / "agent.stdout"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def lab(tmp_path: Path, settings: Settings) -> Iterator[Lab]:
    settings.ATTEMPTS_DIR = tmp_path / "attempts"
    settings.ML_PYTHON = Path(sys.executable)
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        for spec in lab.specs:
            ENGINE.remove(f"process-{spec.workspace.attempt_id}")
            spec.workspace.remove(ENGINE)


def test_an_agent_runs_with_its_arguments_and_leaves_its_exit_code(lab: Lab) -> None:
    spec, container = lab.run(
        'echo "$@"; echo a,b > "$SUBMISSION_DIR/submission.csv"; exit 3', agent_args=("a b", "c")
    )
    assert spec.workspace.agent_exit_code() == 3
    assert lab.output(spec) == "a b c\n"
    assert spec.workspace.submission_file() is not None
    assert ENGINE.look(container).state == ContainerState.RUNNING
    wait_for(lambda: not ENGINE.agent_is_alive(container))
    ENGINE.remove(container)
    assert ENGINE.look(container).state == ContainerState.MISSING
    ENGINE.remove(container)


def test_an_agent_sees_the_contract_and_nothing_of_the_worker(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_SECRET", "hunter2")
    spec, _ = lab.run("env; pwd; curl -s $MLE_VALIDATION_URL/health")
    lines = lab.output(spec).splitlines()
    assert "hunter2" not in lab.output(spec)
    for line in (
        "MLE_SEED=3",
        f"MLE_EVENTS_FILE={spec.workspace.logs}/events.jsonl",
        f"DATA_DIR={spec.data_dir}",
        f"LOGS_DIR={spec.workspace.logs}",
        f"CODE_DIR={spec.workspace.code}",
        f"AGENT_DIR={spec.agent_folder}",
        f"MLE_CHECKPOINT_DIR={spec.workspace.checkpoint}",
        f"HOME={spec.workspace.state}/home",
        "NVIDIA_VISIBLE_DEVICES=void",
        "CUDA_VISIBLE_DEVICES=",
        '{"status": "running"}',
    ):
        assert line in lines, line
    (path,) = [line for line in lines if line.startswith("PATH=")]
    assert path.startswith(f"PATH={Path(sys.executable).parent}:")
    (url,) = [line for line in lines if line.startswith("MLE_VALIDATION_URL=")]
    assert urllib.request.urlopen(url.partition("=")[2] + "/health").status == 200


def test_it_outlives_the_worker_that_started_it(lab: Lab) -> None:
    spec = lab.spec(LOOPS)
    container = ENGINE.create(spec)
    # Another process, as a worker that is killed at once.
    worker = (
        "import os, signal, django; django.setup()\n"
        "from django.conf import settings; from pathlib import Path\n"
        f"settings.ATTEMPTS_DIR = Path({str(lab.folder / 'attempts')!r})\n"
        "from runs.containers.process import ProcessEngine\n"
        f"ProcessEngine().start({container!r}); os.killpg(0, signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", worker],
        start_new_session=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -9
    assert ENGINE.look(container).state == ContainerState.RUNNING
    wait_for(spec.workspace.relay_is_ready)
    ENGINE.start_agent(container, spec)
    assert ENGINE.agent_is_alive(container)


def test_everything_may_be_said_twice(lab: Lab) -> None:
    spec, container = lab.started("echo once >> $CODE_DIR/starts; " + LOOPS)
    assert ENGINE.create(spec) == container
    ENGINE.start(container)
    ENGINE.start_agent(container, spec)
    ENGINE.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec))
    assert (spec.workspace.code / "starts").read_text() == "once\n"
    ENGINE.pause(container)
    ENGINE.pause(container)
    assert ENGINE.look(container).state == ContainerState.PAUSED
    assert ENGINE.agent_is_alive(container)
    before = ENGINE.usage(container).cpu_seconds
    time.sleep(0.3)
    assert ENGINE.usage(container).cpu_seconds == before
    ENGINE.unpause(container)
    ENGINE.unpause(container)
    assert ENGINE.look(container).state == ContainerState.RUNNING
    wait_for(lambda: (ENGINE.usage(container).cpu_seconds or 0) > (before or 0))
    ENGINE.kill(container)
    ENGINE.kill(container)
    look = ENGINE.look(container)
    assert (look.state, look.exit_code) == (ContainerState.EXITED, 137)
    assert not ENGINE.agent_is_alive(container)
    with pytest.raises(EngineFailure) as caught:
        ENGINE.start_agent(container, spec)
    assert caught.value.cause == Cause.CONTAINER_EXITED


def test_signals_reach_an_agent_that_left_its_session(lab: Lab) -> None:
    stubborn = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo up; sleep 60' & wait; sleep 60"
    spec, container = lab.started(stubborn)
    ENGINE.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec))
    ENGINE.signal_agent(container, "TERM")
    assert ENGINE.agent_is_alive(container)
    ENGINE.signal_agent(container, "KILL")
    wait_for(lambda: not ENGINE.agent_is_alive(container))
    assert ENGINE.look(container).state == ContainerState.RUNNING


def test_the_exit_code_survives_a_term(lab: Lab) -> None:
    spec, container = lab.started(LOOPS)
    ENGINE.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec))
    ENGINE.signal_agent(container, "TERM")
    wait_for(lambda: spec.workspace.agent_exit_code() is not None)
    assert spec.workspace.agent_exit_code() == 143


def test_term_reaches_an_agent_whose_worker_ignores_it(lab: Lab) -> None:
    # As the children of a Celery worker do.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        spec, container = lab.started("exec sleep 60")
    finally:
        signal.signal(signal.SIGTERM, before)
    ENGINE.start_agent(container, spec)
    wait_for(lambda: ENGINE.agent_is_alive(container))
    ENGINE.signal_agent(container, "TERM")
    wait_for(lambda: spec.workspace.agent_exit_code() is not None)
    assert spec.workspace.agent_exit_code() == 143


def test_memory_over_the_limit_is_killed_and_counted(lab: Lab) -> None:
    eat = "python3 -c 'x = bytearray(2**28); import time; time.sleep(30)'; echo ended $?"
    spec, container = lab.run(eat, memory_bytes=128 * 2**20)
    assert "ended 137" in lab.output(spec)
    assert ENGINE.memory_kills(container) == 1
    # What it had when it was caught; not all of its array need be there by then.
    assert (ENGINE.usage(container).memory_peak_bytes or 0) > 128 * 2**20
    assert ENGINE.look(container).state == ContainerState.RUNNING
    assert "over 134217728 bytes" in ENGINE.log_tail(container, 5)


def test_a_container_whose_relay_ends_has_ended(lab: Lab) -> None:
    spec, container = lab.started(LOOPS)
    ENGINE.start_agent(container, spec)
    (relay,) = [
        process
        for process in ENGINE._members(container, "MLEBENCH_WEB_CONTAINER")
        if "relay.py" in " ".join(process.cmdline())
    ]
    relay.kill()
    wait_for(lambda: ENGINE.look(container).state == ContainerState.EXITED)
    seen = diagnostics.evidence(ENGINE, container, spec.workspace)
    assert cause_of_end(seen, agent_started=True)[0] == Cause.CONTAINER_KILLED
    assert "relay ended with -9" in seen.last_lines
    # Its agent is still there, until it is removed.
    assert ENGINE.agent_is_alive(container)
    ENGINE.remove(container)
    assert not ENGINE.agent_is_alive(container)


def test_a_process_id_that_was_given_anew_is_left_alone(lab: Lab) -> None:
    spec, container = lab.started("true")
    ENGINE.kill(container)
    pid = int((lab.folder / "attempts" / "1" / "container" / "pid").read_text().split()[0])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    # As if another program had our old id now.
    (lab.folder / "attempts" / "1" / "container" / "pid").write_text(f"{os.getpid()} 1.0")
    assert ENGINE.look(container).state == ContainerState.EXITED
    ENGINE.kill(container)
    ENGINE.remove(container)
    assert spec.workspace.root.exists()


def test_what_is_not_there_is_named(lab: Lab, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(EngineFailure) as caught:
        ENGINE.create(lab.spec("true", data_dir=tmp_path / "nowhere"))
    assert caught.value.cause == Cause.DATA_MISSING
    with pytest.raises(EngineFailure) as caught:
        ENGINE.create(lab.spec("true", start="other.sh"))
    assert caught.value.cause == Cause.IMAGE_MISSING
    settings.ML_PYTHON = tmp_path / "no-python"
    with pytest.raises(EngineFailure, match="no-python") as caught:
        ENGINE.create(lab.spec("true"))
    assert caught.value.cause == Cause.IMAGE_MISSING


def test_only_containers_of_this_installation_and_host_are_its_own(lab: Lab) -> None:
    _, container = lab.started("true")
    (found,) = ENGINE.own_containers("here", "lab")
    assert (found.id, found.attempt_id, found.state) == (container, 1, ContainerState.RUNNING)
    assert ENGINE.own_containers("here", "else") == ENGINE.own_containers("other", "lab") == []


def test_files_that_an_agent_shut_itself_out_of_are_opened(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = lab.run(
        "echo x > $SUBMISSION_DIR/submission.csv; chmod 0 $SUBMISSION_DIR/submission.csv"
    )
    path = spec.workspace.submission / "submission.csv"
    spec.workspace.make_readable(ENGINE)
    if os.geteuid() == 0:
        # Root reads it as it is; do what another user would.
        assert path.stat().st_mode & 0o777 == 0
        ENGINE.make_readable(spec.workspace.submission, "")
    assert path.stat().st_mode & 0o400


def test_one_process_of_the_agent_is_signalled_and_never_one_of_another(lab: Lab) -> None:
    spec, container = lab.started(
        f"{sys.executable} -c 'import time; time.sleep(300)' a-step; {LOOPS}"
    )
    ENGINE.start_agent(container, spec)

    def steps() -> list[AgentProcess]:
        return [p for p in ENGINE.agent_processes(container) if p.command.endswith(" a-step")]

    wait_for(steps)
    [step] = steps()
    another = dataclasses.replace(step, started=step.started - 1)
    ours = AgentProcess(os.getpid(), os.getppid(), started(os.getpid()), "")
    assert ENGINE.signal_processes(container, [another, ours], "KILL") == 0
    assert ENGINE.signal_processes(container, [step], "INT") == 1
    wait_for(lambda: "up" in (spec.workspace.logs / "agent.stdout").read_text())
    assert steps() == []
    assert ENGINE.agent_is_alive(container)
    ENGINE.remove(container)
    assert ENGINE.agent_processes(container) == []
    assert ENGINE.signal_processes(container, [step], "KILL") == 0
