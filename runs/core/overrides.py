"""What a re-run may ask for in place of its group's settings. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Overrides:
    """None: as the run group says."""

    # Name of a host: only that one takes it.
    host: str | None = None
    # Part of a GPU's model name, in any case: "A10" or "H100".
    gpu: str | None = None
    time_limit_s: int | None = None
    step_timeout_s: int | None = None
    memory_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What an attempt keeps; empty where nothing was asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Overrides":
        return cls(**kept)

    @property
    def changes_conditions(self) -> bool:
        """A result under them is not comparable with the rest of its group."""
        changed = (self.time_limit_s, self.step_timeout_s, self.memory_bytes)
        return any(value is not None for value in changed)

    def words(self) -> list[str]:
        """Each in a few words, for a page."""
        said = []
        if self.host is not None:
            said.append(f"on {self.host}")
        if self.gpu is not None:
            said.append(f"GPU {self.gpu}")
        if self.time_limit_s is not None:
            said.append(f"time limit {self.time_limit_s / 3600:.4g} h")
        if self.step_timeout_s is not None:
            said.append(f"step timeout {self.step_timeout_s / 3600:.4g} h")
        if self.memory_bytes is not None:
            said.append(f"memory {self.memory_bytes / 2**30:.4g} GiB")
        return said


def is_class_of(wanted: str, model: str) -> bool:
    """Whether a GPU's model name is of the class: "A10" is not "A100"."""
    words = model.lower().replace("-", " ").split()
    asked = wanted.lower().replace("-", " ").split()
    return any(words[i : i + len(asked)] == asked for i in range(len(words) - len(asked) + 1))
