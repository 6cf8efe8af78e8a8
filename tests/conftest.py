"""Fixtures for all tests: people, a catalog with one of each, and the parts of the product."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from docker import DockerClient
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from mlebench_web.accounts.models import Role, Team, User
from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split
from mlebench_web.fleet.models import Host
from mlebench_web.launcher import broker
from runs.grader_process import GraderProcess
from runs.models import Attempt, Experiment, Run, RunGroup
from tests.support import docker as docker_support
from tests.support.product import Product

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
SHARED_IS_ABSENT = "the shared folder is absent"

pytest_plugins = ["tests.support.suite_rules"]

# A machine that is busy with something else is slow, and not wrong.
hypothesis_settings.register_profile(
    "patient",
    # The one that is loaded: of its own, or in CI.
    hypothesis_settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("patient")

# ---------------------------------------------------------------------------- files

# The data folder's, also for a test that sets folders of its own.
LEFT_BY_RUNS = (settings.ATTEMPTS_DIR, settings.RUN_GROUPS_DIR, settings.MEDIA_ROOT)


@pytest.fixture(autouse=True)
def no_files_of_runs_stay() -> Iterator[None]:
    """The database is rolled back after a test and gives the same ids again: so are their files."""
    yield
    for folder in LEFT_BY_RUNS:
        shutil.rmtree(folder, ignore_errors=True)


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
        folder=agent.folder,
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


# ---------------------------------------------------------------------------- parts


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    """A Docker Engine, real. Without one the test is skipped; in CI it fails."""
    client = docker_support.connect()
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(engine: DockerClient) -> str:
    """The id of an image with a plain Debian."""
    return docker_support.base_image(engine)


@pytest.fixture
def valkey() -> Iterator[str]:
    """The URL of a broker of this test's own."""
    # Not tmp_path: that is too deep for a socket.
    folder = Path(tempfile.mkdtemp(prefix="mlw-"))
    at = folder / "broker"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(broker.command(folder, at), stdout=log, stderr=log)
    try:
        while not broker.answers(at):
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.01)
        yield f"redis+socket://{at}"
    finally:
        server.terminate()
        server.wait(timeout=10)
        shutil.rmtree(folder)


@pytest.fixture
def product() -> Iterator[Product]:
    """The whole product, not started yet, on a data folder of this test's own."""
    product = Product()
    yield product
    product.remove()


@pytest.fixture(scope="session")
def running_product() -> Iterator[Product]:
    """The whole product, started once for all tests that only look at it or add to it."""
    product = Product().start()
    product.wait_for_worker()
    yield product
    product.remove()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference files beside the checkout; whoever needs them is skipped where they are not."""
    if not SHARED.is_dir():
        pytest.skip(SHARED_IS_ABSENT)
    return SHARED


class FakeNvml:
    """A stand-in driver library that the real pynvml loads; `set` says what it answers."""

    def __init__(self, library: Path, state: Path) -> None:
        self.library = library
        self.state = state
        self.set(count=0)

    def set(self, **lines: object) -> None:
        """Replace all that the driver says; `gpu0__name` is written as `gpu0.name`."""
        self.write({name.replace("__", "."): value for name, value in lines.items()})

    def write(self, lines: dict[str, object]) -> None:
        """Replace all that the driver says, by the keys of fake_nvml.c."""
        new = self.state.with_suffix(".new")
        new.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        # By rename, so that no reader sees half of it.
        new.replace(self.state)

    def env(self) -> dict[str, str]:
        """What a child process needs in its environment to see this driver."""
        return {
            "FAKE_NVML_STATE": str(self.state),
            "LD_LIBRARY_PATH": str(self.library.parent),
        }


@pytest.fixture(scope="session")
def fake_nvml_library(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = shared / "nvml" / "fake_nvml.c"
    # The name inside is what makes a library that is loaded by path answer for the real one.
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-pthread", soname, "-o", library, source]
    subprocess.run(command, check=True, capture_output=True)
    return library


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A driver without GPUs, until the test sets some. For this process: load `.library` by path
    with ctypes, or run a child with `.env()`."""
    fake = FakeNvml(fake_nvml_library, tmp_path / "nvml-state")
    monkeypatch.setenv("FAKE_NVML_STATE", str(fake.state))
    return fake


@pytest.fixture(scope="session")
def warm_grader() -> Iterator[GraderProcess]:
    """The grader process where the product looks for it: started once, 2 s."""
    process = GraderProcess()
    process.ensure()
    yield process
    process.stop()
