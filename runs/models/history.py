"""Who changed what, and when."""

from django.db import models
from django.db.models.functions import Now

from mlebench_web.accounts.models import User


class Requeue(models.Model):
    """Many failed runs queued again by one press, so that it can be undone while they wait."""

    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    by_name = models.CharField(max_length=150)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(db_default=Now())
    # Runs that it queued, and the tries that each had used: an undo gives them back.
    tries_before = models.JSONField(default=dict)
    undone_at = models.DateTimeField(null=True, blank=True)
    undone_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"re-run {self.pk} of {len(self.tries_before)} runs"


class Move(models.Model):
    """History: every change of an attempt's state, with who asked."""

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="moves")
    old = models.CharField(max_length=20, blank=True)
    new = models.CharField(max_length=20)
    outcome = models.CharField(max_length=30, blank=True)
    cause = models.CharField(max_length=30, blank=True)
    by = models.CharField(max_length=150)
    # Under which lease it was asked for; null: of a queued attempt, which has none.
    lease_token = models.UUIDField(null=True, blank=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.attempt_id}: {self.old or 'new'} -> {self.new}"
