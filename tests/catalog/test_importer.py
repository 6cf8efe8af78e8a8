import csv
import shutil
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mlebench_web.catalog import data, folders, images, importer
from mlebench_web.catalog.competition_config import ConfigInvalid
from mlebench_web.catalog.models import Agent, Competition, ContainerConfig, Split

pytestmark = pytest.mark.django_db


def names(split: str) -> set[str]:
    return set(Split.objects.get(name=split).competitions.values_list("name", flat=True))


def test_migrate_fills_the_catalog_with_every_split() -> None:
    sizes = {split.name: split.competitions.count() for split in Split.objects.all()}

    assert sizes == {
        "low": 22, "medium": 38, "high": 15, "split75": 75, "dev": 7, "systemcard": 30, "demo": 2,
    }  # fmt: skip


def test_all_is_low_and_medium_and_high_and_demo_is_apart() -> None:
    assert names("split75") == names("low") | names("medium") | names("high")
    assert not names("demo") & names("split75")
    assert Split.objects.get(name="split75").title == "All"
    assert list(Split.objects.values_list("name", flat=True))[-1] == "demo"


def test_facts_are_those_that_were_read_from_mle_bench(shared: Path) -> None:
    with (shared / "data" / "competitions.csv").open(newline="") as file:
        facts = list(csv.DictReader(file))

    assert len(facts) == 82
    for fact in facts:
        row = Competition.objects.get(name=fact["id"])
        assert (row.title, row.metric, row.category) == (
            fact["name"], fact["metric"], fact["category"],
        )  # fmt: skip
        assert row.is_lower_better == (fact["is_lower_better"] == "True")
        assert row.team_count == int(fact["num_teams"])
        assert row.gold_threshold == float(fact["gold_threshold"])
        assert row.silver_threshold == float(fact["silver_threshold"])
        assert row.bronze_threshold == float(fact["bronze_threshold"])
        assert row.median_threshold == float(fact["median_threshold"])
        assert row.answers_path == fact["answers"]
        assert row.sample_submission_path == fact["sample_submission"]
        assert bool(row.known_issue) == bool(fact["known_issue"])
        assert {split.name for split in row.splits.all()} == {
            fact["split"],
            *(["split75"] if fact["in_split75"] == "1" else []),
            *(["systemcard"] if fact["in_systemcard"] == "1" else []),
        }


@pytest.mark.parametrize(
    ("split", "gigabytes"), [("low", 157.7), ("medium", 1239.9), ("high", 1886.1)]
)
def test_a_split_has_the_size_that_mle_bench_states(split: str, gigabytes: float) -> None:
    sizes = Split.objects.get(name=split).competitions.values_list("dataset_size_bytes", flat=True)

    assert round(sum(sizes) / 1e9, 1) == gigabytes


def test_a_second_sync_only_reads() -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        importer.sync_builtin()

    written = [q["sql"] for q in queries if q["sql"].split()[0] in ("INSERT", "UPDATE", "DELETE")]
    assert written == []


def test_what_was_changed_is_put_right() -> None:
    Competition.objects.filter(name="demo-diamond-prices").update(gold_threshold=9)
    Split.objects.get(name="demo").competitions.add(
        Competition.objects.get(name="dogs-vs-cats-redux-kernels-edition")
    )
    Split.objects.get(name="low").competitions.clear()

    importer.sync_builtin()

    assert Competition.objects.get(name="demo-diamond-prices").gold_threshold < 1
    assert len(names("demo")) == 2
    assert len(names("low")) == 22


def test_what_a_checkout_of_mle_bench_added_stays() -> None:
    Competition.objects.filter(name="spaceship-titanic").update(folder="/checkout/spaceship")
    ContainerConfig.objects.filter(name="default").update(
        is_builtin=False, settings={"mem_limit": 1}
    )
    Split.objects.create(name="spaceship-titanic", title="Spaceship")

    importer.sync_builtin()

    assert Competition.objects.get(name="spaceship-titanic").folder == "/checkout/spaceship"
    assert ContainerConfig.objects.get(name="default").settings == {"mem_limit": 1}
    assert Split.objects.filter(name="spaceship-titanic").exists()


