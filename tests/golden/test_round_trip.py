"""Results go out and come back, or come from upstream's own layout, with the same numbers."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import transaction
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from mlebench_web.catalog.models import Split
from runs import exporting, imports, layout, leaderboard
from runs.core import statistics
from runs.core.failures import Cause
from runs.core.reports import read_report
from runs.core.states import Outcome, Result
from runs.core.statistics import Graded, IncompleteSeeds
from runs.models import Attempt, Experiment, GradingReport, Run, RunGroup
from tests.factories import make_attempt, make_competition, make_group, make_run, make_split
from tests.support.upstream import row, run_id, tar_of, unpacked, without_submission, write_group

pytestmark = pytest.mark.django_db

NAMES = ("cactus", "leaf", "whale")
# The database and folders are emptied by each example itself.
SLOW = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def three(db: None, settings: Settings, tmp_path: Path) -> Split:
    settings.RUN_GROUPS_DIR = tmp_path / "run-groups"
    settings.MEDIA_ROOT = tmp_path / "media"
    return make_split("three", [make_competition(name) for name in NAMES])


# ---------------------------------------------------------------------------- upstream's folders

MEDALS = st.sampled_from(["", "gold", "silver", "bronze", "none", "invalid"])
# For each run group: for each competition, how its runs ended.
GROUPS = st.lists(
    st.tuples(*(st.lists(MEDALS, max_size=4) for _ in NAMES)).filter(any), min_size=1, max_size=4
)
Groups = list[tuple[list[str], ...]]


def row_of(name: str, medal: str, score: float) -> dict[str, object]:
    if medal == "none":
        return without_submission(name)
    if medal == "invalid":
        return row(name, score=None, valid_submission=False)
    return row(name, medal, score=score, above_median=medal != "")


def write_groups(groups: Groups, folder: Path) -> list[Path]:
    """As upstream leaves them: group 10 stands before group 2."""
    made = []
    for number, competitions in enumerate(groups, 1):
        rows = [
            (run_id(name), row_of(name, medal, seed / 7))
            for name, medals in zip(NAMES, competitions, strict=True)
            for seed, medal in enumerate(medals)
        ]
        made.append(write_group(folder, f"agent_group{number}", rows, logs=False))
    return made


def reports_in_order(folders: list[Path]) -> list[Path]:
    """Upstream sorts the paths of reports as strings."""
    return sorted((next(folder.glob("*grading_report*.json")) for folder in folders), key=str)


def expected(reports: list[Path], *, pad_missing: bool) -> dict[str, Any] | None:
    """Upstream's arithmetic over the files themselves; None: no complete seed."""
    graded: dict[str, list[Graded]] = {}
    for path in reports:
        for each in read_report(path.read_bytes(), path.name).rows:
            graded.setdefault(each.competition_id, []).append(
                Graded(
                    each.submission_exists,
                    each.valid_submission,
                    each.above_median,
                    each.gold_medal,
                    each.silver_medal,
                    each.bronze_medal,
                )
            )
    try:
        seeds = statistics.complete_seeds(graded, NAMES, pad_missing=pad_missing)
    except IncompleteSeeds:
        return None
    return {
        "seeds": len(seeds),
        "metrics": {name: vars(one) for name, one in statistics.summaries(seeds).items()},
    }


def ours(split: Split, *, pad_missing: bool) -> dict[str, Any] | None:
    [found] = leaderboard.rows(split, pad_missing=pad_missing)
    if not found.seeds:
        return None
    return {
        "seeds": found.seeds,
        "metrics": {name: vars(one) for name, one in found.metrics.items()},
    }


