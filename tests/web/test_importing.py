"""Run groups of elsewhere, from a folder or an archive to rows, files and the leaderboard."""

import io
import json
import tarfile
import zipfile
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from mlebench_web.accounts.models import AuditEntry, User
from mlebench_web.catalog.models import Split
from runs import import_files, importing, imports, layout, leaderboard, logs, submit
from runs.core.reports import ImportRefused
from runs.core.states import Outcome, Result, RunState, State
from runs.models import Attempt, Experiment, GradingReport, Import, Run, RunGroup
from tests.factories import make_agent, make_competition, make_run, make_split
from tests.support.upstream import (
    STAMP,
    row,
    run_id,
    tar_of,
    without_submission,
    write_group,
    write_metadata,
    write_report,
)

pytestmark = pytest.mark.django_db

NAMES = ("leaf", "cactus")
GROUP = f"{STAMP}_run-group_aide"


@pytest.fixture(autouse=True)
def pair(db: None, settings: Settings, tmp_path: Path) -> Split:
    settings.RUN_GROUPS_DIR = tmp_path / "run-groups"
    settings.MEDIA_ROOT = tmp_path / "media"
    return make_split("pair", [make_competition(name) for name in NAMES])


def bring(path: Path, **options: Any) -> importing.Done:
    return imports.import_path(path, by=None, **options)


def command(*arguments: object) -> tuple[dict[str, Any], str]:
    out, err = StringIO(), StringIO()
    call_command(*map(str, arguments), stdout=out, stderr=err)
    return json.loads(out.getvalue()), err.getvalue()


def counts() -> tuple[int, int, int, int]:
    return (
        RunGroup.objects.count(),
        Run.objects.count(),
        GradingReport.objects.count(),
        AuditEntry.objects.count(),
    )


@pytest.fixture
def group_folder(tmp_path: Path) -> Path:
    rows = [
        (run_id("leaf"), row("leaf", "gold")),
        (run_id("cactus"), row("cactus")),
        (run_id("leaf"), without_submission("leaf")),
        (run_id("cactus"), row("cactus", "bronze")),
    ]
    return write_group(tmp_path / "runs", GROUP, rows, seconds=3600.5)


def test_a_run_groups_folder_becomes_runs_with_files_and_time(group_folder: Path) -> None:
    done = bring(group_folder, experiment="old results")

    [group] = done.groups
    assert group.experiment.name == "old results"
    assert (group.folder, group.upstream_name, group.imported_from) == (GROUP, GROUP, GROUP)
    assert (group.seeds, group.is_imported, group.agent) == (2, True, None)
    assert f"{group.created_at:%Y-%m-%d}" == "2026-01-01"
    results = {(run.competition.name, run.seed): run.result for run in group.runs.all()}
    assert results == {
        ("leaf", 0): Result.GOLD,
        ("leaf", 1): Result.NO_SUBMISSION,
        ("cactus", 0): Result.VALID,
        ("cactus", 1): Result.BRONZE,
    }
    run = group.runs.get(result=Result.GOLD)
    assert (group_folder / run.upstream_id).is_dir()
    attempt = run.newest_attempt()
    assert (attempt.state, attempt.outcome, attempt.host) == (State.ENDED, Outcome.GRADED, None)
    assert (attempt.active_seconds, attempt.has_time, attempt.hardware) == (3600.5, True, {})
    kept = layout.attempt_folder(attempt)
    assert (kept / "submission" / "submission.csv").read_text().startswith("id,y")
    assert {each["path"] for each in attempt.artifacts} == {
        "submission/submission.csv",
        "logs/agent.log",
        "code/train.py",
        "run.log",
    }
    assert "I thought." in logs.window(attempt.pk, "agent").text
    assert logs.window(attempt.pk, "container").text == (kept / "run.log").read_text()
    # What upstream's tools read is there too, and its own files are kept as they were.
    assert (layout.run_folder(run) / "run.log").read_text() == (kept / "run.log").read_text()
    originals = layout.group_folder(group) / "imported"
    assert sorted(path.name for path in originals.iterdir()) == [
        f"{STAMP}_grading_report.json",
        "metadata.json",
    ]


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip", "runs in a checkout"])
def test_however_it_is_packed_it_is_the_same_and_known_the_second_time(
    kind: str, group_folder: Path, tmp_path: Path
) -> None:
    bring(group_folder, experiment="e")
    before = counts()
    path = pack(group_folder, kind, tmp_path)

    again = bring(path, experiment="e")

    assert again.groups == ()
    assert [each.known for each in again.plan.groups] == [
        f"It is here already, as run group {RunGroup.objects.get().pk}."
    ]
    assert counts() == before


