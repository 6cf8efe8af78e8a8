"""`./run test`: the whole suite on SQLite, then what touches the database again on PostgreSQL.

Arguments go to pytest, in both legs. The last line adds both up.
"""

import json
import os
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
    with tempfile.TemporaryDirectory(prefix="mlw-") as folder:
        counts = Path(folder, "counts.json")
        total: Counter[str] = Counter()

        print("SQLite: all tests", flush=True)
        status = leg(arguments, counts, total)
        if status not in (0, 1, NOTHING_COLLECTED):
            # Interrupted, or wrong arguments: pytest has said so.
            return status
        print("\nPostgreSQL: the tests that touch the database", flush=True)
        with postgres.server() as url:
            second = leg(
                arguments, counts, total, DATABASE_URL=url, MLEBENCH_WEB_TEST_LEG="database"
            )
        words = [f"{total[kind]} {kind}" for kind in KINDS if total[kind] or kind in KINDS[:2]]
        print(", ".join(words) + " (both databases together)", flush=True)
    if status == second == NOTHING_COLLECTED:
        return NOTHING_COLLECTED
    return max(code for code in (status, second) if code != NOTHING_COLLECTED)


def leg(arguments: list[str], counts: Path, total: Counter[str], **env: str) -> int:
    """One pytest run; adds what it counted to `total`."""
    counts.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env=os.environ | {"MLEBENCH_WEB_TEST_COUNTS": str(counts)} | env,
    )
    if counts.exists():
        total.update(json.loads(counts.read_text()))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
