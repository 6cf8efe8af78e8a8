# ruff: noqa: F811 - fixtures of another module
"""Agents of a checkout: built as they stand, checked for the contract, run over our relay.

The environment image is a stand-in of the tests' own; the agent's Dockerfile and start.sh and the
checkout's entrypoint run unchanged. With MLEBENCH_DIR the same is done to a real checkout.
"""

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import docker
import pytest
from django.conf import settings as django_settings

from mlebench_web.catalog import checkouts, contract, images
from mlebench_web.catalog.images import BuildFailed
from mlebench_web.catalog.models import Agent, AgentImage, Checkout
from runs.core.states import Outcome, Result
from runs.models import Attempt
from runs.validation import ValidationService
from tests import factories
from tests.catalog.conftest import real_checkout  # noqa: F401
from tests.docker.road import Road, derived
from tests.support import checkout as small
from tests.support import standin_env

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def environment(engine: docker.DockerClient, base_image: str) -> str:
    """The id of an image with the built-in agents' environment: Python, curl, the folders."""
    builtin = Agent.objects.get(name="dummy", is_builtin=True)
    return images.build(builtin, engine, base_image=base_image, progress=lambda _: None).image_id


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small.make_buildable(tmp_path / "mle-bench")


def use(settings: object, root: Path, env_image: str = "") -> Checkout:
    settings.MLEBENCH_DIRS = [root]  # type: ignore[attr-defined]
    [row] = checkouts.refresh_all()
    assert not row.error
    Checkout.objects.filter(pk=row.pk).update(env_image=env_image)
    return row


def dummy() -> Agent:
    return Agent.objects.select_related("checkout").get(name="dummy")


def build(
    agent: Agent, engine: docker.DockerClient, **fields: object
) -> tuple[AgentImage, list[str]]:
    lines: list[str] = []
    return images.build(agent, engine, base_image="", progress=lines.append, **fields), lines  # type: ignore[arg-type]


@pytest.fixture
def standin(engine: docker.DockerClient, environment: str, root: Path) -> str:
    tag = "mlebench-web-test-standin:latest"
    standin_env.build(engine, environment, root, tag)
    return tag


@pytest.fixture
def validation() -> Iterator[None]:
    service = ValidationService()
    service.start()
    yield
    service.stop()


def run_dummy(road: Road, image: AgentImage) -> Attempt:
    agent = dummy()
    road.host.image_ids = [image.image_id]
    road.host.save()
    group = factories.make_group(
        agent=agent,
        config=factories.make_config("small", settings={"nano_cpus": 1e9, "mem_limit": "512m"}),
        time_limit=timedelta(minutes=2),
        image=image,
        agent_kwargs=agent.kwargs,
        agent_env=agent.env_vars,
    )
    attempt = factories.make_run(group, competition=road.competition).newest_attempt()
    road.supervise()
    attempt.refresh_from_db()
    return attempt


def graded_over_our_relay(road: Road, attempt: Attempt) -> None:
    assert (attempt.outcome, attempt.cause, attempt.exit_code) == (Outcome.GRADED, "", 0)
    attempt.run.refresh_from_db()
    assert attempt.run.result == Result.VALID
    log = road.text(attempt)
    assert "Submission is valid." in log
    assert "cannot open directory '/private': Permission denied" in log
    assert attempt.validations == 1
    assert road.kept(attempt, "submission/submission.csv")
    road.nothing_is_left()


@pytest.mark.usefixtures("warm_grader", "validation")
def test_an_agent_of_a_checkout_runs_unchanged_on_a_stand_in_and_is_graded(
    road: Road, engine: docker.DockerClient, root: Path, standin: str, settings: object
) -> None:
    use(settings, root, standin)
    image, _ = build(dummy(), engine)

    graded_over_our_relay(road, run_dummy(road, image))


@pytest.mark.usefixtures("warm_grader", "validation")
def test_dummy_of_a_real_checkout_runs_unchanged_on_a_stand_in_and_is_graded(
    road: Road,
    engine: docker.DockerClient,
    environment: str,
    real_checkout: Path,
    settings: object,
) -> None:
    tag = "mlebench-web-test-standin:real"
    standin_env.build(engine, environment, real_checkout, tag)
    use(settings, real_checkout, tag)
    image, _ = build(dummy(), engine)

    graded_over_our_relay(road, run_dummy(road, image))


# ------------------------------------------------------------------------------------- builds


def test_a_build_records_the_commit_and_is_not_repeated(
    engine: docker.DockerClient, root: Path, standin: str, settings: object
) -> None:
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "one"],
    ):
        subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True)
    row = use(settings, root, standin)

    image, lines = build(dummy(), engine)

    assert any(line.startswith("Step ") for line in lines)
    assert (image.commit, image.branch, image.is_dirty) == (row.commit, "main", False)
    assert (image.checkout_name, image.base_image) == ("mle-bench", standin)
    assert image.base_image_id == engine.images.get(standin).id
    again, lines = build(dummy(), engine)
    assert (again, lines) == (image, [])

    (root / "agents/dummy/main.py").write_text("print('another')\n")
    assert images.changed_since(dummy(), image)
    changed, _ = build(dummy(), engine)
    assert changed.image_id != image.image_id
    assert changed.is_dirty
    assert not images.changed_since(dummy(), changed)


