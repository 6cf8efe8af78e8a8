"""mle-bench's container configs, as its users have them."""

import pytest

from runs.core.container_config import (
    ConfigRefused,
    Limits,
    admin_keys,
    limits_of,
    size_of,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        pytest.param(
            {"mem_limit": None, "shm_size": "4G", "nano_cpus": 4e9, "runtime": "sysbox-runc"},
            Limits(cpus=4, shm_bytes=4 * GIB, runtime="sysbox-runc"),
            id="default.json",
        ),
        pytest.param(
            {"mem_limit": None, "shm_size": "4G", "nano_cpus": 4e9},
            Limits(cpus=4, shm_bytes=4 * GIB),
            id="no_sysbox.json",
        ),
        pytest.param(
            {"mem_limit": "80G", "shm_size": "16G", "nano_cpus": 8e9, "gpus": 1},
            Limits(cpus=8, memory_bytes=80 * GIB, shm_bytes=16 * GIB, gpus=1),
            id="no_sysbox_gpu.json",
        ),
        pytest.param(
            {"gpus": -1, "labels": {"a": "b"}, "init": True, "stop_signal": "SIGKILL"},
            Limits(gpus=-1),
            id="generated",
        ),
        pytest.param({"gpus": 1.0, "mem_limit": 4e9}, Limits(gpus=1, memory_bytes=4 * 10**9)),
        pytest.param(
            {"network_mode": "none", "pids_limit": 128}, Limits(network="none", pids_limit=128)
        ),
        pytest.param({}, Limits(), id="empty"),
    ],
)
def test_configs_that_users_have(config: dict[str, object], limits: Limits) -> None:
    assert limits_of(config) == limits


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"volumes": {"/": {"bind": "/host"}}}, "volumes"),
        ({"privileged": True}, "privileged"),
        ({"cap_add": "SYS_ADMIN"}, "cap_add"),
        ({"sysctls": ["a=b"]}, "sysctls"),
        ({"ulimits": [{"name": "nofile"}]}, "ulimits"),
        ({"network_mode": "host"}, "network_mode"),
        ({"pids_limit": 2**22 + 1}, "pids_limit"),
        ({"shm_size": 1e30}, "shm_size"),
        ({"shm_size": 10**400}, "shm_size"),
        ({"nano_cpus": 10**400}, "nano_cpus"),
        ({"gpus": 10**400}, "gpus"),
        ({"shm_size": "9" * 400 + "G"}, "shm_size"),
        ({"mem_limit": "9999999999G"}, "mem_limit"),
        ({"network_mode": "container:other"}, "network_mode"),
        ({"gpus": "1"}, "gpus"),
        ({"gpus": -2}, "gpus"),
        ({"gpus": 1.5}, "gpus"),
        ({"gpus": True}, "gpus"),
        ({"mem_limit": "80 apples"}, "mem_limit"),
        ({"mem_limit": "1m"}, "mem_limit"),
        ({"mem_limit": -1}, "mem_limit"),
        ({"nano_cpus": "4"}, "nano_cpus"),
        ({"nano_cpus": 4}, "nano_cpus"),
        ({"nano_cpus": float("nan")}, "nano_cpus"),
        ({"nano_cpus": float("inf")}, "nano_cpus"),
        ({"gpus": float("inf")}, "gpus"),
        ({"shm_size": []}, "shm_size"),
        ({"pids_limit": 1}, "pids_limit"),
        ({"runtime": 7}, "runtime"),
        ({"runtime": "sysbox-runc", "gpus": 1}, "runtime"),
    ],
)
def test_a_bad_key_is_named(config: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        limits_of(config)
    assert [name for name, _ in caught.value.problems] == [key]


def test_all_bad_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigRefused) as caught:
        limits_of({"gpus": "all", "mem_limit": "x", "user": "root"})
    assert {name for name, _ in caught.value.problems} == {"gpus", "mem_limit", "user"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80G", 80 * GIB),
        ("4g", 4 * GIB),
        ("512m", 512 * 2**20),
        ("1.5Gb", 1.5 * GIB),
        ("2GiB", 2 * GIB),
        ("7", 7),
        (4e9, 4 * 10**9),
    ],
)
def test_sizes_are_read_as_docker_reads_them(text: object, size: float) -> None:
    assert size_of(text) == size


def test_keys_for_admins_are_taken_as_they_stand_and_named() -> None:
    settings = {"cap_add": ["SYS_PTRACE"], "ulimits": [{"Name": "nofile", "Soft": 64}], "dns": None}

    assert limits_of(settings).admin == {
        "cap_add": ["SYS_PTRACE"], "ulimits": [{"Name": "nofile", "Soft": 64}],
    }  # fmt: skip
    assert admin_keys(settings) == ["cap_add", "ulimits"]
    assert admin_keys({"mem_limit": "4G", "labels": {}}) == []
