"""Six submissions graded by mle-bench itself: ours must say the same, key by key."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from mlebench_web.catalog import official_data
from mlebench_web.catalog.models import Checkout, Competition
from runs import grading
from runs.grader_process import GraderProcess, Kind
from runs.models import Run
from tests.conftest import MakeGroup

# Of place and time, not of the submission.
OF_PLACE_AND_TIME = {"created_at", "submission_path"}


def without_place_and_time(report: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in report.items() if key not in OF_PLACE_AND_TIME}


@pytest.mark.usefixtures("warm_grader")
def test_our_reports_equal_upstreams_in_every_key(
    cactus: Competition, golden: Path, make_group: MakeGroup
) -> None:
    folder = next((golden / "upstream-synthetic" / "runs").iterdir())
    upstream = json.loads(next(folder.glob("*_grading_report.json")).read_text())
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    group = make_group(competitions=[cactus], seeds=len(runs))

    ours = []
    for run, path in zip(Run.objects.filter(group=group).order_by("seed"), runs, strict=True):
        file = path / "submission" / "submission.csv"
        attempt = run.newest_attempt()
        report = grading.grade(attempt, file if file.exists() else None, tick=lambda: None)
        ours.append(report.as_upstream())

    assert list(ours[0]) == list(upstream["competition_reports"][0])
    assert [without_place_and_time(report) for report in ours] == [
        without_place_and_time(report) for report in upstream["competition_reports"]
    ]


def upstreams_replies(golden: Path) -> dict[str, dict[str, object]]:
    path = golden / "upstream-synthetic" / "grading_server_responses.json"
    replies: dict[str, dict[str, object]] = json.loads(path.read_text())
    return replies


# First digit of the run whose submission was sent.
SUBMISSIONS = {
    "POST /validate valid": "1",
    "POST /validate wrong rows": "3",
    "POST /validate empty file": "6",
}


@pytest.mark.parametrize("request_name", [*SUBMISSIONS, "POST /validate binary"])
@pytest.mark.usefixtures("warm_grader")
def test_validate_answers_in_upstreams_words(
    request_name: str, cactus: Competition, golden: Path, tmp_path: Path
) -> None:
    replies = upstreams_replies(golden)
    if digit := SUBMISSIONS.get(request_name):
        runs = golden / "upstream-synthetic" / "runs"
        file = next(runs.glob(f"*/*_{digit * 8}-*/submission/submission.csv"))
    else:
        file = tmp_path / "submission.csv"
        file.write_bytes(b"\xff\xfe\x00binary")

    status, answer = grading.validate(cactus, file)

    assert (status, answer) == (replies[request_name]["status"], replies[request_name]["json"])


@pytest.mark.usefixtures("warm_grader")
def test_validate_without_answers_is_upstreams_error(
    cactus: Competition, golden: Path, settings: Settings, tmp_path: Path
) -> None:
    replies = upstreams_replies(golden)
    settings.COMPETITIONS_DIR = tmp_path
    file = tmp_path / "submission.csv"
    file.write_text("id,has_cactus\n")

    status, answer = grading.validate(cactus, file)

    expected = replies["POST /validate unprepared"]
    assert (status, answer) == (expected["status"], expected["json"])


# ---------------------------------------------------------------------------- by mle-bench itself


@pytest.fixture
def real_cactus(cactus: Competition) -> Iterator[Competition]:
    """The same competition, graded by the checkout that MLEBENCH_DIR names."""
    named = os.environ.get("MLEBENCH_DIR", "").split(os.pathsep)[0]
    if not named:
        pytest.skip("MLEBENCH_DIR names no checkout of mle-bench")
    folder = Path(named) / "mlebench" / "competitions" / cactus.name
    checkout = Checkout.objects.create(name="real", path=named)
    Competition.objects.filter(pk=cactus.pk).update(folder=str(folder), checkout=checkout)
    process = GraderProcess(kind=Kind.OFFICIAL)
    if not official_data.cannot_grade():
        process.ensure()
    yield Competition.objects.get(pk=cactus.pk)
    process.stop()


def test_the_real_checkout_gives_upstreams_reports_and_replies(
    real_cactus: Competition, golden: Path, make_group: MakeGroup
) -> None:
    folder = next((golden / "upstream-synthetic" / "runs").iterdir())
    upstream = json.loads(next(folder.glob("*_grading_report.json")).read_text())
    replies = upstreams_replies(golden)
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    group = make_group(competitions=[real_cactus], seeds=len(runs))
    if official_data.cannot_grade():
        file = next(runs[0].glob("submission/submission.csv"))
        assert grading.validate(real_cactus, file)[0] == 500
        return

    ours = []
    for run, path in zip(Run.objects.filter(group=group).order_by("seed"), runs, strict=True):
        file = path / "submission" / "submission.csv"
        attempt = run.newest_attempt()
        report = grading.grade(attempt, file if file.exists() else None, tick=lambda: None)
        ours.append(without_place_and_time(report.as_upstream()))

    assert ours == [without_place_and_time(report) for report in upstream["competition_reports"]]
    for name, digit in SUBMISSIONS.items():
        file = next(folder.glob(f"*_{digit * 8}-*/submission/submission.csv"))
        expected = replies[name]
        assert grading.validate(real_cactus, file) == (expected["status"], expected["json"])
