"""Load every grader of a checkout of mle-bench. Run by the Python of MLEBENCH_PYTHON.

Usage: try_mlebench_graders.py CHECKOUT '{"spaceship-titanic": "module:function", ...}'

The last line on standard output is a JSON object of those that do not load: {name: why}.
Nothing is graded and nothing is written.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from pathlib import Path


def load(name: str) -> None:
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)


def main() -> None:
    checkout = Path(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w")
    # Whatever is printed, by whoever: the answer stands alone.
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(checkout))
    broken: dict[str, str] = {}
    for name, grade_fn in json.loads(sys.argv[2]).items():
        try:
            load(grade_fn)
        except Exception as error:  # noqa: BLE001 - each grader's own; all are told
            broken[name] = f"{type(error).__name__}: {error}"[:300]
    answer.write(json.dumps(broken) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