def pack(folder: Path, kind: str, tmp_path: Path) -> Path:
    if kind == "folder":
        return folder
    if kind == "runs in a checkout":
        target = tmp_path / "mle-bench" / "runs"
        target.mkdir(parents=True)
        (target / "README.md").write_text("x")
        return folder.rename(target / folder.name).parent.parent
    path = tmp_path / f"results.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.rglob("*"):
                archive.write(file, file.relative_to(folder.parent))
    else:
        path.write_bytes(tar_of(folder, mode="w:gz" if kind == "tar.gz" else "w"))
    return path


def test_a_dry_run_says_what_would_be_made_and_makes_nothing(group_folder: Path) -> None:
    before = counts()

    answer, _ = command("import_runs", group_folder, "--dry-run")

    assert (answer["run_groups"], answer["runs"], answer["reports"]) == (1, 4, 1)
    assert answer["groups"][0]["experiment"] == GROUP
    assert counts() == before
    assert not Experiment.objects.exists()
    assert not layout.group_folder(RunGroup(folder=GROUP)).exists()


def test_an_archive_of_a_group_alone_is_named_by_its_metadata(
    group_folder: Path, tmp_path: Path
) -> None:
    """`tar -C group .`: no folder says the group's name."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(group_folder, arcname=".")

    [group] = bring(path).groups

    assert (group.upstream_name, group.imported_from) == (GROUP, "x.tar")


def test_the_experiments_file_says_where_groups_belong_also_to_several(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("group_1", "group_10", "group_2", "stray"):
        write_group(runs, name, [(run_id(each), row(each, "gold")) for each in NAMES])
    (runs / "run_group_experiments.csv").write_text(
        "experiment_id,run_group\nR&D, Agent,x\nmine,group_2\nmine,group_10\nmine,group_1\n"
        "also mine,group_1\n"
    )

    done = bring(runs)

    mine = Experiment.objects.get(name="mine")
    assert [g.upstream_name for g in sorted(mine.groups.all(), key=lambda g: g.upstream_name)] == [
        "group_1",
        "group_10",
        "group_2",
    ]
    [copy] = Experiment.objects.get(name="also mine").groups.all()
    assert (copy.upstream_name, copy.folder != "group_1") == ("group_1", True)
    assert {each.what for each in done.plan.skipped} == {"stray"}
    assert "gives it no experiment" in done.plan.skipped[0].why
    assert done.plan.warnings == (
        "Agent,x of experiment R&D is in run_group_experiments.csv, but there is no such folder.",
    )
    # Both copies have files of their own, and ids of their own.
    assert Run.objects.count() == 8
    run = copy.runs.first()
    assert run is not None
    assert (layout.attempt_folder(run.newest_attempt()) / "submission").is_dir()


def test_run_groups_stand_in_upstreams_order_on_every_database(tmp_path: Path, pair: Split) -> None:
    """B before a and _ as Python sorts; a database may know better."""
    for name, medal in (("a", "gold"), ("B", ""), ("_", "silver")):
        write_group(tmp_path / "runs", name, [(run_id(each), row(each, medal)) for each in NAMES])

    bring(tmp_path / "runs", experiment="e")

    [found] = leaderboard.rows(pair)
    assert [(one.gold, one.silver) for one in found.medals] == [(0, 0), (0, 2), (2, 0)]


def test_a_second_report_of_the_same_submissions_is_history(group_folder: Path) -> None:
    content = json.loads(next(group_folder.glob("*report.json")).read_text())
    for each in content["competition_reports"]:
        each["score"] = 0.25 if each["submission_exists"] else None
        # Graded from another folder, and later: with another path to the same files.
        each["submission_path"] = each["submission_path"].replace("runs/", "/home/me/runs/")
    (group_folder / "2026-02-01T00-00-00-GMT_grading_report.json").write_text(json.dumps(content))

    [group] = bring(group_folder).groups

    run = group.runs.get(competition__name="cactus", seed=0)
    reports = run.newest_attempt().reports.order_by("is_current")
    assert [(each.score, each.is_current) for each in reports] == [(0.5, False), (0.25, True)]
    assert (run.score, group.runs.count()) == (0.25, 4)


def test_a_second_report_of_other_submissions_is_more_seeds(group_folder: Path) -> None:
    more = [(run_id(name), row(name, "silver")) for name in NAMES]
    write_report(group_folder, "seed_1_grading_report.json", more, group=GROUP)

    [group] = bring(group_folder).groups

    assert (group.runs.count(), group.seeds) == (6, 3)
    assert group.runs.filter(seed=2, result=Result.SILVER).count() == 2


def test_reports_that_contradict_each_other_leave_their_group_out(group_folder: Path) -> None:
    content = json.loads(next(group_folder.glob("*report.json")).read_text())
    del content["competition_reports"][0]
    (group_folder / "other_grading_report.json").write_text(json.dumps(content))

    with pytest.raises(ImportRefused, match=r"two grading reports, .* Keep the one that counts"):
        bring(group_folder)

    assert not RunGroup.objects.exists()


def test_runs_without_a_row_are_left_out_and_named(group_folder: Path) -> None:
    extra = run_id("leaf")
    runs = list(json.loads((group_folder / "metadata.json").read_text())["runs"])
    write_metadata(group_folder, GROUP, [*runs, extra])

    done = bring(group_folder)

    assert done.groups[0].runs.count() == 4
    assert [each.what for each in done.plan.groups[0].group.skipped] == [extra]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(lambda folder: (folder / "metadata.json").write_text("{"), "not JSON", id="m"),
        pytest.param(
            lambda folder: next(folder.glob("*report.json")).write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
            ),
            "Git LFS pointer",
            id="a pointer",
        ),
        pytest.param(
            lambda folder: next(folder.glob("*report.json")).unlink(),
            "no grading report: run `mlebench grade`",
            id="not graded",
        ),
        pytest.param(
            lambda folder: write_report(
                folder, f"{STAMP}_grading_report.json", [("", row("unheard-of"))]
            ),
            "Unknown competitions: unheard-of",
            id="unknown competition",
        ),
    ],
)
def test_a_broken_group_harms_only_itself(spoil: Any, why: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("bad", "good"):
        write_group(runs, name, [(run_id(each), row(each)) for each in NAMES])
    spoil(runs / "bad")

    answer, said = command("import_runs", runs)

    assert [each["name"] for each in answer["groups"]] == ["good"]
    assert answer["skipped"][0]["what"] == "bad"
    assert why in answer["skipped"][0]["why"]
    assert f"skipped: bad: {answer['skipped'][0]['why']}" in said
    assert RunGroup.objects.get().upstream_name == "good"


def test_a_header_that_lies_is_named_in_the_plan(tmp_path: Path) -> None:
    write_group(
        tmp_path, "g", [(run_id("leaf"), row("leaf"))], header={"total_runs_with_submissions": 75}
    )

    [planned] = bring(tmp_path / "g", is_dry_run=True).plan.groups

    assert planned.group.warnings == (
        f"{STAMP}_grading_report.json: total_runs_with_submissions says 75, its rows say 1. "
        "The rows count.",
    )


# ---------------------------------------------------------------------------- hostile sources


def hostile_tar(folder: Path, name: str, **fields: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(folder, arcname=folder.name)
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b""))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("../../outside", {}, r"\.\./\.\./outside: the name leads out"),
        ("g/link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "g/link: it is a symbolic link"),
        ("g/null", {"type": tarfile.CHRTYPE}, "g/null: it is a device"),
    ],
)
def test_nothing_of_a_hostile_archive_stays(
    name: str, fields: dict[str, object], message: str, group_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(hostile_tar(group_folder, name, **fields))

    with pytest.raises(CommandError, match=f"bad.tar: {message}.*Nothing was imported"):
        command("import_runs", path)

    assert not RunGroup.objects.exists()
    assert list(import_files.groups_dir().iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_links_in_a_folder_of_the_server_are_left_out_and_listed(
    group_folder: Path, tmp_path: Path
) -> None:
    """Agents leave links, and a folder is no archive: its files are still worth having."""
    secret = tmp_path / "secret"
    secret.write_text("a host's own file")
    run = next(path for path in group_folder.iterdir() if path.name.startswith("leaf_"))
    (run / "code" / "link").symlink_to(secret)
    (run / "ckpt").mkdir()
    (run / "logs" / "agent.log").unlink()
    (run / "logs" / "agent.log").symlink_to(secret)

    bring(group_folder)

    attempt = Attempt.objects.get(run__uuid=run.name.partition("_")[2])
    assert {each["path"]: each["why"] for each in attempt.left_out} == {
        "ckpt": "a folder that no run of mle-bench has",
        "code/link": "a symbolic link",
        "logs/agent.log": "a symbolic link",
    }
    assert "a host's own file" not in logs.window(attempt.pk, "agent").text


def test_an_import_that_fails_late_leaves_neither_rows_nor_files(
    group_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_group(tmp_path / "runs", "zz", [(run_id("leaf"), row("leaf"))])
    # Something that no row names stands where the second group's folder goes.
    real = import_files.Staged.move_to

    def move_to(self: import_files.Staged, name: str) -> None:
        if name == other.name:
            raise ImportRefused("the disk broke")
        real(self, name)

    monkeypatch.setattr(import_files.Staged, "move_to", move_to)

    with pytest.raises(ImportRefused, match="the disk broke"):
        bring(tmp_path / "runs", experiment="e")

    assert (counts()[:3], Experiment.objects.exists()) == ((0, 0, 0), False)
    assert list(import_files.groups_dir().iterdir()) == []


def test_what_a_dead_import_left_is_replaced_and_removed(group_folder: Path) -> None:
    """It died after its folder was moved into place, before its rows were committed."""
    base = import_files.groups_dir()
    half = base / GROUP
    half.mkdir(parents=True)
    (half / import_files.MARKER).write_text(f"{import_files.PREFIX}dead")
    (half / "half").touch()
    dead = base / f"{import_files.PREFIX}dead"
    dead.mkdir()
    (dead / import_files.LOCK).touch()

    [group] = bring(group_folder).groups

    assert group.folder == GROUP
    assert not (half / "half").exists()
    assert not (half / import_files.MARKER).exists()
    assert not dead.exists()


def test_an_import_at_work_is_left_alone_by_another(group_folder: Path) -> None:
    """Its folder is in place, and its rows are not committed: nobody can see them."""
    with import_files.staging() as other:
        theirs = import_files.groups_dir() / GROUP
        theirs.mkdir()
        (theirs / import_files.MARKER).write_text(other.root.name)

        [group] = bring(group_folder).groups

        assert other.root.is_dir()
        assert list(theirs.iterdir()) == [theirs / import_files.MARKER]
    assert group.folder != GROUP
    assert group.upstream_name == GROUP


def test_what_an_import_had_not_done_when_it_died_is_done_by_the_next(
    group_folder: Path, alice: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It died after its rows were committed: no links, no logs, and its ask is still at work."""

    def killed(_: RunGroup) -> None:
        raise OSError("killed")

    with monkeypatch.context() as dying:
        dying.setattr(import_files, "publish", killed)
        [group] = bring(group_folder).groups
    run = group.runs.filter(result=Result.GOLD).get()
    assert not layout.run_folder(run).exists()
    Import.objects.create(source="x", folder=str(group_folder), asked_by=alice)

    imports.do_asked()

    assert layout.run_folder(run).is_dir()
    assert "I thought." in logs.window(run.newest_attempt().pk, "agent").text
    assert not (layout.group_folder(group) / import_files.MARKER).exists()
    assert Import.objects.get().answer["groups"][0]["experiment"] == GROUP