def test_the_checkouts_own_tag_of_that_name_is_neither_needed_nor_touched(
    engine: docker.DockerClient, root: Path, standin: str, settings: object
) -> None:
    before = [image.id for image in engine.images.list("mlebench-env")]
    use(settings, root, standin)

    build(dummy(), engine)

    assert [image.id for image in engine.images.list("mlebench-env")] == before
    assert (root / "agents/dummy/Dockerfile").read_text().startswith("FROM mlebench-env\n")


def test_an_environment_image_that_is_not_there_is_named(
    engine: docker.DockerClient, root: Path, settings: object
) -> None:
    use(settings, root, "no-such-image:1")

    with pytest.raises(BuildFailed, match=r"no image no-such-image:1.*docker load"):
        build(dummy(), engine)


def test_a_dockerfile_may_copy_from_the_whole_checkout(
    engine: docker.DockerClient, root: Path, standin: str, settings: object
) -> None:
    use(settings, root, standin)
    Agent.objects.filter(name="dummy").update(build_context=Agent.BuildContext.CHECKOUT)
    (root / "agents/dummy/Dockerfile").write_text(
        small.DUMMY["Dockerfile"].replace("COPY . ", "COPY agents/dummy /home/agent\n#")
    )
    small.write(root, ".dockerignore", "*\n!agents/dummy\n")

    image, _ = build(dummy(), engine)

    assert image.state == AgentImage.State.READY


def test_an_image_that_does_not_keep_the_contract_is_refused_after_its_build(
    engine: docker.DockerClient, root: Path, standin: str, settings: object
) -> None:
    use(settings, root, standin)
    file = root / "agents/dummy/Dockerfile"
    file.write_text(file.read_text() + "\nUSER nonroot\n")

    with pytest.raises(BuildFailed, match="must run as root"):
        build(dummy(), engine)


# --------------------------------------------------------------------------- images of others


def test_an_existing_tag_is_taken_when_it_keeps_the_contract(
    engine: docker.DockerClient, root: Path, environment: str, settings: object
) -> None:
    use(settings, root)
    engine.api.tag(environment, "mlebench-web-test-theirs", "1")
    row = images.want(dummy(), by="ada", tag="mlebench-web-test-theirs:1")
    assert images.is_building(dummy())
    assert images.want(dummy(), by="ada", tag="mlebench-web-test-theirs:1") == row

    assert images.do_wanted(engine, host_name="box", base_image="") == 1

    row.refresh_from_db()
    assert (row.state, row.image_id, row.error) == ("ready", environment, "")
    assert images.newest_image(dummy()) == row
    # It was not built here: whether the code is another one, nobody can tell.
    assert not images.changed_since(dummy(), row)
    assert images.do_wanted(engine, host_name="box", base_image="") == 0


def test_a_tag_that_does_not_keep_the_contract_is_refused_with_every_reason(
    engine: docker.DockerClient, root: Path, base_image: str, settings: object
) -> None:
    use(settings, root)
    engine.api.tag(base_image, "mlebench-web-test-bare", "1")
    row = images.want(dummy(), by="ada", tag="mlebench-web-test-bare:1")

    images.do_wanted(engine, host_name="box", base_image="")

    row.refresh_from_db()
    assert row.state == "failed"
    for lack in ("ENTRYPOINT", "/home/agent/start.sh", "nonroot", "/private"):
        assert lack in row.error
    assert images.newest_image(dummy()) is None


def test_a_start_script_that_is_a_folder_is_no_start_script(
    engine: docker.DockerClient, environment: str
) -> None:
    image = derived(
        engine, environment, "odd", "RUN rm -rf /home/agent && mkdir -p /home/agent/start.sh", {}
    )

    assert any("start.sh" in problem for problem in contract.contract_problems(engine, image))


def test_what_another_host_was_asked_for_is_left_to_it(
    engine: docker.DockerClient, root: Path, settings: object
) -> None:
    use(settings, root)
    row = images.want(dummy(), by="ada", tag="x:1", host_name="other")

    assert images.do_wanted(engine, host_name="box", base_image="") == 0

    row.refresh_from_db()
    assert row.state == "wanted"
    assert django_settings.HOST_NAME != "other"


def test_a_wanted_build_shows_its_log_and_its_end(
    engine: docker.DockerClient, root: Path, standin: str, settings: object
) -> None:
    use(settings, root, standin)
    row = images.want(dummy(), by="ada")

    assert images.do_wanted(engine, host_name="box", base_image="") == 1

    row.refresh_from_db()
    assert (row.state, row.host_name, row.asked_by) == ("ready", "box", "ada")
    assert "the agent environment is there" in row.log or "Using cache" in row.log
    again = images.want(dummy(), by="ada")
    images.do_wanted(engine, host_name="box", base_image="")
    again.refresh_from_db()
    assert (again.state, again.image_id) == ("ready", row.image_id)
    assert "Nothing has changed" in again.log
