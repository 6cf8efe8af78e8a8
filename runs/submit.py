"""How work gets in: a request becomes rows; re-run; cancel. The verbs of page, API and shell.

Each is one transaction. The bell is rung after the commit, and only says "look again": one that
fails costs seconds, never the answer (robust).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from django.db import IntegrityError, transaction
from django.db.models import OuterRef, Subquery
from django.db.models.functions import Now
from django.utils import timezone

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import User
from mlebench_web.catalog.models import ContainerConfig
from runs import agent_manifest, bell, preflight, resuming, sandbox
from runs.core.failures import Cause
from runs.core.overrides import Overrides
from runs.core.states import Outcome, RunState, State, Verdict
from runs.models import Attempt, Experiment, Replaced, Requeue, Run, RunGroup
from runs.preflight import Check
from runs.request import FieldError, RequestInvalid, RunGroupRequest, Wanted, look_up

__all__ = [
    "AlreadyEnded",
    "FieldError",
    "NotRerunnable",
    "Plan",
    "ReasonNeeded",
    "RequestInvalid",
    "RunGroupRequest",
    "cancel_group",
    "cancel_run",
    "chosen",
    "create_run_group",
    "plan",
    "rerun",
]

# What a re-run may do; resuming from a checkpoint needs checkpoints.
# From zero, or from the newest checkpoint.
RERUN_MODES = ("restart", "resume")


class AlreadyEnded(Exception):
    """The agent has ended; there is nothing left to cancel."""


class NotRerunnable(Exception):
    """Runs that are never run again into the same seed: they have a result."""

    def __init__(self, message: str, *, field: str = "which") -> None:
        super().__init__(message)
        self.field = field


class ReasonNeeded(NotRerunnable):
    """An agent's own failure is only re-run with a reason, which is audited."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="reason")


@dataclass(frozen=True)
class Plan:
    """What a request would make: the answer of a dry run."""

    wanted: Wanted
    config: ContainerConfig
    config_note: str
    checks: list[Check]
    # What stands against it now; empty: it can be made.
    refusals: list[FieldError] = field(default_factory=list)

    @property
    def resume_note(self) -> str:
        """What is lost with a host or a container, and what is not."""
        return agent_manifest.of(self.wanted.agent).resume_note

    @property
    def run_count(self) -> int:
        return self.wanted.run_count

    @property
    def why_unsandboxed(self) -> str:
        """What keeps its runs from being sandboxed; "" when nothing does."""
        return sandbox.why_not(self.config.runtime, self.config.settings, self.wanted.agent)


def plan(request: RunGroupRequest, *, by: User | None) -> Plan:
    """Changes nothing. Raises RequestInvalid when the request itself is wrong."""
    wanted = look_up(request)
    fleet = preflight.fleet_now()
    choice = preflight.choose_config(wanted, fleet)
    checks = preflight.findings(wanted, choice, fleet, by=by)
    return Plan(
        wanted=wanted,
        config=choice.config,
        config_note=choice.note,
        checks=checks,
        refusals=preflight.refusals(request, checks),
    )


@transaction.atomic
def create_run_group(request: RunGroupRequest, *, by: User | None) -> RunGroup:
    """The run group with all its runs, each with a queued attempt.

    `by` None: the server's shell. Raises RequestInvalid naming each field that is wrong or that
    the pre-flight blocks.
    """
    planned = plan(request, by=by)
    if planned.refusals:
        raise RequestInvalid(planned.refusals)
    wanted = planned.wanted
    config = planned.config
    is_docker = config.runtime == ContainerConfig.Runtime.DOCKER
    group = _insert(
        RunGroup(
            experiment=_experiment(wanted, by),
            agent=wanted.agent,
            agent_kwargs=wanted.agent.kwargs,
            agent_env=wanted.agent.env_vars,
            split=wanted.split,
            container_config=config,
            container_settings=config.settings,
            runtime=config.runtime,
            config_note=planned.config_note,
            image=wanted.image if is_docker else None,
            seeds=request.seeds,
            time_limit=wanted.time_limit,
            step_timeout=wanted.step_timeout,
            priority=request.priority,
            env=request.env,
            acknowledged_no_gpu=request.acknowledge_no_gpu,
            created_by=by,
            team=by.team if by else None,
        ),
        image_name=wanted.agent.image_name,
    )
    runs = group.add_runs(wanted.competitions, by=audit.name_of(by))
    audit.record(
        by,
        "start",
        group,
        detail={
            "agent": wanted.agent.name,
            "experiment": group.experiment.name,
            "container_config": config.name,
            "runs": len(runs),
        },
    )
    transaction.on_commit(bell.ring, robust=True)
    return group