# ---------------------------------------------------------------------------- what they may not do


def test_imported_runs_are_never_run_again(group_folder: Path, alice: User) -> None:
    [group] = bring(group_folder).groups

    with pytest.raises(submit.NotRerunnable, match="Nothing in it says which agent it was"):
        submit.rerun(group.runs.all(), by=alice)

    assert Attempt.objects.count() == 4
    assert set(group.runs.values_list("state", flat=True)) == {RunState.FINISHED}


def test_results_that_were_made_here_are_not_copied(tmp_path: Path) -> None:
    run = make_run(competition=make_competition("leaf"), result=Result.GOLD)
    write_group(tmp_path, "g", [(run.upstream_id, row("leaf", "gold"))])

    done = bring(tmp_path / "g", experiment="another")

    assert done.groups == ()
    assert done.plan.groups[0].known == f"Its runs were run here, in run group {run.group_id}."
    assert not Experiment.objects.filter(name="another").exists()


def test_the_leaderboard_marks_it_with_its_source(group_folder: Path, pair: Split) -> None:
    bring(group_folder, experiment="e")

    [found] = leaderboard.rows(pair)

    assert (found.is_imported, found.hardware, found.hours) == (True, "", None)
    assert found.median_run_seconds == 3600.5
    [flag] = [flag for flag in found.flags if flag.name == "imported"]
    assert flag.text == f"Graded elsewhere: imported from {GROUP}. Hardware was not reported."