def test_an_agent_of_a_checkout_keeps_its_name_and_ours_gives_way() -> None:
    ours = Agent.objects.get(name="dummy")
    ours.name = "builtin/dummy"
    ours.save()
    Agent.objects.create(name="dummy", image_name="dummy", folder="/checkout/agents/dummy")

    importer.sync_builtin()

    assert Agent.objects.get(name="dummy").folder == "/checkout/agents/dummy"
    assert Agent.objects.get(name="builtin/dummy") == ours
    assert Agent.objects.filter(image_name="dummy").count() == 2


def test_ours_gets_another_name_where_its_own_is_taken() -> None:
    Agent.objects.filter(name="dummy").update(is_builtin=False, folder="/checkout/agents/dummy")

    importer.sync_builtin()

    assert Agent.objects.get(name="dummy").folder == "/checkout/agents/dummy"
    assert Agent.objects.get(name="builtin/dummy").is_builtin


def test_a_new_competition_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a leaderboard yet: its ladder can only run once it is in the catalog."""
    shutil.copytree(folders.COMPETITIONS / "demo-diamond-prices", tmp_path / "demo-new")
    config = tmp_path / "demo-new" / "config.yaml"
    config.write_text(config.read_text().replace("demo-diamond-prices", "demo-new"))
    (tmp_path / "demo-new" / "leaderboard.csv").unlink()
    monkeypatch.setattr(folders, "COMPETITIONS", tmp_path)

    importer.sync_builtin()

    new = Competition.objects.get(name="demo-new")
    assert new.gold_threshold is None
    assert new.is_lower_better
    assert names("demo") == {"demo-new"}
    # Gone from its folder, and still in the catalog: runs refer to it.
    assert Competition.objects.filter(name="demo-diamond-prices").exists()


def test_a_leaderboard_in_the_wrong_order_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo-diamond-prices"
    shutil.copytree(folders.COMPETITIONS / "demo-diamond-prices", folder)
    (folder / "leaderboard.csv").write_text("rank,score\n1,0.9\n2,0.1\n")
    monkeypatch.setattr(folders, "COMPETITIONS", tmp_path)

    with pytest.raises(ConfigInvalid, match="best first"):
        importer.sync_builtin()


def test_folders_of_what_ships_are_found_wherever_the_checkout_is() -> None:
    for competition in Competition.objects.filter(is_demo=True):
        folder = data.folder_of(competition)
        assert folder is not None
        for name in ("config.yaml", "grade.py", "leaderboard.csv", "description.md"):
            assert (folder / name).is_file()
        assert not Path(competition.folder).is_absolute()
    for agent in Agent.objects.filter(is_builtin=True):
        assert (images.folder_of(agent) / agent.start).is_file()
        assert (images.folder_of(agent) / agent.dockerfile).is_file()
    assert data.folder_of(Competition.objects.get(name="spaceship-titanic")) is None


def test_container_configs_hold_what_mle_bench_users_have() -> None:
    found = {row.name: row.settings for row in ContainerConfig.objects.filter(is_builtin=True)}

    assert found["default"] == {
        "mem_limit": None, "shm_size": "4G", "nano_cpus": 4e9, "runtime": "sysbox-runc",
    }  # fmt: skip
    assert found["no_sysbox"] == {"mem_limit": None, "shm_size": "4G", "nano_cpus": 4e9}
    assert found["no_sysbox_gpu"] == {
        "mem_limit": "80G", "shm_size": "16G", "nano_cpus": 8e9, "gpus": 1,
    }  # fmt: skip
    assert not ContainerConfig.objects.get(name="demo-process").is_sandboxed


def test_a_flush_leaves_a_filled_catalog(transactional_db: None) -> None:
    call_command("flush", interactive=False, verbosity=0)

    assert Competition.objects.count() == 84
