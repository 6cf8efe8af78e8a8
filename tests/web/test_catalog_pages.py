"""Pages of agents, checkouts, builds, container configs, data and secrets."""

from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import AuditEntry, Role, User
from mlebench_web.catalog import checkouts
from mlebench_web.catalog.models import Agent, AgentImage, Checkout, Competition, ContainerConfig
from mlebench_web.fleet.models import PreparedData
from tests import factories
from tests.support import checkout as small
from tests.web.conftest import signed_in
from tests.web.pages import get

pytestmark = pytest.mark.django_db

VALUE = "sk-very-secret-0123456789"


@pytest.fixture
def root(tmp_path: Path, settings: object) -> Path:
    root = small.make(tmp_path / "mle-bench")
    small.add_agent(root, "x", "bad:\n  start: 1\n  dockerfile: 2\n")
    settings.MLEBENCH_DIRS = [root]  # type: ignore[attr-defined]
    settings.DATA_DIR = tmp_path / "data"  # type: ignore[attr-defined]
    checkouts.refresh_all()
    return root


@pytest.fixture
def alice(db: None) -> User:
    return factories.make_user("alice")


@pytest.fixture
def ada(db: None) -> User:
    return factories.make_user("ada", role=Role.ADMIN)


def lead() -> User:
    return factories.make_user("lee", role=Role.LEAD)


def words(client: Client, path: str) -> str:
    page = get(client, path)
    assert page.check() == []
    return client.get(path).content.decode()


# --------------------------------------------------------------------------------------- agents


def test_agents_are_listed_with_source_image_secrets_and_what_is_broken(
    root: Path, alice: User
) -> None:
    text = words(signed_in(alice), reverse("agents"))

    for name in ("aide/o1-preview", "builtin/dummy", "baseline", "OPENAI_API_KEY"):
        assert name in text
    assert "agents/x/config.yaml:1" in text
    assert "start is missing" in text
    assert "Git LFS pointers" in text
    assert "1 not stored" in text
    assert "no git repository" in text


@pytest.mark.parametrize("name", ["aide/o1-preview", "builtin/dummy", "dummy"])
def test_an_agent_has_a_page_whatever_its_id(root: Path, alice: User, name: str) -> None:
    assert name in words(signed_in(alice), reverse("agent", args=[name]))


def test_a_changed_agent_is_marked(root: Path, alice: User) -> None:
    agent = Agent.objects.get(name="dummy")
    factories.make_image(agent)

    assert "code changed" in words(signed_in(alice), reverse("agents"))
    assert "The code changed since this image was built" in words(
        signed_in(alice), reverse("agent", args=["dummy"])
    )


def test_build_asks_a_host_and_shows_the_log_live(root: Path, alice: User) -> None:
    factories.make_host("box-1")
    client = signed_in(alice)

    answer = client.post(reverse("build_agent", args=["aide/o1-preview"]), {"host": "box-1"})

    image = AgentImage.objects.get()
    assert answer.headers["Location"] == reverse("image", args=[image.pk])
    assert (image.state, image.host_name, image.asked_by) == ("wanted", "box-1", "alice")
    assert "Waiting for box-1" in words(client, reverse("image", args=[image.pk]))
    # A second press shows the same build.
    again = client.post(reverse("build_agent", args=["aide/o1-preview"]), {"host": "box-1"})
    assert again.headers["Location"] == answer.headers["Location"]
    AgentImage.objects.update(state="building", log="Step 1/9 : FROM <scratch>")
    fragment = client.get(reverse("image", args=[image.pk]), headers={"HX-Request": "true"})
    text = fragment.content.decode()
    assert "Step 1/9 : FROM &lt;scratch&gt;" in text
    assert "hx-get" in text
    assert "<html" not in text
    AgentImage.objects.update(state="failed", error="no such luck")
    ended = client.get(reverse("image", args=[image.pk]), headers={"HX-Request": "true"})
    assert "hx-get" not in ended.content.decode()
    assert "no such luck" in ended.content.decode()


def test_a_host_that_is_not_there_builds_nothing(root: Path, alice: User) -> None:
    signed_in(alice).post(reverse("build_agent", args=["dummy"]), {"host": "nowhere"})

    assert not AgentImage.objects.exists()


def test_refresh_asks_and_is_audited(root: Path, alice: User) -> None:
    signed_in(alice).post(reverse("refresh_catalog"))

    assert Checkout.objects.get().is_being_read
    assert AuditEntry.objects.get().action == "refresh"
    assert "Being read" in words(signed_in(alice), reverse("agents"))


