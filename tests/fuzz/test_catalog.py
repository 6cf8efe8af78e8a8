"""Agent registries, splits, competitions and container configs as a checkout may hold them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlebench_web.catalog import checkout, documents
from mlebench_web.catalog.documents import Unreadable
from runs.core.container_config import ADMIN_KEYS, ConfigRefused, admin_keys, limits_of
from runs.core.isolation import what_opens
from tests.fuzz.cases import count, fuzz
from tests.fuzz.strategies import dumped, json_values, mutated, texts, with_changes

REGISTRY = """\
vars:
  step_count: &step_count 500
  time: &time {time_limit: 24h}

defaults: &defaults
  start: aide/start.sh
  dockerfile: aide/Dockerfile
  kwargs_type: omegaconf
  kwargs: &kwargs
    agent.code.model: gpt-4o
    agent.steps: *step_count
  env_vars: &env_vars
    OPENAI_API_KEY: ${{ secrets.OPENAI_API_KEY }}

aide:
  <<: *defaults

aide/o1-preview:
  <<: *defaults
  kwargs:
    <<: *kwargs
    agent.code.model: o1-preview
  env_vars:
    <<: *env_vars
  privileged: true
"""
COMPETITION = """\
id: spaceship-titanic
name: Spaceship Titanic
competition_type: simple
awards_medals: false
dataset:
  answers: spaceship-titanic/prepared/private/test.csv
  sample_submission: spaceship-titanic/prepared/public/sample_submission.csv
grader:
  name: accuracy
  grade_fn: mlebench.competitions.spaceship-titanic.grade:grade
preparer: mlebench.competitions.spaceship-titanic.prepare:prepare
"""
CONFIG = {
    "mem_limit": "80G",
    "shm_size": "4G",
    "nano_cpus": 4e9,
    "gpus": -1,
    "runtime": "runc",
    "network_mode": "none",
    "pids_limit": 512,
    "cap_add": ["SYS_PTRACE"],
    "devices": ["/dev/fuse"],
    "ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 2048}],
    "labels": {"a": "b"},
    "init": True,
}
SPLIT = b"spaceship-titanic\naerial-cactus-identification,dog-breed-identification\n\ndenoising"


# Where an agent may say that its files are.
PLACES = (
    "aide/start.sh", "aide/Dockerfile", "dummy/start.sh", "aide", "aide/../aide/start.sh", "/",
    "../agents/aide/start.sh", "../../../../etc/passwd", "/etc/passwd", "a" * 300, "a/" * 3000,
    "aide/start.sh/more", "~/start.sh", "aide/start.sh ", "", ".", "é", "aide/\\start.sh",
)  # fmt: skip


@st.composite
def registries(draw: st.DrawFn) -> bytes:
    """Agents of every shape that a mapping can have; well-formed YAML."""
    agent = st.fixed_dictionaries(
        {"start": st.sampled_from(PLACES), "dockerfile": st.sampled_from(PLACES[:3])},
        optional={
            "kwargs": st.dictionaries(texts, json_values, max_size=3) | json_values,
            "kwargs_type": st.sampled_from(["argparse", "omegaconf", "other", None, 3]),
            "env_vars": st.dictionaries(texts, texts, max_size=3) | json_values,
            "privileged": st.sampled_from([True, False, "yes", 1, None]),
        },
    )
    names = st.sampled_from(["aide", "aide/o1", "builtin/x", "a b", "..", "x/../y", "é", "a" * 200])
    whole = draw(st.dictionaries(names | texts, agent, max_size=4))
    return yaml.safe_dump(whole, allow_unicode=draw(st.booleans())).encode("utf-8", "replace")


def tree(root: Path, registry: bytes, competition: bytes, config: bytes, split: bytes) -> None:
    for name, data in (
        ("agents/aide/config.yaml", registry),
        ("agents/aide/start.sh", b"#!/bin/bash\n"),
        ("agents/aide/Dockerfile", b"FROM mlebench-env\n"),
        ("agents/dummy/config.yaml", b"dummy: {start: dummy/start.sh, dockerfile: dummy/start.sh}"),
        ("agents/dummy/start.sh", b"#!/bin/bash\n"),
        ("mlebench/competitions/spaceship-titanic/config.yaml", competition),
        ("mlebench/competitions/spaceship-titanic/leaderboard.csv", b"scoreNullable,x\n0.9,1\n"),
        ("environment/config/container_configs/own.json", config),
        ("experiments/splits/own.txt", split),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def by_plain_yaml(text: bytes) -> dict[str, Any] | None:
    """What Python's own YAML reader makes of it; None: nothing, or nothing finite."""
    try:
        value = yaml.safe_load(text.decode("utf-8-sig"))
        json.dumps(value, default=str)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def kept(text: bytes, found: checkout.AgentEntry) -> bool:
    """Whether the registry says of the agent what was read of it."""
    whole = by_plain_yaml(text)
    if whole is None:
        # One broken entry makes the plain reader lose all; ours keeps the others.
        return True
    said = whole.get(found.name)
    return (
        isinstance(said, dict)
        and said.get("privileged", False) is found.privileged
        and set(map(str, said.get("kwargs") or {})) == set(found.kwargs)
        and set(map(str, said.get("env_vars") or {})) == set(found.env_vars)
    )