@SLOW
@given(groups=GROUPS, pad_missing=st.booleans(), as_archive=st.booleans())
@example(groups=[(["gold"], ["gold"], [""])] * 11, pad_missing=False, as_archive=True)
def test_upstreams_folders_come_in_with_the_numbers_of_their_reports(
    groups: Groups, pad_missing: bool, as_archive: bool, three: Split
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folders = write_groups(groups, Path(name) / "runs")
        wanted = expected(reports_in_order(folders), pad_missing=pad_missing)
        path = Path(name) / "runs"
        if as_archive:
            path = Path(name) / "runs.tar.gz"
            path.write_bytes(tar_of(Path(name) / "runs"))

        with forgotten():
            imports.import_path(path, experiment="e", by=None)
            found = ours(three, pad_missing=pad_missing)

    assert found == wanted


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What is made inside is taken back: rows by a rollback, folders by removing them."""
    try:
        with transaction.atomic():
            yield
            transaction.set_rollback(True)
    finally:
        shutil.rmtree(django_settings.RUN_GROUPS_DIR, ignore_errors=True)


# ---------------------------------------------------------------------------- ours, out and back

ENDS = st.sampled_from([*Result, *(o for o in Outcome if o != Outcome.CONTINUED), "again"])
OURS = st.lists(
    st.tuples(*(st.lists(ENDS, min_size=1, max_size=3) for _ in NAMES)), min_size=1, max_size=3
)


def run_here(groups: list[tuple[list[Any], ...]]) -> None:
    for number, competitions in enumerate(groups):
        group = make_group(
            experiment="e", folder=f"2026-01-0{number + 1}T00-00-00-UTC_run-group_baseline"
        )
        group.time_limit = timedelta(hours=24)
        group.save()
        for name, ends in zip(NAMES, competitions, strict=True):
            for seed, end in enumerate(ends):
                run = one_run(group, name, seed, end)
                leave_files(run)


def one_run(group: RunGroup, name: str, seed: int, end: Any) -> Run:
    competition = make_competition(name)
    where: dict[str, Any] = {"group": group, "competition": competition, "seed": seed}
    if end == "again":
        run = make_run(**where, outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED)
        make_attempt(run, result=Result.GOLD, resumed_from=run.newest_attempt())
        run.refresh_from_db()
        return run
    if isinstance(end, Outcome) and end != Outcome.GRADED:
        causes = {
            Outcome.AGENT_FAILED: Cause.TIME_LIMIT,
            Outcome.INFRASTRUCTURE_FAILED: Cause.HOST_LOST,
            Outcome.CANCELLED: Cause.CANCELLED,
        }
        return make_run(**where, outcome=end, cause=causes[end])
    return make_run(**where, result=end if isinstance(end, Result) else Result.VALID)


def leave_files(run: Run) -> None:
    if run.counted is None:
        return
    for name in ("submission/submission.csv", "code/train.py"):
        path = layout.attempt_folder(run.counted) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{run}\n")


def rows_as_json(split: Split, **options: bool) -> list[dict[str, Any]]:
    """But for the mark that they were imported."""
    found = []
    for each in leaderboard.rows(split, **options):
        shown = each.as_json()
        shown["flags"] = [flag for flag in shown["flags"] if flag["name"] != "imported"]
        shown.pop("imported")
        found.append(shown)
    return found


@SLOW
@given(groups=OURS, pad_missing=st.booleans(), by_tar=st.booleans())
@example(groups=[(["again"], [Result.VALID], [Outcome.CANCELLED])], pad_missing=True, by_tar=True)
def test_an_export_comes_back_into_a_fresh_database_with_the_same_leaderboard(
    groups: list[tuple[list[Any], ...]], pad_missing: bool, by_tar: bool, three: Split
) -> None:
    with forgotten(), tempfile.TemporaryDirectory() as name:
        run_here(groups)
        before = rows_as_json(three, pad_missing=pad_missing)
        results = results_of_runs()
        path = export(Path(name), by_tar=by_tar)
        Experiment.objects.all().delete()
        shutil.rmtree(django_settings.RUN_GROUPS_DIR)

        imports.import_path(path, by=None)

        assert rows_as_json(three, pad_missing=pad_missing) == before
        assert results_of_runs() == results
        again = imports.import_path(path, by=None)
        assert (again.groups, results_of_runs()) == ((), results)


def results_of_runs() -> list[tuple[object, ...]]:
    found = []
    for run in Run.objects.select_related("counted", "competition", "group"):
        report = GradingReport.objects.filter(attempt=run.counted, is_current=True).first()
        found.append(
            (
                run.uuid,
                run.group.folder,
                run.seed,
                run.state,
                run.result,
                report
                and [each for key, each in report.as_upstream().items() if "path" not in key],
                run.newest_attempt().outcome,
                run.newest_attempt().cause,
                run.counted and run.counted.hardware,
                run.counted and run.counted.active_seconds,
                run.counted and file_of(run.counted),
            )
        )
    return sorted(found, key=lambda each: str(each[0]))


def file_of(attempt: Attempt) -> str:
    return (layout.attempt_folder(attempt) / "submission" / "submission.csv").read_text()


def export(folder: Path, *, by_tar: bool) -> Path:
    groups = list(RunGroup.objects.select_related("experiment"))
    if not by_tar:
        exporting.write(groups, folder / "runs")
        return folder / "runs"
    path = folder / "runs.tar"
    prepared = [exporting.prepare(group) for group in groups]
    path.write_bytes(b"".join(exporting.tar_of(prepared)))
    # Anybody's tar reads it.
    assert unpacked(path.read_bytes(), folder / "unpacked").is_dir()
    return path


# ---------------------------------------------------------------------------- upstream's script

# Reads {"reports", "split", "pad"} lines; answers with what the script's main printed.
RUNNER = """
import contextlib, importlib.util, io, json, sys
spec = importlib.util.spec_from_file_location("aggregate", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["aggregate"] = module
spec.loader.exec_module(module)
for line in sys.stdin:
    asked = json.loads(line)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            module.main(asked["reports"], -1, asked["split"], asked["pad"])
    except ValueError as error:
        answer = {"error": str(error)}
    else:
        answer = json.loads(out.getvalue().rpartition("Average metrics across seeds:")[2])
    print(json.dumps(answer), flush=True)
"""


class Aggregate:
    """mle-bench's experiments/aggregate_grading_reports.py, unchanged, in a Python with scipy."""

    def __init__(self, checkout: Path) -> None:
        script = checkout / "experiments" / "aggregate_grading_reports.py"
        self.process = subprocess.Popen(
            [django_settings.ML_PYTHON, "-c", RUNNER, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, reports: list[Path], split: Path, *, pad: bool) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"reports": list(map(str, reports)), "split": str(split), "pad": pad}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def aggregate() -> Iterator[Aggregate]:
    named = os.environ.get("MLEBENCH_DIR", "").split(os.pathsep)[0]
    if not named or not (Path(named) / "experiments" / "aggregate_grading_reports.py").is_file():
        pytest.skip("MLEBENCH_DIR names no checkout of mle-bench")
    runner = Aggregate(Path(named))
    yield runner
    runner.close()


def same(found: dict[str, Any] | None, upstream: dict[str, Any]) -> None:
    if found is None:
        assert "No reports available" in upstream["error"] or "Missing reports" in upstream["error"]
        return
    assert found["seeds"] == upstream["num_seeds_averaged"]
    for name in statistics.METRICS:
        # To the last digit.
        assert found["metrics"][name] == upstream["metrics"][name], name


@SLOW
@given(groups=GROUPS, pad_missing=st.booleans())
def test_upstreams_script_says_the_same_of_its_folders_of_our_import_and_of_our_export(
    groups: Groups, pad_missing: bool, three: Split, aggregate: Aggregate
) -> None:
    with forgotten(), tempfile.TemporaryDirectory() as name:
        split = Path(name) / "split.txt"
        split.write_text("\n".join(NAMES))
        folders = write_groups(groups, Path(name) / "runs")
        theirs = aggregate(reports_in_order(folders), split, pad=pad_missing)

        imports.import_path(Path(name) / "runs", experiment="e", by=None)
        exported = exporting.write(
            list(RunGroup.objects.select_related("experiment")), Path(name) / "out"
        )

        same(ours(three, pad_missing=pad_missing), theirs)
        assert aggregate(reports_in_order(exported), split, pad=pad_missing) == theirs