def test_a_forged_harness_file_gives_no_powers(group_folder: Path) -> None:
    agent = make_agent("aide")
    runs = [path.name for path in group_folder.iterdir() if path.is_dir()]
    forged = {
        "harness": "mlebench-web",
        "experiment": "theirs",
        "agent": agent.name,
        "container_settings": {"binds": ["/:/host"], "gpus": 10**9},
        "runtime": "docker",
        "time_limit_seconds": "24 h",
        "runs": {
            runs[0]: {
                "outcome": "continued",
                "seed": -1,
                "hardware": {"gpus": [{"name": "A10"}] * 1000, "cpus": float("1e308")},
            }
        },
    }
    (group_folder / "harness.json").write_text(json.dumps(forged))

    done = bring(group_folder)

    [group] = done.groups
    assert (group.experiment.name, group.agent, group.experiment.agent) == ("theirs", agent, agent)
    assert (group.container_settings, group.time_limit) == ({}, None)
    assert {attempt.outcome for attempt in Attempt.objects.all()} == {Outcome.GRADED}
    assert all(attempt.hardware == {} for attempt in Attempt.objects.all())
    told = " ".join(done.plan.groups[0].group.warnings)
    assert "container_settings should be the settings of a container" in told
    assert "time_limit_seconds should be seconds" in told


