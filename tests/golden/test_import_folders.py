"""Upstream's own folder and real reports of forks come in as they are."""

import json
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from runs import imports
from runs.models import GradingReport, Run
from tests.factories import make_competition

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def folders(settings: Settings, tmp_path: Path) -> None:
    settings.RUN_GROUPS_DIR = tmp_path / "run-groups"
    settings.MEDIA_ROOT = tmp_path / "media"


def test_a_run_group_that_upstream_made_and_graded(golden: Path) -> None:
    make_competition("aerial-cactus-identification")
    folder = next((golden / "upstream-synthetic" / "runs").iterdir())
    report = json.loads(next(folder.glob("*_grading_report.json")).read_text())

    done = imports.import_path(folder.parent, by=None)

    [group] = done.groups
    assert done.plan.groups[0].group.skipped == ()
    assert (group.upstream_name, group.runs.count()) == (folder.name, 6)
    rows = [
        current.as_upstream()
        for current in GradingReport.objects.filter(is_current=True).order_by("attempt__run__seed")
    ]
    assert rows == report["competition_reports"]
    # The fourth left no submission, and no row names it: it is told from the others all the same.
    assert {f"{run.upstream_id}" for run in Run.objects.all()} == {
        path.name for path in folder.iterdir() if path.is_dir()
    }


def test_a_folder_of_forks_reports(golden: Path) -> None:
    """Two of the three grade the same submissions: one run group, with a history."""
    for name in (
        "denoising-dirty-documents",
        "aerial-cactus-identification",
        "leaf-classification",
    ):
        make_competition(name)

    done = imports.import_path(golden / "foreign-reports", experiment="forks", by=None)

    assert [each.group.gradings for each in done.plan.groups] == [6, 1]
    assert (Run.objects.count(), GradingReport.objects.filter(is_current=True).count()) == (4, 4)
    newest = GradingReport.objects.filter(is_current=True, grader__contains="13-02-46")
    assert newest.count() == 3
    again = imports.import_path(golden / "foreign-reports", experiment="forks", by=None)
    assert again.groups == ()
