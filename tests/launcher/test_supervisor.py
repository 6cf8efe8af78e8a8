"""Parts are restarted, and end with the supervisor, however that ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlebench_web.launcher import runfile
from mlebench_web.launcher.processes import FIRST_PAUSE, LONGEST_PAUSE, WELL_AFTER, Log, Part

ROOT = Path(__file__).resolve().parent.parent.parent
# Writes its process id, then stays.
STAYS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
# Asked to end, it does not.
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {STAYS}"
DIES = "import os; print(os.getpid(), flush=True); raise SystemExit(3)"

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor over a part with this code."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.launcher.supervised", str(tmp_path)),
                *(sys.executable, "-c", code),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=30)
        assert process.stdout
        process.stdout.close()


def wait_for[Value](look: Callable[[], Value | None], within: float = 20) -> Value:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("It did not come.")


def pids(tmp_path: Path, count: int = 1) -> list[int]:
    """The process ids that the part wrote, once there are so many."""
    log = tmp_path / "logs" / "part.log"

    def look() -> list[int] | None:
        lines = log.read_text().split() if log.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else None

    return wait_for(look)


def test_a_part_that_is_killed_starts_again_and_run_json_says_so(
    start: Start, tmp_path: Path
) -> None:
    supervisor = start(STAYS)
    [first] = pids(tmp_path)

    os.kill(first, signal.SIGKILL)

    second = pids(tmp_path, 2)[1]
    part = (
        wait_for(lambda: runfile.read(tmp_path)["parts"]["part"]["pid"] == second)
        and (runfile.read(tmp_path)["parts"]["part"])
    )
    assert part["restarts"] == 1
    assert part["last_end"] == "signal 9"
    supervisor.terminate()
    output = supervisor.communicate(timeout=20)[0]
    assert "! part ended (signal 9); it starts again in" in output
    assert "✓ part runs again" in output


def test_a_part_that_dies_at_once_is_started_later_and_later(start: Start, tmp_path: Path) -> None:
    start(DIES)
    begin = time.monotonic()

    pids(tmp_path, 3)

    # After half a second, then a whole one.
    assert time.monotonic() - begin > 1.4


def test_the_pause_before_a_restart_doubles_up_to_half_a_minute(tmp_path: Path) -> None:
    part = Part("part", [], Log(tmp_path / "log"))
    pauses = [part.ended(at=0) for _ in range(8)]

    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE


def test_a_part_that_was_well_for_a_while_starts_again_at_once(tmp_path: Path) -> None:
    part = Part("part", [], Log(tmp_path / "log"))
    for _ in range(8):
        part.ended(at=0)

    assert part.ended(at=part.begun + WELL_AFTER + 1) == FIRST_PAUSE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_supervisor_and_its_part(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    supervisor = start(STAYS)
    [pid] = pids(tmp_path)

    supervisor.send_signal(number)

    assert supervisor.wait(timeout=20) == 0
    assert not psutil.pid_exists(pid)


def test_a_second_ctrl_c_does_not_wait_for_a_part_that_does_not_end(
    start: Start, tmp_path: Path
) -> None:
    supervisor = start(STUBBORN)
    [pid] = pids(tmp_path)
    begin = time.monotonic()

    supervisor.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        supervisor.wait(timeout=0.5)
    supervisor.send_signal(signal.SIGINT)

    assert supervisor.wait(timeout=20) == 0
    assert time.monotonic() - begin < 5
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_part_ends_even_when_the_supervisor_is_killed(start: Start, tmp_path: Path) -> None:
    supervisor = start(STAYS)
    part = psutil.Process(pids(tmp_path)[0])

    supervisor.kill()

    part.wait(timeout=10)


def test_the_terminals_ctrl_c_does_not_reach_the_parts(start: Start, tmp_path: Path) -> None:
    supervisor = start(STAYS)
    [pid] = pids(tmp_path)

    assert os.getpgid(pid) != os.getpgid(supervisor.pid)
    assert os.getsid(pid) == pid


def test_the_log_of_the_start_before_is_kept(tmp_path: Path) -> None:
    Log(tmp_path / "web.log").path.write_text("first\n")

    log = Log(tmp_path / "web.log")
    os.close(log.open())

    assert (tmp_path / "web.log.1").read_text() == "first\n"
    assert log.path.read_text() == ""


def test_a_log_that_grew_too_large_is_cut_under_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlebench_web.launcher.processes.LOG_MAX_BYTES", 10)
    log = Log(tmp_path / "web.log")
    writer = log.open()
    os.write(writer, b"more than ten bytes\n")

    log.cut()
    os.write(writer, b"after\n")
    os.close(writer)

    assert log.path.read_text() == "after\n"
    assert (tmp_path / "web.log.1").read_text() == "more than ten bytes\n"
