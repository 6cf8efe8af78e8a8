"""What opens the host to an agent, and what does not."""

import pytest

from runs.core.isolation import is_root_on_host, what_opens


@pytest.mark.parametrize(
    ("settings", "privileged", "words"),
    [
        pytest.param({}, False, [], id="plain"),
        pytest.param({"nano_cpus": 4e9, "shm_size": "4G"}, False, [], id="no_sysbox.json"),
        pytest.param({}, True, ["its container is privileged"], id="privileged"),
        pytest.param({"runtime": "runc"}, True, ["its container is privileged"], id="by name"),
        pytest.param({"runtime": "sysbox-runc"}, True, [], id="privileged in sysbox"),
        pytest.param({"cap_add": ["SYS_PTRACE", "CHOWN"]}, False, [], id="harmless capabilities"),
        pytest.param({"cap_add": ["SYS_ADMIN"]}, False, ["it has SYS_ADMIN"], id="SYS_ADMIN"),
        pytest.param({"cap_add": ["cap_sys_admin"]}, False, ["it has SYS_ADMIN"], id="other names"),
        pytest.param(
            {"cap_add": ["SYS_MODULE", "ALL"]}, False, ["it has ALL, SYS_MODULE"], id="two"
        ),
        pytest.param({"cap_add": ["SYS_ADMIN"], "runtime": "sysbox-runc"}, False, [], id="sysbox"),
        pytest.param(
            {"devices": ["/dev/sda"]}, False, ["it has devices of the host"], id="devices"
        ),
        pytest.param(
            {"devices": ["/dev/sda"], "runtime": "sysbox-runc"}, False,
            ["it has devices of the host"], id="devices in sysbox",
        ),
        pytest.param(
            {"ipc_mode": "host"}, False, ["it shares memory with others (host)"], id="ipc"
        ),
        pytest.param({"ipc_mode": "private"}, False, [], id="private ipc"),
        pytest.param({"cap_add": "ALL", "devices": None}, False, [], id="a config that is refused"),
    ],
)  # fmt: skip
def test_what_opens_a_container(
    settings: dict[str, object], privileged: bool, words: list[str]
) -> None:
    assert what_opens(settings, privileged=privileged) == words


@pytest.mark.parametrize(
    ("privileged", "runtime", "is_root"),
    [
        (True, None, True),
        (True, "runc", True),
        (True, "nvidia", True),
        (True, "sysbox-runc", False),
        (False, None, False),
    ],
)
def test_sysbox_alone_makes_privileged_harmless(
    privileged: bool, runtime: str | None, is_root: bool
) -> None:
    assert is_root_on_host(privileged=privileged, engine_runtime=runtime) == is_root
