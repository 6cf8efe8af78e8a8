"""The chaos bench: a short run holds, a broken guard is found, and a wrong switch is refused."""

import os
import subprocess
import sys

import pytest

from tests.support.product import ROOT

CHAOS = [sys.executable, str(ROOT / "bench" / "chaos.py")]


def no_engines() -> str:
    """Why the bench cannot start engines here; "" if it can. In CI that is a failure."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'bench')!r}];"
        "from chaoskit import engines; print(engines.why_not())"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def engines() -> None:
    if reason := no_engines():
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def chaos(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*CHAOS, *arguments], capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.usefixtures("engines")
def test_faults_at_a_small_fleet_lose_nothing() -> None:
    done = chaos("--db", "sqlite", "--seed", "3", "--quick")

    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("chaos: seed 3, sqlite: 20 faults")
    assert last.endswith("all invariants held")


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.usefixtures("engines")
def test_a_broken_guard_is_found() -> None:
    done = chaos("--db", "sqlite", "--break", "adoption")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "violation: an attempt with a live supervisor was adopted" in done.stdout


def test_a_guard_cannot_be_switched_off_by_mistake() -> None:
    env = {**os.environ, "MLEBENCH_WEB_CHAOS_BREAK": "fencing"}
    env.pop("CHAOS", None)

    done = subprocess.run(
        [sys.executable, "-c", "import mlebench_web.settings"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0
    assert "MLEBENCH_WEB_CHAOS_BREAK" in done.stderr