def _experiment(wanted: Wanted, by: User | None) -> Experiment:
    if wanted.experiment:
        return wanted.experiment
    experiment, _ = Experiment.objects.get_or_create(
        name=wanted.experiment_name, defaults={"agent": wanted.agent, "created_by": by}
    )
    if experiment.agent_id != wanted.agent.pk:
        # Somebody else made it since it was looked up.
        raise RequestInvalid(
            [FieldError("experiment", "An experiment of that name has another agent.")]
        )
    return experiment


def _insert(group: RunGroup, *, image_name: str) -> RunGroup:
    """Save it under a folder name of upstream's form that no other group has."""
    stamp = timezone.now().strftime("%Y-%m-%dT%H-%M-%S-UTC")
    name = f"{stamp}_run-group_{image_name}"
    number = 1
    while True:
        group.folder = name if number == 1 else f"{name}-{number}"
        if not RunGroup.objects.filter(folder=group.folder).exists():
            try:
                with transaction.atomic():
                    group.save(force_insert=True)
            except IntegrityError:
                # Two groups in one second, at once: the other one has the name by now.
                if not RunGroup.objects.filter(folder=group.folder).exists():
                    raise
            else:
                return group
        number += 1


# ------------------------------------------------------------------------------------ cancel


def cancel_run(run: Run, *, by: User | None) -> bool:
    """Whether this call changed anything; a second press does not.

    A queued attempt ends at once. One that is starting or running is asked to: its supervisor
    sees it within 2 s, stops the agent with grace and keeps its outputs. Raises AlreadyEnded
    when the agent has ended by itself.
    """
    with transaction.atomic():
        changed = _cancel(run, by=by)
        if changed:
            audit.record(by, "cancel", run)
            transaction.on_commit(bell.ring, robust=True)
    return changed


def cancel_group(group: RunGroup, *, by: User | None, queued_only: bool = False) -> int:
    """Cancel all that can be; the number of runs that this call cancelled or asked to stop."""
    count = 0
    with transaction.atomic():
        for run in group.runs.filter(attempts__in=Attempt.objects.unended()).distinct():
            try:
                count += _cancel(run, by=by, queued_only=queued_only)
            except AlreadyEnded:
                # Its agent has ended; its result stands.
                continue
        if count:
            audit.record(by, "cancel", group, detail={"runs": count, "queued_only": queued_only})
            transaction.on_commit(bell.ring, robust=True)
    return count


def _cancel(run: Run, *, by: User | None, queued_only: bool = False) -> bool:
    name = audit.name_of(by)
    while True:
        attempt = run.newest_attempt()
        match State(attempt.state):
            case State.QUEUED:
                try:
                    attempt.seal(
                        Verdict(Outcome.CANCELLED, Cause.CANCELLED),
                        token=None,
                        by=name,
                        cancel_requested_at=Now(),
                        cancel_requested_by=name,
                    )
                except Replaced:
                    # A host was quicker: it is starting now.
                    continue
                return True
            case State.STARTING | State.RUNNING:
                if queued_only or attempt.cancel_requested_at:
                    return False
                asked = Attempt.objects.filter(
                    pk=attempt.pk,
                    state__in=[State.STARTING, State.RUNNING],
                    cancel_requested_at__isnull=True,
                ).update(cancel_requested_at=Now(), cancel_requested_by=name)
                if asked:
                    return True
                # It has moved on, or somebody else asked: look again.
            case State.ENDED if attempt.outcome == Outcome.CANCELLED:
                return False
            case _:
                raise AlreadyEnded(
                    f"{run}: the agent has ended ({run.get_state_display()}); "
                    "there is nothing left to cancel."
                )


# ------------------------------------------------------------------------------------ re-run


def chosen(group: RunGroup, which: str | list[int]) -> list[Run]:
    """The runs that `which` means: "failed", "infrastructure", or ids of runs of the group.

    Raises RequestInvalid for another word, and for an id that is not one of the group's.
    """
    runs = group.runs.select_related("competition", "group")
    if isinstance(which, list):
        found = list(runs.filter(pk__in=which))
        unknown = sorted(set(which) - {run.pk for run in found})
        if unknown:
            names = ", ".join(map(str, unknown[:20]))
            raise RequestInvalid([FieldError("which", f"The run group has no run {names}.")])
        return found
    failed = runs.filter(state=RunState.FAILED)
    if which == "failed":
        return list(failed)
    if which == "infrastructure":
        # A failed run's newest attempt is the one that made it so.
        newest = Attempt.objects.filter(run=OuterRef("pk")).order_by("-number")
        return list(
            failed.annotate(last=Subquery(newest.values("outcome")[:1])).filter(
                last=Outcome.INFRASTRUCTURE_FAILED
            )
        )
    raise RequestInvalid(
        [FieldError("which", f"{which!r} is no choice of runs.", ["failed", "infrastructure"])]
    )


