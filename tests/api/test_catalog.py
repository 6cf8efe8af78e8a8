"""The catalog's verbs for scripts: checkouts, builds, configs, data, secrets."""

from pathlib import Path
from typing import Any

import pytest

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import Role, User
from mlebench_web.catalog import checkouts
from mlebench_web.catalog.models import AgentImage
from tests import factories
from tests.api.conftest import ApiClient
from tests.support import checkout as small

pytestmark = pytest.mark.django_db
VALUE = "sk-very-secret-0123456789"


@pytest.fixture
def root(tmp_path: Path, settings: Any) -> Path:
    root = small.make(tmp_path / "mle-bench")
    settings.MLEBENCH_DIRS = [root]
    settings.DATA_DIR = tmp_path / "data"
    checkouts.refresh_all()
    return root


@pytest.fixture
def lead_api(db: None) -> ApiClient:
    return ApiClient(factories.make_user("lee", role=Role.LEAD))


def item(answer: tuple[int, Any], name: str) -> Any:
    status, body = answer
    assert status == 200
    return next(each for each in body["items"] if each["name"] == name)


def put(api: ApiClient, path: str, body: Any) -> tuple[int, Any]:
    import json

    response = api.ask("PUT", path, body)
    return response.status_code, json.loads(response.content)


def test_agents_and_competitions_say_what_the_checkout_knows(api: ApiClient, root: Path) -> None:
    preview = item(api.read("agents"), "aide/o1-preview")
    titanic = item(api.read("competitions"), "spaceship-titanic")

    assert (preview["checkout"], preview["secrets"]) == ("mle-bench", ["OPENAI_API_KEY"])
    assert (preview["state"], preview["code_changed"]) == ("missing", None)
    assert titanic["thresholds_from"] == "facts"
    assert "Git LFS pointer" in titanic["thresholds_note"]
    names = {each["name"] for each in api.read("agents")[1]["items"]}
    assert not names & {"defaults", "vars", "kwargs_common"}


def test_checkouts_are_listed_with_their_problems_and_refreshed(api: ApiClient, root: Path) -> None:
    small.add_agent(root, "x", "bad:\n  start: 1\n  dockerfile: 2\n")

    status, body = api.send("checkouts/refresh")
    assert (status, body["items"][0]["state"]) == (202, "reading")
    checkouts.do_asked()

    row = item(api.read("checkouts"), "mle-bench")
    assert row["state"] == "ready"
    assert {"file": "agents/x/config.yaml", "line": 1, "level": "error"} in [
        {key: problem[key] for key in ("file", "line", "level")} for problem in row["problems"]
    ]


def test_a_build_is_asked_for_and_followed(api: ApiClient, root: Path) -> None:
    status, body = api.send("agents/aide/o1-preview/build", {"tag": "our/aide:1"})

    assert (status, body["state"], body["tag"]) == (202, "wanted", "our/aide:1")
    AgentImage.objects.update(log="Step 1/2", state="building")
    status, body = api.read(f"images/{body['id']}")
    assert (status, body["log"], body["state"]) == (200, "Step 1/2", "building")
    assert api.send("agents/nobody/build")[0] == 404
    assert api.send("agents/dummy/build", {"host": "nowhere"})[0] == 422
    assert api.read("images/999999")[0] == 404


def test_a_config_is_put_and_refused_field_by_field(api: ApiClient, lead_api: ApiClient) -> None:
    assert put(api, "container-configs/big", {"settings": {}})[0] == 403
    status, body = put(lead_api, "container-configs/team/big", {"settings": {"nano_cpus": 36e9}})
    assert (status, body["name"], body["version"]) == (200, "team/big", 1)

    status, body = put(lead_api, "container-configs/big", {"settings": {"gpus": "1", "x": 2}})

    assert status == 422
    assert {error["field"] for error in body["errors"]} == {"settings"}


def test_data_is_asked_for(lead_api: ApiClient, api: ApiClient, root: Path) -> None:
    factories.make_host("box-1")

    assert api.send("competitions/our-pears/prepare", {"host": "box-1"})[0] == 403
    assert lead_api.send("competitions/our-pears/prepare", {"host": "nowhere"})[0] == 422
    status, body = lead_api.send("competitions/our-pears/prepare", {"host": "box-1"})

    assert (status, body["state"]) == (202, "wanted")
    pears = item(api.read("competitions"), "our-pears")
    assert pears["state"] == "preparing"
    assert pears["data"][0]["host"] == "box-1"


def test_a_secret_is_written_listed_by_name_and_deleted(
    api: ApiClient, alice: User, root: Path
) -> None:
    status, body = put(api, "secrets/API_KEY", {"value": VALUE})
    assert (status, body["state"], body["team"]) == (200, "stored", None)
    assert VALUE not in str(body)
    assert VALUE not in str(api.read("secrets"))
    assert vault.values_of(alice, None, ["API_KEY"]) == {"API_KEY": VALUE}

    assert put(api, "secrets/API_KEY", {"value": VALUE, "team": "vision"})[0] == 422
    assert put(api, "secrets/API-KEY", {"value": VALUE})[0] == 422
    assert put(api, "secrets/API_KEY", {"value": "abc"})[0] == 422
    assert api.ask("DELETE", "secrets/API_KEY").status_code == 204
    assert api.ask("DELETE", "secrets/API_KEY").status_code == 404
    assert vault.names_of(alice, None) == set()


def test_a_lead_writes_the_teams(lead_api: ApiClient, root: Path, alice: User) -> None:
    status, body = put(lead_api, "secrets/API_KEY", {"value": VALUE, "team": "vision"})

    assert (status, body["team"]) == (200, "vision")
    assert vault.values_of(alice, alice.team, ["API_KEY"]) == {"API_KEY": VALUE}
    assert lead_api.ask("DELETE", "secrets/API_KEY?team=vision").status_code == 204
