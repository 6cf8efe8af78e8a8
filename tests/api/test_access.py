"""Tokens, error answers, the documentation, and the lists of the catalog and the fleet."""

import json
from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest
from django.test import Client
from django.utils import timezone

from mlebench_web.accounts.models import ApiToken, AuditEntry, User
from mlebench_web.celery import app
from mlebench_web.fleet.models import Host
from runs.core.states import State
from tests import factories
from tests.api.conftest import ApiClient

# --------------------------------------------------------------------------------------- tokens


def test_a_token_opens_the_api(api: ApiClient, lab: Host) -> None:
    assert api.read("agents")[0] == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer x", "Basic YTpi", "Bearer " + "x" * 10_000]
)
def test_without_a_valid_token_it_is_401_in_json(db: None, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}

    response = Client().get("/api/v1/agents", headers=headers)

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"
    assert set(json.loads(response.content)) == {"detail", "errors"}


def test_an_expired_token_is_refused(api: ApiClient, alice: User) -> None:
    alice.tokens.update(expires_at=timezone.now() - timedelta(seconds=1))

    assert api.read("agents")[0] == 401


def test_the_token_of_somebody_who_left_is_refused(api: ApiClient, alice: User) -> None:
    User.objects.update(is_active=False)

    assert api.read("agents")[0] == 401


def test_last_used_is_written_once_a_minute(
    api: ApiClient, alice: User, django_assert_num_queries
) -> None:
    api.read("agents")
    first = alice.tokens.get().last_used_at
    api.read("agents")

    assert first is not None
    assert alice.tokens.get().last_used_at == first

    ApiToken.objects.update(last_used_at=first - timedelta(minutes=2))
    api.read("agents")
    assert alice.tokens.get().last_used_at > first


def test_a_session_is_no_token(alice: User, lab: Host) -> None:
    client = Client()
    client.force_login(alice)

    assert client.get("/api/v1/agents").status_code == 401


# --------------------------------------------------------------------------------------- errors


def test_a_wrong_method_is_405_in_json(api: ApiClient, lab: Host) -> None:
    response = api.ask("DELETE", "run-groups")

    assert response.status_code == 405
    assert set(response["Allow"].split(", ")) == {"GET", "POST"}
    assert set(json.loads(response.content)) == {"detail", "errors"}


def test_our_own_fault_is_500_in_json(api: ApiClient, lab: Host) -> None:
    """The catalog without its config `demo` is nothing that a request can cause."""
    from mlebench_web.catalog.models import ContainerConfig

    ContainerConfig.objects.all().delete()

    status, answer = api.send("run-groups", {"agent": "baseline", "split": "demo"})

    assert status == 500
    assert "DoesNotExist" not in str(answer)


def test_the_documentation_works_under_the_strict_policy(client: Client, db: None) -> None:
    page = client.get("/api/v1/docs")

    assert page.status_code == 200
    text = page.content.decode()
    assert "http://" not in text
    assert "https://" not in text
    assert "<style" not in text
    assert "style=" not in text
    policy = page["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'; style-src 'self'; img-src 'self' data:;" in policy


def test_openapi_describes_every_operation_of_design(client: Client, db: None) -> None:
    schema = client.get("/api/v1/openapi.json").json()

    operations = {
        (method.upper(), path.removeprefix("/api/v1/"))
        for path, methods in schema["paths"].items()
        for method in methods
    }
    assert operations >= {
        ("GET", "agents"),
        ("GET", "splits"),
        ("GET", "container-configs"),
        ("GET", "competitions"),
        ("GET", "hosts"),
        ("GET", "experiments"),
        ("GET", "leaderboard"),
        ("POST", "run-groups"),
        ("GET", "run-groups/{pk}"),
        ("GET", "run-groups/{pk}/runs"),
        ("POST", "run-groups/{pk}/cancel"),
        ("POST", "run-groups/{pk}/rerun"),
        ("GET", "runs/{pk}"),
        ("GET", "runs/{pk}/log"),
        ("GET", "runs/{pk}/report"),
        ("GET", "runs/{pk}/artifacts"),
        ("POST", "runs/{pk}/cancel"),
        ("POST", "runs/{pk}/rerun"),
        ("POST", "hosts/{name}/drain"),
        ("POST", "hosts/{name}/undrain"),
        ("POST", "hosts/{name}/use-again"),
        ("POST", "hosts/{name}/lost"),
    }


# --------------------------------------------------------------------------- catalog and fleet


def keys_of(thing: object) -> set[str]:
    if isinstance(thing, dict):
        return set(thing).union(*(keys_of(value) for value in thing.values()))
    if isinstance(thing, list):
        return set().union(*(keys_of(value) for value in thing))
    return set()


@pytest.mark.parametrize(
    "path", ["agents", "splits", "container-configs", "competitions", "hosts", "experiments"]
)
def test_objects_have_name_and_state_and_lists_have_items_count_next(
    api: ApiClient, lab: Host, path: str
) -> None:
    api.send("run-groups", {"agent": "baseline", "split": "demo"})

    status, answer = api.read(path)

    assert status == 200
    assert set(answer) == {"items", "count", "next"}
    assert answer["count"] == len(answer["items"]) > 0
    assert answer["next"] is None
    for item in answer["items"]:
        assert item["name"]
        assert item["state"]
    assert not keys_of(answer) & {"defaults", "vars", "kwargs_common"}


def test_agents_say_what_their_image_is_doing(api: ApiClient, lab: Host) -> None:
    factories.make_agent("fresh")

    _, answer = api.read("agents")

    assert {item["name"]: item["state"] for item in answer["items"]} == {
        "baseline": "ready",
        "dummy": "ready",
        "fresh": "missing",
    }


def test_container_configs_say_whether_a_host_could_run_them(api: ApiClient, lab: Host) -> None:
    _, answer = api.read("container-configs")

    shown = {item["name"]: item for item in answer["items"]}
    assert shown["demo"]["state"] == "fits"
    assert shown["default"]["state"] == "unfit"
    assert "sysbox" in shown["default"]["reason"]
    assert shown["demo-process"]["sandboxed"] is False


def test_competitions_say_where_their_data_is(api: ApiClient, lab: Host) -> None:
    factories.make_competition("demo-missing")

    _, answer = api.read("competitions")

    shown = {item["name"]: item for item in answer["items"]}
    assert shown["demo-diamond-prices"]["state"] == "prepared"
    assert shown["demo-diamond-prices"]["prepared_on"] == ["box-1"]
    assert shown["demo-missing"]["state"] == "not_prepared"


def test_hosts_show_their_gpus_and_who_holds_them(api: ApiClient, lab: Host) -> None:
    run = factories.make_run(state="running")
    factories.lease_gpu(run.newest_attempt(), factories.make_gpu(lab))

    _, answer = api.read("hosts")

    (host,) = answer["items"]
    assert host["state"] == "online"
    assert host["gpus"][0]["run"] == run.pk
    assert host["attempts"] == 1


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"is_draining": True}, "draining"),
        ({"put_aside": "three failures in a row"}, "put_aside"),
        ({"worker_seen_at": None}, "offline"),
    ],
)
def test_a_host_says_why_it_takes_nothing(
    api: ApiClient, lab: Host, change: dict, state: str
) -> None:
    Host.objects.update(**change)

    assert api.read("hosts")[1]["items"][0]["state"] == state


