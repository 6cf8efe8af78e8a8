"""Checkouts of mle-bench as rows of the catalog."""

import subprocess
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from mlebench_web.catalog import checkouts, importer
from mlebench_web.catalog.models import Agent, Checkout, Competition, ContainerConfig, Split
from tests.factories import make_group, make_split
from tests.support import checkout as small

pytestmark = pytest.mark.django_db


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small.make(tmp_path / "mle-bench")


def use(settings: object, *folders: Path) -> list[Checkout]:
    settings.MLEBENCH_DIRS = list(folders)  # type: ignore[attr-defined]
    return checkouts.refresh_all()


def listed() -> list[str]:
    return list(Agent.objects.filter(is_listed=True).values_list("name", flat=True))


def test_agents_of_the_first_checkout_keep_their_ids_and_builtin_ones_give_way(
    root: Path, settings: object
) -> None:
    builtin = Agent.objects.get(name="dummy")

    use(settings, root)

    assert listed() == ["aide", "aide/o1-preview", "baseline", "builtin/dummy", "dummy", "marathon"]
    # The row moved with all that it has run.
    assert Agent.objects.get(name="builtin/dummy").pk == builtin.pk
    dummy = Agent.objects.get(name="dummy")
    assert (dummy.folder, dummy.is_builtin) == (str(root / "agents/dummy"), False)
    importer.sync_builtin()
    assert listed() == ["aide", "aide/o1-preview", "baseline", "builtin/dummy", "dummy", "marathon"]
    assert importer.builtin_name("dummy") == "builtin/dummy"
    assert importer.builtin_name("baseline") == "baseline"


def test_agents_of_further_checkouts_are_prefixed(
    root: Path, settings: object, tmp_path: Path
) -> None:
    second = small.make(tmp_path / "fork")

    use(settings, root, second)

    assert {"dummy", "fork/dummy", "fork/aide/o1-preview"} <= set(listed())


def test_two_checkouts_in_folders_of_one_name_are_told_apart(
    root: Path, settings: object, tmp_path: Path
) -> None:
    second = small.make(tmp_path / "other" / "mle-bench")

    one, two = use(settings, root, second)

    assert (one.name, two.name) == ("mle-bench", "mle-bench-2")
    assert "mle-bench-2/dummy" in listed()


def test_a_second_refresh_changes_nothing(root: Path, settings: object) -> None:
    use(settings, root)
    before = list(Agent.objects.values()), list(Competition.objects.values())

    use(settings, root)

    assert (list(Agent.objects.values()), list(Competition.objects.values())) == before


def test_an_agent_that_is_gone_leaves_the_list_and_keeps_its_runs(
    root: Path, settings: object
) -> None:
    use(settings, root)
    group = make_group(agent=Agent.objects.get(name="aide/o1-preview"))
    config = root / "agents/aide/config.yaml"
    config.write_text(config.read_text().partition("aide/o1-preview:")[0])

    use(settings, root)

    assert "aide/o1-preview" not in listed()
    group.refresh_from_db()
    assert group.agent is not None
    assert group.agent.name == "aide/o1-preview"


def test_a_pointer_leaves_the_known_thresholds_and_says_so(root: Path, settings: object) -> None:
    before = Competition.objects.get(name="spaceship-titanic")

    use(settings, root)

    after = Competition.objects.get(name="spaceship-titanic")
    assert after.gold_threshold == before.gold_threshold
    assert after.threshold_source == Competition.ThresholdSource.FACTS
    assert "Git LFS pointer" in after.threshold_note
    assert after.folder == str(root / "mlebench/competitions/spaceship-titanic")


def test_a_custom_competition_works_as_the_others(root: Path, settings: object) -> None:
    use(settings, root)

    pears = Competition.objects.get(name="our-pears")
    assert (pears.gold_threshold, pears.is_lower_better, pears.team_count) == (0.96, False, 50)
    assert pears.threshold_source == Competition.ThresholdSource.LEADERBOARD
    assert not pears.is_demo
    ours = Split.objects.get(name="ours")
    assert {each.name for each in ours.competitions.all()} == {"our-pears", "spaceship-titanic"}


def test_a_custom_competition_without_a_leaderboard_has_no_thresholds(
    root: Path, settings: object
) -> None:
    small.add_competition(root, "our-pears", leaderboard=small.POINTER)

    use(settings, root)

    pears = Competition.objects.get(name="our-pears")
    assert (pears.gold_threshold, pears.is_lower_better) == (None, None)
    assert "Git LFS pointer" in pears.threshold_note


