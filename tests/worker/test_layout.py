"""Result folders as upstream's tools read them."""

import json
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from runs import layout, logs
from runs.core.states import Outcome, Result
from runs.models import Attempt, Run
from tests.factories import make_attempt, make_competition, make_group, make_run


@pytest.fixture(autouse=True)
def results(db: None, settings: Settings, tmp_path: Path) -> Path:
    settings.RUN_GROUPS_DIR = tmp_path / "run-groups"
    settings.MEDIA_ROOT = tmp_path / "media"
    return tmp_path / "run-groups"


def leave(attempt: Attempt, text: str) -> None:
    """What collection leaves of an attempt."""
    folder = layout.attempt_folder(attempt)
    (folder / "submission").mkdir(parents=True)
    (folder / "submission" / "submission.csv").write_text(text)


def finished_run(**fields: object) -> Run:
    run = make_run(**fields)
    leave(run.newest_attempt(), "id,y\n")
    return run


def test_a_groups_folder_has_what_upstream_reads() -> None:
    group = make_group()
    gold = finished_run(group=group, result=Result.GOLD)
    failed = finished_run(group=group, seed=1, outcome=Outcome.AGENT_FAILED)
    broken = finished_run(group=group, seed=2, outcome=Outcome.INFRASTRUCTURE_FAILED)
    logs.append(gold.newest_attempt().pk, "run", "It began.")

    for run in (gold, failed, broken):
        layout.publish(run.newest_attempt())

    folder = layout.group_folder(group)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["run_group"] == folder.name
    assert metadata["runs"] == {
        gold.upstream_id: {"success": True},
        failed.upstream_id: {"success": False},
    }
    [report_file] = folder.glob("*grading_report*.json")
    report = json.loads(report_file.read_text())
    assert (report["total_runs"], report["total_gold_medals"]) == (2, 1)
    assert len(report["competition_reports"][0]) == 16
    assert (layout.run_folder(gold) / "submission" / "submission.csv").read_text() == "id,y\n"
    run_log = (layout.run_folder(gold) / "run.log").read_text()
    assert "It began." in run_log
    assert run_log.splitlines()[-1].endswith("Run completed in 120.00 seconds.")
    assert not layout.run_folder(broken).exists()


def test_publishing_again_changes_nothing_but_what_is_new() -> None:
    group = make_group()
    run = finished_run(group=group, result=Result.VALID)
    attempt = run.newest_attempt()

    layout.publish(attempt)
    before = sorted(str(path) for path in layout.group_folder(group).rglob("*"))
    layout.publish(attempt)

    assert sorted(str(path) for path in layout.group_folder(group).rglob("*")) == before


def test_what_a_killed_writer_left_is_written_over() -> None:
    run = finished_run(result=Result.VALID)
    layout.publish(run.newest_attempt())
    folder = layout.group_folder(run.group)
    (folder / ".writing-metadata.json").write_text('{"half": ')

    layout.publish(run.newest_attempt())

    assert not list(folder.glob(".writing-*"))
    assert json.loads((folder / "metadata.json").read_text())["run_group"] == folder.name


def test_the_runs_folder_takes_no_second_copy_of_large_files() -> None:
    run = finished_run(result=Result.VALID)

    layout.publish(run.newest_attempt())

    file = layout.run_folder(run) / "submission" / "submission.csv"
    assert file.stat().st_nlink == 2


def test_an_older_attempt_does_not_take_the_place_of_the_one_that_counts() -> None:
    run = finished_run(outcome=Outcome.INFRASTRUCTURE_FAILED)
    old = run.newest_attempt()
    new = make_attempt(run, result=Result.VALID)
    leave(new, "newer\n")

    layout.publish(new)
    layout.publish(old)

    assert (layout.run_folder(run) / "submission" / "submission.csv").read_text() == "newer\n"


def test_what_upstream_has_no_place_for_is_beside_it() -> None:
    group = make_group(env={"OPENAI_API_KEY": "do not tell"})
    run = finished_run(group=group, result=Result.VALID, competition=make_competition())

    layout.publish(run.newest_attempt())

    text = (layout.group_folder(group) / "harness.json").read_text()
    said = json.loads(text)["runs"][run.upstream_id]
    assert (said["seed"], said["active_seconds"]) == (0, 120.0)
    assert said["hardware"]["cpus"] == 2.0
    assert "do not tell" not in text
