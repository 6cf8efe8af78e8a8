"""Failed runs of all groups: by cause, queued again by one press, and taken back."""

from datetime import timedelta

import pytest
from django.utils import timezone

from mlebench_web.accounts.models import AuditEntry, User
from runs import mass_rerun, queue, submit
from runs.core.failures import Cause
from runs.core.overrides import Overrides
from runs.core.states import Outcome, Result, RunState, State
from runs.mass_rerun import Filters
from runs.models import Attempt, Checkpoint, Requeue, Run
from tests import factories

pytestmark = pytest.mark.django_db

INFRA = Outcome.INFRASTRUCTURE_FAILED


def broken(cause: Cause = Cause.ENGINE_ERROR, **fields: object) -> Run:
    return factories.make_run(outcome=INFRA, cause=cause, **fields)  # type: ignore[arg-type]


def crashed() -> Run:
    return factories.make_run(outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED)


def found(**filters: object) -> set[int]:
    return {run.pk for run in mass_rerun.matching(Filters(**filters))}  # type: ignore[arg-type]


def test_failed_runs_of_all_groups_are_found_by_their_newest_attempt(db: None) -> None:
    failed = broken()
    healed = broken()
    factories.make_attempt(healed, result=Result.GOLD)
    again = crashed()
    factories.make_attempt(again, state=State.RUNNING)
    factories.make_run(result=Result.GOLD)
    short = factories.make_run(result=Result.VALID, cause=Cause.HOST_LOST)
    Run.objects.filter(pk=short.pk).update(is_cut_short=True)

    assert found() == {failed.pk, short.pk}


def test_filters_are_by_cause_host_agent_and_date(db: None) -> None:
    old = broken(began=timezone.now() - timedelta(days=3))
    other_host = broken(Cause.DATA_MISSING, host=factories.make_host("box-2"))
    group = factories.make_group(agent=factories.make_agent("aide"))
    other_agent = broken(Cause.DISK_FULL, group=group)
    yesterday = timezone.now() - timedelta(days=1)

    assert found(causes=("data_missing", "disk_full")) == {other_host.pk, other_agent.pk}
    assert found(host="box-2") == {other_host.pk}
    assert found(agent="aide") == {other_agent.pk}
    assert found(until=yesterday) == {old.pk}
    assert found(since=yesterday) == {other_host.pk, other_agent.pk}


def test_causes_are_counted_over_all_that_match(db: None) -> None:
    for _ in range(3):
        broken()
    crashed()

    groups = mass_rerun.by_cause(Filters())

    assert [(each.cause, each.count) for each in groups] == [
        (Cause.ENGINE_ERROR, 3),
        (Cause.AGENT_CRASHED, 1),
    ]
    assert groups[0].hosts == {"box-1": 3}
    assert groups[1].is_agents_own


def test_a_plan_says_how_many_and_how_long_and_changes_nothing(db: None) -> None:
    agent = factories.make_agent("baseline")
    for hours in (1, 2, 6):
        factories.make_run(result=Result.GOLD, lasted=timedelta(hours=hours))
    known = broken()
    unknown = broken(
        competition=factories.make_competition("demo-other"),
        group=factories.make_group(agent=agent, time_limit=timedelta(hours=10)),
    )
    at_work = factories.make_run(state=State.RUNNING)
    own = crashed()

    plan = mass_rerun.plan([known.pk, unknown.pk, at_work.pk, own.pk])

    assert (len(plan.runs), plan.skipped, plan.needs_reason) == (3, 1, 1)
    # 2 h each as the median of what finished, 10 h as its limit.
    assert (plan.expected_hours, plan.guessed) == (14, 1)
    assert Requeue.objects.count() == 0


def saved(run: Run, *, hours: float = 1) -> Run:
    """A run with a checkpoint after so many hours of work."""
    Checkpoint.objects.create(
        attempt=run.newest_attempt(),
        number=1,
        active_seconds=hours * 3600,
        files=1,
        size=1,
        added_bytes=1,
        save_seconds=0.1,
        path=f"checkpoints/{run.pk}/1.json",
        digest="0" * 64,
    )
    return run


def test_a_plan_says_how_many_a_resume_would_take_up(db: None) -> None:
    saved(factories.make_run(state=State.RUNNING))
    runs = [saved(broken()), saved(broken()), saved(broken(), hours=24), broken()]

    plan = mass_rerun.plan([run.pk for run in runs])
    without = mass_rerun.plan([runs[-1].pk])

    assert (plan.resumable, plan.used_up, plan.no_resume) == (2, 1, "")
    assert (without.resumable, without.used_up) == (0, 0)
    assert without.no_resume == "none of them has a checkpoint"


def test_a_plan_of_many_looks_only_at_runs_with_a_checkpoint(
    db: None, django_assert_max_num_queries: "object"
) -> None:
    runs = [saved(broken()), *(broken() for _ in range(30))]

    with django_assert_max_num_queries(8):  # type: ignore[operator]
        plan = mass_rerun.plan([run.pk for run in runs])

    assert plan.resumable == 1


