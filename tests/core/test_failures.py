"""What engines say, and what a dead container's evidence means. Strings captured from Docker Engine
20.10.24 unless their id says otherwise."""

import pytest

from runs.core.failures import (
    EXPLAINED,
    Cause,
    Evidence,
    cause_of_end,
    cause_of_engine_error,
    is_infrastructure,
)

IMAGE_ID = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        pytest.param("No such image: gone:latest", Cause.IMAGE_MISSING, id="create 404 by name"),
        pytest.param(f"No such image: {IMAGE_ID}", Cause.IMAGE_MISSING, id="create 404 by id"),
        pytest.param(
            "pull access denied for gone, repository does not exist or may require 'docker login': "
            "denied: requested access to the resource is denied",
            Cause.IMAGE_MISSING,
            id="pull, the hub has none (documentation)",
        ),
        pytest.param(
            'Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid on '
            "192.0.2.53:53: no such host",
            Cause.NETWORK,
            id="pull without a network",
        ),
        pytest.param(
            "Unknown runtime specified sysbox-runc", Cause.RUNTIME_MISSING, id="create 400 runtime"
        ),
        pytest.param(
            "unknown or invalid runtime name: sysbox-runc",
            Cause.RUNTIME_MISSING,
            id="create 400 runtime (Engine 23, source)",
        ),
        pytest.param(
            'could not select device driver "" with capabilities: [[gpu]]',
            Cause.GPU_TOOLKIT_MISSING,
            id="start 500, no toolkit",
        ),
        pytest.param(
            'could not select device driver "nvidia" with capabilities: [[gpu]]',
            Cause.GPU_TOOLKIT_MISSING,
            id="start 500, no nvidia driver",
        ),
        pytest.param(
            'could not select device driver "cdi" with capabilities: []',
            Cause.GPU_TOOLKIT_MISSING,
            id="start 500, no CDI",
        ),
        pytest.param(
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to "
            "start container process: error during container init: error running hook #0: error "
            "running hook: exit status 1, stdout: , stderr: nvidia-container-cli: device error: "
            "GPU-a: unknown device: unknown",
            Cause.GPU_UNKNOWN,
            id="start 500, a stale UUID",
        ),
        pytest.param(
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to "
            'start container process: exec: "/entrypoint.sh": stat /entrypoint.sh: no such file or '
            "directory: unknown",
            Cause.IMAGE_UNFIT,
            id="start 400, no entrypoint",
        ),
        pytest.param("No command specified", Cause.IMAGE_UNFIT, id="create 400, no command"),
        pytest.param(
            "unable to find user nonroot: no matching entries in passwd file",
            Cause.IMAGE_UNFIT,
            id="exec 500, no user nonroot",
        ),
        pytest.param(
            "OCI runtime exec failed: exec failed: unable to start container process: exec: "
            '"bash": '
            "executable file not found in $PATH: unknown",
            Cause.IMAGE_UNFIT,
            id="exec 400, no bash",
        ),
        pytest.param(f"Container {'3' * 64} is not running", Cause.CONTAINER_EXITED, id="exec 409"),
        pytest.param(
            f"Cannot kill container: {'3' * 64}: Container {'3' * 64} is not running",
            Cause.CONTAINER_EXITED,
            id="kill 409",
        ),
        pytest.param(f"No such container: {'3' * 64}", Cause.CONTAINER_REMOVED, id="any 404"),
        pytest.param(
            'invalid mount config for type "bind": bind source path does not exist: /data/x',
            Cause.DATA_MISSING,
            id="create 400, mount",
        ),
        pytest.param("network mlebench-abc not found", Cause.NETWORK, id="start 404, network"),
        pytest.param(
            "could not find an available, non-overlapping IPv4 address pool among the defaults to "
            "assign to the network",
            Cause.NETWORK,
            id="the 31st network",
        ),
        pytest.param(
            "error creating overlay mount to /var/lib/docker/overlay2/x-init/merged: no space left "
            "on device",
            Cause.DISK_FULL,
            id="create 500, disk (documentation)",
        ),
        pytest.param(
            "('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))",
            Cause.ENGINE_UNREACHABLE,
            id="no socket",
        ),
        pytest.param(
            "HTTPConnectionPool(host='127.0.0.1', port=1): Max retries exceeded with url: "
            "/v1.41/_ping (Caused by NewConnectionError(\"HTTPConnection(host='127.0.0.1', "
            'port=1): Failed to establish a new connection: [Errno 111] Connection refused"))',
            Cause.ENGINE_UNREACHABLE,
            id="nobody listens",
        ),
        pytest.param(
            "UnixHTTPConnectionPool(host='localhost', port=None): Read timed out. (read timeout=1)",
            Cause.ENGINE_UNREACHABLE,
            id="no answer",
        ),
        pytest.param(
            "Minimum memory limit allowed is 6MB", Cause.ENGINE_ERROR, id="create 400, memory"
        ),
        pytest.param(
            "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
            Cause.ENGINE_ERROR,
            id="create 400, CPUs",
        ),
        pytest.param("", Cause.ENGINE_ERROR, id="nothing"),
    ],
)
def test_an_engines_words_have_a_cause(text: str, cause: Cause) -> None:
    assert cause_of_engine_error(text) == cause
    assert is_infrastructure(cause)


