"""Overrides of a re-run as a person writes them -> Overrides, or what is wrong with them."""

from collections.abc import Iterable, Mapping
from typing import Any

from mlebench_web.fleet.models import Gpu, Host
from runs.core.container_config import ConfigRefused, limits_of
from runs.core.overrides import Overrides, is_class_of
from runs.models import Run
from runs.request import LONGEST_S, FieldError, RequestInvalid

FIELDS = ("host", "gpu", "time_limit_s", "step_timeout_s", "memory_bytes")
# Below this the validation relay in the container has no room.
LEAST_MEMORY_BYTES = 128 * 2**20


def look_up(asked: Mapping[str, Any], runs: Iterable[Run]) -> Overrides:
    """Raises RequestInvalid, each error at "overrides.<name>"."""
    errors = [
        FieldError(f"overrides.{name}", "There is no such override.", list(FIELDS))
        for name in sorted(set(asked) - set(FIELDS))
    ]
    found: dict[str, Any] = {}
    for name in FIELDS:
        value = asked.get(name)
        if value is None:
            continue
        if error := _wrong(name, value, runs):
            errors.append(error)
        else:
            found[name] = value.strip() if isinstance(value, str) else value
    if errors:
        raise RequestInvalid(errors)
    return Overrides(**found)


def _wrong(name: str, value: Any, runs: Iterable[Run]) -> FieldError | None:
    field = f"overrides.{name}"
    if name in ("host", "gpu"):
        if not isinstance(value, str) or not value.strip():
            return FieldError(field, "Write a name.")
        return _no_host(field, value) if name == "host" else _no_gpu(field, value, runs)
    # True is a whole number to Python, not to a person.
    if not isinstance(value, int) or isinstance(value, bool):
        return FieldError(field, "Write a whole number.")
    if name in ("time_limit_s", "step_timeout_s"):
        if not 1 <= value <= LONGEST_S:
            return FieldError(field, f"Write seconds from 1 to {LONGEST_S}.")
        return None
    most = max((host.memory_bytes or 0 for host in Host.objects.all()), default=0)
    if value < LEAST_MEMORY_BYTES or (most and value > most):
        return FieldError(
            field, f"Write bytes from {LEAST_MEMORY_BYTES} to {most}, what the largest host has."
        )
    return None


def _no_host(field: str, value: str) -> FieldError | None:
    names = list(Host.objects.values_list("name", flat=True))
    if value.strip() in names:
        return None
    return FieldError(field, f"There is no host {value.strip()!r}.", names)


def _no_gpu(field: str, value: str, runs: Iterable[Run]) -> FieldError | None:
    models = sorted(set(Gpu.objects.filter(is_present=True).values_list("name", flat=True)))
    if not any(is_class_of(value, model) for model in models):
        return FieldError(field, f"No host has a GPU of class {value.strip()!r}.", models)
    without = next((run for run in runs if not _asks_for_gpus(run)), None)
    if without:
        return FieldError(field, f"Run {without.pk} ({without}) asks for no GPU: leave it out.")
    return None


def _asks_for_gpus(run: Run) -> bool:
    try:
        return bool(limits_of(run.group.container_settings).gpus)
    except ConfigRefused:
        return False
