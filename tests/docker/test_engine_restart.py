"""The engine restarts under a running agent, with live-restore and without: a real second one."""

import gc
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from pytest_django import Settings

from runs.containers import engine_of
from runs.core.failures import Cause
from runs.core.states import Outcome, State
from runs.models import Attempt
from tests.docker.conftest import wait_for
from tests.docker.gpu_engine import GpuEngine
from tests.docker.road import PERFECT, START_SH, Road, derived, has_said

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    # The docker package leaves the socket of a refused connection to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:Warning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket"),
]

COUNT = f"for i in $(seq 1 60); do echo $i; sleep 0.2; done; {PERFECT}"


@pytest.fixture(scope="session")
def second_image(
    gpu_engine: GpuEngine,
    engine: docker.DockerClient,
    contract_image: str,
) -> str:
    line = "COPY start.sh /home/agent/start.sh"
    image = derived(engine, contract_image, "script", line, {"start.sh": START_SH})
    return gpu_engine.load(engine, image)


@pytest.fixture
def road(
    gpu_engine: GpuEngine,
    second_image: str,
    settings: Settings,
    tmp_path: Path,
) -> Iterator[Road]:
    settings.ENGINE_URL = gpu_engine.url
    road = Road(second_image)
    road.engine = engine_of("docker")
    yield road
    for attempt in Attempt.objects.all():
        if attempt.container_id:
            road.engine.remove(attempt.container_id)
    gc.collect()


def test_an_agent_outlives_an_engine_with_live_restore(
    road: Road,
    gpu_engine: GpuEngine,
) -> None:
    gpu_engine.restores_live(True)
    attempt = road.queued(COUNT)
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "5"), what="the agent's lines")

    gpu_engine.restart(away_seconds=4)
    thread.join(timeout=120)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, "")
    assert attempt.run.attempts.count() == 1
    assert road.text(attempt).split() == [str(number) for number in range(1, 61)]
    assert "The container engine answers again." in road.text(attempt, "run")
    assert attempt.engine_silent_since is None
    road.nothing_is_left()


def test_an_agent_that_ended_with_its_engine_is_run_again_at_once(
    road: Road,
    gpu_engine: GpuEngine,
) -> None:
    gpu_engine.restores_live(False)
    attempt = road.queued(f"{PERFECT}; echo begun; sleep 1000")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")

    gpu_engine.restart(away_seconds=2)
    thread.join(timeout=120)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.CONTAINER_KILLED,
    )
    assert road.kept(attempt, "submission/submission.csv")
    retry = attempt.run.newest_attempt()
    assert (retry.state, retry.not_before) == (State.QUEUED, None)
    road.nothing_is_left()


def test_collecting_goes_on_when_the_engine_is_back(
    road: Road,
    gpu_engine: GpuEngine,
) -> None:
    """The agent ends while its engine is away: found in its folder, collected afterwards."""
    gpu_engine.restores_live(True)
    attempt = road.queued(f"echo begun; sleep 6; {PERFECT}")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "begun"), what="the agent's line")

    gpu_engine.restart(away_seconds=10)
    thread.join(timeout=120)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, "")
    assert attempt.active_seconds < 9, "the engine's absence is not charged"
    road.nothing_is_left()
