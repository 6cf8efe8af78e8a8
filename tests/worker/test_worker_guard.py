"""A host service restarts a worker that is alive but deaf: real processes, a real signal."""

import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
from django.db import OperationalError
from django.utils import timezone

from mlebench_web.fleet.models import Host
from mlebench_web.process_start import started
from runs import queue, worker_guard
from runs.core.states import State
from runs.models import Attempt
from runs.worker_guard import WorkerGuard
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def box(settings: "object", tmp_path: "object") -> Host:
    settings.SOCKETS_DIR = tmp_path  # type: ignore[attr-defined]
    settings.WORKER_DEAF_AFTER = timedelta(0)  # type: ignore[attr-defined]
    host = factories.make_host(settings.HOST_NAME)  # type: ignore[attr-defined]
    factories.make_prepared(host, factories.make_competition())
    return host


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_guard, "broker_answers", lambda: True)


@pytest.fixture
def process(box: Host) -> Iterator["subprocess.Popen[bytes]"]:
    """Stands for the worker's main process, with a child."""
    process = subprocess.Popen(["sh", "-c", "sleep 100 & wait"], start_new_session=True)
    identity = {"pid": process.pid, "started": started(process.pid)}
    worker_guard.path_of(box.name).write_text(json.dumps(identity))
    yield process
    process.kill()
    process.wait()


def test_a_worker_that_leaves_work_undone_is_told_to_end(
    box: Host, process: "subprocess.Popen[bytes]"
) -> None:
    factories.make_run()

    WorkerGuard(box).look()

    assert process.wait(timeout=10) == -signal.SIGTERM


def test_a_stopped_worker_that_hears_no_signal_is_killed_with_its_children(
    box: Host, process: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
    [child] = children
    process.send_signal(signal.SIGSTOP)
    factories.make_run(
        state=State.RUNNING, host=box, lease_until=timezone.now() - timedelta(minutes=1)
    )
    guard = WorkerGuard(box)

    guard.look()
    guard.look()
    assert process.poll() is None, "it has its time to end by itself"
    monkeypatch.setattr(worker_guard, "TERM_TAKES", 0.0)
    guard.look()

    assert process.wait(timeout=10) == -signal.SIGKILL
    assert child.wait(timeout=10) is None or not child.is_running()


def is_left_alone(process: "subprocess.Popen[bytes]") -> bool:
    """Nothing that was sent to it ends it within a second."""
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_a_worker_with_nothing_to_do_is_left_alone(
    box: Host, process: "subprocess.Popen[bytes]"
) -> None:
    # It waits for data, and that one is watched.
    factories.make_run(competition=factories.make_competition("demo-other"))
    WorkerGuard(box).look()

    assert is_left_alone(process)


def test_nobody_is_restarted_while_the_broker_is_away(
    box: Host, process: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_guard, "broker_answers", lambda: False)
    factories.make_run()

    WorkerGuard(box).look()

    assert is_left_alone(process)


def test_what_a_question_found_after_minutes_without_network_is_no_deafness(
    box: Host,
    process: "subprocess.Popen[bytes]",
    settings: "object",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leases ran out meanwhile; the supervisors are there, and renew them in a moment."""
    settings.WORKER_DEAF_AFTER = timedelta(seconds=60)  # type: ignore[attr-defined]
    factories.make_run(
        state=State.RUNNING, host=box, lease_until=timezone.now() - timedelta(minutes=1)
    )
    now = 0.0
    monkeypatch.setattr(worker_guard, "time", SimpleNamespace(monotonic=lambda: now))
    ask = queue.unwatched

    def ask_for_ten_minutes(host: Host) -> list[Attempt]:
        nonlocal now
        now += 600
        return ask(host)

    guard = WorkerGuard(box)
    monkeypatch.setattr(queue, "unwatched", ask_for_ten_minutes)
    guard.look()
    monkeypatch.setattr(queue, "unwatched", ask)
    now += 5
    guard.look()

    assert is_left_alone(process)


def test_a_worker_is_not_judged_while_the_database_takes_no_writes(
    box: Host, process: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases run out: as when another process holds SQLite's lock."""
    factories.make_run(
        state=State.RUNNING, host=box, lease_until=timezone.now() - timedelta(minutes=1)
    )

    def refuse() -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(queue, "prove_that_it_takes_writes", refuse)
    with pytest.raises(OperationalError):
        WorkerGuard(box).look()

    assert is_left_alone(process)


def test_another_process_under_the_same_pid_is_never_signalled(
    box: Host, process: "subprocess.Popen[bytes]"
) -> None:
    worker_guard.path_of(box.name).write_text(json.dumps({"pid": process.pid, "started": 1.0}))
    factories.make_run()

    WorkerGuard(box).look()

    assert is_left_alone(process)
