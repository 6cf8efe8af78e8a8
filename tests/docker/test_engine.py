"""DockerEngine on a real engine."""

import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
from pytest_django import Settings

from runs.containers import (
    ContainerSpec,
    ContainerState,
    EngineFailure,
    diagnostics,
)
from runs.containers.docker import CAPABILITIES, DockerEngine
from runs.core.failures import Cause, cause_of_end
from tests.docker.conftest import Lab, wait_for

pytestmark = pytest.mark.docker

LOOPS = "echo up; while :; do sleep 0.05; done"


# ---------------------------------------------------------------------------- an agent's life


def test_an_agent_runs_as_nonroot_with_its_arguments_and_leaves_its_exit_code(lab: Lab) -> None:
    spec, container = lab.run(
        'id -un; echo "$@"; echo "$COMPETITION_ID"; touch /home/submission/submission.csv; exit 3',
        agent_args=("--steps", "two words"),
    )
    assert spec.workspace.agent_exit_code() == 3
    assert lab.output(spec).splitlines() == ["nonroot", "--steps two words", "test-prices"]
    assert spec.workspace.submission_file() is not None
    wait_for(lambda: not lab.engine.agent_is_alive(container))
    assert lab.engine.look(container).state == ContainerState.RUNNING
    lab.engine.remove(container)
    assert lab.engine.look(container).state == ContainerState.MISSING


def test_everything_may_be_said_twice(lab: Lab) -> None:
    spec, container = lab.started()
    assert lab.engine.create(spec) == container
    lab.engine.start(container)
    lab.engine.pause(container)
    lab.engine.pause(container)
    assert lab.engine.look(container).state == ContainerState.PAUSED
    lab.engine.unpause(container)
    lab.engine.unpause(container)
    lab.engine.kill(container)
    lab.engine.kill(container)
    look = lab.engine.look(container)
    assert (look.state, look.exit_code, look.oom_killed) == (ContainerState.EXITED, 137, False)
    lab.engine.signal_agent(container, "KILL")
    assert not lab.engine.agent_is_alive(container)
    lab.engine.remove(container)
    lab.engine.remove(container)
    lab.engine.kill(container)
    lab.engine.signal_agent(container, "TERM")
    assert lab.engine.memory_kills(container) is None


def test_a_name_that_somebody_else_has_is_refused(lab: Lab) -> None:
    spec = lab.spec()
    lab.engine._api.create_container(lab.image, name=spec.name)
    with pytest.raises(EngineFailure, match="not ours") as caught:
        lab.engine.create(spec)
    assert caught.value.cause == Cause.ENGINE_ERROR


def test_a_second_start_of_the_agent_does_nothing(lab: Lab) -> None:
    spec, container = lab.started("echo once >> /home/code/starts; " + LOOPS)
    lab.engine.start_agent(container, spec)
    wait_for((spec.workspace.code / "starts").exists)
    DockerEngine().start_agent(container, spec)
    lab.engine.signal_agent(container, "KILL")
    wait_for(lambda: not lab.engine.agent_is_alive(container))
    assert (spec.workspace.code / "starts").read_text() == "once\n"
    assert spec.workspace.agent_exit_code() is None


def test_term_reaches_an_agent_in_another_process_group_and_its_exit_code_is_kept(lab: Lab) -> None:
    # As AIDE's start script does; `timeout` makes a process group of its own.
    saves = "import signal,sys,time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    saves += "print('up', flush=True)\ntime.sleep(60)\n"
    spec, container = lab.started(f'timeout 60 python3 -c "{saves}"\nexit $?')
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec))
    assert lab.engine.agent_is_alive(container)
    lab.engine.signal_agent(container, "TERM")
    # The start script dies of the signal at once; the wrapper stays and says so.
    wait_for(lambda: spec.workspace.agent_exit_code() is not None)
    assert spec.workspace.agent_exit_code() == 143
    wait_for(lambda: not lab.engine.agent_is_alive(container))