# ---------------------------------------------------------------------------- asks


def test_a_waiting_import_is_done_by_a_host_service_once(
    group_folder: Path, alice: User, settings: Settings
) -> None:
    row_ = Import.objects.create(source="x", folder=str(group_folder), asked_by=alice)

    imports.do_asked()

    row_.refresh_from_db()
    assert (row_.state, row_.answer["run_groups"], row_.phase) == (Import.State.DONE, 1, "")
    assert RunGroup.objects.get().created_by == alice
    assert Import.take_one() is None


def test_an_import_whose_worker_died_is_taken_again(group_folder: Path, alice: User) -> None:
    row_ = Import.objects.create(source="x", folder=str(group_folder), asked_by=alice)
    dead = Import.take_one()
    assert dead is not None
    assert Import.take_one() is None
    Import.objects.update(lease_until=timezone.now() - timedelta(seconds=1))

    imports.do_asked()

    row_.refresh_from_db()
    assert row_.state == Import.State.DONE
    # The dead one wakes up: it has no say any more.
    assert not dead.beat("copying")
    assert not dead.end(Import.State.REFUSED, error="late")


def test_a_fault_of_ours_ends_the_import_and_is_not_tried_for_ever(
    group_folder: Path, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_ = Import.objects.create(source="x", folder=str(group_folder), asked_by=alice)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(importing, "plan", broken)

    with pytest.raises(RuntimeError):
        imports.do_asked()

    row_.refresh_from_db()
    assert (row_.state, Import.take_one()) == (Import.State.REFUSED, None)
    assert "mlebench-web itself failed" in row_.error


def test_a_refused_import_says_why(tmp_path: Path, alice: User) -> None:
    (tmp_path / "empty").mkdir()
    row_ = Import.objects.create(source="x", folder=str(tmp_path / "empty"), asked_by=alice)

    imports.do_asked()

    row_.refresh_from_db()
    assert row_.state == Import.State.REFUSED
    assert "There is nothing to import" in row_.error
