"""What the demo says of its runs, and the demo itself in the process runtime."""

import subprocess
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from mlebench_web.catalog.models import Competition
from mlebench_web.launcher import demo
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, RunState
from runs.models import Attempt, Run, RunGroup
from tests.conftest import MakeGroup
from tests.support.product import ROOT, Product


def graded(run: Run, result: Result, score: float | None, seconds: float = 10) -> None:
    attempt = run.newest_attempt()
    had = {"cpus": 2, "memory_bytes": 8 * 2**30, "gpus": [], "sandboxed": True}
    Attempt.objects.filter(pk=attempt.pk).update(
        state="ended", outcome=Outcome.GRADED, active_seconds=seconds, hardware=had
    )
    Run.objects.filter(pk=run.pk).update(
        state=RunState.FINISHED, counted=attempt, result=result, score=score
    )


@pytest.fixture
def shipped(competition: Competition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "shipped", lambda: [competition.name])


def cells(group: RunGroup) -> str:
    return " | ".join(demo.row(group)[1])


def test_the_leaderboard_has_error_medals_time_and_hardware(
    make_group: MakeGroup, shipped: None
) -> None:
    group = make_group(experiment="demo baseline", seeds=3)
    results = [(Result.GOLD, 10.0), (Result.BRONZE, 30.0), (Result.VALID, 20.0)]
    for run, (result, seconds) in zip(group.runs.all(), results, strict=True):
        graded(run, result, 0.5, seconds)

    # Two of three seeds with a medal: mean 66.7, standard error 33.3.
    assert cells(group) == (
        "demo baseline | 66.7 ± 33.3 % | 1 gold, 1 bronze | 3 | 20.0 s | 2 CPUs, 8 GiB, no GPU"
    )


def test_an_experiment_without_a_complete_seed_has_no_mean(
    make_group: MakeGroup, shipped: None
) -> None:
    assert "no complete seed" in cells(make_group())


def test_a_failed_run_is_told_with_its_cause(attempt: Attempt) -> None:
    Attempt.objects.filter(pk=attempt.pk).update(
        state="ended", outcome=Outcome.INFRASTRUCTURE_FAILED, cause=Cause.HOST_LOST
    )
    Run.objects.filter(pk=attempt.run_id).update(state=RunState.FAILED)
    run = Run.objects.get()

    assert not demo.is_graded(run)
    assert demo.what_happened(run) == "failed: The host was lost."


def test_a_queued_run_says_why_it_waits(attempt: Attempt) -> None:
    assert demo.what_happened(attempt.run).startswith("queued: ")


def test_hardware_that_nobody_reported_is_not_made_up(attempt: Attempt) -> None:
    assert demo.hardware(attempt.run) == "not reported"


@pytest.mark.parametrize(
    ("had", "words"),
    [
        ({"cpus": 1, "memory_bytes": 2**30, "gpus": []}, "1 CPU, 1 GiB, no GPU"),
        (
            {"cpus": 36, "memory_bytes": None, "gpus": [{"name": "A10"}, {"name": "A10"}]},
            "36 CPUs, 2 x A10",
        ),
        (
            {"cpus": 2, "memory_bytes": 2**30, "gpus": [], "sandboxed": False},
            "2 CPUs, 1 GiB, no GPU, unsandboxed",
        ),
    ],
)
def test_hardware_in_words(had: dict[str, Any], words: str, attempt: Attempt) -> None:
    attempt.hardware = had
    attempt.run.counted = attempt

    assert demo.hardware(attempt.run) == words


def test_watching_ends_when_the_time_is_over(
    make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LOOK_EVERY", 0)
    group = make_group(time_limit=timedelta(hours=1))

    console = Console(quiet=True)

    assert demo.watch(console, [group], within=0) is False
    for run in group.runs.all():
        graded(run, Result.GOLD, 1.0)
    assert demo.watch(console, [group], within=0) is True


@pytest.mark.slow
def test_the_demo_without_an_engine_shows_medals_and_says_that_it_is_no_sandbox(
    product: Product,
) -> None:
    product.env["ENGINE_URL"] = "none"

    done = subprocess.run(
        [ROOT / "run", "demo", "--exit", "--port", "0", "--data", product.data],
        env=product.env,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "No Docker Engine: ENGINE_URL=none says so" in done.stdout
    assert "unsandboxed" in done.stdout
    board = done.stdout[done.stdout.index("Leaderboard") :]
    assert board.index("demo baseline") < board.index("demo dummy")
    assert "gold" in board
    assert "± " in board