def test_an_agent_that_ignores_term_ends_by_kill(lab: Lab) -> None:
    spec, container = lab.started(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 60' & " + LOOPS
    )
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec))
    lab.engine.signal_agent(container, "TERM")
    assert lab.engine.agent_is_alive(container)
    lab.engine.signal_agent(container, "KILL")
    wait_for(lambda: not lab.engine.agent_is_alive(container))
    assert lab.engine.look(container).state == ContainerState.RUNNING


def test_an_agent_that_hides_its_exit_code_has_ended_when_nothing_of_it_is_left(lab: Lab) -> None:
    spec, container = lab.started("mkdir /home/logs/agent.rc.tmp; echo bye")
    lab.engine.start_agent(container, spec)
    wait_for(lambda: not lab.engine.agent_is_alive(container))
    assert spec.workspace.agent_exit_code() is None


def test_life_is_seen_in_the_same_way_without_the_hosts_cgroup_files(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.containers.cgroups.PLACES", ())
    spec, container = lab.started(LOOPS)
    assert not lab.engine.agent_is_alive(container)
    lab.engine.start_agent(container, spec)
    assert lab.engine.agent_is_alive(container)
    assert lab.engine.memory_kills(container) == 0
    assert (lab.engine.usage(container).cpu_seconds or 0) > 0
    lab.engine.pause(container)
    assert lab.engine.agent_is_alive(container)
    lab.engine.unpause(container)
    lab.engine.signal_agent(container, "KILL")
    wait_for(lambda: not lab.engine.agent_is_alive(container))


@pytest.mark.parametrize("host_sees", [True, False])
def test_the_dead_that_nobody_buried_are_not_alive(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, host_sees: bool
) -> None:
    if not host_sees:
        monkeypatch.setattr("runs.containers.cgroups.PLACES", ())
    api = lab.engine._api
    # A first process that waits for nobody.
    container = api.create_container(
        lab.image, entrypoint=["sleep", "60"], name=lab.spec().name, network_disabled=True
    )["Id"]
    api.start(container)
    lab.engine._exec(container, ["sh", "-c", "sleep 0.01 &"], user="nonroot")

    def dead() -> str:
        return lab.engine._exec(container, ["ps", "-o", "stat=", "-u", "nonroot"], user="root")[1]

    wait_for(lambda: dead().startswith("Z"))
    assert not lab.engine.agent_is_alive(container)


def test_a_full_process_table_does_not_save_an_agent(lab: Lab) -> None:
    bomb = "echo up; for i in $(seq 300); do sleep 60 & done 2>/dev/null; wait"
    spec, container = lab.started(bomb, pids_limit=64)
    lab.engine.start_agent(container, spec)
    wait_for(lambda: "up" in lab.output(spec))
    # There may be no room for the process that sends the signal; killing the container needs none.
    with contextlib.suppress(EngineFailure):
        lab.engine.signal_agent(container, "KILL")
    lab.engine.kill(container)
    assert lab.engine.look(container).state == ContainerState.EXITED


# ---------------------------------------------------------------------------- limits


def test_a_memory_kill_of_the_agent_is_counted_while_the_container_lives(lab: Lab) -> None:
    spec, container = lab.run(
        "python3 -c 'bytearray(2**30)'; echo ended $?", memory_bytes=96 * 2**20
    )
    assert "ended 137" in lab.output(spec)
    assert lab.engine.memory_kills(container) == 1
    assert lab.engine.look(container).state == ContainerState.RUNNING
    assert not lab.engine.look(container).oom_killed
    usage = lab.engine.usage(container)
    assert usage.memory_peak_bytes is not None
    assert 64 * 2**20 < usage.memory_peak_bytes <= 96 * 2**20
    seen = diagnostics.evidence(lab.engine, container, spec.workspace)
    assert cause_of_end(seen, agent_started=True)[0] == Cause.OUT_OF_MEMORY


def test_a_memory_kill_of_the_relay_is_told_from_one_of_the_agent(lab: Lab) -> None:
    spec, container = lab.started(memory_bytes=32 * 2**20)
    # Memory that no process holds, until the kernel takes the largest one: the relay.
    fill = ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=64k"]
    with contextlib.suppress(docker.errors.APIError):
        lab.engine._exec(container, fill, user="root")
    wait_for(lambda: lab.engine.look(container).state == ContainerState.EXITED)
    seen = diagnostics.evidence(lab.engine, container, spec.workspace)
    assert (seen.exit_code, seen.oom_killed) == (137, True)
    assert cause_of_end(seen, agent_started=False)[0] == Cause.RELAY_FAILED
    assert cause_of_end(seen, agent_started=True)[0] == Cause.OUT_OF_MEMORY


def test_a_container_gets_its_limits_and_nothing_else(lab: Lab) -> None:
    spec = lab.spec(runtime="runc", env={"NVIDIA_VISIBLE_DEVICES": "all", "A": "b"})
    container = lab.engine.create(spec)
    seen = lab.engine._api.inspect_container(container)
    host = seen["HostConfig"]
    assert host["NanoCpus"] == 1e9
    assert host["Memory"] == host["MemorySwap"] == 256 * 2**20
    assert host["PidsLimit"] == 200
    assert host["ShmSize"] == 64 * 2**20
    assert host["NetworkMode"] == "none"
    assert host["Runtime"] == "runc"
    assert host["CapDrop"] == ["ALL"]
    assert sorted(host["CapAdd"]) == sorted(f"CAP_{name}" for name in CAPABILITIES) or sorted(
        host["CapAdd"]
    ) == sorted(CAPABILITIES)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "10m", "max-file": "1"},
    }
    assert seen["Config"]["Entrypoint"] == ["/entrypoint.sh"]
    assert seen["Config"]["Labels"] == dict(spec.labels)
    env = seen["Config"]["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in env
    assert "NVIDIA_VISIBLE_DEVICES=all" not in env
    assert "A=b" in env
    writable = {mount["Destination"] for mount in seen["Mounts"] if mount["RW"]}
    assert writable == {
        "/home/submission", "/home/logs", "/home/code", "/home/ckpt", "/private/link"
    }  # fmt: skip


def test_root_in_the_container_has_no_raw_sockets_and_no_mounts(lab: Lab) -> None:
    _, container = lab.started()
    attack = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"
    code, said = lab.engine._exec(container, ["python3", "-c", attack], user="root")
    assert code, said
    assert "Operation not permitted" in said
    code, said = lab.engine._exec(container, ["mount", "-t", "tmpfs", "x", "/mnt"], user="root")
    assert code, said
    code, said = lab.engine._exec(container, ["cat", "/proc/1/status"], user="root")
    assert "CapEff:\t00000000000000eb" in said, said


def test_the_agent_does_not_reach_private(lab: Lab) -> None:
    spec, _ = lab.run("ls /private; cat /private/link/v; touch /home/data/x")
    assert lab.output(spec).count("Permission denied") == 2
    assert "Read-only file system" in lab.output(spec)


def test_a_host_that_does_not_accept_it_makes_no_privileged_container(lab: Lab) -> None:
    with pytest.raises(EngineFailure) as failure:
        lab.engine.create(lab.spec(privileged=True))

    assert failure.value.cause == Cause.PRIVILEGED_REFUSED
    assert "I_ACCEPT_RUNNING_PRIVILEGED_CONTAINERS" in failure.value.text
    assert lab.engine.own_containers(lab.install, lab.host) == []


def test_a_host_that_accepts_it_makes_a_privileged_container(lab: Lab, settings: Settings) -> None:
    settings.ACCEPTS_PRIVILEGED = True

    container = lab.engine.create(lab.spec(privileged=True))

    assert lab.engine._api.inspect_container(container)["HostConfig"]["Privileged"] is True


def test_sysbox_gets_no_privileged_container_and_no_dropped_capabilities(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the flag; in its user namespace root has all that an engine of its own needs."""
    asked: dict[str, object] = {}
    real = docker.APIClient.create_host_config

    def create_host_config(api: docker.APIClient, **kwargs: object) -> object:
        asked.update(kwargs)
        # The edge: this machine's engine has no sysbox.
        return real(api, **{key: value for key, value in kwargs.items() if key != "runtime"})

    monkeypatch.setattr(docker.APIClient, "create_host_config", create_host_config)

    lab.engine.create(lab.spec(privileged=True, runtime="sysbox-runc"))

    assert asked["runtime"] == "sysbox-runc"
    assert not {"privileged", "cap_drop", "security_opt"} & set(asked)


# ---------------------------------------------------------------------------- GPUs


def test_gpus_are_one_request_by_uuid(lab: Lab) -> None:
    spec = lab.spec(gpu_uuids=("GPU-a", "MIG-b"))
    container = lab.engine.create(spec)
    seen = lab.engine._api.inspect_container(container)
    assert seen["HostConfig"]["DeviceRequests"] == [
        {
            "Driver": "",
            "Count": 0,
            "DeviceIDs": ["GPU-a", "MIG-b"],
            "Capabilities": [["gpu", "compute", "utility"]],
            "Options": {},
        }
    ]
    assert "NVIDIA_VISIBLE_DEVICES=void" not in seen["Config"]["Env"]


def test_gpus_of_an_engine_that_takes_cdi_names(lab: Lab, settings: Settings) -> None:
    settings.GPU_REQUEST_MODE = "cdi"
    container = lab.engine.create(lab.spec(gpu_uuids=("GPU-a",)))
    (request,) = lab.engine._api.inspect_container(container)["HostConfig"]["DeviceRequests"]
    assert (request["Driver"], request["DeviceIDs"]) == ("cdi", ["nvidia.com/gpu=GPU-a"])


@pytest.mark.parametrize("uuids", [("",), ("GPU-a", " ")])
def test_a_gpu_without_uuid_is_refused_before_the_engine_is_asked(
    lab: Lab, uuids: tuple[str, ...]
) -> None:
    with pytest.raises(EngineFailure) as caught:
        lab.engine.create(lab.spec(gpu_uuids=uuids))
    assert caught.value.cause == Cause.GPU_UNKNOWN


def test_an_engine_without_the_toolkit_says_so_and_leaves_the_container(lab: Lab) -> None:
    if "nvidia" in lab.engine.info().runtimes:
        return  # this engine has the toolkit: nothing to see here
    container = lab.engine.create(lab.spec(gpu_uuids=("GPU-a",)))
    with pytest.raises(EngineFailure) as caught:
        lab.engine.start(container)
    assert caught.value.cause == Cause.GPU_TOOLKIT_MISSING
    look = lab.engine.look(container)
    assert look.state == ContainerState.CREATED
    assert "could not select device driver" in look.error


# ---------------------------------------------------------------------------- what goes wrong


def test_an_image_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(EngineFailure) as caught:
        lab.engine.create(lab.spec(image_id="sha256:" + "ab" * 32))
    assert caught.value.cause == Cause.IMAGE_MISSING
    assert not lab.engine.has_image("sha256:" + "ab" * 32)
    assert lab.engine.has_image(lab.image)
    assert lab.image in lab.engine.info().image_ids


def test_a_runtime_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(EngineFailure) as caught:
        lab.engine.create(lab.spec(runtime="sysbox-nowhere"))
    assert caught.value.cause == Cause.RUNTIME_MISSING


def test_an_image_that_does_not_keep_the_contract(
    lab: Lab, engine: docker.DockerClient, base_image: str
) -> None:
    with pytest.raises(EngineFailure) as caught:
        # No entrypoint, no command.
        lab.engine.create(lab.spec(image_id=base_image))
    assert caught.value.cause == Cause.IMAGE_UNFIT
    made = engine.api.create_container(
        base_image, ["sleep", "60"], name=lab.spec().name, network_disabled=True
    )
    engine.api.start(made["Id"])
    with pytest.raises(EngineFailure) as caught:
        # No user nonroot.
        lab.engine.start_agent(made["Id"], lab.specs[-1])
    assert caught.value.cause == Cause.IMAGE_UNFIT


def test_data_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(EngineFailure) as caught:
        lab.engine.create(lab.spec(data_dir=tmp_path / "nowhere"))
    assert caught.value.cause == Cause.DATA_MISSING


def test_a_container_removed_from_outside_is_missing_and_told_as_that(
    lab: Lab, engine: docker.DockerClient
) -> None:
    spec, container = lab.started(LOOPS)
    lab.engine.start_agent(container, spec)
    engine.api.remove_container(container, force=True)
    assert lab.engine.look(container).state == ContainerState.MISSING
    assert not lab.engine.agent_is_alive(container)
    seen = diagnostics.evidence(lab.engine, container, spec.workspace)
    assert cause_of_end(seen, agent_started=True)[0] == Cause.CONTAINER_REMOVED
    with pytest.raises(EngineFailure) as caught:
        lab.engine.start(container)
    assert caught.value.cause == Cause.CONTAINER_REMOVED


def test_a_container_killed_from_outside_is_told_from_one_that_ended(
    lab: Lab, engine: docker.DockerClient
) -> None:
    spec, container = lab.started(LOOPS)
    engine.api.kill(container)
    wait_for(lambda: lab.engine.look(container).state == ContainerState.EXITED)
    seen = diagnostics.evidence(lab.engine, container, spec.workspace)
    assert cause_of_end(seen, agent_started=True)[0] == Cause.CONTAINER_KILLED
    with pytest.raises(EngineFailure) as caught:
        lab.engine.start_agent(container, spec)
    assert caught.value.cause == Cause.CONTAINER_EXITED


def test_a_container_that_ends_by_itself_shows_its_last_lines(lab: Lab) -> None:
    spec, container = lab.started()
    relay = lab.engine._exec(container, ["pkill", "-f", "grading_server"], user="root")
    assert relay[0] == 0
    wait_for(lambda: lab.engine.look(container).state == ContainerState.EXITED)
    with (spec.workspace.logs / "entrypoint.log").open("a") as log:
        log.write("\ncould not go on\n")
    seen = diagnostics.evidence(lab.engine, container, spec.workspace)
    assert "could not go on" in seen.last_lines
    assert seen.exit_code == 143
    assert cause_of_end(seen, agent_started=False)[0] == Cause.CONTAINER_KILLED


# The SDK leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_does_not_answer(settings: Settings, tmp_path: Path) -> None:
    settings.ENGINE_URL = f"unix://{tmp_path}/nobody.sock"
    with pytest.raises(EngineFailure) as caught:
        DockerEngine().look("x")
    assert caught.value.cause == Cause.ENGINE_UNREACHABLE
    del caught
    gc.collect()


def test_a_host_without_an_engine_says_so(settings: Settings) -> None:
    settings.ENGINE_URL = "none"
    with pytest.raises(EngineFailure, match="has no engine") as caught:
        DockerEngine().info()
    assert caught.value.cause == Cause.ENGINE_UNREACHABLE


def test_only_containers_of_this_installation_and_host_are_its_own(lab: Lab) -> None:
    ours, container = lab.started()
    other_host = lab.spec()
    lab.engine.create(
        type(other_host)(
            **{**vars(other_host), "labels": {**other_host.labels, "mlebench-web.host": "else"}}
        )
    )
    (found,) = lab.engine.own_containers(lab.install, lab.host)
    assert (found.id, found.name) == (container, ours.name)
    assert (found.attempt_id, found.state) == (
        ours.workspace.attempt_id,
        ContainerState.RUNNING,
    )
    assert lab.engine.own_containers("another", lab.host) == []


# ---------------------------------------------------------------------------- network, folders


def test_runs_that_start_at_once_share_one_network(lab: Lab, engine: docker.DockerClient) -> None:
    specs = [lab.spec(network="internet") for _ in range(4)]
    start = threading.Barrier(4)

    def create(spec: ContainerSpec) -> str:
        # As in the worker: each process has an engine object of its own.
        own = DockerEngine()
        start.wait()
        return own.create(spec)

    try:
        with ThreadPoolExecutor(4) as pool:
            containers = list(pool.map(create, specs))

        assert len(set(containers)) == 4
        assert len(engine.networks.list(names=[f"mlebench-{lab.install}"])) == 1
        for container in containers:
            lab.engine.start(container)
    finally:
        lab.clear()
        for network in engine.networks.list(names=[f"mlebench-{lab.install}"]):
            network.remove()


def test_the_internet_is_a_network_of_this_installations_own(
    lab: Lab, engine: docker.DockerClient
) -> None:
    name = f"mlebench-{lab.install}"
    try:
        _, first = lab.started(network="internet")
        _, second = lab.started(network="internet")
        (network,) = engine.networks.list(names=[name])
        network.reload()
        assert {container.id for container in network.containers} == {first, second}
        assert network.attrs["Labels"] == {"mlebench-web.install": lab.install}
        address = lab.engine._api.inspect_container(second)["NetworkSettings"]["Networks"][name]
        knock = f"import socket; socket.create_connection(({address['IPAddress']!r}, 5000), 2)"
        code, said = lab.engine._exec(first, ["python3", "-c", knock], user="nonroot")
        assert code, f"one agent reaches the other's relay: {said}"
    finally:
        lab.clear()
        for network in engine.networks.list(names=[name]):
            network.remove()


def test_files_of_others_are_removed_through_a_container(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, container = lab.run("umask 077; mkdir -p /home/code/a/b; echo x > /home/code/a/b/c")
    lab.engine.remove(container)
    # As far as a worker gets that is not root: nowhere.
    monkeypatch.setattr("runs.containers.docker.remove_tree", lambda path: None)
    spec.workspace.remove(lab.engine, lab.image)
    assert not spec.workspace.root.exists()
    assert not spec.workspace.socket_dir.exists()
    # And again: gone already is no error.
    spec.workspace.remove(lab.engine, lab.image)


def test_files_of_others_are_opened_to_be_read(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o600)
    spec, container = lab.run(
        f"umask 077; mkdir /home/code/a; echo x > /home/code/a/b; ln -s {outside} /home/code/link"
    )
    lab.engine.remove(container)
    lab.engine.make_readable(spec.workspace.code, lab.image)
    assert (spec.workspace.code / "a").stat().st_mode & 0o007 == 0o005
    assert (spec.workspace.code / "a" / "b").stat().st_mode & 0o007 == 0o004
    assert outside.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------------------- hostile outputs


HOSTILE = r"""
cd /home/submission
ln -s /etc/passwd submission.csv
mkfifo /home/logs/pipe
mknod /home/logs/device c 1 5 2>&1
ln -s / /home/code/root
mkdir -p /home/code/$(printf 'd/%.0s' $(seq 90))
python3 -c 'open(b"/home/code/caf\xe9", "w").close()'
truncate -s 1T /home/code/sparse
echo kept > /home/code/train.py
"""


def test_what_a_hostile_agent_leaves_is_collected_without_harm(lab: Lab, tmp_path: Path) -> None:
    spec, container = lab.run(HOSTILE)
    lab.engine.remove(container)
    assert "mknod: /home/logs/device: Operation not permitted" in lab.output(spec)
    assert spec.workspace.submission_file() is None
    assert spec.workspace.refused_submission() == (
        "submission.csv is a symbolic link; links are not graded"
    )
    into = tmp_path / "group" / "run"
    collected = spec.workspace.collect(into, tick=lambda: None)
    left_out = {str(row["path"]): str(row["why"]) for row in collected.left_out}
    assert left_out.pop("submission/submission.csv") == "a symbolic link"
    assert left_out.pop("logs/pipe") == "a named pipe"
    assert left_out.pop("code/root") == "a symbolic link"
    assert "over what an attempt may leave" in left_out.pop("code/sparse")
    ((deep, why),) = left_out.items()
    assert deep.startswith("code/d/d/d")
    assert "deeper" in why
    assert {"logs/agent.stdout", "logs/entrypoint.log", "code/caf\\xe9", "code/train.py"} == {
        str(row["path"]) for row in collected.artifacts
    }
    assert (into / "code" / "train.py").read_text() == "kept\n"
