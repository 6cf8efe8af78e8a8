"""Rows 1 to 4 of the measured failures: whoever ends the runner does not end the agent.

A real Celery worker of this host, killed, asked to end or interrupted while an agent runs in a
real container, and then started again, which is the same command a second time.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings as django_settings

from runs import layout
from runs.containers import ContainerState
from runs.core.states import Outcome, State
from runs.models import Attempt, Installation
from tests.docker.conftest import wait_for
from tests.docker.road import PERFECT, Road, has_said
from tests.support.product import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]

LINES = 40
# The second half waits until the next worker is there, however slow the machine is.
COUNT = (
    f"for i in $(seq {LINES}); do echo $i; sleep 0.05; done;"
    " until [ -e /home/code/go ]; do sleep 0.1; done;"
    f" for i in $(seq {LINES + 1} {2 * LINES}); do echo $i; done; {PERFECT}"
)
# On a loaded machine; an idle one needs two seconds to start and one to end.
STARTS_WITHIN = 120.0
ENDS_WITHIN = 60.0


class Worker:
    """The worker of this host, as `./run` starts it."""

    def __init__(self, broker: str, log: Path) -> None:
        self.env = os.environ | {
            "CELERY_BROKER_URL": broker,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "subprocess.Popen[bytes]":
        host = django_settings.HOST_NAME
        command = [
            *(sys.executable, "-m", "celery", "-A", "mlebench_web", "worker"),
            *("-n", f"worker@{host}", "-Q", f"bells.{host}", "-c", "1"),
            *("--without-gossip", "--without-mingle"),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # A session of its own: what kills it kills nothing of the tests.
                command, cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip
        return self.process

    def end(self, how: signal.Signals) -> None:
        """Send a signal to all of it, as a terminal does and as a machine that runs out does."""
        assert self.process
        if how == signal.SIGTERM:
            # A service manager asks the first process.
            self.process.send_signal(how)
        else:
            os.killpg(self.process.pid, how)
        self.process.wait(timeout=ENDS_WITHIN)


@pytest.fixture
def worker(road: Road, valkey: str, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(valkey, tmp_path / "worker.log")
    yield worker
    if worker.process and worker.process.poll() is None:
        worker.end(signal.SIGKILL)


def containers(road: Road) -> list[ContainerState]:
    install = Installation.this().name
    return [each.state for each in road.engine.own_containers(install, road.host.name)]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="row 1: kill -9"),
        pytest.param(signal.SIGTERM, id="row 3: SIGTERM"),
        pytest.param(signal.SIGINT, id="row 4: Ctrl-C"),
    ],
)
def test_an_agent_outlives_its_worker_and_is_adopted_by_the_next_one(
    road: Road, worker: Worker, how: signal.Signals
) -> None:
    attempt = road.queued(COUNT)
    worker.start()
    wait_for(lambda: has_said(attempt, "5"), seconds=STARTS_WITHIN, what="the agent's lines")

    worker.end(how)

    assert containers(road) == [ContainerState.RUNNING], "the agent does not notice"
    attempt.refresh_from_db()
    assert attempt.state == State.RUNNING
    # Row 2: the same command again. No second container, no second agent, no second run.
    worker.start()
    (Path(django_settings.ATTEMPTS_DIR) / str(attempt.pk) / "code" / "go").touch()
    wait_for(lambda: is_over(attempt), seconds=STARTS_WITHIN, what="the end of the attempt")
    assert (attempt.outcome, attempt.cause, attempt.exit_code) == (Outcome.GRADED, "", 0)
    assert attempt.run.attempts.count() == 1
    assert attempt.run.group.runs.count() == 1
    assert road.text(attempt).split() == [str(number) for number in range(1, 2 * LINES + 1)]
    results = layout.run_folder(attempt.run)
    wait_for((results / "submission" / "submission.csv").exists, what="the results' folder")
    # What upstream's own scripts go on from.
    wait_for((results.parent / "metadata.json").exists, what="the group's metadata.json")
    wait_for(lambda: not containers(road), what="nothing to be left")


def is_over(attempt: Attempt) -> bool:
    attempt.refresh_from_db()
    return attempt.state == State.ENDED