def rerun(
    runs: Iterable[Run],
    *,
    by: User | None,
    by_name: str = "",
    reason: str = "",
    mode: str = "restart",
    overrides: Overrides | None = None,
    requeue: Requeue | None = None,
) -> list[Attempt]:
    """Queue a new attempt for each run that has ended; older attempts stay as they are.

    Safe to press twice: runs that are queued or at work are left alone. All or nothing: raises
    NotRerunnable when one has a result that stands, and ReasonNeeded when one is the agent's own
    failure and `reason` is empty. `by_name` names the actor where `by` is None. `overrides`: in
    place of the groups' settings. `mode` "resume": from the newest checkpoint; raises NotRerunnable
    naming those that have none. `requeue`: many at once, to be undone together.
    """
    if mode not in RERUN_MODES:
        raise NotRerunnable(
            f"A re-run cannot {mode!r}; it can: {', '.join(RERUN_MODES)}.", field="mode"
        )
    reason = reason.strip()
    with transaction.atomic():
        # The lock keeps two people from queueing one run twice; on SQLite the transaction does.
        locked = list(
            Run.objects.select_for_update(of=("self",))
            .filter(pk__in=[run.pk for run in runs])
            .select_related("competition", "group")
            .order_by("pk")
        )
        ended = [(run, attempt) for run in locked if (attempt := run.newest_attempt()).is_ended]
        _refuse_imported(locked)
        _refuse_results(ended)
        _ask_for_reason(ended, reason)
        if mode == "resume":
            _refuse_unresumable(ended, overrides)
        attempts = []
        for run, last in ended:
            attempts.append(
                run.queue_attempt(
                    by=by_name or audit.name_of(by),
                    resumed_from=last if mode == "resume" else None,
                    fresh_tries=True,
                    overrides=overrides,
                    requeue=requeue,
                )
            )
            audit.record(
                by,
                "rerun",
                run,
                reason=reason,
                by_name=by_name,
                detail={
                    "after": last.outcome,
                    "cause": last.cause,
                    "attempt": last.number,
                    "mode": mode,
                    "overrides": overrides.as_json() if overrides else {},
                },
            )
        if attempts:
            transaction.on_commit(bell.ring, robust=True)
    return attempts


def _refuse_imported(runs: Sequence[Run]) -> None:
    if found := [run for run in runs if run.group.is_imported]:
        raise NotRerunnable(f"{_named(found)}: {found[0].group.why_no_rerun}")


def _refuse_results(ended: Sequence[tuple[Run, Attempt]]) -> None:
    graded = [run for run, last in ended if last.outcome == Outcome.GRADED and not run.is_cut_short]
    if graded:
        raise NotRerunnable(
            f"{_named(graded)} {'has a result' if len(graded) == 1 else 'have results'}, "
            "and a graded run is never run again: more tries are more seeds. "
            "Start another run group of the same experiment."
        )


def _refuse_unresumable(ended: Sequence[tuple[Run, Attempt]], overrides: Overrides | None) -> None:
    found = resuming.unresumable(ended, overrides)
    if not found:
        return
    shown = "; ".join(f"run {run.pk} ({run}): {why}" for run, why in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    if all(resuming.is_used_up(why) for _, why in found):
        raise NotRerunnable(
            f"Cannot be resumed within the time limit: {shown}{more}. "
            'Write a larger "Time limit, hours" (time_limit_s), or restart from zero.',
            field="overrides.time_limit_s",
        )
    raise NotRerunnable(
        f"Cannot be resumed, only restarted from zero: {shown}{more}.", field="mode"
    )


def _ask_for_reason(ended: Sequence[tuple[Run, Attempt]], reason: str) -> None:
    own = [run for run, last in ended if last.outcome == Outcome.AGENT_FAILED]
    if own and not reason:
        raise ReasonNeeded(
            f"{_named(own)} failed by the agent's own doing. Write the reason for the re-run; "
            "it is kept in the audit log."
        )


def _named(runs: Sequence[Run]) -> str:
    shown = ", ".join(f"run {run.pk} ({run})" for run in runs[:10])
    return shown if len(runs) <= 10 else f"{shown} and {len(runs) - 10} more"