@given(data=st.data())
@fuzz(150)
def test_a_checkout_is_read_and_a_broken_file_harms_only_its_own_entries(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    registry = data.draw(mutated(REGISTRY.encode()) | registries())
    competition = data.draw(mutated(COMPETITION.encode()))
    config = data.draw(mutated(json.dumps(CONFIG).encode()))
    split = data.draw(mutated(SPLIT))
    root = tmp_path_factory.getbasetemp() / "fuzzed-checkout"
    tree(root, registry, competition, config, split)

    found = checkout.read(root)

    count("YAML registries", "read")
    # Whatever the others are: this one is whole.
    assert "dummy" in [agent.name for agent in found.agents]
    for agent in found.agents:
        assert checkout.AGENT_ID.fullmatch(agent.name)
        for name in (agent.start, agent.dockerfile):
            place = (agent.folder / name).resolve()
            assert place.is_relative_to(root.resolve())
            assert place.is_file()
        json.dumps([agent.kwargs, agent.env_vars], allow_nan=False).encode()
        if agent.folder.name == "aide":
            count("YAML registries", "agents accepted")
            assert kept(registry, agent), "wrong acceptance"
    for entry in found.competitions:
        assert entry.name == "spaceship-titanic"
        count("competition configs", "accepted")
        for path in (entry.answers, entry.sample_submission):
            assert ".." not in path.split("/")
            assert not path.startswith("/")
    for each in found.configs:
        json.dumps(each.settings, allow_nan=False).encode()
    for problem in found.problems:
        count("YAML registries", "problems named")
        str(problem).encode()
        assert problem.file


def by_shape(settings: dict[str, Any]) -> bool:
    """Whether a config can be right at all, said anew: known keys, and the types they need."""
    kinds: dict[str, tuple[type, ...]] = {
        "mem_limit": (str, int, float),
        "shm_size": (str, int, float),
        "nano_cpus": (int, float),
        "gpus": (int, float),
        "pids_limit": (int, float),
        "runtime": (str,),
        "network_mode": (str,),
    }
    for key, value in settings.items():
        if key in ("labels", "init", "stop_signal"):
            continue
        if value is None and key in kinds | ADMIN_KEYS:
            continue
        if key in ADMIN_KEYS:
            want = {"list": list, "ulimits": list, "mapping": dict, "text": str}[ADMIN_KEYS[key]]
            if not isinstance(value, want):
                return False
        elif key not in kinds or isinstance(value, bool) or not isinstance(value, kinds[key]):
            return False
    return settings.get("network_mode") in (None, "none", "bridge", "default")


@given(st.data())
@fuzz(400)
def test_a_container_config_is_read_as_it_stands_or_refused(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        text = dumped(data.draw(with_changes(CONFIG)))
    else:
        text = data.draw(mutated(json.dumps(CONFIG).encode())).decode("utf-8", "replace")
    try:
        settings = documents.json_mapping(text)
    except Unreadable:
        count("container configs", "unreadable")
        return
    json.dumps(settings, allow_nan=False).encode()
    what_opens(settings, privileged=False)
    try:
        limits = limits_of(settings)
    except ConfigRefused as error:
        count("container configs", "refused")
        named = error.problems
    else:
        named = []
    if named:
        assert all(key in settings and words for key, words in named)
        return
    count("container configs", "accepted")

    assert by_shape(settings), "wrong acceptance"
    assert not {"privileged", "volumes", "pid_mode", "security_opt"} & set(settings)
    assert limits.network in (None, "none", "internet")
    assert limits.gpus >= -1
    assert set(limits.admin) == {key for key in ADMIN_KEYS if settings.get(key) is not None}
    assert list(limits.admin) == admin_keys(settings)
    if limits.memory_bytes is not None:
        assert limits.memory_bytes >= 6 * 2**20
        if isinstance(settings["mem_limit"], str):
            digits = re.match(r"\s*([0-9.]+)", settings["mem_limit"])
            assert digits
            assert limits.memory_bytes >= int(float(digits[1]))
    if limits.cpus is not None:
        assert math.isclose(limits.cpus * 1e9, float(settings["nano_cpus"]))


# Values with which a key is right, and some with which it is not.
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "mem_limit": st.sampled_from(
            ["80G", "512m", "5m", "0", 4e9, 1, None, True, "1e9", " 1 g "]
        ),
        "shm_size": st.sampled_from(
            ["4G", "1.5g", 0, -1, None, "G", "4GiB", "4 KB", 1e400, 10**400, "9" * 400]
        ),
        "nano_cpus": st.sampled_from([4e9, 1, 0, -1, 10**8, None, "4e9", True, 1e300, 10**400]),
        "gpus": st.sampled_from([0, 1, -1, -2, 1.0, 1.5, True, None, "1", 10**30]),
        "runtime": st.sampled_from(["runc", "sysbox-runc", "", None, 1]),
        "network_mode": st.sampled_from(["none", "bridge", "default", "host", "container:x", None]),
        "pids_limit": st.sampled_from([64, 63, 0, -1, None, 512.0, "512", True]),
        "cap_add": st.sampled_from([[], ["SYS_ADMIN"], "ALL", [1], None, {"a": 1}]),
        "devices": st.sampled_from([[], ["/dev/sda"], [["a"]], "x", None]),
        "ipc_mode": st.sampled_from(["host", "private", "container:1", 1, None]),
        "sysctls": st.sampled_from([{}, {"a": "b"}, {"a": 1}, [], None]),
        "ulimits": st.sampled_from([[], [{"Name": "nofile"}], [{"Soft": 1}], [1], {}, None]),
        "privileged": st.sampled_from([True, False]),
        "volumes": st.sampled_from([{}, {"/": "/host"}]),
        "labels": json_values,
        "init": json_values,
    },
)


@given(st.dictionaries(texts, json_values, max_size=6) | PLAUSIBLE)
@fuzz(200)
def test_a_config_of_anything_at_all_is_refused_or_harmless(settings: dict[str, Any]) -> None:
    what_opens(settings, privileged=True)
    try:
        limits_of(settings)
    except ConfigRefused:
        count("container configs", "refused")
        return
    count("container configs", "accepted")
    assert by_shape(settings), "wrong acceptance"
