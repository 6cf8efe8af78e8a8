"""What DATABASE_URL becomes: each in a process of its own, as settings are read once."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.support.product import ROOT

READ = """
import json
from mlebench_web import settings
print(json.dumps(settings.DATABASES["default"]["OPTIONS"]))
"""


def options(url: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_connection_to_postgresql_notices_a_cut_network() -> None:
    found = options("postgres://someone@db.example/name")

    assert found["tcp_user_timeout"] <= 30_000, "less than a lease"
    assert found["connect_timeout"] <= 10


def test_what_the_address_says_wins() -> None:
    found = options("postgres://someone@db.example/name?tcp_user_timeout=60000&sslmode=require")

    assert (found["tcp_user_timeout"], found["sslmode"]) == (60_000, "require")
    assert found["connect_timeout"] == 5
