"""Steps on the run page: each of them over all attempts, the best metric, the last sign of life."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.utils.safestring import SafeString

from runs.core.states import State
from runs.core.steps import Metric, StepEnd, is_better
from runs.models import Attempt, Step
from runs.step_curve import Measured, step_curve

# Rows that are shown before a person asks for all.
SHOWN = 12
BESIDE = 6
ALL_SHOWN = 2000
NO_CURVE = SafeString("")

STATUS = {
    StepEnd.FINISHED: "ok",
    StepEnd.FAILED: "bad",
    StepEnd.TIMED_OUT: "warn",
    StepEnd.INTERRUPTED: "idle",
    StepEnd.NOT_SAID: "idle",
}
WORDS = {
    StepEnd.FINISHED: "finished",
    StepEnd.FAILED: "failed",
    StepEnd.TIMED_OUT: "timed out",
    StepEnd.INTERRUPTED: "interrupted",
    StepEnd.NOT_SAID: "end not said",
}


@dataclass(frozen=True)
class Row:
    step: Step
    status: str
    word: str
    seconds: float | None
    is_best: bool

    @property
    def is_running(self) -> bool:
        return self.status == "run"


@dataclass(frozen=True)
class Group:
    """The steps of one attempt, and why it ended."""

    attempt: Attempt
    rows: list[Row]

    @property
    def end(self) -> str:
        if not self.attempt.is_ended:
            return ""
        cause = self.attempt.cause_sentence
        return cause or str(self.attempt.outcome).replace("_", " ").capitalize() + "."


@dataclass(frozen=True)
class Overview:
    groups: list[Group] = field(default_factory=list)
    # The last few, for beside the log.
    newest: list[Row] = field(default_factory=list)
    count: int = 0
    shown: int = 0
    # "2 failed", "1 interrupted": ends that are worth a word.
    odd: list[str] = field(default_factory=list)
    # Of the newest attempt, as the agent says.
    total: int | None = None
    best: Step | None = None
    # The metric of most steps, and which way is better.
    metric: Metric | None = None
    # What the agent says of the whole.
    overall: Metric | None = None
    curve: SafeString = NO_CURVE
    faults: int = 0
    fault: str = ""
    last_sign: datetime | None = None
    last_step_sign: datetime | None = None
    are_probed: bool = False
    is_running: bool = False
    wants_all: bool = False


def overview(
    attempts: Sequence[Attempt], *, active_seconds: float | None, want_all: bool
) -> Overview:
    """`active_seconds` of the run, by now. Costs one query."""
    newest = attempts[-1]
    steps = list(Step.objects.filter(attempt__in=[each.pk for each in attempts]).in_order())
    metric = main_metric(steps)
    best = best_step(steps, metric)
    shown = steps[-(ALL_SHOWN if want_all else SHOWN) :]
    rows = {each.pk: _row(each, newest, best, active_seconds) for each in shown}
    feed = newest.step_feed
    return Overview(
        groups=[
            Group(attempt, own)
            for attempt in attempts
            if (own := [rows[each.pk] for each in shown if each.attempt_id == attempt.pk])
        ],
        newest=list(rows.values())[-BESIDE:],
        count=len(steps),
        shown=len(shown),
        odd=_odd(steps),
        total=feed.get("total"),
        best=best,
        metric=metric,
        overall=Metric(**feed["overall"]) if feed.get("overall") else None,
        curve=_curve(attempts, steps, metric, best),
        faults=feed.get("faults", 0),
        fault=feed.get("fault", ""),
        last_sign=newest.last_sign_at,
        last_step_sign=newest.last_step_sign_at,
        are_probed=any(each.source == "probe" for each in steps),
        is_running=newest.state == State.RUNNING,
        wants_all=want_all,
    )


def main_metric(steps: Sequence[Step]) -> Metric | None:
    """The newest value of the metric that most steps have."""
    measured = [each.metric for each in steps if each.metric]
    if not measured:
        return None
    [(name, _)] = Counter(metric.name for metric in measured).most_common(1)
    return [metric for metric in measured if metric.name == name][-1]


def best_step(steps: Sequence[Step], metric: Metric | None) -> Step | None:
    """Of all attempts, the first with the best value; None where no direction was said."""
    best: Step | None = None
    if metric is None or metric.maximize is None:
        return None
    for each in steps:
        mine = each.metric
        if mine is None or mine.name != metric.name:
            continue
        value = Metric(mine.name, mine.value, metric.maximize)
        if best is None or best.metric is None or is_better(value, best.metric):
            best = each
    return best


def _row(step: Step, newest: Attempt, best: Step | None, active: float | None) -> Row:
    is_best = best is not None and step.pk == best.pk
    if step.end:
        end = StepEnd(step.end)
        return Row(step, STATUS[end], WORDS[end], step.seconds, is_best)
    if step.attempt_id != newest.pk or newest.state != State.RUNNING:
        return Row(step, "idle", "end not known", None, is_best)
    known = active is not None and step.began_seconds is not None
    seconds = max(0.0, active - step.began_seconds) if known else None  # type: ignore[operator]
    return Row(step, "run", "running", seconds, is_best)


def _odd(steps: Sequence[Step]) -> list[str]:
    counts = Counter(each.end for each in steps if each.end not in ("", StepEnd.FINISHED))
    return [f"{count} {WORDS[StepEnd(end)]}" for end, count in sorted(counts.items())]


def _curve(
    attempts: Sequence[Attempt], steps: Sequence[Step], metric: Metric | None, best: Step | None
) -> SafeString:
    if metric is None:
        return NO_CURVE
    numbers = {each.pk: each.number for each in attempts}
    points = {
        each.pk: Measured(numbers[each.attempt_id], each.number, each.metric.value)
        for each in steps
        if each.metric and each.metric.name == metric.name
    }
    return step_curve(
        list(points.values()),
        name=metric.name,
        maximize=metric.maximize,
        best=points[best.pk] if best else None,
    )
