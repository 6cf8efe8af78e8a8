"""How many cases are tried, and the count of what became of them."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

# Set by bench/fuzz.py.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
COUNTS = os.environ.get("FUZZ_COUNTS", "")
counts: dict[str, Counter[str]] = {}

# Found failures are shown small; what was found before is in Hypothesis' own database.
LONG = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


def fuzz(in_ci: int) -> Callable[[Any], Any]:
    """`in_ci` cases, the same ones in each run; in a long run as many as it was asked for."""
    return settings(
        max_examples=EXAMPLES or in_ci,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=LONG,
        suppress_health_check=list(HealthCheck),
    )


def count(what: str, became: str) -> None:
    counts.setdefault(what, Counter())[became] += 1


def write_down() -> None:
    if COUNTS:
        Path(COUNTS).write_text(json.dumps(counts, sort_keys=True))
