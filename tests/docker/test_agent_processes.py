"""Single processes of an agent in its container: listed, and signalled."""

import dataclasses

import pytest

from runs.containers import (
    COMMAND_AT_MOST,
    AgentProcess,
    ContainerState,
    EngineFailure,
    processes,
)
from tests.docker.conftest import Lab, wait_for

pytestmark = pytest.mark.docker

LOOPS = "echo up; while :; do sleep 0.05; done"


# A worker that outlives an interrupt, a helper below it, and a loop beside them.
# (A shell lets what it starts with & ignore interrupts, so the worker has its own handler.)
FAMILY = """\
sleep 300 &
cat > /home/code/step.py <<END
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
open("/home/code/worker", "w").write(str(os.getpid()))
print("ready", flush=True)
while True:
    time.sleep(0.1)
END
python3 /home/code/step.py worker-of-a-step
"""


def test_the_agents_processes_are_listed_as_they_are_called_inside(lab: Lab) -> None:
    spec, container = lab.started(FAMILY)
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "ready" in lab.output(spec), what="the worker")

    found = lab.engine.agent_processes(container)

    worker = int((spec.workspace.code / "worker").read_text())
    by_id = {each.pid: each for each in found}
    assert by_id[worker].command.endswith("worker-of-a-step")
    assert by_id[by_id[worker].parent].command.startswith("bash /home/data/start.sh")
    assert "sleep 300" in [each.command for each in found]
    assert 1 not in by_id, "the entrypoint is not the agent's"
    assert not any("grading_server" in each.command for each in found)


def test_a_signal_reaches_one_process_of_the_agent_and_no_other(lab: Lab) -> None:
    spec, container = lab.started(FAMILY)
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "ready" in lab.output(spec), what="the worker")
    [worker] = [p for p in lab.engine.agent_processes(container) if "worker-of" in p.command]
    another = dataclasses.replace(worker, started=worker.started - 1)
    relay = AgentProcess(1, 0, worker.started, "")
    gone = AgentProcess(2**21, 0, worker.started, "")

    assert lab.engine.signal_processes(container, [another, relay, gone], "KILL") == 0
    assert lab.engine.signal_processes(container, [worker], "INT") == 1
    wait_for(lambda: "interrupted" in lab.output(spec), what="its own handler")
    assert lab.engine.signal_processes(container, [worker], "KILL") == 1

    wait_for(
        lambda: worker.pid not in [p.pid for p in lab.engine.agent_processes(container)],
        what="its end",
    )
    assert "sleep 300" in [p.command for p in lab.engine.agent_processes(container)]
    assert lab.engine.look(container).state == ContainerState.RUNNING


def test_processes_of_a_container_that_is_gone_are_none_and_of_a_paused_one_an_error(
    lab: Lab,
) -> None:
    spec, container = lab.started(FAMILY)
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "ready" in lab.output(spec), what="the worker")
    found = lab.engine.agent_processes(container)
    lab.engine.pause(container)
    with pytest.raises(EngineFailure, match="paused"):
        lab.engine.agent_processes(container)
    lab.engine.unpause(container)
    lab.engine.remove(container)

    assert lab.engine.agent_processes(container) == []
    assert lab.engine.signal_processes(container, found, "KILL") == 0


def test_what_an_agent_calls_its_processes_is_shortened_and_kept_on_one_line(lab: Lab) -> None:
    name = "a" * 5000 + "\\n1 S 1"
    script = f"exec -a \"$(printf '{name}')\" sleep 300 & echo ready; wait"
    spec, container = lab.started(script)
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "ready" in lab.output(spec), what="the agent")

    def named() -> list[AgentProcess]:
        return [p for p in lab.engine.agent_processes(container) if p.command.startswith("aaa")]

    wait_for(named, what="the process")
    [process] = named()
    assert len(process.command) == COMMAND_AT_MOST
    assert process.pid != 1


def test_a_command_that_an_agent_stops_is_not_waited_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.containers.docker.TIMEOUT", 2)
    stops = "echo up; while :; do pkill -STOP -f 'cd /proc'; done"
    spec, container = lab.started(stops)
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec), what="the agent")
    slow = processes.LIST.replace("cd /proc", "cd /proc; read -r -t 1 < /dev/zero; sleep 1")
    monkeypatch.setattr(processes, "LIST", slow)

    with pytest.raises(EngineFailure, match="did not end in 2 s"):
        lab.engine.agent_processes(container)
