"""A process is known by its id and its start."""

import os
import subprocess

import psutil
import pytest

from mlebench_web.fleet import hosts
from mlebench_web.process_start import started
from runs import queue
from tests import factories


def test_a_start_is_told_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    before = started(os.getpid())
    epoch = psutil.Process().create_time()
    # What a step of the machine's clock by an hour does to the boot time that the kernel tells.
    real = psutil._psplatform.boot_time  # type: ignore[attr-defined]
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: real() + 3600)  # type: ignore[attr-defined]

    assert psutil.Process().create_time() - epoch > 3000, "psutil's own moves with it"
    assert started(os.getpid()) == before


def test_a_process_with_an_odd_name_is_read() -> None:
    with subprocess.Popen(["bash", "-c", "exec -a 'a) (b' sleep 100"]) as process:
        assert 0 < started(process.pid) - started(os.getpid()) < 3600
        process.kill()


def test_no_process_is_said() -> None:
    with pytest.raises(psutil.NoSuchProcess):
        started(2**22 + 1)


@pytest.mark.django_db
def test_a_supervisor_stays_alive_over_a_step_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    host = factories.make_host("box")
    attempt = factories.make_run(host=host, state="running").newest_attempt()
    type(attempt).objects.filter(pk=attempt.pk).update(
        **queue.this_supervisor(), lease_until=hosts.now() + queue.settings.LEASE_TTL
    )
    attempt.refresh_from_db()
    real = psutil._psplatform.boot_time  # type: ignore[attr-defined]
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: real() + 3600)  # type: ignore[attr-defined]

    assert queue.supervisor_is_live(attempt)