def test_facts_do_not_overwrite_a_real_leaderboard(root: Path, settings: object) -> None:
    small.add_competition(root, "spaceship-titanic")
    use(settings, root)

    importer.sync_builtin()

    titanic = Competition.objects.get(name="spaceship-titanic")
    assert titanic.gold_threshold == 0.96
    assert titanic.threshold_source == Competition.ThresholdSource.LEADERBOARD


def test_mle_benchs_own_split_stays_when_a_fork_has_another_list(
    root: Path, settings: object
) -> None:
    before = set(Split.objects.get(name="low").competitions.values_list("name", flat=True))
    small.write(root, "experiments/splits/low.txt", "spaceship-titanic\n")

    [row] = use(settings, root)

    after = set(Split.objects.get(name="low").competitions.values_list("name", flat=True))
    assert after == before
    assert Split.objects.get(name="mle-bench/low").competitions.count() == 1
    assert any("is not mle-bench's own list" in each["message"] for each in row.problems)


def test_the_same_split_is_not_offered_twice(root: Path, settings: object) -> None:
    names = Split.objects.get(name="low").competitions.values_list("name", flat=True)
    small.write(root, "experiments/splits/low.txt", "\n".join(names))

    use(settings, root)

    assert not Split.objects.filter(name="mle-bench/low").exists()


def test_a_split_with_an_unknown_competition_is_named_and_left_out(
    root: Path, settings: object
) -> None:
    small.write(root, "experiments/splits/odd.txt", "our-pears\nno-such\n")

    [row] = use(settings, root)

    assert not Split.objects.filter(name="odd").exists()
    [problem] = [each for each in row.problems if each["level"] == "error"]
    assert (problem["file"], problem["line"]) == ("experiments/splits/odd.txt", 2)
    assert "no-such" in problem["message"]


def test_a_split_that_is_gone_goes_unless_a_run_group_has_it(root: Path, settings: object) -> None:
    small.write(root, "experiments/splits/spare.txt", "our-pears\n")
    use(settings, root)
    make_group(split=Split.objects.get(name="ours"))
    (root / "experiments/splits/ours.txt").unlink()
    (root / "experiments/splits/spare.txt").unlink()

    use(settings, root)

    assert Split.objects.filter(name="ours").exists()
    assert not Split.objects.filter(name="spare").exists()


def test_a_config_of_a_taken_name_gets_another_one(root: Path, settings: object) -> None:
    small.write(root, "environment/config/container_configs/no_sysbox.json", '{"nano_cpus": 36e9}')

    use(settings, root)

    assert ContainerConfig.objects.get(name="no_sysbox").settings["nano_cpus"] == 4e9
    assert ContainerConfig.objects.get(name="mle-bench/no_sysbox").settings == {"nano_cpus": 36e9}


def test_a_changed_config_is_a_new_version_and_the_old_one_is_kept(
    root: Path, settings: object
) -> None:
    use(settings, root)
    small.write(root, "environment/config/container_configs/gpu.json", '{"gpus": 2}')

    use(settings, root)

    config = ContainerConfig.objects.get(name="gpu")
    assert (config.version, config.settings) == (2, {"gpus": 2})
    assert [version.number for version in config.versions.all()] == [2, 1]
    assert config.versions.get(number=1).settings["mem_limit"] == "80G"


def test_a_checkout_that_is_not_named_any_more_leaves_the_lists(
    root: Path, settings: object
) -> None:
    facts = Competition.objects.get(name="spaceship-titanic").gold_threshold
    small.add_competition(root, "spaceship-titanic")
    use(settings, root)

    use(settings)

    assert listed() == ["baseline", "builtin/dummy", "marathon"]
    titanic = Competition.objects.get(name="spaceship-titanic")
    assert (titanic.folder, titanic.gold_threshold) == ("", facts)


def test_a_broken_checkout_keeps_what_was_read_before(root: Path, settings: object) -> None:
    use(settings, root)
    root.rename(root.with_name("elsewhere"))

    [row] = use(settings, root)

    assert "is no folder" in row.error
    assert "aide" in listed()


def test_a_demo_competition_is_never_replaced(root: Path, settings: object) -> None:
    small.add_competition(root, "demo-diamond-prices")

    [row] = use(settings, root)

    assert Competition.objects.get(name="demo-diamond-prices").folder.startswith("builtin:")
    assert any("demo competition" in each["message"] for each in row.problems)


def test_the_first_checkout_of_two_has_the_competition(
    root: Path, settings: object, tmp_path: Path
) -> None:
    second = small.make(tmp_path / "fork")

    _, row = use(settings, root, second)

    assert Competition.objects.get(name="our-pears").folder.startswith(str(root))
    assert any("which comes first" in each["message"] for each in row.problems)


