import csv
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import yaml
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django import Settings

from mlebench_web.catalog import data
from mlebench_web.catalog.data import DataError
from mlebench_web.catalog.models import Competition

pytestmark = pytest.mark.django_db

PREPARE = """
import csv
def prepare(raw, public, private):
    (public / "train.csv").write_text((raw / "raw.csv").read_text())
    (public / "sample_submission.csv").write_text("id,y\\n1,0\\n")
    (private / "test.csv").write_text("id,y\\n1,1\\n")
"""


@pytest.fixture(autouse=True)
def own_folders(settings: Settings, tmp_path: Path) -> None:
    settings.COMPETITIONS_DIR = tmp_path / "competitions"
    settings.DOWNLOAD_CACHE_DIR = tmp_path / "downloads"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A competition's folder whose data lies beside it."""
    folder = tmp_path / "tiny"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "raw.csv").write_text("id,y\n2,0\n")
    (folder / "description.md").write_text("Tiny.")
    (folder / "prepare.py").write_text(PREPARE)
    config = {
        "id": "tiny",
        "name": "Tiny",
        "dataset": {
            "answers": "tiny/prepared/private/test.csv",
            "sample_submission": "tiny/prepared/public/sample_submission.csv",
        },
        "grader": {"name": "accuracy"},
        "mlebench_web": {
            "is_lower_better": False,
            "source": {"kind": "folder", "path": "raw"},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def tiny(folder: Path) -> Competition:
    return Competition.objects.create(
        name="tiny",
        title="Tiny",
        folder=str(folder),
        answers_path="tiny/prepared/private/test.csv",
        sample_submission_path="tiny/prepared/public/sample_submission.csv",
    )


def prepare(competition: Competition) -> None:
    data.prepare(competition, lambda done, total: None)


def test_a_prepared_competition_has_the_description_and_no_answers_in_public(
    tiny: Competition,
) -> None:
    assert not data.is_prepared(tiny)

    prepare(tiny)

    assert data.is_prepared(tiny)
    assert {path.name for path in data.public_dir(tiny).iterdir()} == {
        "description.md", "sample_submission.csv", "train.csv",
    }  # fmt: skip
    assert [path.name for path in data.private_dir(tiny).iterdir()] == ["test.csv"]
    assert data.answers(tiny).read_text() == "id,y\n1,1\n"
    # An agent's container runs as somebody else.
    assert data.public_dir(tiny).stat().st_mode & 0o777 == 0o755
    assert data.private_dir(tiny).stat().st_mode & 0o777 == 0o700


def test_what_is_prepared_is_not_made_again(tiny: Competition, folder: Path) -> None:
    prepare(tiny)
    (folder / "prepare.py").unlink()

    prepare(tiny)


def test_half_prepared_data_is_made_anew(tiny: Competition) -> None:
    prepare(tiny)
    data.answers(tiny).unlink()
    assert not data.is_prepared(tiny)

    prepare(tiny)

    assert data.is_prepared(tiny)


def test_a_failure_says_why_and_leaves_nothing_half_made(tiny: Competition, folder: Path) -> None:
    (folder / "prepare.py").write_text(PREPARE + "    raise ValueError('no such tree')\n")

    with pytest.raises(DataError, match="no such tree"):
        prepare(tiny)

    assert [path.name for path in data.prepared_dir(tiny).parent.iterdir()] == [".lock"]


def test_other_data_than_the_checksums_say_is_refused(tiny: Competition, folder: Path) -> None:
    prepare(tiny)
    found = data.checksums(data.prepared_dir(tiny))
    found["public"]["train.csv"] = "0" * 32
    (folder / "checksums.yaml").write_text(yaml.safe_dump(found))
    data.answers(tiny).unlink()

    with pytest.raises(DataError, match=r"checksums\.yaml"):
        prepare(tiny)

    assert not data.is_prepared(tiny)


def test_missing_libraries_are_named_with_what_installs_them(
    tiny: Competition, folder: Path, settings: Settings
) -> None:
    settings.ML_PYTHON = folder / "nowhere" / "python"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["mlebench_web"]["needs_ml"] = True
    (folder / "config.yaml").write_text(yaml.safe_dump(config))

    with pytest.raises(DataError, match=r"run setup"):
        prepare(tiny)


def test_a_competition_known_by_facts_alone_says_who_prepares_it() -> None:
    with pytest.raises(DataError, match="COMPETITIONS_DIR"):
        prepare(Competition.objects.get(name="spaceship-titanic"))


def test_two_at_once_prepare_it_once(tiny: Competition, folder: Path) -> None:
    """The web host's service and somebody's shell."""
    made = folder / "made"
    slow = f"\n    open({str(made)!r}, 'a').write('x')\n    import time; time.sleep(0.2)\n"
    (folder / "prepare.py").write_text(PREPARE + slow)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            prepare(tiny)
        except BaseException as error:  # noqa: BLE001 shown below
            failures.append(error)
        finally:
            connection.close()

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert made.read_text() == "x"


def test_the_diamonds_ship_with_the_product_and_are_the_same_each_time() -> None:
    diamonds = Competition.objects.get(name="demo-diamond-prices")

    # checksums.yaml in its folder is the reference: prepare() refuses anything else.
    prepare(diamonds)

    public, private = data.public_dir(diamonds), data.private_dir(diamonds)
    with (public / "train.csv").open() as train, (public / "test.csv").open() as test:
        trained, tested = list(csv.DictReader(train)), list(csv.DictReader(test))
    assert (len(trained), len(tested)) == (43035, 10759)
    assert "price" not in tested[0]
    assert not {row["id"] for row in trained} & {row["id"] for row in tested}
    assert len((private / "test.csv").read_text().splitlines()) == 10760


def test_the_shipped_data_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """The web's environment has no pandas, and the first start should be quick."""
    folder = data.folder_of(Competition.objects.get(name="demo-diamond-prices"))
    assert folder is not None
    for part in ("public", "private"):
        (tmp_path / part).mkdir()
    code = (
        "import prepare, sys; from pathlib import Path; prepare.prepare(*map(Path, sys.argv[1:]))"
    )

    subprocess.run(
        [sys.executable, "-S", "-B", "-c", code, "raw", tmp_path / "public", tmp_path / "private"],
        cwd=folder,
        check=True,
    )


def test_the_command_names_the_demo_competitions_there_are() -> None:
    with pytest.raises(CommandError, match="demo-diamond-prices, demo-tree-crown-tiles"):
        call_command("prepare_demo", "no-such-thing")


def test_the_command_prepares_what_ships_without_a_download(
    capsys: pytest.CaptureFixture[str],
) -> None:
    call_command("prepare_demo", shipped=True)

    assert capsys.readouterr().out.startswith("demo-diamond-prices is prepared")
    assert not data.is_prepared(Competition.objects.get(name="demo-tree-crown-tiles"))
