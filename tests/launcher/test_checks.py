"""Settings that do not fit are refused with what to do."""

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core import checks as django_checks

from mlebench_web import checks

# Django's own checks ask the database what it can.
pytestmark = pytest.mark.django_db

SQLITE = {"default": {"ENGINE": "django.db.backends.sqlite3"}}
POSTGRES = {"default": {"ENGINE": "django.db.backends.postgresql"}}


def use(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    """Other settings for the checks alone: Django must not see another database."""
    monkeypatch.setattr(checks, "settings", SimpleNamespace(**settings))


def ids() -> set[str | None]:
    return {message.id for message in django_checks.run_checks(include_deployment_checks=True)}


def test_the_tests_own_settings_are_sound() -> None:
    errors = [each for each in django_checks.run_checks() if each.is_serious()]

    assert errors == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"HEARTBEAT": timedelta(seconds=31)}, "E001", id="slow heartbeat"),
        pytest.param({"HOST_LOST_AFTER": timedelta(seconds=90)}, "E002", id="lost at once"),
        pytest.param({"SOCKETS_DIR": Path("/" + "x" * 95)}, "E003", id="long socket path"),
        pytest.param({"CELERY_BROKER_URL": "sqla+sqlite://"}, "E004", id="no such broker"),
        pytest.param(
            {"MLEBENCH_DIR": "/nowhere", "MLEBENCH_DIRS": [Path("/nowhere")]},
            "E005",
            id="no checkout",
        ),
        pytest.param({"ALLOWED_HOSTS": ["*"]}, "E006", id="any host name"),
        pytest.param({"HTTPS": True, "PUBLIC_URL": "http://a"}, "E007", id="plain public address"),
        pytest.param({"ML_PYTHON": Path("/nowhere/python")}, "W001", id="no libraries"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    changed: dict[str, Any], expected: str, settings: Any
) -> None:
    assert f"mlebench_web.{expected}" not in ids()
    for name, value in changed.items():
        setattr(settings, name, value)

    assert f"mlebench_web.{expected}" in ids()


@pytest.mark.parametrize(
    ("databases", "broker", "reason"),
    [
        (SQLITE, "redis://elsewhere/0", "DATABASE_URL"),
        (POSTGRES, "redis+socket:///data/s/broker", "CELERY_BROKER_URL"),
        (POSTGRES, "redis://elsewhere/0", ""),
    ],
)
def test_only_postgresql_and_redis_serve_several_machines(
    databases: dict[str, Any],
    broker: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "machine.json").write_text(json.dumps({"machine_id": "another"}))
    use(monkeypatch, DATA_DIR=tmp_path, DATABASES=databases, CELERY_BROKER_URL=broker)

    found = list(checks.data_folder_is_this_machines())

    assert bool(found) is bool(reason)
    assert reason in "".join(message.msg for message in found)


def test_this_machine_knows_its_own_folder_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, DATA_DIR=tmp_path, DATABASES=SQLITE, CELERY_BROKER_URL="redis://elsewhere/0")
    assert list(checks.data_folder_is_this_machines()) == []

    checks.mark_machine(tmp_path)

    assert checks.machine_of(tmp_path) == checks.this_machine()
    assert list(checks.data_folder_is_this_machines()) == []