def test_an_admin_adds_changes_and_removes_checkouts(root: Path, ada: User) -> None:
    client = signed_in(ada)
    client.post(reverse("add_checkout"), {"url": "https://example.org/team/fork.git", "ref": "dev"})

    added = Checkout.objects.get(name="fork")
    assert (added.ref, added.position, added.is_being_read) == ("dev", 1, True)
    client.post(reverse("change_checkout", args=[added.pk]), {"env_image": " our/env:1 "})
    added.refresh_from_db()
    assert (added.env_image, added.installs_heavy) == ("our/env:1", False)
    client.post(reverse("change_checkout", args=[added.pk]), {"remove": "1"})
    added.refresh_from_db()
    assert not added.is_listed
    # One that a variable names is taken out there.
    named = Checkout.objects.get(name="mle-bench")
    client.post(reverse("change_checkout", args=[named.pk]), {"remove": "1"})
    named.refresh_from_db()
    assert named.is_listed


def test_a_url_that_could_run_a_program_is_refused(ada: User) -> None:
    signed_in(ada).post(reverse("add_checkout"), {"url": "ext::sh -c true"})

    assert not Checkout.objects.exists()


# --------------------------------------------------------------------------------------- rights


@pytest.mark.parametrize(
    ("name", "arguments", "least"),
    [
        ("refresh_catalog", [], Role.RESEARCHER),
        ("build_agent", ["baseline"], Role.RESEARCHER),
        ("add_checkout", [], Role.ADMIN),
        ("choose_context", ["baseline"], Role.ADMIN),
        ("new_config", [], Role.LEAD),
        ("prepare_data", ["demo-diamond-prices"], Role.LEAD),
        ("secrets", [], Role.RESEARCHER),
    ],
)
def test_who_may_not_is_refused_and_changes_nothing(
    db: None, name: str, arguments: list[str], least: Role
) -> None:
    order = [Role.VIEWER, Role.RESEARCHER, Role.LEAD, Role.ADMIN]
    person = factories.make_user("vera", role=order[order.index(least) - 1])

    answer = signed_in(person).post(
        reverse(name, args=arguments), {"name": "x", "value": VALUE, "settings": "{}"}
    )

    assert answer.status_code == 403
    assert not AuditEntry.objects.exists()


# ------------------------------------------------------------------------------------- configs


def save(client: Client, name: str = "big", **fields: object) -> object:
    data = {"name": name, "description": "", "settings": '{"nano_cpus": 36e9}', **fields}
    return client.post(reverse("new_config"), data)


def test_a_config_is_made_changed_and_each_version_kept(db: None) -> None:
    client = signed_in(lead())
    assert save(client).status_code == 302  # type: ignore[attr-defined]

    client.post(reverse("config", args=["big"]), {"settings": '{"nano_cpus": 8e9, "gpus": 1}'})

    config = ContainerConfig.objects.get(name="big")
    assert (config.version, config.settings) == (2, {"nano_cpus": 8e9, "gpus": 1})
    assert [(v.number, v.by) for v in config.versions.all()] == [(2, "lee"), (1, "lee")]
    text = words(client, reverse("config", args=["big"]))
    assert "36000000000" in text
    assert "36000000000" in words(client, reverse("config", args=["big"]) + "?version=1")
    assert "big" in words(client, reverse("configs"))


def test_a_config_is_uploaded(db: None) -> None:
    file = SimpleUploadedFile("gpu.json", b'\xef\xbb\xbf{"gpus": 1, "shm_size": "16G"}')

    save(signed_in(lead()), "gpu", settings="", file=file)

    assert ContainerConfig.objects.get(name="gpu").settings == {"gpus": 1, "shm_size": "16G"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"settings": "{\n'a'}"}, "Line 2: is no JSON"),
        ({"settings": "[1]"}, "should be an object"),
        ({"settings": ""}, "write the settings"),
        ({"settings": '{"volumes": {}}'}, "volumes: this key is not allowed"),
        ({"settings": '{"nano_cpus": 2}'}, "billionths"),
        ({"settings": '{"nano_cpus": NaN}'}, "NaN is no JSON number"),
        ({"settings": '{"cap_add": ["SYS_ADMIN"]}'}, "Only admins"),
        ({"settings": "[" * 60_000}, "nested too deeply"),
        ({"name": "demo"}, "for the demo"),
        ({"name": "../x"}, "Letters, digits"),
        ({"file": SimpleUploadedFile("x.json", b"\xff\xfe")}, "no UTF-8"),
    ],
)
def test_a_wrong_config_is_refused_with_the_reason_and_saves_nothing(
    db: None, fields: dict[str, object], said: str
) -> None:
    before = ContainerConfig.objects.count()

    answer = save(signed_in(lead()), **fields)

    assert answer.status_code == 422  # type: ignore[attr-defined]
    assert said in answer.content.decode()  # type: ignore[attr-defined]
    assert ContainerConfig.objects.count() == before