def test_a_resume_of_many_restarts_what_has_no_checkpoint(admin: User) -> None:
    can, used_up, cannot = saved(broken()), saved(broken(), hours=24), broken()
    runs = [can, used_up, cannot]

    requeue = mass_rerun.rerun(runs, by=admin, reason="mended", mode="resume")

    assert requeue
    assert requeue.attempts.count() == 3
    assert [run.newest_attempt().resumed_from is not None for run in runs] == [True, False, False]
    entry = AuditEntry.objects.get(action="rerun many")
    assert entry.detail == {"runs": 3, "mode": "resume", "resumed": 1}
    assert mass_rerun.undo(requeue, by=admin).withdrawn == 3


def test_a_larger_limit_lets_many_go_on(admin: User) -> None:
    run = saved(broken(), hours=24)

    longer = Overrides(time_limit_s=30 * 3600)
    mass_rerun.rerun([run], by=admin, reason="", mode="resume", overrides=longer)

    assert run.newest_attempt().resumed_from is not None


def test_many_are_restarted_unless_a_resume_is_asked_for(admin: User) -> None:
    run = saved(broken())

    mass_rerun.rerun([run], by=admin, reason="")

    assert run.newest_attempt().resumed_from is None


def test_a_mode_that_there_is_not_queues_nothing(admin: User) -> None:
    with pytest.raises(submit.NotRerunnable, match="cannot 'rewind'"):
        mass_rerun.rerun([broken()], by=admin, reason="", mode="rewind")

    assert Requeue.objects.count() == 0


def test_too_many_at_once_are_refused(db: None) -> None:
    with pytest.raises(mass_rerun.TooMany, match="narrow it down"):
        mass_rerun.plan(range(mass_rerun.AT_MOST + 1))


def test_an_undo_brings_back_the_failures_as_they_were(admin: User) -> None:
    run, other = broken(), crashed()
    Run.objects.filter(pk=run.pk).update(tries_used=2)
    before = [model_to_tell(each) for each in (run, other)]

    requeue = mass_rerun.rerun([run, other], by=admin, reason="the engine was mended")
    assert requeue
    assert Run.objects.filter(state=RunState.QUEUED).count() == 2
    assert Run.objects.get(pk=run.pk).tries_used == 0
    undone = mass_rerun.undo(requeue, by=admin)
    again = mass_rerun.undo(requeue, by=admin)

    assert (undone.withdrawn, undone.left) == (2, 0)
    assert (again.withdrawn, again.left) == (0, 0)
    assert [model_to_tell(each) for each in (run, other)] == before
    assert run.newest_attempt().cause == Cause.ENGINE_ERROR
    actions = [entry.action for entry in AuditEntry.objects.order_by("pk")]
    assert actions == ["rerun", "rerun", "rerun many", "undo rerun"]


def model_to_tell(run: Run) -> tuple[object, ...]:
    run.refresh_from_db()
    return (
        run.state,
        run.tries_used,
        run.counted_id,
        run.result,
        [(each.pk, each.outcome) for each in run.attempts.all()],
    )


def test_an_undo_leaves_what_a_host_has_claimed(admin: User, settings: "object") -> None:
    box = factories.make_host(settings.HOST_NAME)  # type: ignore[attr-defined]
    factories.make_prepared(box, factories.make_competition())
    requeue = mass_rerun.rerun([broken(), broken()], by=admin, reason="")
    assert requeue
    lease = queue.claim(box)
    assert lease

    undone = mass_rerun.undo(requeue, by=admin)

    assert (undone.withdrawn, undone.left) == (1, 1)
    lease.attempt.refresh_from_db()
    assert lease.attempt.state == State.STARTING
    assert Run.objects.filter(state=RunState.FAILED).count() == 1


def test_a_first_attempt_is_never_taken_back(db: None) -> None:
    run = factories.make_run()

    assert not run.withdraw(run.newest_attempt(), tries_used=0)
    assert Attempt.objects.count() == 1


def test_an_agents_own_failure_needs_a_reason_and_all_or_none_are_queued(admin: User) -> None:
    with pytest.raises(submit.ReasonNeeded):
        mass_rerun.rerun([broken(), crashed()], by=admin, reason=" ")

    assert Requeue.objects.count() == 0
    assert Attempt.objects.filter(state=State.QUEUED).count() == 0


def test_recent_ones_say_how_many_still_wait(admin: User) -> None:
    requeue = mass_rerun.rerun([broken(), broken()], by=admin, reason="mended")
    assert requeue

    [shown] = mass_rerun.recent()

    assert (shown.pk, shown.waiting, shown.reason) == (requeue.pk, 2, "mended")  # type: ignore[attr-defined]
