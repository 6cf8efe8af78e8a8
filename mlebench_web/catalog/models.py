"""What can be run: competitions, splits, agents and their images, container configs."""

from django.db import models


class Checkout(models.Model):
    """A checkout of mle-bench that agents, splits, configs and competitions are read from.

    It is only read, never changed. Of several, the one at position 0 gives its agents plain ids;
    the ids of the others begin with the checkout's name.
    """

    name = models.CharField(max_length=60, unique=True)
    # The folder on this machine; for a git URL, a clone below the data folder.
    path = models.CharField(max_length=500)
    url = models.CharField(max_length=500, blank=True, help_text="empty: a folder of MLEBENCH_DIR")
    ref = models.CharField(max_length=200, blank=True, help_text="branch, tag or commit of the URL")
    position = models.IntegerField(default=0)
    is_listed = models.BooleanField(default=True, help_text="false: no longer in use")
    # What `FROM mlebench-env` means for its agents: a tag, or empty to build environment/.
    env_image = models.CharField(max_length=200, blank=True)
    installs_heavy = models.BooleanField(
        default=True, help_text="build argument INSTALL_HEAVY_DEPENDENCIES of environment/"
    )
    # As it was when it was read; empty where the folder is no git repository.
    commit = models.CharField(max_length=64, blank=True)
    branch = models.CharField(max_length=200, blank=True)
    is_dirty = models.BooleanField(null=True)
    # [{"file", "line", "message", "level"}]: what is broken, and what should be known.
    problems = models.JSONField(default=list, blank=True)
    # Why it could not be read at all; what was read before stays.
    error = models.TextField(blank=True)
    read_at = models.DateTimeField(null=True, blank=True)
    # Somebody pressed the button; the host service reads it.
    asked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["position", "name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_being_read(self) -> bool:
        return self.asked_at is not None


class Competition(models.Model):
    """One of MLE-bench's tasks, or of the demo split.

    Thresholds and direction are upstream's (leaderboard.csv by position); null where unknown.
    """

    name = models.CharField(max_length=100, unique=True, help_text="upstream's id")
    title = models.CharField(max_length=200)
    # A demo competition is a pipeline check: its answers are public. Never mixed with the 75.
    is_demo = models.BooleanField(default=False)
    category = models.CharField(max_length=100, blank=True)
    metric = models.CharField(max_length=100, blank=True)
    is_lower_better = models.BooleanField(null=True)
    dataset_size_bytes = models.BigIntegerField(null=True, blank=True)
    team_count = models.IntegerField(null=True, blank=True)
    gold_threshold = models.FloatField(null=True, blank=True)
    silver_threshold = models.FloatField(null=True, blank=True)
    bronze_threshold = models.FloatField(null=True, blank=True)
    median_threshold = models.FloatField(null=True, blank=True)
    known_issue = models.TextField(blank=True)
    # Folder with config.yaml, grade.py, leaderboard.csv, description.md; empty: facts only.
    folder = models.CharField(max_length=500, blank=True)
    # Paths below the data folder of competitions, as in upstream's config.yaml.
    answers_path = models.CharField(max_length=300, blank=True)
    sample_submission_path = models.CharField(max_length=300, blank=True)
    gold_submission_path = models.CharField(max_length=300, blank=True)
    # Data that ships inside the repository: prepared at start, nothing to download.
    ships_data = models.BooleanField(default=False)
    # The checkout that its folder is in; null: built in, or facts only.
    checkout = models.ForeignKey(
        Checkout, on_delete=models.SET_NULL, null=True, blank=True, related_name="competitions"
    )

    class ThresholdSource(models.TextChoices):
        """Where thresholds and direction come from."""

        FACTS = "facts", "facts that ship with mlebench-web"
        LEADERBOARD = "leaderboard", "the leaderboard of the competition's folder"

    threshold_source = models.CharField(max_length=20, choices=ThresholdSource.choices, blank=True)
    # Why the leaderboard was not used, where a checkout has one.
    threshold_note = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Split(models.Model):
    """A named list of competitions."""

    name = models.CharField(max_length=100, unique=True)
    title = models.CharField(max_length=100)
    position = models.IntegerField(default=100, help_text="order in lists and tabs")
    competitions = models.ManyToManyField(Competition, related_name="splits")
    checkout = models.ForeignKey(
        Checkout, on_delete=models.SET_NULL, null=True, blank=True, related_name="splits"
    )

    class Meta:
        ordering = ["position", "name"]

    def __str__(self) -> str:
        return self.name


class Agent(models.Model):
    """An agent id of an agents/*/config.yaml."""

    name = models.CharField(max_length=200, unique=True, help_text="agent id, such as aide/o1")
    # The folder's name; upstream's image name and part of the run group's name.
    image_name = models.CharField(max_length=100)
    folder = models.CharField(max_length=500, help_text="where config.yaml and start.sh are")
    start = models.CharField(max_length=300, help_text="start.sh, relative to the folder")
    dockerfile = models.CharField(max_length=300, help_text="relative to the folder")
    kwargs = models.JSONField(default=dict, blank=True)
    kwargs_type = models.CharField(max_length=20, blank=True)
    env_vars = models.JSONField(default=dict, blank=True)
    privileged = models.BooleanField(default=False)
    is_builtin = models.BooleanField(default=False)
    # Built-in agents may run without an engine, in the process runtime.
    runs_as_process = models.BooleanField(default=False)
    # "none" or "internet"; the built-in agents need nothing.
    network = models.CharField(max_length=20, default="internet")
    description = models.TextField(blank=True)
    resume_note = models.CharField(max_length=300, blank=True, help_text="what a resume restores")
    is_listed = models.BooleanField(default=True, help_text="false: gone from its source")
    checkout = models.ForeignKey(
        Checkout, on_delete=models.SET_NULL, null=True, blank=True, related_name="agents"
    )

    class BuildContext(models.TextChoices):
        """What the Dockerfile may COPY from."""

        FOLDER = "folder", "the agent's folder, as mle-bench"
        CHECKOUT = "checkout", "the whole checkout"

    # A choice of people: no file of the checkout says it.
    build_context = models.CharField(
        max_length=10, choices=BuildContext.choices, default=BuildContext.FOLDER
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class AgentImage(models.Model):
    """A built image of an agent's folder. Runs start by `image_id`, never by a name."""

    class State(models.TextChoices):
        # Asked for; the host service of a host with an engine takes it.
        WANTED = "wanted"
        BUILDING = "building"
        READY = "ready"
        FAILED = "failed"

    image_name = models.CharField(max_length=100, help_text="the agent folder's name")
    # As Agent.folder: two checkouts may have folders of one name.
    folder = models.CharField(max_length=500, blank=True)
    state = models.CharField(max_length=10, choices=State.choices)
    image_id = models.CharField(max_length=100, blank=True, help_text="sha256:…")
    engine_id = models.CharField(max_length=100, blank=True)
    base_image = models.CharField(max_length=200, blank=True)
    base_image_id = models.CharField(max_length=100, blank=True)
    # Of the build context; empty: an image that was not built here.
    source_digest = models.CharField(max_length=64, blank=True)
    # An image that somebody else built, taken by this tag.
    tag = models.CharField(max_length=200, blank=True)
    # The checkout as it was when it was built.
    checkout_name = models.CharField(max_length=60, blank=True)
    commit = models.CharField(max_length=64, blank=True)
    branch = models.CharField(max_length=200, blank=True)
    is_dirty = models.BooleanField(null=True)
    # Whose host service builds it; empty: any that has an engine.
    host_name = models.CharField(max_length=100, blank=True)
    asked_by = models.CharField(max_length=150, blank=True)
    error = models.TextField(blank=True)
    log = models.TextField(blank=True, help_text="last lines of the build")
    started_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-started_at"]
        indexes = [
            # The newest ready image of an agent, at each submit and claim.
            models.Index(fields=["folder", "image_name", "state", "-started_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.image_name} {self.image_id[:19] or self.state}"


class ContainerConfig(models.Model):
    """mle-bench's JSON of Docker settings, plus our runtime."""

    class Runtime(models.TextChoices):
        DOCKER = "docker"
        PROCESS = "process"

    name = models.CharField(max_length=100, unique=True)
    description = models.CharField(max_length=300, blank=True)
    runtime = models.CharField(max_length=10, choices=Runtime.choices, default=Runtime.DOCKER)
    # As upstream's: mem_limit, shm_size, nano_cpus, gpus, runtime. Floats such as 4e9 are normal.
    settings = models.JSONField(default=dict, blank=True)
    is_builtin = models.BooleanField(default=False)
    position = models.IntegerField(default=100)
    checkout = models.ForeignKey(
        Checkout, on_delete=models.SET_NULL, null=True, blank=True, related_name="configs"
    )
    # Counts up at each change; earlier ones are kept as ContainerConfigVersion.
    version = models.PositiveIntegerField(default=1)
    is_listed = models.BooleanField(default=True, help_text="false: not offered any more")

    class Meta:
        ordering = ["position", "name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_sandboxed(self) -> bool:
        return self.runtime == self.Runtime.DOCKER


class ContainerConfigVersion(models.Model):
    """What a config was: one row for each change. Run groups have a copy of their own."""

    config = models.ForeignKey(ContainerConfig, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    description = models.CharField(max_length=300, blank=True)
    settings = models.JSONField(default=dict, blank=True)
    by = models.CharField(max_length=150, help_text="user, host or command")
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["config", "number"], name="one_version_a_number")
        ]

    def __str__(self) -> str:
        return f"{self.config.name} version {self.number}"
