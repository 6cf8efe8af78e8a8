"""Where runs happen: hosts, their GPUs, and the data that is prepared on each."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import models

from mlebench_web.accounts.models import User
from mlebench_web.catalog.models import Competition


class Host(models.Model):
    """A worker machine, as its host service last described it.

    `worker_seen_at` and `service_seen_at` are the database's time of the last sign of each.
    What could not be measured is null, never 0.
    """

    name = models.CharField(max_length=100, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    worker_seen_at = models.DateTimeField(null=True, blank=True)
    service_seen_at = models.DateTimeField(null=True, blank=True)
    boot_id = models.CharField(max_length=64, blank=True)
    is_draining = models.BooleanField(default=False)
    # Put aside after failures of its own; says why.
    put_aside = models.CharField(max_length=300, blank=True)
    # Fails by its own causes, but is the last one that can be used; shown in red, and why.
    failing = models.CharField(max_length=300, blank=True)
    # Failures before this moment are forgiven: somebody said "use it again".
    used_again_at = models.DateTimeField(null=True, blank=True)
    # Somebody said that it is gone; void as soon as it is heard of again.
    declared_lost_at = models.DateTimeField(null=True, blank=True)
    declared_lost_by = models.CharField(max_length=150, blank=True)
    slots = models.PositiveIntegerField(default=1)
    # What attempts may have: may be less than what the machine has.
    cpus = models.FloatField(null=True, blank=True)
    memory_bytes = models.BigIntegerField(null=True, blank=True)
    memory_reserve_bytes = models.BigIntegerField(default=0)
    cpu_model = models.CharField(max_length=200, blank=True)
    disk_total_bytes = models.BigIntegerField(null=True, blank=True)
    disk_free_bytes = models.BigIntegerField(null=True, blank=True)
    # When a supervisor last saw the disk of the attempts full: its successor must know.
    disk_full_at = models.DateTimeField(null=True, blank=True)
    # Docker Engine: empty id and a reason where there is none.
    engine_id = models.CharField(max_length=100, blank=True)
    engine_version = models.CharField(max_length=50, blank=True)
    engine_runtimes = models.JSONField(default=list, blank=True)
    engine_error = models.TextField(blank=True)
    # Whether its operator lets agents be root on it.
    accepts_privileged = models.BooleanField(default=False)
    # Ids of images that agents can start from on this host's engine.
    image_ids = models.JSONField(default=list, blank=True)
    # "" no fault; a missing driver is normal and no fault; a broken one is said here.
    gpu_error = models.TextField(blank=True)
    gpu_driver = models.CharField(max_length=50, blank=True)
    # Whether a Python with the ML libraries is there: needed to grade and for `process` runs.
    ml_python_error = models.TextField(blank=True)
    # Why competitions of an mle-bench checkout cannot be graded here; "": they can.
    mlebench_error = models.TextField(blank=True)
    is_shared_data_ok = models.BooleanField(null=True, help_text="reads what the web wrote")
    version = models.CharField(max_length=30, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def last_seen(self) -> datetime | None:
        seen = [at for at in (self.worker_seen_at, self.service_seen_at) if at]
        return max(seen) if seen else None

    def is_online(self, at: datetime) -> bool:
        """Whether the worker was heard of within one lease, at the database's time `at`."""
        return bool(self.worker_seen_at and at - self.worker_seen_at < settings.LEASE_TTL)

    def is_declared_lost(self) -> bool:
        """Whether somebody said that it is gone, and nothing was heard of it since."""
        seen = self.last_seen()
        return bool(self.declared_lost_at and (seen is None or seen < self.declared_lost_at))

    def silence(self, at: datetime) -> timedelta | None:
        """Time since anything of this host was heard; None: never heard of."""
        seen = self.last_seen()
        return at - seen if seen else None


class Gpu(models.Model):
    """A device by its NVML UUID; index order changes and is for display only."""

    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="gpus")
    uuid = models.CharField(max_length=100, unique=True)
    index = models.IntegerField()
    name = models.CharField(max_length=200)
    memory_bytes = models.BigIntegerField(null=True, blank=True)
    # The last reading; null: not supported by this card or not read.
    memory_used_bytes = models.BigIntegerField(null=True, blank=True)
    utilisation = models.IntegerField(null=True, blank=True, help_text="percent")
    temperature_c = models.IntegerField(null=True, blank=True)
    power_w = models.FloatField(null=True, blank=True)
    # "" healthy; otherwise why it is not leased (lost, reset required, foreign use).
    fault = models.CharField(max_length=300, blank=True)
    is_present = models.BooleanField(default=True)
    # A MIG slice is leased in place of its parent, never beside it.
    parent_uuid = models.CharField(max_length=100, blank=True)
    is_mig_parent = models.BooleanField(default=False)
    seen_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["host", "index"]

    def __str__(self) -> str:
        return f"{self.name} {self.uuid[:12]}"


class PreparedData(models.Model):
    """A competition's data on one host: what `prepare` is doing or has done there."""

    class State(models.TextChoices):
        WANTED = "wanted"
        PREPARING = "preparing"
        READY = "ready"
        FAILED = "failed"
        # For a person: see `waits_for`.
        WAITING = "waiting"

    class WaitsFor(models.TextChoices):
        RULES = "rules", "somebody must accept the competition's rules at Kaggle"
        CREDENTIALS = "credentials", "Kaggle credentials are missing or refused"
        CHECKSUMS = "checksums", "files are not what the checksums say"

    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="prepared")
    competition = models.ForeignKey(Competition, on_delete=models.CASCADE, related_name="prepared")
    state = models.CharField(max_length=10, choices=State.choices)
    done_bytes = models.BigIntegerField(null=True, blank=True)
    total_bytes = models.BigIntegerField(null=True, blank=True)
    error = models.TextField(blank=True)
    # What is being done, in a few words.
    phase = models.CharField(max_length=100, blank=True)
    waits_for = models.CharField(max_length=20, choices=WaitsFor.choices, blank=True)
    # Where a person does what it waits for.
    link = models.CharField(max_length=300, blank=True)
    # Somebody has seen that the checksums differ, and wants the data all the same.
    ignores_checksums = models.BooleanField(default=False)
    asked_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    # Of the prepared files' names, sizes and hashes: what a result was graded against.
    digest = models.CharField(max_length=64, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "prepared data"
        constraints = [
            models.UniqueConstraint(fields=["host", "competition"], name="one_row_per_host_data")
        ]

    def __str__(self) -> str:
        return f"{self.competition} on {self.host}: {self.state}"
