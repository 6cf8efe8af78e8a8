"""Images of the built-in agents, built and started on a real engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from docker.models.containers import Container

from mlebench_web.catalog import folders, images
from mlebench_web.catalog.images import BuildFailed
from mlebench_web.catalog.models import Agent, AgentImage

pytestmark = [pytest.mark.docker, pytest.mark.django_db]


def build(agent: Agent, engine: DockerClient, base: str) -> tuple[AgentImage, list[str]]:
    lines: list[str] = []
    return images.build(agent, engine, base_image=base, progress=lines.append), lines


@pytest.fixture
def dummy(db: None) -> Agent:
    return Agent.objects.get(name="dummy")


@pytest.fixture
def dummy_image(dummy: Agent, engine: DockerClient, base_image: str) -> AgentImage:
    """Half a minute for the first on an engine; then the engine has it."""
    return build(dummy, engine, base_image)[0]


@pytest.mark.slow
def test_a_build_is_recorded_by_id_and_not_repeated(
    dummy: Agent, dummy_image: AgentImage, engine: DockerClient, base_image: str
) -> None:
    assert engine.images.get(dummy_image.image_id).id == dummy_image.image_id
    assert images.newest_image(dummy) == dummy_image
    assert dummy_image.base_image_id == base_image
    assert dummy_image.engine_id == engine.info()["ID"]
    assert not images.is_building(dummy)

    again, lines = build(dummy, engine, base_image)

    assert again == dummy_image
    assert lines == []


@pytest.mark.slow
def test_a_changed_agent_is_built_again(
    dummy: Agent,
    dummy_image: AgentImage,
    engine: DockerClient,
    base_image: str,
    tmp_path: Path,
) -> None:
    for path in (folders.AGENTS / "dummy").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "dummy.py").write_text("print('changed')\n")
    dummy.folder = str(tmp_path)

    changed, lines = build(dummy, engine, base_image)

    try:
        assert changed.image_id != dummy_image.image_id
        assert any(line.startswith("Step ") for line in lines)
        assert images.newest_image(dummy) == changed
    finally:
        engine.images.remove(changed.image_id, force=True)


def test_a_failed_build_keeps_its_reason_and_the_image_before_it(
    dummy: Agent, dummy_image: AgentImage, engine: DockerClient, base_image: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        "ARG MLEBENCH_ENV\nFROM ${MLEBENCH_ENV}\nRUN echo no such luck && exit 7\n"
    )
    dummy.folder = str(tmp_path)

    with pytest.raises(BuildFailed, match="returned a non-zero code: 7"):
        build(dummy, engine, base_image)

    failed = AgentImage.objects.latest("started_at")
    assert failed.state == AgentImage.State.FAILED
    assert "no such luck" in failed.log
    assert failed.ended_at is not None
    # What runs is still the last good one of the agent's own folder.
    assert images.newest_image(Agent.objects.get(name="dummy")) == dummy_image


def test_a_base_image_that_nobody_has_is_named_with_the_way_out(
    dummy: Agent, engine: DockerClient
) -> None:
    with pytest.raises(BuildFailed, match=r"localhost:1/nothing.*--base-image") as caught:
        build(dummy, engine, "localhost:1/nothing:0")

    assert "BASE_IMAGE" in str(caught.value)
    assert not images.is_building(dummy)


def test_a_build_whose_process_died_does_not_count_for_ever(
    dummy: Agent, engine: DockerClient, dummy_image: AgentImage, base_image: str
) -> None:
    dead = AgentImage.objects.create(
        folder=dummy.folder,
        image_name="dummy",
        state=AgentImage.State.BUILDING,
        source_digest="",
        engine_id=engine.info()["ID"],
    )
    assert images.is_building(dummy)

    build(dummy, engine, base_image)

    dead.refresh_from_db()
    assert dead.state == AgentImage.State.FAILED
    assert not images.is_building(dummy)


@pytest.fixture
def container(engine: DockerClient, dummy_image: AgentImage, tmp_path: Path) -> Iterator[Container]:
    """A container of the image with a stand-in for the relay, without a network."""
    server = tmp_path / "server.py"
    server.write_text(
        "import time\nprint('serving', flush=True)\nopen('/private/up', 'w')\n"
        "while True: time.sleep(60)\n"
    )
    container = engine.containers.create(
        dummy_image.image_id,
        network_mode="none",
        cap_drop=["ALL"],
        cap_add=["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETUID", "SETGID"],
        security_opt=["no-new-privileges"],
        volumes={str(server): {"bind": "/private/grading_server.py", "mode": "ro"}},
    )
    container.start()
    try:
        waiting = "until [ -e /private/up ]; do sleep 0.02; done"
        assert container.exec_run(["timeout", "20", "bash", "-c", waiting]).exit_code == 0
        yield container
    finally:
        container.remove(force=True)


def test_the_image_keeps_the_container_contract(container: Container) -> None:
    def ask(command: str, user: str = "nonroot") -> tuple[int, str]:
        code, output = container.exec_run(["bash", "-c", command], user=user)
        return code, output.decode().strip()

    assert ask("id -u") == (0, "1000")
    assert ask("cat /home/logs/entrypoint.log", "root") == (0, "serving")
    assert ask("ls /private")[0] != 0
    assert ask("stat -c %a:%U /private", "root") == (0, "700:root")
    for folder in ("submission", "logs", "code", "agent", "ckpt"):
        assert ask(f"touch /home/{folder}/mine")[0] == 0, folder
    assert ask('echo "$SUBMISSION_DIR $LOGS_DIR $CODE_DIR $AGENT_DIR"') == (
        0, "/home/submission /home/logs /home/code /home/agent",
    )  # fmt: skip
    for name in ("instructions.txt", "instructions_obfuscated.txt", "agent/start.sh"):
        assert ask(f"test -s /home/{name}")[0] == 0, name
    for command in ("curl --version", "envsubst --version", "ps --version"):
        assert ask(command)[0] == 0, command
    assert ask("python3 -c 'import sklearn, lightgbm, pandas, PIL'")[0] == 0


def test_nothing_of_the_builders_set_up_is_in_the_image(container: Container) -> None:
    """An index address may hold a password."""
    code, output = container.exec_run(["ls", "/opt/mlebench"])

    assert (code, output.decode().split()) == (0, ["python"])


def test_validate_submission_needs_a_file_that_is_there(container: Container) -> None:
    code, output = container.exec_run(
        ["/home/validate_submission.sh", "/home/submission/nothing.csv"], user="nonroot"
    )

    assert (code, output.decode().strip()) == (2, "There is no file /home/submission/nothing.csv.")
