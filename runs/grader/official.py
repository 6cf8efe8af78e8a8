"""What a competition of an mle-bench checkout is graded with. Runs under MLEBENCH_PYTHON.

The package `mlebench` is the checkout's own, as it stands now: each child imports it anew, so that
several checkouts are served side by side and a refreshed one needs no restart.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

# What mlebench.utils and its graders import; the parent has them ready for its children.
LIBRARIES = ("sklearn.metrics", "scipy.stats", "scipy.special", "yaml", "tqdm.auto", "py7zr")
# Of those that decide about a score, for the report.
NAMED = ("pandas", "scikit-learn")


@dataclass(frozen=True)
class Tools:
    """What a submission is graded with."""

    grade: Callable[[pd.DataFrame, Any], Any]
    read_submission: Callable[[Any], pd.DataFrame]
    read_answers: Callable[[Path], Any]
    # Name and version of each library that decides about a score; "" where they are pinned.
    libraries: str = ""


def warm_up() -> None:
    """In the parent: the libraries, and nothing of any checkout. What is missing, a child names."""
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)


def tools(checkout: Path, grade_fn: str) -> Tools:
    """`grade_fn` is "module:function", as in the competition's config.yaml."""
    # Before an mlebench that may be installed beside the libraries.
    sys.path.insert(0, str(checkout))
    utils = importlib.import_module("mlebench.utils")
    found = Path(str(utils.__file__)).resolve()
    if not found.is_relative_to(checkout.resolve()):
        raise ImportError(f"mlebench is {found}, not the checkout's.")
    return Tools(
        grade=utils.import_fn(grade_fn),
        read_submission=utils.read_csv,
        read_answers=utils.load_answers,
        libraries=", ".join(f"{name} {version_of(name)}" for name in NAMED),
    )


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"
