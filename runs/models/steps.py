"""Steps of an agent's own work inside an attempt."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db import models
from django.db.models.functions import Coalesce

from runs.core.steps import (
    MAX_ERROR,
    MAX_METRIC_NAME,
    MAX_NAME,
    Metric,
    Source,
    StepEnd,
    StepState,
)
from runs.models.base import choices_of

if TYPE_CHECKING:
    from runs.models.attempts import Attempt


class StepQuerySet(models.QuerySet["Step"]):
    def in_order(self) -> "StepQuerySet":
        """As they were taken: attempt by attempt, and there by their start, for an agent may count
        down or begin its numbers anew. One whose start nobody told of stands at its end."""
        moment = Coalesce("began_seconds", "ended_seconds")
        return self.order_by("attempt__number", moment.asc(nulls_first=True), "number")


class Step(models.Model):
    """One unit of the agent's own work, as the agent said or a probe of ours read.

    Numbers are the agent's own: an attempt that goes on from a checkpoint continues them, a step
    that was lost with its attempt stands in both. Texts have no secrets and no control characters.
    """

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="steps")
    number = models.PositiveIntegerField()
    name = models.CharField(max_length=MAX_NAME, blank=True)
    source = models.CharField(max_length=10, choices=choices_of(Source), default=Source.AGENT)
    # Seconds of the run's active time; null: nobody said when it began.
    began_seconds = models.FloatField(null=True, blank=True)
    ended_seconds = models.FloatField(null=True, blank=True)
    # By the database's clock, for people.
    began_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    # Empty: it runs, while its attempt does.
    end = models.CharField(max_length=20, choices=choices_of(StepEnd), blank=True)
    metric_name = models.CharField(max_length=MAX_METRIC_NAME, blank=True)
    metric_value = models.FloatField(null=True, blank=True)
    # Null: the agent did not say which way is better.
    metric_maximize = models.BooleanField(null=True, blank=True)
    # What went wrong, in the agent's words.
    error = models.CharField(max_length=MAX_ERROR, blank=True)
    # A probe's guess: it begins where the last one ended.
    is_assumed = models.BooleanField(default=False)

    objects = StepQuerySet.as_manager()

    class Meta:
        ordering = ["attempt", "number"]
        constraints = [
            models.UniqueConstraint(fields=["attempt", "number"], name="one_step_a_number")
        ]

    def __str__(self) -> str:
        return f"step {self.number} of attempt {self.attempt_id}"

    @property
    def seconds(self) -> float | None:
        """How long it took, of active time."""
        return self.as_state().seconds

    @property
    def metric(self) -> Metric | None:
        if self.metric_value is None:
            return None
        return Metric(self.metric_name, self.metric_value, self.metric_maximize)

    WRITTEN = (
        "name",
        "source",
        "began_seconds",
        "ended_seconds",
        "began_at",
        "ended_at",
        "end",
        "metric_name",
        "metric_value",
        "metric_maximize",
        "error",
        "is_assumed",
    )

    @classmethod
    def of(
        cls,
        attempt: "Attempt",
        state: StepState,
        known: "Step | None",
        source: Source,
        active: float,
        now: datetime,
    ) -> "Step":
        """The row of this state; `active` seconds of the run's time is `now`. What `known`, the
        row so far, says of moments stays: a pause since then would move them."""

        def moment(
            seconds: float | None, was: float | None, at: datetime | None
        ) -> datetime | None:
            if seconds is None:
                return None
            return at if at and seconds == was else now - timedelta(seconds=active - seconds)

        so_far = known or cls()
        metric = state.metric
        return cls(
            attempt=attempt,
            number=state.number,
            name=state.name,
            source=source,
            began_seconds=state.began,
            ended_seconds=state.ended,
            began_at=moment(state.began, so_far.began_seconds, so_far.began_at),
            ended_at=moment(state.ended, so_far.ended_seconds, so_far.ended_at),
            end=state.end or "",
            metric_name=metric.name if metric else "",
            metric_value=metric.value if metric else None,
            metric_maximize=metric.maximize if metric else None,
            error=state.error,
            is_assumed=state.is_assumed,
        )

    def as_state(self) -> StepState:
        return StepState(
            self.number,
            name=self.name,
            began=self.began_seconds,
            ended=self.ended_seconds,
            end=StepEnd(self.end) if self.end else None,
            metric=self.metric,
            error=self.error,
            is_assumed=self.is_assumed,
        )
