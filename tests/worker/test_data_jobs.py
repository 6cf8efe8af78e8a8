"""Data of mle-bench's competitions on a host: found, prepared, or left to a person."""

import os
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import AuditEntry
from mlebench_web.catalog import checkouts, data, official_data
from mlebench_web.catalog.data import DataError
from mlebench_web.catalog.models import Competition
from mlebench_web.catalog.official_data import Seen
from mlebench_web.fleet.models import Host, PreparedData
from runs import data_jobs
from runs.data_jobs import DataJobs, NotPreparable
from tests import factories
from tests.support import checkout as small
from tests.support import fake_mlebench

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def root(tmp_path: Path, settings: object) -> Path:
    root = small.make(tmp_path / "mle-bench")
    fake_mlebench.add(root)
    settings.MLEBENCH_DIRS = [root]  # type: ignore[attr-defined]
    settings.MLEBENCH_PYTHON = Path(sys.executable)  # type: ignore[attr-defined]
    settings.COMPETITIONS_DIR = tmp_path / "competitions"  # type: ignore[attr-defined]
    settings.DATA_DIR = tmp_path / "data"  # type: ignore[attr-defined]
    checkouts.refresh_all()
    return root


@pytest.fixture
def pears(root: Path) -> Competition:
    return Competition.objects.select_related("checkout").get(name="our-pears")


@pytest.fixture
def host(db: None) -> Host:
    return factories.make_host("box-1")


@pytest.fixture
def jobs(host: Host) -> DataJobs:
    return DataJobs(host, threading.Event())


def asked(pears: Competition, host: Host, **fields: object) -> PreparedData:
    return data_jobs.ask(pears, host, by=factories.make_user("alice"), **fields)  # type: ignore[arg-type]


def test_data_is_prepared_when_somebody_asks_and_not_before(
    pears: Competition, host: Host, jobs: DataJobs
) -> None:
    jobs.work()
    assert not data.is_prepared(pears)

    row = asked(pears, host)
    jobs.work()

    row.refresh_from_db()
    assert (row.state, row.error, row.phase) == ("ready", "", "")
    assert row.digest
    assert data.is_prepared(pears)
    assert data.private_dir(pears).stat().st_mode & 0o777 == 0o700
    entry = AuditEntry.objects.get(action="prepare data")
    assert entry.detail == {"competition": "our-pears", "host": "box-1"}


def test_nothing_of_the_checkout_is_changed(
    pears: Competition, root: Path, host: Host, jobs: DataJobs
) -> None:
    (root / "mlebench/competitions/our-pears/checksums.yaml").unlink()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    row = asked(pears, host)
    jobs.work()

    row.refresh_from_db()
    assert row.state == "ready"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("behaviour", ["rules", "forbidden"])
def test_rules_that_are_not_accepted_wait_for_a_person_and_show_the_link(
    pears: Competition, root: Path, host: Host, jobs: DataJobs, behaviour: str
) -> None:
    fake_mlebench.behave(root, behaviour)
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert (row.state, row.waits_for) == ("waiting", "rules")
    assert row.link == "https://www.kaggle.com/c/our-pears/rules"
    # It is not tried again by itself.
    jobs.work()
    row.refresh_from_db()
    assert row.state == "waiting"

    fake_mlebench.behave(root, "ok")
    asked(pears, host)
    jobs.work()
    row.refresh_from_db()
    assert (row.state, row.waits_for, row.link) == ("ready", "", "")


@pytest.mark.parametrize("behaviour", ["no credentials", "unauthorised", "client ends"])
def test_missing_credentials_wait_for_a_person(
    pears: Competition, root: Path, host: Host, jobs: DataJobs, behaviour: str
) -> None:
    fake_mlebench.behave(root, behaviour)
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert (row.state, row.waits_for) == ("waiting", "credentials")
    assert row.error


def test_stored_credentials_of_who_asked_are_used(
    pears: Competition, root: Path, host: Host, jobs: DataJobs
) -> None:
    fake_mlebench.behave(root, "needs credentials")
    alice = factories.make_user("alice")
    vault.put("KAGGLE_USERNAME", "alice-at-kaggle", owner=alice, by=alice)
    vault.put("KAGGLE_KEY", "of-alice-123", owner=alice, by=alice)
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert row.state == "ready"


def test_differing_checksums_are_shown_and_can_be_overridden(
    pears: Competition, root: Path, host: Host, jobs: DataJobs
) -> None:
    fake_mlebench.behave(root, "differs")
    row = asked(pears, host)
    jobs.work()
    row.refresh_from_db()
    assert (row.state, row.waits_for) == ("waiting", "checksums")
    assert "- test.csv: aaa\n+ test.csv: bbb" in row.error
    # What was made is on the disk, and is not taken for prepared.
    assert data.is_prepared(pears)
    jobs.find()
    row.refresh_from_db()
    assert row.state == "waiting"

    asked(pears, host, ignore_checksums=True)
    jobs.work()

    row.refresh_from_db()
    assert (row.state, row.ignores_checksums) == ("ready", True)
    entry = AuditEntry.objects.filter(action="prepare data").latest("pk")
    assert entry.detail["checksums"] == "ignored"


