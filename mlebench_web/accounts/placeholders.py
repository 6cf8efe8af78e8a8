"""`${{ secrets.NAME }}` in an agent's variables and arguments, as mle-bench reads it. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# As mle-bench (agents/utils.py): a prefix is enough, and the whole value is replaced.
PLACEHOLDER = re.compile(r"\$\{\{\s*secrets\.(\w+)\s*\}\}")


class Missing(Exception):
    """Secrets that are asked for and not stored; `names` are sorted."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        count = "The secret" if len(self.names) == 1 else "The secrets"
        verb = "is" if len(self.names) == 1 else "are"
        super().__init__(f"{count} {', '.join(self.names)} {verb} not stored.")


def name_in(value: object) -> str | None:
    """The secret's name that stands in place of this value; None: it is a value of its own."""
    if not isinstance(value, str):
        return None
    match = PLACEHOLDER.match(value)
    return match[1] if match else None


def names_in(*mappings: Mapping[str, Any]) -> set[str]:
    """All names that the values of these mappings ask for. As mle-bench: not of nested values."""
    return {name for mapping in mappings for value in mapping.values() if (name := name_in(value))}


def filled(mapping: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """The mapping with every placeholder replaced. Raises Missing."""
    missing = names_in(mapping) - values.keys()
    if missing:
        raise Missing(missing)
    return {
        key: values[name] if (name := name_in(value)) else value for key, value in mapping.items()
    }
