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
from tests.support.lab import make_lab


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
def lab(db: None) -> Host:
    return make_lab()
