"""Grading again what has ended: history, ranks, crashes in between, and presses too many."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django.fixtures import Settings

from mlebench_web.accounts.models import AuditEntry
from mlebench_web.catalog.models import Competition, Split
from mlebench_web.fleet.models import Host
from runs import layout, logs, queue, regrading, submit
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, RunState, State
from runs.models import Attempt, GradingReport, Regrade, RegradeJob, Replaced, Run, RunGroup
from runs.regrade_jobs import RegradeJobs
from tests.factories import make_attempt, make_group, make_host, make_run
from tests.support import small_competition

pytestmark = pytest.mark.usefixtures("warm_grader")

# Off by 0.25 on average: bronze.
FAIR = "id,price\n1,1.25\n2,2.25\n3,3.25\n4,4.25\n"


@pytest.fixture
def competition(db: None, settings: Settings, tmp_path: Path) -> Competition:
    settings.COMPETITIONS_DIR = tmp_path / "competitions"
    return small_competition.make()


@pytest.fixture
def box(db: None) -> Host:
    return make_host("box-1")


@pytest.fixture
def jobs(box: Host) -> RegradeJobs:
    return RegradeJobs(box, threading.Event())


MakeGraded = Callable[..., Run]


@pytest.fixture
def graded(competition: Competition, box: Host) -> MakeGraded:
    """A run that left a submission, as the product leaves it."""

    def make(
        text: str = FAIR,
        *,
        result: Result | None = Result.BRONZE,
        group: RunGroup | None = None,
        **fields: object,
    ) -> Run:
        group = group or make_group(competitions=[competition])
        values: dict[str, object] = {
            "host": box,
            "artifacts": [{"path": layout.SUBMISSION, "bytes": len(text)}],
            **fields,
        }
        run = make_run(group, competition=competition, result=result, **values)
        file = layout.attempt_folder(run.newest_attempt()) / layout.SUBMISSION
        file.parent.mkdir(parents=True)
        file.write_text(text)
        return run

    return make


def newest(run: Run) -> GradingReport:
    return GradingReport.objects.get(attempt__run=run, is_current=True)


def test_a_regrade_adds_a_report_and_keeps_the_one_before(
    graded: MakeGraded, jobs: RegradeJobs, competition: Competition
) -> None:
    run = graded(result=Result.GOLD)
    before = newest(run)

    asked = regrading.ask([run], by=None, reason="the answers were wrong")
    jobs.work()

    [change] = regrading.changes(asked.regrade)
    run.refresh_from_db()
    assert change.job.state == RegradeJob.State.DONE
    assert (change.before, change.after) == (before, newest(run))
    assert (run.result, run.score) == (Result.BRONZE, 0.25)
    assert change.has_changed
    assert change.has_other_medal
    assert [report.is_current for report in regrading.history_of(run)] == [True, False]
    assert run.attempts.count() == 1
    entry = AuditEntry.objects.get(action="grade again")
    assert (entry.reason, entry.detail) == ("the answers were wrong", {"runs": [run.pk]})


def test_the_results_folder_shows_the_new_report(graded: MakeGraded, jobs: RegradeJobs) -> None:
    run = graded(result=Result.GOLD)

    regrading.ask([run], by=None)
    jobs.work()

    folder = layout.group_folder(run.group)
    [file] = folder.glob("*_grading_report.json")
    assert '"bronze_medal": true' in file.read_text()
    assert RegradeJob.objects.get().is_published


def test_pressed_twice_there_is_one_job(graded: MakeGraded, jobs: RegradeJobs) -> None:
    run = graded()

    first = regrading.ask([run], by=None)
    second = regrading.ask([run], by=None)
    jobs.work()

    assert second.regrade == first.regrade
    assert second.jobs == []
    assert RegradeJob.objects.count() == 1
    assert run.newest_attempt().reports.count() == 2


def test_the_database_refuses_a_second_open_job(graded: MakeGraded) -> None:
    run = graded()
    regrade = regrading.ask([run], by=None).regrade

    with pytest.raises(IntegrityError), transaction.atomic():
        RegradeJob.objects.create(regrade=regrade, run=run, attempt=run.newest_attempt())


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.GRADING])
def test_a_run_that_has_not_ended_is_left_alone(state: State, competition: Competition) -> None:
    run = make_run(make_group(competitions=[competition]), competition=competition, state=state)

    with pytest.raises(regrading.NothingToGrade, match="It has not ended"):
        regrading.ask([run], by=None)

    assert not Regrade.objects.exists()


def test_of_a_group_what_cannot_be_graded_again_is_named_and_the_rest_is(
    graded: MakeGraded, competition: Competition
) -> None:
    group = make_group(competitions=[competition])
    done = graded(group=group)
    going = make_run(group, competition=competition, state=State.RUNNING, seed=1)

    asked = regrading.ask(regrading.chosen(group, "all"), by=None)

    assert [job.run for job in asked.jobs] == [done]
    assert [(each.run, each.why) for each in asked.skipped] == [(going, "It has not ended.")]


def test_a_run_that_was_started_again_meanwhile_keeps_what_it_has(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    run = graded(result=None, outcome=Outcome.AGENT_FAILED)
    regrading.ask([run], by=None)
    submit.rerun([run], by=None, reason="a bug of ours")

    jobs.work()

    job = RegradeJob.objects.get()
    assert (job.state, job.after) == (RegradeJob.State.VOID, None)
    assert "started again" in job.error
    assert GradingReport.objects.count() == 1


def test_where_another_attempt_counts_by_now_nothing_is_recorded(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    run = graded(result=None, outcome=Outcome.AGENT_FAILED)
    regrading.ask([run], by=None)
    # Started again and graded, before any host looked.
    make_attempt(run, result=Result.GOLD)

    jobs.work()

    run.refresh_from_db()
    assert RegradeJob.objects.get().state == RegradeJob.State.VOID
    assert (run.result, GradingReport.objects.count()) == (Result.GOLD, 2)


def test_a_host_service_that_lost_its_lease_records_nothing(
    graded: MakeGraded, jobs: RegradeJobs, box: Host
) -> None:
    run = graded(result=Result.GOLD)
    job = regrading.ask([run], by=None).jobs[0]
    stale = job.take(box)
    judged = jobs.judge(job, stale)
    # It slept for longer than its lease, and another took over.
    RegradeJob.objects.update(lease_until=Now() - settings.LEASE_TTL)
    job.take(make_host("box-2"))

    with pytest.raises(Replaced):
        jobs.record(job, stale, judged)

    assert run.newest_attempt().reports.count() == 1


def test_a_job_of_a_host_service_that_died_is_done_after_its_lease(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    run = graded(result=Result.GOLD)
    job = regrading.ask([run], by=None).jobs[0]
    job.take(make_host("box-2"))

    jobs.work()
    assert run.newest_attempt().reports.count() == 1

    RegradeJob.objects.update(lease_until=Now() - settings.LEASE_TTL)
    jobs.work()
    assert newest(run).result == Result.BRONZE


def test_a_file_that_is_gone_makes_no_null_report(graded: MakeGraded, jobs: RegradeJobs) -> None:
    run = graded()
    (layout.attempt_folder(run.newest_attempt()) / layout.SUBMISSION).unlink()

    regrading.ask([run], by=None)
    jobs.work()

    job = RegradeJob.objects.get()
    assert job.state == RegradeJob.State.FAILED
    assert "is not at" in job.error
    assert newest(run).result == Result.BRONZE


def test_a_grader_that_fails_leaves_the_report_before_in_force(
    graded: MakeGraded, jobs: RegradeJobs, settings: Settings
) -> None:
    run = graded()
    folder = settings.COMPETITIONS_DIR.parent / "broken"
    folder.mkdir()
    (folder / "config.yaml").write_text("grader: {name: mae, grade_fn: 'grade:grade'}\n")
    (folder / "grade.py").write_text("import nowhere_to_be_found\n")
    Competition.objects.update(folder=str(folder))

    asked = regrading.ask([run], by=None)
    jobs.work()

    [change] = regrading.changes(asked.regrade)
    assert change.job.state == RegradeJob.State.FAILED
    assert "nowhere_to_be_found" in change.job.error
    assert newest(run).result == Result.BRONZE


def test_an_attempt_whose_grader_had_failed_is_graded_as_a_new_attempt(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    """24 hours of an agent's work must not be lost to a grader that has been repaired."""
    run = graded(
        result=None,
        outcome=Outcome.INFRASTRUCTURE_FAILED,
        cause=Cause.GRADER_FAILED,
        active_seconds=86_000.0,
        has_submission=True,
    )
    failed = run.newest_attempt()

    regrading.ask([run], by=None)
    jobs.work()

    run.refresh_from_db()
    made = run.newest_attempt()
    assert (failed.number, made.number) == (1, 2)
    assert (made.state, made.outcome) == (State.ENDED, Outcome.GRADED)
    assert (made.active_seconds, made.host, made.exit_code) == (86_000.0, failed.host, None)
    # Its time is that of the other: counted once, and over when the agent's was.
    assert (made.own_seconds, made.ended_at) == (0, failed.ended_at)
    assert "attempt 1, which has the log" in "".join(logs.last_lines(made.pk, "run", 3))
    assert (run.state, run.result, run.counted) == (RunState.FINISHED, Result.BRONZE, made)
    assert (layout.attempt_folder(made) / layout.SUBMISSION).read_text() == FAIR
    assert (layout.run_folder(run) / layout.SUBMISSION).read_text() == FAIR
    failed.refresh_from_db()
    assert failed.outcome == Outcome.INFRASTRUCTURE_FAILED
    assert made.moves.get().by == "server's shell"


