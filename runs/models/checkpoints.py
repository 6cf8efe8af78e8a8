"""Saved states that another attempt can begin with."""

from django.db import models
from django.db.models.functions import Now


class CheckpointQuerySet(models.QuerySet["Checkpoint"]):
    def stored(self) -> "CheckpointQuerySet":
        """Still in storage, corrupt or not."""
        return self.exclude(path="")


class Checkpoint(models.Model):
    """A saved state of an attempt that another attempt can begin with.

    The row is written last: there is none for one that is half. Its files are in Django storage.
    """

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="checkpoints")
    number = models.PositiveIntegerField(help_text="counts up in its attempt")
    created_at = models.DateTimeField(db_default=Now())
    # The last step that the agent had finished; null where nobody counts them.
    step = models.PositiveIntegerField(null=True, blank=True)
    # Of the run, up to the moment that it shows; what a resume from it is charged.
    active_seconds = models.FloatField()
    # The agent said that its state is whole; else it was taken by the clock, or a person asked.
    is_agents_word = models.BooleanField(default=False)
    files = models.PositiveIntegerField()
    size = models.BigIntegerField(help_text="bytes of the files")
    added_bytes = models.BigIntegerField(help_text="bytes that it added to storage")
    save_seconds = models.FloatField()
    pause_seconds = models.FloatField(default=0, help_text="the agent stood still for it")
    # Of the manifest; empty: dropped, for newer ones or since the run needs none any more.
    path = models.CharField(max_length=300, blank=True)
    digest = models.CharField(max_length=64, help_text="SHA-256 of the manifest")
    # Why it could not be restored; "" while nothing is known against it.
    fault = models.TextField(blank=True)

    objects = CheckpointQuerySet.as_manager()

    class Meta:
        ordering = ["attempt", "number"]
        constraints = [
            models.UniqueConstraint(fields=["attempt", "number"], name="one_checkpoint_a_number")
        ]

    def __str__(self) -> str:
        return f"checkpoint {self.number} of attempt {self.attempt.number}"
