"""Any interleaving of claim, beat, expire, adopt, finish, cancel, re-run and host loss keeps the
invariants, against the real door and a real database.

Each rule does what some process may do at any moment; a supervisor that was replaced goes on
trying, as one that was frozen would.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone
from hypothesis import HealthCheck, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pytest_django.fixtures import Settings

from mlebench_web.accounts.models import Role, User
from mlebench_web.fleet.models import Host
from runs import queue, submit
from runs.core.failures import Cause
from runs.core.limits import Reaping
from runs.core.states import (
    MOVES,
    SUPERVISED,
    AttemptEnd,
    Outcome,
    RunState,
    State,
    run_state,
    verdict,
)
from runs.models import Attempt, GpuLease, Move, Replaced, Run
from tests import factories

pytestmark = pytest.mark.django_db

RUNS = 3
HOSTS = ("box-1", "box-2")

ENDS = st.builds(
    AttemptEnd,
    cause=st.sampled_from(
        [None, Cause.CONTAINER_KILLED, Cause.ENGINE_ERROR, Cause.OUT_OF_MEMORY, Cause.TIME_LIMIT]
    ),
    ended_by_itself=st.booleans(),
    exit_code=st.sampled_from([0, 1, 137]),
    has_submission=st.booleans(),
    goes_on_from_checkpoint=st.booleans(),
)


@dataclass
class Supervisor:
    """One that holds, or held, a lease; `attempt` is the row as it read it last."""

    attempt: Attempt
    token: uuid.UUID

    def is_replaced(self) -> bool:
        row = Attempt.objects.get(pk=self.attempt.pk)
        return row.is_ended or row.lease_token != self.token


def sure() -> Reaping:
    """A reaper whose patience is over."""
    patience = Reaping(ttl=90, lost_after=settings.HOST_LOST_AFTER.total_seconds())
    patience.tick = lambda **_: None  # type: ignore[method-assign]
    patience.may_lose_hosts = lambda: True  # type: ignore[method-assign]
    return patience


class Fleet(RuleBasedStateMachine):
    """Two hosts with a GPU and two slots each, and three runs, of which one asks for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.atomic()
        self.savepoint.__enter__()
        self.admin = factories.make_user("admin", role=Role.ADMIN)
        competition = factories.make_competition()
        for name in HOSTS:
            host = factories.make_host(name, slots=2, cpus=3)
            factories.make_gpu(host)
            factories.make_prepared(host, competition)
        for number in range(RUNS):
            wants = {"nano_cpus": 1e9, "mem_limit": "1G", "gpus": int(number == 0)}
            config = factories.make_config(f"config {number}", settings=wants)
            factories.make_run(factories.make_group(config=config), competition=competition)
        self.supervisors: list[Supervisor] = []
        # Attempts as they were sealed: (outcome, cause, ended_at).
        self.sealed: dict[int, tuple[object, ...]] = {}

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.savepoint.__exit__(None, None, None)

    # ---------------------------------------------------------------- supervisors

    @rule(name=st.sampled_from(HOSTS))
    def claim(self, name: str) -> None:
        if lease := queue.claim(Host.objects.get(name=name)):
            self.supervisors.append(Supervisor(lease.attempt, lease.token))

    @precondition(lambda self: held())
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        """Of two that saw the row without a live supervisor, one is late."""
        seen = data.draw(st.sampled_from(held()))
        seen_by_another = Attempt.objects.get(pk=seen.pk)
        lease = queue.adopt(seen)
        self.supervisors.append(Supervisor(lease.attempt, lease.token))
        with pytest.raises(Replaced):
            queue.adopt(seen_by_another)

    def fenced(self, supervisor: Supervisor, act: Callable[[], None]) -> None:
        """One that was replaced is refused, and has changed nothing."""
        if not supervisor.is_replaced():
            act()
            return
        before = snapshot()
        with pytest.raises(Replaced):
            act()
        assert snapshot() == before

    def one(self, data: st.DataObject) -> Supervisor:
        return data.draw(st.sampled_from(self.supervisors))

    @precondition(lambda self: self.supervisors)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        supervisor = self.one(data)
        until = timezone.now() + settings.LEASE_TTL
        act = lambda: supervisor.attempt.save_held(supervisor.token, lease_until=until)  # noqa: E731
        self.fenced(supervisor, act)

    @precondition(lambda self: self.supervisors)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """Starting -> running -> collecting -> grading, each move as the supervisor makes it."""
        supervisor = self.one(data)
        attempt, token = supervisor.attempt, supervisor.token
        note(f"{attempt.pk} goes on from {attempt.state}")
        match attempt.state:
            case State.STARTING:
                act = lambda: attempt.move(State.RUNNING, token=token, by="host")  # noqa: E731
            case State.RUNNING:
                act = lambda: attempt.move(State.COLLECTING, token=token, by="host")  # noqa: E731
            case State.COLLECTING:
                act = lambda: attempt.release(token=token, by="host")  # noqa: E731
            case _:
                return
        self.fenced(supervisor, act)

    @precondition(lambda self: self.supervisors)
    @rule(data=st.data(), end=ENDS)
    def finish(self, data: st.DataObject, end: AttemptEnd) -> None:
        """Seal, from any state: what was seen of the container decides, not where it stood."""
        supervisor = self.one(data)
        attempt = supervisor.attempt
        if attempt.is_ended:
            return
        # None is sealed *continued* but from collecting, where the row as it was moved there says
        # whether somebody has cancelled: see Attempt.end.
        asked = Attempt.objects.get(pk=attempt.pk).cancel_requested_at is not None
        end = replace(end, cancelled=asked and end.goes_on_from_checkpoint)
        tries_left = settings.MAX_TRIES - Run.objects.get(pk=attempt.run_id).tries_used - 1
        sealed = verdict(end, tries_left=max(0, tries_left))

        def act() -> None:
            with transaction.atomic():
                if sealed.outcome in (Outcome.GRADED, Outcome.AGENT_FAILED):
                    factories.make_report(attempt)
                attempt.seal(sealed, token=supervisor.token, by="host")

        self.fenced(supervisor, act)

    # ---------------------------------------------------------------- time and hosts

    @precondition(lambda self: held())
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """Nobody beats for longer than a lease."""
        attempt = data.draw(st.sampled_from(held()))
        past = timezone.now() - timedelta(seconds=1)
        Attempt.objects.filter(pk=attempt.pk).update(lease_until=past)

    @rule(name=st.sampled_from(HOSTS))
    def fall_silent(self, name: str) -> None:
        long_ago = timezone.now() - 2 * settings.HOST_LOST_AFTER
        Host.objects.filter(name=name).update(worker_seen_at=long_ago, service_seen_at=long_ago)

    @rule(name=st.sampled_from(HOSTS))
    def come_back(self, name: str) -> None:
        now = timezone.now()
        Host.objects.filter(name=name).update(worker_seen_at=now, service_seen_at=now)

    @rule()
    def reap(self) -> None:
        alive = set(
            Attempt.objects.filter(
                state__in=SUPERVISED, lease_until__gte=timezone.now()
            ).values_list("pk", flat=True)
        )
        assert not {attempt.pk for attempt in queue.reap(sure())} & alive

    @rule(name=st.sampled_from(HOSTS))
    def declare_lost(self, name: str) -> None:
        queue.declare_lost(Host.objects.get(name=name), by="admin")

    @rule()
    def sweep(self) -> None:
        """A host that came back removes what was left of attempts that ended without it."""
        for attempt in Attempt.objects.filter(state=State.ENDED, released_at__isnull=True):
            attempt.free_gpus()
            Attempt.objects.filter(pk=attempt.pk).update(released_at=timezone.now())

    @rule()
    def back_off_ends(self) -> None:
        Attempt.objects.filter(state=State.QUEUED).update(not_before=None)

    # ---------------------------------------------------------------- people

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(list(Run.objects.all())))
        try:
            submit.cancel_run(run, by=self.admin)
        except submit.AlreadyEnded:
            assert run.newest_attempt().state in (State.COLLECTING, State.GRADING, State.ENDED)

    @rule(data=st.data())
    def rerun(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(list(Run.objects.all())))
        newest = run.newest_attempt()
        try:
            queued = submit.rerun([run], by=self.admin, reason="once more")
        except submit.NotRerunnable:
            assert newest.outcome == Outcome.GRADED
        else:
            assert bool(queued) == newest.is_ended

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def the_history_is_whole(self) -> None:
        """From queued by legal moves, each from where the one before led; ended once at most."""
        for attempt in Attempt.objects.all():
            state = ""
            for old, new in attempt.moves.values_list("old", "new"):
                assert old == state
                assert not old or State(new) in MOVES[State(old)]
                state = new
            assert state == attempt.state

    @invariant()
    def what_is_sealed_stays(self) -> None:
        rows = Attempt.objects.filter(state=State.ENDED)
        now = {row.pk: (row.outcome, row.cause, row.ended_at) for row in rows}
        assert {pk: now.get(pk) for pk in self.sealed} == self.sealed
        self.sealed = now

    @invariant()
    def a_run_is_what_its_newest_attempt_made_of_it(self) -> None:
        for run in Run.objects.all():
            newest = run.newest_attempt()
            outcome = Outcome(newest.outcome) if newest.outcome else None
            assert run.state == run_state(State(newest.state), outcome)
            assert run.attempts.unended().count() <= 1
            if not newest.is_ended:
                assert run.tries_used < settings.MAX_TRIES

    @invariant()
    def the_newest_result_counts(self) -> None:
        for run in Run.objects.all():
            results = run.attempts.filter(outcome__in=[Outcome.GRADED, Outcome.AGENT_FAILED])
            last = results.order_by("number").last()
            assert run.counted == last
            assert bool(run.result) == (last is not None)

    @invariant()
    def an_infrastructure_failure_is_tried_again_while_tries_are_left(self) -> None:
        for run in Run.objects.filter(state=RunState.FAILED):
            newest = run.newest_attempt()
            if newest.outcome == Outcome.INFRASTRUCTURE_FAILED:
                assert run.tries_used == settings.MAX_TRIES or newest.cancel_requested_at

    @invariant()
    def only_a_person_runs_again_what_was_cancelled(self) -> None:
        for attempt in Attempt.objects.filter(cancel_requested_at__isnull=False):
            for later in attempt.run.attempts.filter(number=attempt.number + 1):
                assert later.moves.earliest("id").by == self.admin.username

    @invariant()
    def no_host_holds_more_than_it_has(self) -> None:
        for host in Host.objects.all():
            holding = Attempt.objects.holding().filter(host=host)
            assert (holding.aggregate(sum=Sum("cpus"))["sum"] or 0) <= host.cpus
            busy = Attempt.objects.filter(host=host, state__in=SUPERVISED).count()
            assert busy <= host.slots
        # That no GPU is leased twice is the database's own word: one_live_lease_a_gpu.
        for lease in GpuLease.objects.filter(released_at__isnull=True).select_related("attempt"):
            assert lease.attempt.released_at is None, "free again, but its GPU is held"


def held() -> list[Attempt]:
    return list(Attempt.objects.filter(state__in=SUPERVISED))


def snapshot() -> tuple[object, ...]:
    """All that a supervisor may write."""
    return (
        list(Attempt.objects.order_by("pk").values_list()),
        list(Run.objects.order_by("pk").values_list()),
        list(GpuLease.objects.order_by("pk").values_list()),
        Move.objects.count(),
        User.objects.count(),
    )


@pytest.mark.slow
def test_any_interleaving_keeps_the_invariants(settings: Settings) -> None:
    # Few, so that runs often get to their last one.
    settings.MAX_TRIES = 2
    run_state_machine_as_test(
        Fleet,
        settings=hypothesis_settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            # Each step asks a real database.
            suppress_health_check=list(HealthCheck),
        ),
    )
