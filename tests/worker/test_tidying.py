"""What the control worker throws away."""

from datetime import timedelta

import pytest
from django.utils import timezone

from runs import tasks, tidying
from runs.models import IdempotencyKey
from tests import factories

pytestmark = pytest.mark.django_db


def key(name: str, *, days: float) -> IdempotencyKey:
    row = IdempotencyKey.objects.create(
        user=factories.make_user(), key=name, request_digest="0" * 64, status=201, answer={}
    )
    IdempotencyKey.objects.filter(pk=row.pk).update(
        created_at=timezone.now() - timedelta(days=days)
    )
    return row


def test_keys_are_forgotten_after_a_week_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "AT_ONCE", 2)
    for number in range(5):
        key(f"old-{number}", days=7.1)
    key("of this week", days=6.9)

    assert tidying.forget_old_keys() == 5

    assert [row.key for row in IdempotencyKey.objects.all()] == ["of this week"]


def test_the_tick_tidies_up_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 3700.0])
    monkeypatch.setattr(tidying, "_last", None)
    monkeypatch.setattr(tidying.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tasks.queue, "reap", lambda: [])
    monkeypatch.setattr(tasks.bells, "ring", lambda: None)
    left = []

    for name in ("first", "second", "third"):
        key(name, days=8)
        tasks.tick()
        left.append(IdempotencyKey.objects.count())

    assert left == [0, 1, 0]
