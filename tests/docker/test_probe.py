# ruff: noqa: F811 - fixtures of another module
"""An agent that hunts for answers, secrets, other runs and the control plane finds none of them.

The hunt (tests/support/probe_agent) runs as the agent's user and as root at the same time, in a
real container that the supervisor made, with a real product on the same machine. It is told where
all of that lies on the host: an attacker may guess that, and guessing must not help.
"""

import io
import json
import secrets
import tarfile
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from django.conf import settings as django_settings
from django.db import connection

from mlebench_web.accounts import vault
from mlebench_web.fleet.models import Host
from runs import layout, queue, specification, worker
from runs.containers import reach
from runs.core import placement
from runs.core.failures import Cause
from runs.core.states import Outcome
from runs.models import Attempt, Installation
from tests import factories
from tests.docker.road import PERFECT, Road
from tests.docker.test_wall import port  # noqa: F401
from tests.support.product import Product

# Agents that take their time, in containers.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

AGENT = Path(__file__).parent.parent / "support" / "probe_agent"


@pytest.fixture(scope="session")
def probe_image(engine: docker.DockerClient, contract_image: str) -> str:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        tar.add(AGENT, arcname=".")
    context.seek(0)
    image, _ = engine.images.build(
        fileobj=context,
        custom_context=True,
        dockerfile="Dockerfile.root",
        buildargs={"BASE": contract_image},
        tag="mlebench-web-test-probe:latest",
        network_mode="none",
        rm=True,
    )
    return str(image.id)


@dataclass(frozen=True)
class Planted:
    """A word that only somebody outside the container knows, and where it lies."""

    word: str
    path: Path


def halves(word: str) -> str:
    return f"{word[:12]}+{word[12:]}"


@pytest.fixture
def planted(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Planted]:
    """Words in answers, files of another run, the data folder, a secret, an environment."""
    names = ("answers", "other-answers", "other-run", "result", "data-folder", "elsewhere")
    words = {name: f"{name}-{secrets.token_hex(12)}" for name in (*names, "secret", "environment")}
    competitions = Path(django_settings.COMPETITIONS_DIR)
    places = {
        "answers": competitions / "test-prices" / "prepared" / "private" / "more.csv",
        "other-answers": competitions / "another" / "prepared" / "private" / "test.csv",
        "other-run": Path(django_settings.ATTEMPTS_DIR) / "999999" / "code" / "train.py",
        "result": Path(django_settings.RUN_GROUPS_DIR) / "another" / "submission.csv",
        "data-folder": Path(django_settings.DATA_DIR) / "secret-key",
        "elsewhere": tmp_path / "file-of-the-host",
    }
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"id,price\n1,{words[name]}\n")
        # Nothing but the container keeps a reader out.
        path.chmod(0o644)
    alice = factories.make_user("alice")
    vault.put("OTHER_API_KEY", words["secret"], owner=alice, by=alice)
    monkeypatch.setenv("SOMETHING_OF_THE_HOST", words["environment"])
    database = Path(str(connection.settings_dict["NAME"]))
    return [
        *(Planted(words[name], path) for name, path in places.items()),
        Planted(words["secret"], database),
        Planted(words["environment"], Path("/proc/self/environ")),
    ]


def hunt(road: Road, planted: list[Planted], image: str, *, network: str, **env: str) -> Attempt:
    """The attempt of the probe, sealed."""
    factories.make_agent("script", is_builtin=False, network=network)
    road.host.image_ids = [image]
    road.host.save()
    told = {
        "PROBE_WORDS": " ".join(halves(each.word) for each in planted),
        "PROBE_PATHS": " ".join(str(each.path) for each in planted),
        **env,
    }
    agent = factories.make_agent("probe")
    return road.run("", env=told, image=factories.make_image(agent, image_id=image))


def findings(attempt: Attempt, who: str) -> list[dict[str, str]]:
    answer = json.loads((layout.attempt_folder(attempt) / "code" / f"{who}.json").read_bytes())
    # The hunt took place, everywhere.
    assert answer["uid"] == (0 if who == "root" else 1000)
    assert answer["tried"]["files"] > 1000
    assert {"addresses", "names", "devices", "mounts", "handles", "processes", "links"} <= set(
        answer["tried"]
    )
    return list(answer["found"])


@pytest.fixture
def told(running_product: Product, planted: list[Planted], port: int) -> dict[str, str]:
    """Where a product on this machine is, as agents may guess it; `port` listens everywhere."""
    web = running_product.address.rsplit(":", 1)[1]
    addresses = [f"{host}:{each}" for host in sorted(reach.of_this_host()) for each in (web, port)]
    paths = [str(each.path) for each in planted]
    paths += [str(running_product.data / name) for name in ("s/broker", "db.sqlite3", "run.json")]
    paths += ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"]
    return {"PROBE_ADDRESSES": " ".join(addresses), "PROBE_PATHS": " ".join(paths)}


