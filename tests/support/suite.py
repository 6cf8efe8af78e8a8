"""`./run test`: the whole suite on SQLite, and what touches the database on PostgreSQL too.

Arguments go to pytest, in both legs. The last line adds both up.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support import postgres

ROOT = Path(__file__).resolve().parent.parent.parent
NOTHING_COLLECTED = 5
KINDS = ("passed", "failed", "skipped", "errors")


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="mlw-") as name, postgres.server() as url:
        folder = Path(name)
        first = Leg(folder / "sqlite", arguments)
        # Beside the first: two cores, and most tests wait for engines, browsers and processes.
        second = Leg(
            folder / "postgres",
            arguments,
            into=folder / "postgres.out",
            DATABASE_URL=url,
            MLEBENCH_WEB_TEST_LEG="database",
        )
        print("SQLite, all tests (PostgreSQL beside it, shown after this):", flush=True)
        status = first.wait()
        if status not in (0, 1, NOTHING_COLLECTED):
            # Interrupted, or wrong arguments: pytest has said so.
            second.stop()
            return status
        second_status = second.wait()
        print("\nPostgreSQL, the tests that touch the database:", flush=True)
        print((folder / "postgres.out").read_text(), end="")
        total = first.counts() + second.counts()
        words = [f"{total[kind]} {kind}" for kind in KINDS if total[kind] or kind in KINDS[:2]]
        print(", ".join(words) + " (both databases together)", flush=True)
    if status == second_status == NOTHING_COLLECTED:
        return NOTHING_COLLECTED
    return max(code for code in (status, second_status) if code != NOTHING_COLLECTED)


class Leg:
    """One pytest run, under way."""

    def __init__(
        self, counts: Path, arguments: list[str], *, into: Path | None = None, **env: str
    ) -> None:
        self._counts = counts
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(into.open("wb")) if into else None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *arguments],
                cwd=ROOT,
                env=os.environ | {"MLEBENCH_WEB_TEST_COUNTS": str(counts)} | env,
                stdout=out,
                stderr=out,
            )

    def wait(self) -> int:
        return self._process.wait()

    def stop(self) -> None:
        # As Ctrl-C: fixtures still clean up.
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def counts(self) -> Counter[str]:
        if not self._counts.exists():
            return Counter()
        return Counter(json.loads(self._counts.read_text()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
