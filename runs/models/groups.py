"""Experiment > RunGroup, and what there is once an installation or a request."""

import uuid
from collections.abc import Iterable

from django.db import models, transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from mlebench_web.accounts.models import Team, User
from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split
from runs import sandbox
from runs.core.states import (
    RunState,
    State,
)
from runs.models.attempts import Attempt, Run
from runs.models.history import Move


class Installation(models.Model):
    """One row: the random name that labels everything this installation makes on an engine."""

    name = models.CharField(max_length=16, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    # After an outage or a jump of the clock an expired lease says nothing until then.
    trust_leases_from = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def this(cls) -> "Installation":
        row, _ = cls.objects.get_or_create(pk=1, defaults={"name": uuid.uuid4().hex[:12]})
        return row


class Experiment(models.Model):
    """A leaderboard row: what a team is testing, with one agent id."""

    name = models.CharField(max_length=200, unique=True)
    # Null: imported grading reports do not say which agent made them.
    agent = models.ForeignKey(
        Agent, on_delete=models.PROTECT, null=True, blank=True, related_name="experiments"
    )
    description = models.TextField(blank=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("experiment", args=[self.pk])


class RunGroup(models.Model):
    """One press of the Start button. Its state is computed from its runs, never stored."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="groups")
    # Agent, container config and limits are null in an imported group whose source is silent.
    agent = models.ForeignKey(
        Agent, on_delete=models.PROTECT, null=True, blank=True, related_name="groups"
    )
    # What the agent was told, as it was on that day: the catalog may change later.
    agent_kwargs = models.JSONField(default=dict, blank=True)
    agent_env = models.JSONField(default=dict, blank=True)
    split = models.ForeignKey(Split, on_delete=models.SET_NULL, null=True, blank=True)
    container_config = models.ForeignKey(
        ContainerConfig, on_delete=models.PROTECT, null=True, blank=True
    )
    container_settings = models.JSONField(default=dict, blank=True)
    runtime = models.CharField(
        max_length=10,
        choices=ContainerConfig.Runtime.choices,
        blank=True,
        help_text="empty: imported",
    )
    # Why another config was taken than the usual one ("no host has an engine"); shown on pages.
    config_note = models.CharField(max_length=300, blank=True)
    # Null while the image is still being built: the first claim fills it in, once.
    image = models.ForeignKey(AgentImage, on_delete=models.PROTECT, null=True, blank=True)
    seeds = models.PositiveIntegerField()
    time_limit = models.DurationField(null=True, blank=True)
    step_timeout = models.DurationField(null=True, blank=True)
    priority = models.IntegerField(default=0, help_text="higher goes first")
    env = models.JSONField(default=dict, blank=True)
    acknowledged_no_gpu = models.BooleanField(default=False)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    team = models.ForeignKey(Team, on_delete=models.SET_NULL, null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    # Upstream's name of the folder: <timestamp>_run-group_<agent folder>, made unique.
    folder = models.CharField(max_length=200, unique=True)
    # Name and SHA-256 of the file that it was imported from; empty: it was run here.
    imported_from = models.CharField(max_length=300, blank=True)
    import_digest = models.CharField(max_length=64, blank=True)
    # Upstream's name of an imported group, by which it stands among the others of its experiment.
    source_name = models.CharField(max_length=200, blank=True)
    # What its source says and the catalog does not know: agent, container_config, split.
    reported = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["experiment", "import_digest"],
                condition=~Q(import_digest=""),
                name="one_import_a_file",
            )
        ]

    def __str__(self) -> str:
        return f"run group {self.pk} ({self.experiment.name})"

    def get_absolute_url(self) -> str:
        return reverse("group", args=[self.pk])

    @property
    def is_imported(self) -> bool:
        """It was run elsewhere: no host of ours, no agent to run again."""
        return bool(self.import_digest)

    @property
    def why_no_rerun(self) -> str:
        """Why nobody may run its runs again, in sentences; "": it was run here."""
        if not self.is_imported:
            return ""
        if self.agent_id:
            agent = ""
        elif name := self.reported.get("agent"):
            agent = f" Its agent {name} is not in the catalog."
        else:
            agent = " Nothing in it says which agent it was."
        return (
            "Imported runs are not run again here: they ended elsewhere, and more tries are more "
            f"seeds. Start a run group of the same experiment.{agent}"
        )

    @property
    def upstream_name(self) -> str:
        """Its folder's name in upstream's layout; upstream sorts run groups by it."""
        return self.source_name or self.folder

    @property
    def why_unsandboxed(self) -> str:
        """What keeps its runs from being sandboxed, in a few words; "": nothing does, or it was
        run elsewhere. Looks at its agent."""
        return sandbox.why_not(self.runtime, self.container_settings, self.agent)

    def is_over(self) -> bool:
        """Whether nothing of it can change by itself. Costs one query."""
        over = (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)
        return not self.runs.exclude(state__in=over).exists()

    def add_runs(self, competitions: Iterable[Competition], *, by: str) -> "list[Run]":
        """Each competition x seed, each with its first attempt queued. Three inserts in all."""
        with transaction.atomic():
            runs = Run.objects.bulk_create(
                Run(group=self, competition=competition, seed=seed)
                for competition in competitions
                for seed in range(self.seeds)
            )
            attempts = Attempt.objects.bulk_create(Attempt(run=run, number=1) for run in runs)
            Move.objects.bulk_create(
                Move(attempt=attempt, old="", new=State.QUEUED, by=by) for attempt in attempts
            )
        return runs


class IdempotencyKey(models.Model):
    """The answer to a request that may be sent again."""

    user = models.ForeignKey(User, on_delete=models.CASCADE)
    key = models.CharField(max_length=200)
    request_digest = models.CharField(max_length=64)
    status = models.PositiveIntegerField(null=True, blank=True, help_text="null: still at work")
    answer = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="one_answer_a_key")]

    def __str__(self) -> str:
        return self.key