@pytest.mark.parametrize("network", ["none", "internet"])
def test_a_hunt_as_agent_and_as_root_finds_nothing(
    road: Road,
    planted: list[Planted],
    probe_image: str,
    told: dict[str, str],
    engine: docker.DockerClient,
    network: str,
) -> None:
    try:
        attempt = hunt(road, planted, probe_image, network=network, **told)
    finally:
        for made in engine.networks.list(names=[f"mlebench-{Installation.this().name}"]):
            made.remove()

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.NO_SUBMISSION)
    assert attempt.hardware["sandboxed"] is True
    assert findings(attempt, "agent") == []
    assert findings(attempt, "root") == []
    # Links to what it could not read were followed by nobody afterwards either.
    kept = layout.attempt_folder(attempt)
    data = b"".join(path.read_bytes() for path in kept.rglob("*") if path.is_file())
    assert not [each.word for each in planted if each.word.encode() in data]
    assert any("soft-0" in str(item["path"]) for item in attempt.left_out)


def test_the_hunt_finds_what_is_there(
    planted: list[Planted], probe_image: str, engine: docker.DockerClient, port: int
) -> None:
    """A hunt that cannot find proves nothing: here answers are mounted as upstream does it."""
    answers = planted[0]
    container = engine.containers.create(
        probe_image,
        ["-c", "python3 /home/agent/probe.py /found.json 1>&2 && cat /found.json"],
        entrypoint="bash",
        user="root",
        network_mode="host",
        environment={
            "PROBE_WORDS": " ".join(halves(each.word) for each in planted),
            "PROBE_ADDRESSES": f"127.0.0.1:{port}",
            "LEAKED": planted[6].word,
        },
        volumes={str(answers.path.parent): {"bind": "/private/data", "mode": "ro"}},
        cap_add=["SYS_ADMIN"],
        security_opt=["apparmor=unconfined"],
        labels={"mlebench-web.test": "probe"},
    )
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs()
        found = json.loads(container.logs(stderr=False))["found"]
    finally:
        container.remove(force=True)

    assert {"how": "files", "where": f"/private/data/{answers.path.name}", "what": halves(answers.word)} in found  # fmt: skip # noqa: E501
    assert "LEAKED" in {each["where"] for each in found if each["how"] == "environment"}
    assert f"127.0.0.1:{port}" in {each["where"] for each in found if each["how"] == "network"}
    assert {"mounts", "namespaces"} <= {each["how"] for each in found}


# ------------------------------------------------------------------------------- privileged agents


def privileged(road: Road) -> Attempt:
    factories.make_agent("script", is_builtin=False, privileged=True)
    return road.queued(PERFECT)


def test_a_host_that_accepts_no_privileged_agent_is_given_none_and_says_why(road: Road) -> None:
    attempt = privileged(road)

    assert queue.take_work(Host.objects.get(pk=road.host.pk)) is None
    (need,) = queue.needs_of([attempt])
    assert "it does not accept privileged containers" in placement.why_waiting(
        need, [queue.offer_of(road.host)]
    )


def test_a_worker_makes_no_privileged_container_on_a_host_that_does_not_accept_it(
    road: Road,
) -> None:
    """Whatever the row says: the variable is asked for on the host itself."""
    attempt = privileged(road)
    Host.objects.update(accepts_privileged=True)

    road.supervise()

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.PRIVILEGED_REFUSED,
    )
    assert attempt.container_id == ""
    assert attempt.run.attempts.count() == 1, "another try would meet the same"
    road.nothing_is_left()


def test_a_privileged_run_that_was_accepted_is_marked_unsandboxed(road: Road) -> None:
    """It can reach its host's disks, so nothing says that it could not.

    It is not started: not every machine on which tests run allows that.
    """
    attempt = privileged(road)
    Host.objects.update(accepts_privileged=True)
    lease = queue.take_work(Host.objects.get(pk=road.host.pk))
    assert lease

    supervisor = worker.Supervisor(lease, road.engine)
    supervisor.workspace.make()

    spec = specification.container_of(supervisor.attempt, supervisor.workspace, supervisor.manifest)
    assert spec.privileged
    assert specification.hardware_of(supervisor.attempt)["sandboxed"] is False
    assert attempt.run.group.why_unsandboxed == "its container is privileged"