def test_another_try_after_differing_checksums_downloads_anew(
    pears: Competition, root: Path, host: Host, jobs: DataJobs, settings: object
) -> None:
    fake_mlebench.behave(root, "differs")
    row = asked(pears, host)
    jobs.work()
    archive = settings.COMPETITIONS_DIR / "our-pears" / "data.zip"  # type: ignore[attr-defined]
    archive.write_bytes(b"half")
    fake_mlebench.behave(root, "breaks")
    asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert row.state == "failed"
    assert not archive.exists()


def test_checksums_that_nobody_compared_cannot_be_overridden(
    pears: Competition, host: Host
) -> None:
    with pytest.raises(NotPreparable, match="does not wait"):
        asked(pears, host, ignore_checksums=True)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("breaks", "a file that it does not know"), ("dies", "died with 137")],
)
def test_a_preparation_that_fails_says_why(
    pears: Competition, root: Path, host: Host, jobs: DataJobs, behaviour: str, said: str
) -> None:
    fake_mlebench.behave(root, behaviour)
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert row.state == "failed"
    assert said in row.error


def test_nothing_can_wait_for_an_answer(
    pears: Competition, root: Path, host: Host, jobs: DataJobs
) -> None:
    fake_mlebench.behave(root, "reads")
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert row.state == "ready"


def test_a_stopped_service_ends_the_child_and_the_next_one_goes_on(
    pears: Competition, root: Path, host: Host, jobs: DataJobs, settings: object
) -> None:
    fake_mlebench.behave(root, "hangs")
    row = asked(pears, host)
    home = settings.COMPETITIONS_DIR / "our-pears"  # type: ignore[attr-defined]

    def stop_when_it_works() -> None:
        while not (home / "pid").exists() and not jobs.stop.wait(0.05):
            pass
        jobs.stop.set()

    watcher = threading.Thread(target=stop_when_it_works)
    watcher.start()
    jobs.work()
    watcher.join()

    row.refresh_from_db()
    assert row.state == "wanted"
    with pytest.raises(ProcessLookupError):
        os.kill(int((home / "pid").read_text()), 0)
    fake_mlebench.behave(root, "ok")
    DataJobs(host, threading.Event()).work()
    row.refresh_from_db()
    assert row.state == "ready"


def test_a_preparation_has_an_end(pears: Competition, root: Path, settings: object) -> None:
    settings.PREPARE_LIMIT = timedelta(seconds=1)  # type: ignore[attr-defined]
    fake_mlebench.behave(root, "hangs")

    with pytest.raises(DataError, match="PREPARE_LIMIT_HOURS"):
        official_data.prepare(pears, lambda seen: None)


def test_progress_names_the_phase_and_the_bytes(
    pears: Competition, root: Path, settings: object
) -> None:
    settings.PREPARE_LIMIT = timedelta(seconds=3)  # type: ignore[attr-defined]
    fake_mlebench.behave(root, "hangs")
    seen: list[Seen] = []

    with pytest.raises(DataError):
        official_data.prepare(pears, seen.append)

    assert seen[-1].phase == "downloading"
    assert seen[-1].done_bytes >= 1000


def test_a_host_without_mle_benchs_python_says_how_to_get_it(
    pears: Competition, host: Host, jobs: DataJobs, settings: object
) -> None:
    settings.MLEBENCH_PYTHON = Path("/nowhere/python")  # type: ignore[attr-defined]
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert row.state == "failed"
    assert "MLEBENCH_PYTHON" in row.error


def test_a_disk_that_is_too_small_is_named_before_the_download(
    pears: Competition, host: Host, jobs: DataJobs
) -> None:
    Competition.objects.filter(pk=pears.pk).update(dataset_size_bytes=10**18)
    row = asked(pears, host)

    jobs.work()

    row.refresh_from_db()
    assert row.state == "failed"
    assert "COMPETITIONS_DIR" in row.error


def test_data_that_is_there_already_is_found_and_data_that_went_is_missed(
    pears: Competition, host: Host, jobs: DataJobs, settings: object
) -> None:
    home = settings.COMPETITIONS_DIR / "our-pears/prepared"  # type: ignore[attr-defined]
    small.write(home, "public/sample_submission.csv", "id\n1\n")
    small.write(home, "private/test.csv", "id\n1\n")

    jobs.find()

    row = PreparedData.objects.get(host=host, competition=pears)
    assert row.state == "ready"
    (home / "private/test.csv").unlink()
    jobs.find()
    row.refresh_from_db()
    assert row.state == "failed"
    assert "gone" in row.error


def test_only_what_has_a_recipe_can_be_asked_for(host: Host) -> None:
    with pytest.raises(NotPreparable, match="MLEBENCH_DIR"):
        data_jobs.ask(Competition.objects.get(name="spaceship-titanic"), host, by=None)


def test_a_second_press_changes_nothing(pears: Competition, host: Host, jobs: DataJobs) -> None:
    row = asked(pears, host)
    jobs.work()

    again = asked(pears, host)

    assert again == row
    assert again.state == "ready"
