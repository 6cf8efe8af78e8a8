"""Commands on a data folder whose database has no tables yet."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import postgres
from tests.support.product import OURS, ROOT


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize(
    "command",
    [
        ("createtoken", "--user", "ci", "--role", "admin"),
        ("leaderboard", "--split", "low", "--format", "json"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_before_migrate_says_what_to_run(
    command: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        env = {name: value for name, value in os.environ.items() if name not in OURS}
        if kind == "postgres":
            env["DATABASE_URL"] = stack.enter_context(postgres.server())
        done = subprocess.run(
            [sys.executable, ROOT / "manage.py", *command, "--data", str(tmp_path / "d")],
            env=env,
            capture_output=True,
            text=True,
        )

    assert done.returncode == 1
    assert done.stdout == ""
    assert "run migrate first" in done.stderr
    assert "Traceback" not in done.stderr
