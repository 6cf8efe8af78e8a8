"""Rules of the suite itself: no hole in CI, and which leg takes which test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.product import ROOT


def run_pytest(
    tmp_path: Path, files: dict[str, str], **env: str
) -> tuple["subprocess.CompletedProcess[str]", dict[str, int]]:
    """A pytest of its own over some files, with the suite's rules; and what it counted."""
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    counts = tmp_path / "counts.json"
    ours = ("CI", "MLEBENCH_WEB_TEST_LEG")
    own = {name: value for name, value in os.environ.items() if name not in ours}
    # Loading the plugins of our own suite takes longer than these tests do.
    own["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.support.suite_rules"),
            *("-p", "no:cacheprovider", "-c", os.devnull),
            *("--rootdir", str(tmp_path), str(tmp_path)),
        ],
        cwd=ROOT,
        env=own | {"MLEBENCH_WEB_TEST_COUNTS": str(counts)} | env,
        capture_output=True,
        text=True,
    )
    return done, json.loads(counts.read_text())


def skips(reason: str) -> dict[str, str]:
    """A test and a whole module that are skipped for this reason."""
    name = reason.replace(" ", "_")
    return {
        f"test_one_{name}.py": f"import pytest\ndef test_a(): pytest.skip('{reason}')\n",
        f"test_all_{name}.py": (
            f"import pytest\npytest.skip('{reason}', allow_module_level=True)\n"
        ),
    }


def test_a_skip_is_a_failure_in_ci_unless_the_shared_folder_is_absent(tmp_path: Path) -> None:
    files = skips("no engine") | skips("the shared folder is absent")

    here, counted_here = run_pytest(tmp_path, files)
    in_ci, counted_in_ci = run_pytest(tmp_path, files, CI="true")

    assert here.returncode == 0
    assert counted_here == {"skipped": 2}
    assert in_ci.returncode != 0
    assert "Skipped in CI, where nothing may be: Skipped: no engine" in in_ci.stdout
    # A module that is skipped counts as an error: none of its tests is known.
    assert counted_in_ci["errors"] == 1


LEGS = """
import pytest
@pytest.fixture
def db(): ...
@pytest.fixture
def row(db): ...
@pytest.fixture
def running_product(): ...
def test_plain(): ...
def test_by_fixture(row): ...
@pytest.mark.django_db
def test_by_mark(): ...
@pytest.mark.docker
def test_with_an_engine(db): ...
@pytest.mark.browser
def test_in_a_browser(): ...
def test_of_the_whole_product(running_product): ...
@pytest.mark.slow
def test_that_trains_models(db): ...
"""


@pytest.mark.parametrize(("leg", "takes"), [("database", 2), ("plain", 4), ("machine", 3), ("", 7)])
def test_each_test_is_taken_by_one_leg_and_by_the_database_leg_where_it_touches_one(
    tmp_path: Path, leg: str, takes: int
) -> None:
    _, counts = run_pytest(tmp_path, {"test_it.py": LEGS}, MLEBENCH_WEB_TEST_LEG=leg)

    assert counts == {"passed": takes}


def test_passed_failed_skipped_and_broken_are_counted(tmp_path: Path) -> None:
    tests = """
import pytest
def test_good(): ...
def test_bad(): assert False
def test_skipped(): pytest.skip('so')
@pytest.fixture
def broken(): assert False
def test_broken(broken): ...
"""

    _, counts = run_pytest(tmp_path, {"test_it.py": tests})

    assert counts == {"passed": 1, "failed": 1, "skipped": 1, "errors": 1}
