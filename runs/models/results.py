"""What an attempt has handed in, and what it was worth."""

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from runs.core.states import Result


class GradingReport(models.Model):
    """Upstream's record of one graded submission, its 16 keys, and who graded it with what.

    A re-grade adds a row; `is_current` marks the newest. An agent failure has a report too: null
    score, no medal.
    """

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="reports")
    is_current = models.BooleanField(default=True)
    score = models.FloatField(null=True, blank=True)
    gold_threshold = models.FloatField(null=True, blank=True)
    silver_threshold = models.FloatField(null=True, blank=True)
    bronze_threshold = models.FloatField(null=True, blank=True)
    median_threshold = models.FloatField(null=True, blank=True)
    any_medal = models.BooleanField(default=False)
    gold_medal = models.BooleanField(default=False)
    silver_medal = models.BooleanField(default=False)
    bronze_medal = models.BooleanField(default=False)
    above_median = models.BooleanField(default=False)
    submission_exists = models.BooleanField(default=False)
    valid_submission = models.BooleanField(default=False)
    is_lower_better = models.BooleanField(null=True)
    created_at = models.DateTimeField(default=timezone.now)
    submission_path = models.CharField(max_length=500, default="None")
    # Why an invalid submission is invalid, in the grader's words.
    message = models.TextField(blank=True)
    grader = models.CharField(max_length=100, blank=True, help_text="grader and its version")
    # Of the mle-bench checkout as it was then; empty: the grader is ours, or there is no git.
    grader_commit = models.CharField(max_length=64, blank=True)
    files_digest = models.CharField(
        max_length=64, blank=True, help_text="of the code and leaderboard that decide about a score"
    )
    data_digest = models.CharField(max_length=64, blank=True, help_text="of the answers")
    seconds = models.FloatField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["attempt"], condition=Q(is_current=True), name="one_current_report"
            )
        ]

    def __str__(self) -> str:
        return f"report of attempt {self.attempt_id}: {self.score}"

    @property
    def result(self) -> Result:
        if not self.submission_exists:
            return Result.NO_SUBMISSION
        if not self.valid_submission:
            return Result.INVALID
        if self.gold_medal:
            return Result.GOLD
        if self.silver_medal:
            return Result.SILVER
        if self.bronze_medal:
            return Result.BRONZE
        return Result.ABOVE_MEDIAN if self.above_median else Result.VALID

    def as_upstream(self) -> dict[str, object]:
        """The 16 keys in upstream's order."""
        return {
            "competition_id": self.attempt.run.competition.name,
            "score": self.score,
            "gold_threshold": self.gold_threshold,
            "silver_threshold": self.silver_threshold,
            "bronze_threshold": self.bronze_threshold,
            "median_threshold": self.median_threshold,
            "any_medal": self.any_medal,
            "gold_medal": self.gold_medal,
            "silver_medal": self.silver_medal,
            "bronze_medal": self.bronze_medal,
            "above_median": self.above_median,
            "submission_exists": self.submission_exists,
            "valid_submission": self.valid_submission,
            "is_lower_better": self.is_lower_better,
            # Upstream writes a naive local time with microseconds; ours is UTC.
            "created_at": self.created_at.replace(tzinfo=None).isoformat(timespec="microseconds"),
            "submission_path": self.submission_path,
        }


class SubmissionSnapshot(models.Model):
    """The submission as it stood at one moment of a run, in Django storage.

    Scored only after the run has ended: a running agent must learn nothing from it.
    """

    attempt = models.ForeignKey("Attempt", on_delete=models.CASCADE, related_name="snapshots")
    taken_at = models.DateTimeField(db_default=Now())
    active_seconds = models.FloatField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the file")
    size = models.BigIntegerField()
    # Empty: dropped to stay within the limits; its score, if it had one, stays.
    path = models.CharField(max_length=300, blank=True)
    # Null: not looked at yet.
    is_valid = models.BooleanField(null=True)
    score = models.FloatField(null=True, blank=True)
    message = models.TextField(blank=True)

    class Meta:
        ordering = ["attempt", "active_seconds", "id"]

    def __str__(self) -> str:
        return f"submission of attempt {self.attempt_id} at {self.active_seconds:.0f} s"