def test_a_run_that_was_killed_gets_its_last_valid_snapshot_once_the_grader_works(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    """As its supervisor would have done: what was left at the end was half a file."""
    run = graded(
        "id,price\n1,",
        result=None,
        outcome=Outcome.INFRASTRUCTURE_FAILED,
        cause=Cause.GRADER_FAILED,
        ended_by_itself=False,
    )
    failed = run.newest_attempt()
    path = default_storage.save("snapshots/regrade.csv", ContentFile(FAIR.encode()))
    snapshot = failed.snapshots.create(active_seconds=5, digest="d", size=len(FAIR), path=path)

    regrading.ask([run], by=None)
    jobs.work()

    run.refresh_from_db()
    made = run.newest_attempt()
    folder = layout.attempt_folder(made) / "submission"
    assert (run.result, run.score, made.graded_snapshot) == (Result.BRONZE, 0.25, snapshot)
    assert (folder / "submission.csv").read_text() == FAIR
    assert (folder / "submission.as-left.csv").read_text() == "id,price\n1,"
    # The old attempt's own files are as they were.
    assert (layout.attempt_folder(failed) / layout.SUBMISSION).read_text() == "id,price\n1,"


def lost(competition: Competition, tries: int, settings: Settings, text: str) -> Run:
    """A run of which a submission was copied aside before its host went, for the last time?"""
    settings.MAX_TRIES = tries
    gone = make_host("gone")
    run = make_run(
        make_group(competitions=[competition]),
        competition=competition,
        state=State.RUNNING,
        host=gone,
        lease_until=timezone.now() - timedelta(hours=1),
    )
    attempt = run.newest_attempt()
    path = default_storage.save("snapshots/lost.csv", ContentFile(text.encode()))
    attempt.snapshots.create(active_seconds=5, digest="d", size=len(text), path=path)
    assert queue.declare_lost(gone, by="ada") == [attempt]
    run.refresh_from_db()
    return run


def test_a_run_that_was_lost_in_its_last_try_gets_the_score_of_what_was_copied_aside(
    competition: Competition, jobs: RegradeJobs, settings: Settings
) -> None:
    run = lost(competition, 1, settings, FAIR)
    assert run.state == RunState.FAILED

    # Its host is gone; another one with the answers grades.
    jobs.work()

    run.refresh_from_db()
    made = run.newest_attempt()
    assert (run.state, run.result, run.score) == (RunState.FINISHED, Result.BRONZE, 0.25)
    assert run.is_cut_short
    assert run.counted == made
    assert (made.outcome, made.cause) == (Outcome.GRADED, Cause.HOST_LOST)
    first = run.attempts.get(number=1)
    assert (first.outcome, first.cause) == (Outcome.INFRASTRUCTURE_FAILED, Cause.HOST_LOST)
    assert (layout.run_folder(run) / layout.SUBMISSION).read_text() == FAIR
    # It may be run again as freely as an infrastructure failure.
    submit.rerun([run], by=None)
    assert run.attempts.count() == 3


def test_a_run_that_was_lost_without_a_valid_copy_stays_failed(
    competition: Competition, jobs: RegradeJobs, settings: Settings
) -> None:
    run = lost(competition, 1, settings, "id,price\n1,")

    jobs.work()

    run.refresh_from_db()
    assert (run.state, run.attempts.count(), run.counted) == (RunState.FAILED, 1, None)
    job = RegradeJob.objects.get()
    assert (job.state, job.error) == (
        RegradeJob.State.FAILED,
        "Nothing valid was copied aside before it was lost.",
    )
    # What the grader has refused is no ground for another grading.
    with pytest.raises(regrading.NothingToGrade):
        regrading.ask([run], by=None)


def test_what_our_own_error_ended_is_graded_once_its_host_has_kept_what_it_left(
    competition: Competition, jobs: RegradeJobs, settings: Settings, box: Host
) -> None:
    run = lost(competition, 1, settings, FAIR)
    attempt = run.newest_attempt()
    Attempt.objects.filter(pk=attempt.pk).update(cause=Cause.PRODUCT_ERROR, host=box, swept_at=None)
    jobs.work()
    assert RegradeJob.objects.get().state == RegradeJob.State.WANTED

    Attempt.objects.filter(pk=attempt.pk).update(swept_at=timezone.now())
    jobs.work()

    run.refresh_from_db()
    assert (run.result, run.is_cut_short) == (Result.BRONZE, True)


def test_an_error_that_nobody_foresaw_ends_its_job_and_holds_up_no_other(
    graded: MakeGraded, jobs: RegradeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = graded(), graded()
    regrading.ask([first, second], by=None)
    judge = RegradeJobs.judge

    def broken(self: RegradeJobs, job: RegradeJob, token: object) -> object:
        if job.run_id == first.pk:
            raise KeyError("a storage of its own kind")
        return judge(self, job, token)  # type: ignore[arg-type]

    monkeypatch.setattr(RegradeJobs, "judge", broken)

    jobs.work()

    states = dict(RegradeJob.objects.values_list("run", "state"))
    assert states == {first.pk: RegradeJob.State.FAILED, second.pk: RegradeJob.State.DONE}
    assert "a storage of its own kind" in RegradeJob.objects.get(run=first).error


def test_a_run_that_was_lost_with_tries_left_is_run_again_and_not_graded(
    competition: Competition, settings: Settings
) -> None:
    run = lost(competition, 3, settings, FAIR)

    assert run.state == RunState.QUEUED
    assert not RegradeJob.objects.exists()


def test_an_agents_own_failure_gets_the_thresholds_of_today(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    run = graded(result=None, outcome=Outcome.AGENT_FAILED)
    Competition.objects.update(gold_threshold=0.05)

    regrading.ask([run], by=None)
    jobs.work()

    report = newest(run)
    assert (report.result, report.gold_threshold) == (Result.NO_SUBMISSION, 0.05)


def test_only_its_imported_report_cannot_be_graded_again(
    competition: Competition, db: None
) -> None:
    run = make_run(
        make_group(competitions=[competition]), competition=competition, result=Result.GOLD
    )

    with pytest.raises(regrading.NothingToGrade, match="no submission to grade"):
        regrading.ask([run], by=None)


def test_a_host_without_the_answers_leaves_the_job_to_another(
    graded: MakeGraded, jobs: RegradeJobs, settings: Settings, tmp_path: Path
) -> None:
    run = graded()
    job = regrading.ask([run], by=None).jobs[0]
    settings.COMPETITIONS_DIR = tmp_path / "elsewhere"

    jobs.work()

    job.refresh_from_db()
    assert job.state == RegradeJob.State.WANTED
    assert regrading.why_waiting(job) == "No online host has the answers of test-prices."


def test_whose_rank_moved_is_said_once_with_all_else_equal(
    graded: MakeGraded, jobs: RegradeJobs, competition: Competition
) -> None:
    split = Split.objects.create(name="one", title="One")
    split.competitions.add(competition)
    ours = graded(
        result=Result.GOLD, group=make_group(experiment="ours", competitions=[competition])
    )
    graded(
        small_competition.PERFECT,
        result=Result.GOLD,
        group=make_group(experiment="theirs", competitions=[competition]),
    )
    Competition.objects.update(bronze_threshold=0.2)

    asked = regrading.ask([ours], by=None)
    jobs.work()
    # What happens later is no part of it.
    graded(result=Result.GOLD, group=make_group(experiment="later", competitions=[competition]))
    jobs.work()

    asked.regrade.refresh_from_db()
    assert [(row["experiment"], row["rank"], row["any_medal"]) for row in asked.regrade.moved] == [
        ("ours", [1, 2], [100.0, 0.0])
    ]
    assert asked.regrade.ended_at is not None


def test_snapshots_of_a_run_that_is_graded_again_are_scored_anew(
    graded: MakeGraded, jobs: RegradeJobs
) -> None:
    run = graded()
    snapshot = run.newest_attempt().snapshots.create(
        active_seconds=5, digest="d", size=1, path="snapshots/1", is_valid=True, score=9.0
    )

    regrading.ask([run], by=None)
    jobs.work()

    snapshot.refresh_from_db()
    assert (snapshot.is_valid, snapshot.score) == (None, None)


def test_recorded_but_not_published_is_published_at_the_next_look(
    graded: MakeGraded, jobs: RegradeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = graded(result=Result.GOLD)
    regrading.ask([run], by=None)

    def full(attempt: Attempt) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(layout, "publish", full)
        jobs.work()
    assert not RegradeJob.objects.get().is_published
    assert newest(run).result == Result.BRONZE

    jobs.work()
    assert RegradeJob.objects.get().is_published


def test_grading_alone_records_nothing(graded: MakeGraded, jobs: RegradeJobs, box: Host) -> None:
    """Killed between grading and recording, a host service leaves all as it was."""
    run = graded(result=Result.GOLD)
    job = regrading.ask([run], by=None).jobs[0]

    found = jobs.judge(job, job.take(box))

    assert (found.judged.score, newest(run).result) == (0.25, Result.GOLD)
