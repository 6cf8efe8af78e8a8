"""A client with a token, and a small installation: catalog, one host that has all it needs."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from mlebench_web.accounts.models import ApiToken, Role, User
from mlebench_web.fleet.models import Host
from tests import factories


class ApiClient(Client):
    """Sends a user's token. `get` and `post` give (status, JSON)."""

    def __init__(self, user: User | None = None) -> None:
        super().__init__()
        self.token = ApiToken.make(user, name="test")[1] if user else ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HttpResponse:
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        return self.generic(
            method, f"/api/v1/{path}", data, content_type="application/json", headers=headers
        )

    def read(self, path: str, **headers: str) -> tuple[int, Any]:
        response = self.ask("GET", path, **headers)
        return response.status_code, json.loads(response.content)

    def send(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        response = self.ask("POST", path, body, **headers)
        return response.status_code, json.loads(response.content)


MakeClient = Callable[[User | None], ApiClient]


@pytest.fixture
def alice(db: None) -> User:
    return factories.make_user("alice")


@pytest.fixture
def api(alice: User) -> ApiClient:
    """Alice's: a researcher."""
    return ApiClient(alice)


@pytest.fixture
def admin_api(db: None) -> ApiClient:
    return ApiClient(factories.make_user("ada", role=Role.ADMIN, team=None))


@pytest.fixture
def viewer_api(db: None) -> ApiClient:
    return ApiClient(factories.make_user("vera", role=Role.VIEWER))


@pytest.fixture
def stranger_api(db: None) -> ApiClient:
    return ApiClient(factories.make_user("charlie", team="language"))


@pytest.fixture
def fleet_host(db: None) -> Host:
    """Online, with an engine that has the images, and the demo data."""
    return factories.make_host("box-1")


@pytest.fixture
def lab(fleet_host: Host) -> Host:
    """Agents baseline and dummy with images, configs, the demo split and one of the 75."""
    from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split

    for model in (Agent, Split, ContainerConfig, Competition):
        model.objects.all().delete()
    AgentImage.objects.all().delete()
    for name in ("baseline", "dummy"):
        factories.make_image(factories.make_agent(name))
    demo = factories.make_competition("demo-diamond-prices")
    trees = factories.make_competition("demo-tree-crowns")
    real = factories.make_competition("spaceship-titanic", is_demo=False)
    factories.make_split("demo", [demo, trees], position=0)
    factories.make_split("low", [real], position=1)
    factories.make_config("demo", position=0)
    factories.make_config("demo-process", runtime="process", settings={}, position=1)
    factories.make_config(
        "default",
        settings={
            "mem_limit": None,
            "shm_size": "4G",
            "nano_cpus": 4e9,
            "runtime": "sysbox-runc",
        },
        position=2,
    )
    factories.make_config("no_sysbox", settings={"nano_cpus": 4e9, "shm_size": "4G"}, position=3)
    factories.make_config(
        "no_sysbox_gpu",
        settings={"mem_limit": "16G", "nano_cpus": 8e9, "gpus": 1},
        position=4,
    )
    for competition in (demo, trees, real):
        factories.make_prepared(fleet_host, competition)
    return fleet_host
