"""Steps of an agent's own work."""

from datetime import datetime

from pydantic import BaseModel

from runs.api.objects.base import finite
from runs.models import Step


class MetricObject(BaseModel):
    """The agent's own word; no score."""

    name: str
    value: float | None
    maximize: bool | None  # null: it did not say which way is better


class StepObject(BaseModel):
    attempt: int  # its number
    number: int
    name: str
    state: str  # running, finished, failed, timed_out, interrupted, not_said
    source: str  # agent: its events; probe: read from its own files
    began_at: datetime | None
    ended_at: datetime | None
    # Of the run's active time.
    began_seconds: float | None
    seconds: float | None
    metric: MetricObject | None
    error: str | None

    @classmethod
    def of(cls, row: Step) -> "StepObject":
        metric = row.metric
        return cls(
            attempt=row.attempt.number,
            number=row.number,
            name=row.name,
            state=row.end or "running",
            source=row.source,
            began_at=row.began_at,
            ended_at=row.ended_at,
            began_seconds=row.began_seconds,
            seconds=row.seconds,
            metric=MetricObject(
                name=metric.name, value=finite(metric.value), maximize=metric.maximize
            )
            if metric
            else None,
            error=row.error or None,
        )
