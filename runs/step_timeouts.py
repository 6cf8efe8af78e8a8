"""The watch's part that ends a step which takes too long.

First by a signal to the step's own process, where one is known and there; else, or where that does
not help, by a stop of the container, from whose last checkpoint another attempt goes on. The rungs
are in runs/core/step_limits.py and docs/states.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlebench_web.accounts.models import AuditEntry
from runs import checkpoints, queue
from runs.containers import EngineFailure
from runs.core.failures import Cause
from runs.core.states import Outcome
from runs.core.step_limits import IN_A_ROW, Act, Overdue, limit_of, what_to_do
from runs.core.step_processes import AgentProcess, of_the_step, with_all_below
from runs.core.steps import StepState
from runs.models import Attempt, Run
from runs.patience import patiently
from runs.steps import Feed, StepPart, part_of
from runs.watching import Ending, Watch

if TYPE_CHECKING:
    from runs.worker import Supervisor

LOOK_EVERY = 1.0
ORDINALS = {1: "first", 2: "second", 3: "third"}


class StepTimeoutPart:
    every = LOOK_EVERY

    def __init__(self, supervisor: "Supervisor") -> None:
        self.supervisor = supervisor
        self.manifest = supervisor.manifest
        self.timeout = queue.step_timeout_of(supervisor.attempt).total_seconds()
        self.limit = limit_of(self.timeout, is_native=self.manifest.step_timeout.how == "native")
        # Signals that the run's log tells of already: one that the kernel holds up is sent again.
        self._told: set[tuple[str, int, float]] = set()

    # ------------------------------------------------------------------ the watch's calls

    def look(self, watch: Watch) -> Ending | None:
        steps = part_of(watch)
        if steps is None or watch.pauser.is_holding or not self._is_over(watch, steps):
            return None
        # It may have ended since the last look, or in what that one left unread.
        steps.catch_up(watch)
        if not self._is_over(watch, steps):
            return None
        try:
            return self._climb(watch, steps)
        except EngineFailure as failure:
            # Nothing was sent; the next look tries again.
            self.supervisor.silence.begins(failure)
            return None

    def last(self, watch: Watch, ending: Ending) -> Ending | None:
        """An agent that its step took with it: the step timed out, it did not crash by itself."""
        steps = part_of(watch)
        if steps is None or steps.feed.ending_since is None:
            return None
        if not ending.ended_by_itself or ending.exit_code == 0 or ending.memory_killed:
            return None
        in_a_row = self._in_a_row()
        detail = f"{self._words(steps)} The agent ended with it."
        # What it could save is saved by now.
        can_go_on = patiently(self.supervisor.attempt.can_go_on, tick=self.supervisor.tick)
        if in_a_row < IN_A_ROW and can_go_on:
            self.supervisor.save(goes_on=True, cause=Cause.STEP_TIMEOUT, cause_detail=detail)
        else:
            detail = f"{detail} {self._why_it_ends(in_a_row)}"
        return replace(ending, cause=Cause.STEP_TIMEOUT, detail=detail)

    # ------------------------------------------------------------------ the ladder

    def _is_over(self, watch: Watch, steps: StepPart) -> bool:
        if steps.feed.ending_since is not None:
            return True
        running = steps.running
        return running is not None and _seconds(watch, running) >= self.limit

    def _climb(self, watch: Watch, steps: StepPart) -> Ending | None:
        since = steps.feed.ending_since
        running = steps.running
        processes, own = self._processes(watch, steps)
        in_a_row = self._in_a_row() + (since is None)
        step = Overdue(
            seconds=_seconds(watch, running) if running else 0,
            ending_for=None if since is None else watch.active() - since,
            in_a_row=in_a_row,
            has_own_process=self._has_own_process(steps),
            process_is_there=bool(own),
            # Only asked for where it matters: a save may take a while.
            can_go_on=True,
        )
        act = what_to_do(step, limit=self.limit)
        if act == Act.GO_ON and not self._has_checkpoint():
            checkpoints.save_now(watch)
            if self._has_changed(watch, steps, running, since):
                # The next look sees it.
                return None
            if not self._has_checkpoint():
                act = what_to_do(replace(step, can_go_on=False), limit=self.limit)
        if act == Act.WAIT:
            return None
        if since is None:
            steps.time_out(watch)
        words = self._words(steps)
        match act:
            case Act.INTERRUPT:
                self._send(watch, own, "INT", f"{words} Interrupted: ")
            case Act.KILL:
                self._send(watch, with_all_below(own, processes), "KILL", "It went on. Killed: ")
            case Act.GO_ON:
                return watch.go_on_from_checkpoint(Cause.STEP_TIMEOUT, words)
            case Act.END:
                return watch.stop(Cause.STEP_TIMEOUT, f"{words} {self._why_it_ends(in_a_row)}")
        return None

    def _has_own_process(self, steps: StepPart) -> bool:
        return bool(self.manifest.step_process) or steps.feed.process is not None

    def _processes(
        self, watch: Watch, steps: StepPart
    ) -> tuple[Sequence[AgentProcess], list[AgentProcess]]:
        """The agent's processes, and of these the running step's own. Raises EngineFailure."""
        if not self._has_own_process(steps):
            return [], []
        found = watch.engine.agent_processes(watch.container)
        return found, of_the_step(found, self.manifest.step_process, steps.feed.process)

    def _send(
        self, watch: Watch, processes: Sequence[AgentProcess], signal: str, words: str
    ) -> None:
        sent = watch.engine.signal_processes(watch.container, processes, signal)
        signals = {(signal, each.pid, each.started) for each in processes}
        if sent and not signals <= self._told:
            self._told |= signals
            ids = ", ".join(str(each.pid) for each in processes)
            self.supervisor.log.say(f"{words}process {ids} in its container.")

    def _in_a_row(self) -> int:
        """Step timeouts that are marked, with no finished step after them."""
        return patiently(
            lambda: in_a_row(self.supervisor.attempt), tick=self.supervisor.tick, what="steps"
        )

    def _has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        supervisor = self.supervisor
        return patiently(supervisor.attempt.can_go_on, tick=supervisor.tick, what="checkpoints")

    def _has_changed(
        self, watch: Watch, steps: StepPart, running: StepState | None, since: float | None
    ) -> bool:
        """Whether the step is no longer one to end: a save takes minutes, in which the agent may
        have ended by itself or gone on, or somebody may have cancelled."""
        self.supervisor.refresh()
        if self.supervisor.attempt.cancel_requested_at:
            return True
        if watch.workspace.agent_exit_code() is not None:
            return True
        steps.catch_up(watch)
        return steps.feed.ending_since != since or _which(steps.running) != _which(running)

    # ------------------------------------------------------------------ words

    def _words(self, steps: StepPart) -> str:
        step = max(steps.ledger.steps.values(), key=lambda each: each.began or 0)
        name = f" ({step.name})" if step.name else ""
        return f"Step {step.number}{name} took longer than {span(self.timeout)}."

    def _why_it_ends(self, in_a_row: int) -> str:
        if in_a_row >= IN_A_ROW:
            return f"It is the {ORDINALS.get(in_a_row, f'{in_a_row}th')} step timeout in a row."
        return "There is no checkpoint to go on from."


def _seconds(watch: Watch, step: StepState) -> float:
    """How long a running step has run, of active time."""
    return watch.active() - step.began if step.began is not None else 0.0


def _which(step: StepState | None) -> tuple[int, float | None] | None:
    """The step and its start; that its metric has changed since makes no other of it."""
    return (step.number, step.began) if step else None


def span(seconds: float) -> str:
    """In the largest unit of which it has two or more."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


def in_a_row(attempt: Attempt) -> int:
    """Step timeouts of the run with no finished step after them, this attempt's too.

    Over the attempts that followed each other by themselves: who asks for a re-run begins anew.
    Costs one query, and one for each failure of the infrastructure among them.
    """
    so_far = Attempt.objects.filter(run=attempt.run_id, number__lte=attempt.number)
    rows = so_far.order_by("-number").values_list("number", "outcome", "step_feed")
    count = 0
    for number, outcome, row in rows:
        if number != attempt.number and not _was_followed(attempt.run_id, number, outcome):
            break
        feed = Feed.of(row)
        count += feed.timeouts
        if feed.has_finished:
            break
    return count


def _was_followed(run: int, number: int, outcome: str) -> bool:
    """Whether the attempt after this one followed by itself, and was not asked for by a person."""
    if outcome == Outcome.INFRASTRUCTURE_FAILED:
        # None follows where no try is left. The outcome is the same then; what tells a re-run from
        # a next try is its entry, written in the transaction that queued it.
        return not AuditEntry.objects.filter(
            action="rerun",
            object_type=str(Run._meta.verbose_name),
            object_id=str(run),
            detail__attempt=number,
        ).exists()
    return outcome == Outcome.CONTINUED