def test_an_admin_may_write_keys_that_open_a_container_up_and_a_lead_not_change_them(
    ada: User,
) -> None:
    assert save(signed_in(ada), settings='{"cap_add": ["SYS_PTRACE"]}').status_code == 302  # type: ignore[attr-defined]

    answer = signed_in(lead()).post(reverse("config", args=["big"]), {"settings": "{}"})

    assert answer.status_code == 422
    assert ContainerConfig.objects.get(name="big").settings == {"cap_add": ["SYS_PTRACE"]}


def test_a_checkouts_config_that_is_changed_here_is_ones_own(root: Path) -> None:
    signed_in(lead()).post(reverse("config", args=["gpu"]), {"settings": '{"gpus": 2}'})

    checkouts.refresh_all()

    assert ContainerConfig.objects.get(name="gpu").settings == {"gpus": 2}
    assert ContainerConfig.objects.get(name="mle-bench/gpu").settings["mem_limit"] == "80G"


# ---------------------------------------------------------------------------------------- data


def test_thresholds_say_where_they_come_from(root: Path, alice: User) -> None:
    client = signed_in(alice)

    assert "Git LFS pointer" in words(client, reverse("competition", args=["spaceship-titanic"]))
    assert "the leaderboard of the competition" in words(
        client, reverse("competition", args=["our-pears"])
    )


def test_data_is_asked_for_and_what_it_waits_for_is_shown(root: Path) -> None:
    client = signed_in(lead())
    host = factories.make_host("box-1")
    page = reverse("competition", args=["our-pears"])
    assert "Prepare it on" in words(client, page)

    client.post(reverse("prepare_data", args=["our-pears"]), {"host": "box-1"})

    row = PreparedData.objects.get(host=host)
    assert row.state == "wanted"
    PreparedData.objects.update(
        state="waiting", waits_for="rules", link="https://www.kaggle.com/c/our-pears/rules"
    )
    text = words(client, page)
    assert "https://www.kaggle.com/c/our-pears/rules" in text
    assert "I accepted them" in text
    PreparedData.objects.update(waits_for="checksums", link="", error="- aaa\n+ bbb")
    assert "- aaa\n+ bbb" in words(client, page)
    client.post(
        reverse("prepare_data", args=["our-pears"]), {"host": "box-1", "ignore_checksums": "1"}
    )
    row.refresh_from_db()
    assert (row.state, row.ignores_checksums) == ("wanted", True)


def test_only_facts_cannot_be_prepared(db: None) -> None:
    factories.make_host("box-1")
    name = Competition.objects.filter(checkout=None, is_demo=False).first()
    assert name is not None

    signed_in(lead()).post(reverse("prepare_data", args=[name.name]), {"host": "box-1"})

    assert not PreparedData.objects.exists()


# ------------------------------------------------------------------------------------- secrets


@pytest.fixture
def own_keys(settings: object, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path / "data"  # type: ignore[attr-defined]
    (tmp_path / "data").mkdir(exist_ok=True)


@pytest.mark.usefixtures("own_keys")
def test_a_secret_goes_in_and_never_comes_out(alice: User) -> None:
    client = signed_in(alice)

    answer = client.post(reverse("secrets"), {"name": "API_KEY", "value": VALUE, "owner": "me"})

    assert answer.status_code == 302
    assert vault.values_of(alice, None, ["API_KEY"]) == {"API_KEY": VALUE}
    text = words(client, reverse("secrets"))
    assert "API_KEY" in text
    assert VALUE not in text


@pytest.mark.usefixtures("own_keys")
def test_a_refused_secret_is_not_echoed(alice: User) -> None:
    answer = signed_in(alice).post(
        reverse("secrets"), {"name": "not a name", "value": VALUE, "owner": "me"}
    )

    assert answer.status_code == 422
    assert VALUE not in answer.content.decode()


@pytest.mark.usefixtures("own_keys")
def test_a_researcher_writes_no_secret_of_the_team_and_a_lead_does(alice: User) -> None:
    team = f"team-{alice.team_id}"
    data = {"name": "API_KEY", "value": VALUE, "owner": team}

    assert signed_in(alice).post(reverse("secrets"), data).status_code == 422
    assert signed_in(lead()).post(reverse("secrets"), data).status_code == 302
    text = words(signed_in(alice), reverse("secrets"))
    assert "team vision" in text
    secret = vault.listed(alice).get()
    assert signed_in(alice).post(reverse("delete_secret", args=[secret.pk])).status_code == 403
    assert signed_in(lead()).post(reverse("delete_secret", args=[secret.pk])).status_code == 302
    assert not vault.listed(alice).exists()


@pytest.mark.usefixtures("own_keys")
def test_somebody_elses_secret_cannot_be_seen_or_deleted(alice: User, ada: User) -> None:
    secret = vault.put("API_KEY", VALUE, owner=alice, by=alice)

    assert signed_in(ada).post(reverse("delete_secret", args=[secret.pk])).status_code == 404
    assert "API_KEY" not in words(signed_in(ada), reverse("secrets")).replace("OPENAI_API_KEY", "")