def test_an_admin_drains_and_undrains_a_host(admin_api: ApiClient, lab: Host) -> None:
    _, drained = admin_api.send("hosts/box-1/drain")
    admin_api.send("hosts/box-1/drain")
    _, back = admin_api.send("hosts/box-1/undrain")

    assert (drained["state"], back["state"]) == ("draining", "online")
    assert [entry.action for entry in AuditEntry.objects.order_by("pk")] == ["drain", "undrain"]


def test_draining_says_how_long_it_takes_at_most(admin_api: ApiClient, lab: Host) -> None:
    assert admin_api.send("hosts/box-1/drain")[1]["longest_left_seconds"] is None
    factories.make_run(state=State.STARTING, host=lab)

    assert admin_api.send("hosts/box-1/drain")[1]["longest_left_seconds"] == 24 * 3600


def test_an_admin_uses_a_host_again(admin_api: ApiClient, lab: Host) -> None:
    Host.objects.update(put_aside="three failed")

    status, answer = admin_api.send("hosts/box-1/use-again")

    assert (status, answer["state"], answer["put_aside"]) == (200, "online", None)


def test_a_silent_host_is_said_to_be_lost_and_one_that_answers_is_not(
    admin_api: ApiClient, lab: Host
) -> None:
    assert admin_api.send("hosts/box-1/lost")[0] == 409
    then = timezone.now() - timedelta(minutes=5)
    Host.objects.update(worker_seen_at=then, service_seen_at=then)
    run = factories.make_run(state=State.RUNNING, host=lab, lease_until=then)

    status, answer = admin_api.send("hosts/box-1/lost")

    assert (status, answer["lost"]) == (200, [run.pk])
    assert answer["declared_lost_at"]


def test_nobody_else_drains(api: ApiClient, lab: Host) -> None:
    for verb in ("drain", "use-again", "lost"):
        assert api.send(f"hosts/box-1/{verb}")[0] == 403
    assert Host.objects.get().is_draining is False


def test_an_unknown_host_is_404(admin_api: ApiClient, lab: Host) -> None:
    assert admin_api.send("hosts/box-9/drain")[0] == 404


# --------------------------------------------------------------------------------------- healthz


def test_healthz_needs_no_token(client: Client, db: None) -> None:
    response = client.get("/api/v1/healthz")

    assert response.status_code == 200
    assert response.json()["state"] == "ok"


@pytest.fixture
def broker_at(monkeypatch: pytest.MonkeyPatch):
    """Points the application at another broker."""

    def point(url: str) -> None:
        monkeypatch.setitem(app.conf, "broker_url", url)
        monkeypatch.setitem(app.conf, "broker_write_url", url)

    return point


def test_healthz_names_the_broker_that_is_not_there(
    client: Client, db: None, broker_at, tmp_path
) -> None:
    broker_at(f"redis+socket://{tmp_path}/nobody")

    response = client.get("/api/v1/healthz")

    assert response.status_code == 503
    assert response.json()["failing"] == ["broker"]


def test_healthz_is_quick_when_the_broker_is_frozen(
    client: Client, db: None, broker_at, frozen_broker: str
) -> None:
    broker_at(frozen_broker)

    began = timezone.now()
    response = client.get("/api/v1/healthz")

    assert response.json()["failing"] == ["broker"]
    assert timezone.now() - began < timedelta(seconds=4)


@pytest.fixture
def frozen_broker(valkey: str) -> Iterator[str]:
    """A real broker, stopped like a frozen machine: the kernel accepts, and nobody answers."""
    (process,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if valkey.removeprefix("redis+socket://") in " ".join(process.info["cmdline"] or [])
    )
    process.suspend()
    yield valkey
    process.resume()
