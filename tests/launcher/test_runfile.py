"""One `./run` a data folder, and what a killed one leaves behind."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlebench_web.launcher import runfile

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(SLEEP, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_one_is_told_where_the_first_one_listens(tmp_path: Path) -> None:
    with runfile.hold(tmp_path):
        runfile.write(tmp_path, {"address": "http://127.0.0.1:8000"})

        with pytest.raises(runfile.AlreadyRunning) as refused, runfile.hold(tmp_path):
            pass

    assert refused.value.info["address"] == "http://127.0.0.1:8000"


def test_run_json_is_gone_after_the_end(tmp_path: Path) -> None:
    with runfile.hold(tmp_path):
        runfile.write(tmp_path, {"address": "http://127.0.0.1:8000"})

    assert runfile.read(tmp_path) == {}
    with runfile.hold(tmp_path):
        pass


def test_what_a_killed_one_left_is_ended(
    tmp_path: Path, sleeper: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfile, "LEFTOVERS_MAY_TAKE", 0.1)
    runfile.write(tmp_path, {"parts": {"web": runfile.identity(sleeper.pid)}})

    with runfile.hold(tmp_path):
        assert not psutil.pid_exists(sleeper.pid)


def test_a_foreign_process_under_a_used_again_id_is_left_alone(
    tmp_path: Path, sleeper: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfile, "LEFTOVERS_MAY_TAKE", 0.1)
    stale = runfile.identity(sleeper.pid) | {"started": 1.0}
    runfile.write(tmp_path, {"parts": {"web": stale}})

    with runfile.hold(tmp_path):
        assert sleeper.poll() is None


def test_a_broken_run_json_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"address": "http://12')

    with runfile.hold(tmp_path):
        assert runfile.read(tmp_path) == {}
