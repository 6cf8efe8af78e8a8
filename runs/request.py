"""What a person asks for, checked against the catalog: the same for page, API and shell."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from django.conf import settings
from django.db.models import Q

from mlebench_web.accounts import placeholders
from mlebench_web.catalog import images
from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split
from runs.models import Experiment

SEEDS_AT_MOST = 100
RUNS_AT_MOST = 10_000
LONGEST_S = 30 * 24 * 3600
PRIORITIES = range(-100, 101)

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The product tells the agent these (docs: agent protocol); a person's value would be a lie.
OURS = re.compile(r"COMPETITION_ID|TIME_LIMIT_SECS|MLE_.*|NVIDIA_.*|CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field, and what would be right."""

    field: str
    message: str
    allowed: list[str] | None = None


class RequestInvalid(Exception):
    """The request cannot become a run group. Every error names its field."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = list(errors)
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))


@dataclass(frozen=True)
class RunGroupRequest:
    """One press of Start. None means: as is usual."""

    agent: str
    split: str | None = None
    competitions: tuple[str, ...] = ()
    container_config: str | None = None
    seeds: int = 1
    experiment: str | None = None
    time_limit_s: int | None = None
    step_timeout_s: int | None = None
    priority: int = 0
    env: dict[str, str] = field(default_factory=dict)
    acknowledge_no_gpu: bool = False


@dataclass(frozen=True)
class Wanted:
    """A request with every name looked up."""

    request: RunGroupRequest
    agent: Agent
    split: Split | None
    competitions: list[Competition]
    # None: nobody asked for one by name; preflight chooses.
    container_config: ContainerConfig | None
    # The name of a new experiment where `experiment` is None.
    experiment_name: str
    experiment: Experiment | None
    time_limit: timedelta
    step_timeout: timedelta
    # None while the image is being built or was never built.
    image: AgentImage | None
    is_image_building: bool

    @property
    def is_demo(self) -> bool:
        return all(competition.is_demo for competition in self.competitions)

    @property
    def run_count(self) -> int:
        return len(self.competitions) * self.request.seeds


def look_up(request: RunGroupRequest) -> Wanted:
    """Raises RequestInvalid with all that is wrong, not only the first."""
    errors: list[FieldError] = []
    agent = _agent(request.agent, errors)
    split, competitions = _competitions(request, errors)
    config = _container_config(request.container_config, errors)
    if not 1 <= request.seeds <= SEEDS_AT_MOST:
        errors.append(FieldError("seeds", f"Write a number from 1 to {SEEDS_AT_MOST}."))
    elif len(competitions) * request.seeds > RUNS_AT_MOST:
        errors.append(
            FieldError("seeds", f"That is more than {RUNS_AT_MOST} runs; take fewer seeds.")
        )
    for name in ("time_limit_s", "step_timeout_s"):
        seconds = getattr(request, name)
        if seconds is not None and not 1 <= seconds <= LONGEST_S:
            errors.append(FieldError(name, f"Write seconds from 1 to {LONGEST_S}."))
    if request.priority not in PRIORITIES:
        errors.append(
            FieldError("priority", f"Write a number from {PRIORITIES[0]} to {PRIORITIES[-1]}.")
        )
    errors.extend(env_errors(request.env))
    name = request.experiment if request.experiment is not None else request.agent
    experiment = _experiment(name, agent, errors)
    if errors or agent is None:
        raise RequestInvalid(errors)
    return Wanted(
        request=request,
        agent=agent,
        split=split,
        competitions=competitions,
        container_config=config,
        experiment_name=name.strip(),
        experiment=experiment,
        time_limit=_span(request.time_limit_s, settings.DEFAULT_TIME_LIMIT),
        step_timeout=_span(request.step_timeout_s, settings.DEFAULT_STEP_TIMEOUT),
        image=images.newest_image(agent),
        is_image_building=images.is_building(agent),
    )


def env_errors(env: dict[str, str]) -> list[FieldError]:
    """Environment variables that a person may not hand to an agent."""
    errors = []
    for name, value in env.items():
        if not ENV_NAME.fullmatch(name):
            message = f"{name!r} is no name of a variable: letters, digits and _ only."
        elif placeholders.name_in(value) and not placeholders.PLACEHOLDER.fullmatch(value):
            message = f"{name} holds more than the placeholder, which is replaced as a whole."
        elif SECRET_NAME.search(name) and not placeholders.name_in(value):
            # Stored in clear, and shown to everybody who may see the run group.
            message = (
                f"{name} looks like a secret. Use a stored secret by name: "
                "write ${{ secrets.NAME }} for its value."
            )
        elif OURS.fullmatch(name):
            message = f"{name} is set by mlebench-web for every run."
        elif "\0" in value:
            message = f"The value of {name} has a NUL character."
        else:
            continue
        errors.append(FieldError("env", message))
    return errors


def _agent(name: str, errors: list[FieldError]) -> Agent | None:
    agent = Agent.objects.filter(name=name, is_listed=True).first()
    if agent is None:
        allowed = list(Agent.objects.filter(is_listed=True).values_list("name", flat=True))
        errors.append(FieldError("agent", f"There is no agent {name!r}.", allowed))
    return agent


def _competitions(
    request: RunGroupRequest, errors: list[FieldError]
) -> tuple[Split | None, list[Competition]]:
    if request.split and request.competitions:
        errors.append(FieldError("competitions", "Name a split or competitions, not both of them."))
        return None, []
    if request.split:
        # Upstream's list of all 75 is the file split75.txt; people say "all".
        name = "split75" if request.split == "all" else request.split
        split = Split.objects.filter(name=name).first()
        if split is None:
            allowed = [*Split.objects.values_list("name", flat=True), "all"]
            errors.append(FieldError("split", f"There is no split {request.split!r}.", allowed))
            return None, []
        competitions = list(split.competitions.order_by("name"))
        if not competitions:
            errors.append(FieldError("split", f"The split {split} has no competitions."))
        return split, competitions
    if not request.competitions:
        allowed = [*Split.objects.values_list("name", flat=True)]
        errors.append(FieldError("split", "Name a split or competitions.", allowed))
        return None, []
    found = {
        competition.name: competition
        for competition in Competition.objects.filter(_any_name(request.competitions))
    }
    unknown = sorted(set(request.competitions) - set(found))
    if unknown:
        errors.append(
            FieldError(
                "competitions",
                f"There is no competition {', '.join(map(repr, unknown))}.",
                list(Competition.objects.values_list("name", flat=True)),
            )
        )
    # Naming one twice asks for it once.
    return None, [found[name] for name in sorted(found)]


def _any_name(names: Iterable[str]) -> Q:
    return Q(name__in=set(names))


def _container_config(name: str | None, errors: list[FieldError]) -> ContainerConfig | None:
    if name is None:
        return None
    listed = ContainerConfig.objects.filter(is_listed=True)
    config = listed.filter(name=name).first()
    if config is None:
        allowed = list(listed.values_list("name", flat=True))
        errors.append(
            FieldError("container_config", f"There is no container config {name!r}.", allowed)
        )
    return config


def _experiment(name: str, agent: Agent | None, errors: list[FieldError]) -> Experiment | None:
    clean = name.strip()
    if not 0 < len(clean) <= 200 or not clean.isprintable():
        errors.append(FieldError("experiment", "Write a name of 1 to 200 characters, on one line."))
        return None
    experiment = Experiment.objects.filter(name=clean).select_related("agent").first()
    if experiment and agent and experiment.agent_id != agent.pk:
        about = (
            f"is about the agent {experiment.agent.name!r}" if experiment.agent else "was imported"
        )
        errors.append(
            FieldError(
                "experiment",
                f"The experiment {clean!r} {about}; an experiment has one agent. "
                "Write another name.",
            )
        )
    return experiment


def _span(seconds: int | None, usual: timedelta) -> timedelta:
    return usual if seconds is None else timedelta(seconds=seconds)
