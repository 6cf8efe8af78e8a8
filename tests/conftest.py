"""Fixtures for all tests: people, a catalog with one of each, and the parts of the product."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from mlebench_web.accounts.models import Role, Team, User
from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split
from mlebench_web.fleet.models import Host
from runs.models import Attempt, Experiment, Run, RunGroup

# ---------------------------------------------------------------------------- people


@pytest.fixture
def team(db: None) -> Team:
    return Team.objects.create(name="Reds")


def person(name: str, role: Role, team: Team | None) -> User:
    return User.objects.create_user(
        name, email=f"{name}@example.org", password="correct horse", role=role, team=team
    )


@pytest.fixture
def alice(team: Team) -> User:
    """A researcher; the owner of what `make_group` makes."""
    return person("alice", Role.RESEARCHER, team)


@pytest.fixture
def bob(team: Team) -> User:
    """A researcher of alice's team."""
    return person("bob", Role.RESEARCHER, team)


@pytest.fixture
def charlie(db: None) -> User:
    """A researcher of another team."""
    return person("charlie", Role.RESEARCHER, Team.objects.create(name="Blues"))


@pytest.fixture
def viewer(team: Team) -> User:
    return person("vera", Role.VIEWER, team)


@pytest.fixture
def lead(team: Team) -> User:
    return person("leo", Role.LEAD, team)


@pytest.fixture
def admin(db: None) -> User:
    return person("ada", Role.ADMIN, None)


# ---------------------------------------------------------------------------- one of each


@pytest.fixture
def competition(db: None) -> Competition:
    """A competition by facts alone: no folder, no data."""
    return Competition.objects.create(
        name="test-prices",
        title="Test prices",
        is_demo=True,
        is_lower_better=True,
        gold_threshold=0.1,
        silver_threshold=0.2,
        bronze_threshold=0.3,
        median_threshold=0.4,
    )


@pytest.fixture
def split(competition: Competition) -> Split:
    split = Split.objects.create(name="test-split", title="Test split")
    split.competitions.add(competition)
    return split


@pytest.fixture
def agent(db: None) -> Agent:
    return Agent.objects.create(
        name="test-agent",
        image_name="test-agent",
        folder="/nowhere",
        start="start.sh",
        dockerfile="Dockerfile",
        network="none",
    )


@pytest.fixture
def image(agent: Agent) -> AgentImage:
    return AgentImage.objects.create(
        image_name=agent.image_name,
        state=AgentImage.State.READY,
        image_id="sha256:" + "0" * 64,
        source_digest="0" * 64,
    )


@pytest.fixture
def container_config(db: None) -> ContainerConfig:
    return ContainerConfig.objects.create(name="test-config", settings={"mem_limit": 4e9})


@pytest.fixture
def host(db: None) -> Host:
    return Host.objects.create(name="test-host", slots=2, cpus=2, memory_bytes=8 * 2**30)


MakeGroup = Callable[..., RunGroup]


@pytest.fixture
def make_group(
    alice: User,
    agent: Agent,
    image: AgentImage,
    container_config: ContainerConfig,
    competition: Competition,
) -> MakeGroup:
    """Makes a run group with its runs and first attempts, all queued.

    `competitions` and `seeds` say how many runs; other arguments are fields of the group.
    """

    def make(
        *,
        experiment: str = "test experiment",
        competitions: list[Competition] | None = None,
        seeds: int = 1,
        **fields: object,
    ) -> RunGroup:
        row, _ = Experiment.objects.get_or_create(
            name=experiment, defaults={"agent": agent, "created_by": alice}
        )
        values: dict[str, object] = {
            "agent": agent,
            "image": image,
            "container_config": container_config,
            "container_settings": container_config.settings,
            "runtime": container_config.runtime,
            "time_limit": timedelta(hours=1),
            "step_timeout": timedelta(minutes=30),
            "created_by": alice,
            "team": alice.team,
            "folder": f"group-{RunGroup.objects.count() + 1}",
        }
        group = RunGroup.objects.create(experiment=row, seeds=seeds, **(values | fields))
        for each in competitions or [competition]:
            for seed in range(seeds):
                run = Run.objects.create(group=group, competition=each, seed=seed)
                run.queue_attempt(by="test")
        return group

    return make


@pytest.fixture
def attempt(make_group: MakeGroup) -> Attempt:
    """The queued attempt of a run group with one run."""
    return make_group().runs.get().newest_attempt()