# ------------------------------------------------------------------------------------ git


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(root: Path) -> Path:
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=first")
    return root


def test_commit_branch_and_changes_of_a_repository_are_recorded(
    repository: Path, settings: object
) -> None:
    [row] = use(settings, repository)
    assert (row.commit, row.branch, row.is_dirty) == (
        git(repository, "rev-parse", "HEAD").strip(), "main", False,
    )  # fmt: skip

    (repository / "agents/dummy/start.sh").write_text("echo changed\n")
    [row] = use(settings, repository)
    assert row.is_dirty


def test_a_folder_that_is_no_repository_has_no_commit(root: Path, settings: object) -> None:
    [row] = use(settings, root)

    assert (row.commit, row.branch, row.is_dirty) == ("", "", None)


def test_a_git_url_is_cloned_read_and_brought_up_to_date(
    repository: Path, settings: object, tmp_path: Path
) -> None:
    settings.DATA_DIR = tmp_path / "data"  # type: ignore[attr-defined]
    row = checkouts.add(f"file://{repository}", "main")
    assert row.is_being_read

    [row] = checkouts.do_asked()

    assert not row.is_being_read
    assert (row.error, row.branch, row.is_dirty) == ("", "main", False)
    assert "aide/o1-preview" in listed()

    small.add_agent(
        repository, "new", "new:\n  start: new/start.sh\n  dockerfile: new/Dockerfile\n"
    )
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=second")
    checkouts.ask()
    [row] = checkouts.do_asked()
    assert "new" in listed()
    assert row.commit == git(repository, "rev-parse", "HEAD").strip()


def test_a_url_that_cannot_be_cloned_says_why_and_asks_nobody(
    settings: object, tmp_path: Path
) -> None:
    settings.DATA_DIR = tmp_path / "data"  # type: ignore[attr-defined]
    checkouts.add(f"file://{tmp_path}/nothing", "main")

    [row] = checkouts.do_asked()

    assert "nothing" in row.error
    assert not row.is_being_read


@pytest.mark.parametrize(
    ("url", "ref"),
    [
        ("ext::sh -c true", ""),
        ("--upload-pack=true", ""),
        ("/etc", ""),
        ("https://example.org/x", "--force"),
        ("https://example.org/x", "a..b"),
        ("https://example.org/a b", ""),
    ],
)
def test_what_could_run_a_program_is_no_git_url(url: str, ref: str) -> None:
    with pytest.raises(checkouts.CheckoutInvalid):
        checkouts.add(url, ref)
    assert not Checkout.objects.exists()


def test_only_what_was_asked_for_is_read(root: Path, settings: object) -> None:
    use(settings, root)

    assert checkouts.do_asked() == []
    checkouts.ask()
    assert [row.name for row in checkouts.do_asked()] == ["mle-bench"]
    assert checkouts.do_asked() == []


def test_the_command_prints_what_is_wrong_and_can_fail_on_it(
    root: Path, settings: object, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.MLEBENCH_DIRS = [root]  # type: ignore[attr-defined]
    small.add_agent(root, "x", "bad:\n  start: 1\n  dockerfile: 2\n")

    call_command("refresh_catalog")
    out = capsys.readouterr().out
    assert "mle-bench: 3 agents, 2 competitions" in out
    assert "error: agents/x/config.yaml, line 1: bad: start is missing" in out
    with pytest.raises(CommandError):
        call_command("refresh_catalog", "--fail")


# ------------------------------------------------------------------------------------ the real one


def test_a_real_checkout_is_listed_whole(settings: object, real_checkout: Path) -> None:
    make_split("low")
    [row] = use(settings, real_checkout)

    assert [each for each in row.problems if each["level"] == "error"] == []
    names = set(listed())
    assert {"aide/o1-preview", "dummy", "mlagentbench", "opendevin", "builtin/dummy"} <= names
    assert not names & {"defaults", "vars", "kwargs_common"}
    assert Agent.objects.get(name="opendevin").privileged
    assert Competition.objects.filter(checkout=row).count() == 82
    assert not Competition.objects.filter(checkout=row, gold_threshold=None).exists()
    assert Split.objects.get(name="spaceship-titanic").competitions.count() == 1
    sizes = {split.name: split.competitions.count() for split in Split.objects.all()}
    assert (sizes["low"], sizes["medium"], sizes["high"], sizes["split75"]) == (22, 38, 15, 75)
    assert not any("own list" in each["message"] for each in row.problems)
