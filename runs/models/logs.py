"""Logs in storage."""

from django.db import models
from django.utils import timezone


class LogSegment(models.Model):
    """Some bytes of a log, in Django storage. Pages and API read segments only."""

    class Source(models.TextChoices):
        AGENT = "agent"
        CONTAINER = "container"
        RUN = "run", "what mlebench-web did"
        GRADER = "grader"

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="segments")
    source = models.CharField(max_length=10, choices=Source.choices)
    first_byte = models.BigIntegerField()
    length = models.BigIntegerField()
    first_line = models.BigIntegerField(help_text="number of its first line, from 1")
    line_count = models.BigIntegerField(help_text="line ends in it")
    path = models.CharField(max_length=300)
    # Where its shipper goes on: redaction makes the stored bytes differ from the file's.
    file_end = models.BigIntegerField(null=True, blank=True, help_text="offset in the shipped file")
    file_id = models.CharField(max_length=40, blank=True, help_text="which file; a new one differs")
    shipped_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["attempt", "source", "first_byte"]
        constraints = [
            models.UniqueConstraint(
                fields=["attempt", "source", "first_byte"], name="one_segment_a_byte"
            )
        ]

    def __str__(self) -> str:
        return f"{self.source} of attempt {self.attempt_id} from {self.first_byte}"