def evidence(**fields: object) -> Evidence:
    return Evidence(**{"exists": True, "disk_free_bytes": 10**12, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "before", "after"),
    [
        pytest.param(
            Evidence(exists=False), Cause.CONTAINER_REMOVED, Cause.CONTAINER_REMOVED, id="gone"
        ),
        pytest.param(
            evidence(exit_code=137), Cause.CONTAINER_KILLED, Cause.CONTAINER_KILLED, id="killed"
        ),
        pytest.param(
            evidence(exit_code=255), Cause.CONTAINER_KILLED, Cause.CONTAINER_KILLED, id="reboot"
        ),
        pytest.param(
            evidence(exit_code=137, oom_killed=True),
            Cause.RELAY_FAILED,
            Cause.OUT_OF_MEMORY,
            id="first process killed for memory",
        ),
        pytest.param(
            evidence(is_running=True, memory_kills=1),
            Cause.RELAY_FAILED,
            Cause.OUT_OF_MEMORY,
            id="another process killed for memory",
        ),
        pytest.param(
            evidence(is_running=True, memory_kills=0),
            Cause.RELAY_FAILED,
            Cause.RELAY_FAILED,
            id="runs, relay silent",
        ),
        pytest.param(
            evidence(exit_code=0), Cause.CONTAINER_EXITED, Cause.CONTAINER_EXITED, id="ended with 0"
        ),
        pytest.param(
            evidence(exit_code=1, last_lines="no space left on device"),
            Cause.CONTAINER_EXITED,
            Cause.CONTAINER_EXITED,
            id="a log may say anything",
        ),
        pytest.param(
            evidence(exit_code=1, disk_free_bytes=0), Cause.DISK_FULL, Cause.DISK_FULL, id="disk"
        ),
        pytest.param(
            evidence(exit_code=128, engine_error='could not select device driver "" with'),
            Cause.GPU_TOOLKIT_MISSING,
            Cause.GPU_TOOLKIT_MISSING,
            id="start refused",
        ),
    ],
)
def test_a_containers_end_has_a_cause(seen: Evidence, before: Cause, after: Cause) -> None:
    assert cause_of_end(seen, agent_started=False)[0] == before
    cause, sentence = cause_of_end(seen, agent_started=True)
    assert cause == after
    assert sentence


def test_an_earlier_memory_kill_does_not_explain_a_later_end() -> None:
    # Seen on the engine: a process of the agent killed for memory, the container killed later.
    seen = evidence(exit_code=137, oom_killed=True)
    cause, _ = cause_of_end(seen, agent_started=True, earlier_memory_kills=1)
    assert cause == Cause.CONTAINER_KILLED


def test_every_cause_is_explained() -> None:
    assert set(EXPLAINED) == set(Cause)
