"""harness.json: what mlebench-web says of a run group beside upstream's files. Pure.

It travels with an export, and anybody may have written it: what has a wrong type is left out, and
named.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from runs.core.container_config import ConfigRefused, limits_of
from runs.core.failures import Cause
from runs.core.reports import is_text, load_object, short
from runs.core.states import Outcome

NAME = "harness.json"
HARNESS = "mlebench-web"
# What an imported attempt may be sealed as; one that went on is followed by another.
SEALED = (
    Outcome.GRADED,
    Outcome.AGENT_FAILED,
    Outcome.INFRASTRUCTURE_FAILED,
    Outcome.CANCELLED,
)
# More are no machine's.
MOST_GPUS = 64
# A hundred years.
MOST_SECONDS = 100 * 366 * 86400


@dataclass(frozen=True)
class HarnessRun:
    """One run, as the harness that ran it says."""

    seed: int | None = None
    outcome: Outcome | None = None
    cause: Cause | None = None
    exit_code: int | None = None
    host: str = ""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    image_id: str = ""
    active_seconds: float | None = None
    wall_seconds: float | None = None
    is_resumed: bool = False
    is_cut_short: bool = False
    was_run_again: bool = False


@dataclass(frozen=True)
class Harness:
    experiment: str = ""
    agent: str = ""
    split: str = ""
    container_config: str = ""
    container_settings: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = ""
    time_limit_seconds: float | None = None
    step_timeout_seconds: float | None = None
    runs: Mapping[str, HarnessRun] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class _Reader:
    """Takes values of one object by type; what does not fit is left out and named."""

    def __init__(self, content: Mapping[str, Any], where: str, warnings: list[str]) -> None:
        self.content = content
        self.where = where
        self.warnings = warnings

    def _left_out(self, key: str, kind: str) -> None:
        value = short(self.content[key])
        self.warnings.append(f"{self.where}: {key} should be {kind}, not {value}; it is left out.")

    def text(self, key: str, longest: int = 200) -> str:
        value = self.content.get(key)
        if value is None:
            return ""
        if is_text(value) and len(value) <= longest:
            return str(value)
        self._left_out(key, f"a text of at most {longest} characters")
        return ""

    def flag(self, key: str) -> bool:
        value = self.content.get(key)
        if value is not None and not isinstance(value, bool):
            self._left_out(key, "true or false")
        return value is True

    def whole(self, key: str, *, least: int, most: int) -> int | None:
        value = self.content.get(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self._left_out(key, f"a whole number from {least} to {most}")
        return None

    def seconds(self, key: str) -> float | None:
        value = self.content.get(key)
        if value is None:
            return None
        if is_number(value) and 0 <= value <= MOST_SECONDS:
            return float(value)
        self._left_out(key, "seconds")
        return None

    def object(self, key: str) -> Mapping[str, Any]:
        value = self.content.get(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self._left_out(key, "an object")
        return {}

    def settings(self, key: str) -> Mapping[str, Any]:
        """Container settings that could be a config's; never more than that."""
        value = self.object(key)
        try:
            limits = limits_of(value)
        except ConfigRefused:
            self._left_out(key, "the settings of a container")
            return {}
        if limits.gpus > MOST_GPUS:
            self._left_out(key, f"settings with at most {MOST_GPUS} GPUs")
            return {}
        return value

    def hardware(self, key: str) -> Mapping[str, Any]:
        """The keys that a measured host has, of the types that they have there."""
        value = self.object(key)
        found: dict[str, Any] = {}
        for name in ("cpus", "memory_bytes"):
            if is_number(value.get(name)) and 0 <= value[name] < 2**60:
                found[name] = value[name]
        for name in ("cpu_model", "gpu_driver", "engine", "runtime"):
            if is_text(value.get(name)):
                found[name] = value[name][:200]
        gpus = value.get("gpus")
        if isinstance(gpus, list) and len(gpus) <= MOST_GPUS and all(map(is_gpu, gpus)):
            found["gpus"] = [
                {"name": gpu["name"][:200], "memory_bytes": memory_of(gpu)} for gpu in gpus
            ]
        return found


def is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_gpu(value: object) -> bool:
    return isinstance(value, dict) and is_text(value.get("name"))


def memory_of(gpu: Mapping[str, Any]) -> int | None:
    value = gpu.get("memory_bytes")
    return int(value) if is_number(value) and 0 <= value < 2**60 else None


def read_harness(data: bytes, name: str) -> Harness | None:
    """None: another harness wrote the file. Raises ImportRefused when it is no JSON object."""
    content = load_object(data, name)
    if content.get("harness") != HARNESS:
        return None
    warnings: list[str] = []
    reader = _Reader(content, name, warnings)
    runs = {
        run_id: read_run(_Reader(said, f"{name}, {run_id}", warnings))
        for run_id, said in reader.object("runs").items()
        if is_text(run_id) and isinstance(said, dict)
    }
    runtime = reader.text("runtime")
    return Harness(
        experiment=reader.text("experiment"),
        agent=reader.text("agent"),
        split=reader.text("split"),
        container_config=reader.text("container_config"),
        container_settings=reader.settings("container_settings"),
        runtime=runtime if runtime in ("docker", "process") else "",
        time_limit_seconds=reader.seconds("time_limit_seconds"),
        step_timeout_seconds=reader.seconds("step_timeout_seconds"),
        runs=runs,
        warnings=tuple(warnings),
    )


def read_run(reader: _Reader) -> HarnessRun:
    outcome, cause = reader.text("outcome"), reader.text("cause")
    return HarnessRun(
        seed=reader.whole("seed", least=0, most=100_000),
        outcome=Outcome(outcome) if outcome in SEALED else None,
        cause=Cause(cause) if cause in set(Cause) else None,
        exit_code=reader.whole("exit_code", least=-(2**31), most=2**31 - 1),
        host=reader.text("host"),
        hardware=reader.hardware("hardware"),
        image_id=reader.text("image_id", 100),
        active_seconds=reader.seconds("active_seconds"),
        wall_seconds=reader.seconds("wall_seconds"),
        is_resumed=reader.flag("resumed"),
        is_cut_short=reader.flag("cut_short"),
        was_run_again=reader.flag("run_again"),
    )
