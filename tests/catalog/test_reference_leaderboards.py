"""The thresholds of the demo competitions, and their graders."""

import csv
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from mlebench_web.catalog import data, folders
from mlebench_web.catalog.models import Competition

pytestmark = pytest.mark.django_db
DEMO = ["demo-diamond-prices", "demo-tree-crown-tiles"]
# Other versions of the libraries move scores a little; ranks of neighbours may swap.
TOLERANCE = 0.005

GRADE = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import run_ladder
run_ladder.offer_grade_helpers()
import grade, pandas
answers, good = pandas.read_csv(sys.argv[3]), pandas.read_csv(sys.argv[4])
found = {"sample": grade.grade(good, answers)}
target = good.columns[1]
for name, bad in {
    "a row less": good.iloc[:-1],
    "no id": good.drop(columns="id"),
    "no target": good.drop(columns=target),
    "an id twice": good.assign(id=good["id"].replace(good["id"][1], good["id"][0])),
    "other ids": good.assign(id=good["id"] + 1_000_000),
    "text": good.assign(**{target: "x"}),
    "infinite": good.assign(**{target: float("inf")}),
    "empty": pandas.DataFrame(),
}.items():
    try:
        found[name] = grade.grade(bad, answers)
    except run_ladder.InvalidSubmissionError as error:
        found[name] = str(error)
found["shuffled"] = grade.grade(good.sample(frac=1, random_state=1), answers)
perfect = answers.rename(columns={answers.columns[1]: target})
found["perfect"] = grade.grade(perfect, answers)
print(json.dumps(found))
"""


def prepared(name: str) -> Competition:
    competition = Competition.objects.get(name=name)
    data.prepare(competition, lambda done, total: None)
    return competition


@pytest.mark.parametrize("name", DEMO)
def test_ten_rungs_best_first_made_by_the_code_beside_them(name: str) -> None:
    folder = folders.COMPETITIONS / name
    with (folder / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    competition = Competition.objects.get(name=name)

    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 10
    assert scores == sorted(scores, reverse=not competition.is_lower_better)
    assert (scores[0], scores[1], scores[3]) == (
        competition.gold_threshold,
        competition.silver_threshold,
        competition.bronze_threshold,
    )
    code = hashlib.sha256((folder / "reference_ladder.py").read_bytes()).hexdigest()
    assert {row["code_sha256"] for row in rows} == {code}, "run build_reference_leaderboard"
    assert {row["kind"] for row in rows} == {"reference-baseline"}
    assert all(row["team_name"].startswith("reference: ") for row in rows)


def check_grader(competition: Competition) -> dict[str, float | str]:
    folder = data.folder_of(competition)
    arguments = [folders.BUILTIN, folder, data.answers(competition)]
    done = subprocess.run(
        [settings.ML_PYTHON, "-B", "-c", GRADE, *arguments, data.sample_submission(competition)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_grader_of_the_diamonds_refuses_what_is_not_a_submission() -> None:
    found = check_grader(prepared("demo-diamond-prices"))

    assert found.pop("sample") == found.pop("shuffled") == pytest.approx(1.02108, abs=1e-5)
    assert found.pop("perfect") == 0
    assert found == {
        "a row less": "Submission should have 10759 rows, it has 10758.",
        "no id": "Submission should have a column `id`.",
        "no target": "Submission should have a column `price`.",
        "an id twice": "Submission should have each id once.",
        "other ids": "Submission should have the ids of test.csv.",
        "text": "Each `price` should be a finite number.",
        "infinite": "Each `price` should be a finite number.",
        "empty": "Submission should have a column `id`.",
    }


@pytest.mark.slow
def test_the_tiles_are_downloaded_and_their_grader_refuses_what_is_not_a_submission(
    tmp_path: Path,
) -> None:
    found = check_grader(prepared("demo-tree-crown-tiles"))

    assert found.pop("sample") == found.pop("shuffled") == 0.5
    assert found.pop("perfect") == 1
    assert len(found) == 8
    assert all(isinstance(message, str) for message in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO)
def test_the_ladder_gives_the_committed_scores(name: str, tmp_path: Path) -> None:
    prepared(name)

    call_command("build_reference_leaderboard", name, output=tmp_path)

    scores = {}
    for where, folder in (("committed", folders.COMPETITIONS / name), ("now", tmp_path)):
        with (folder / "leaderboard.csv").open(newline="") as file:
            scores[where] = {row["team_name"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores["now"] == pytest.approx(scores["committed"], abs=TOLERANCE)
