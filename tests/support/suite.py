"""`./run test`: the whole suite on SQLite, and what touches the database on PostgreSQL too.

Three pytest runs ("legs") with the same arguments, at once: tests of containers, browsers and the
whole product mostly wait. Two of them are shown after the first. The last line adds all up.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.support import postgres, temporary

ROOT = Path(__file__).resolve().parent.parent.parent
NOTHING_COLLECTED = 5
KINDS = ("passed", "failed", "skipped", "errors")
LOOK_EVERY_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    folder = temporary.session_folder()
    with postgres.server() as url:
        say("Tests of rules, pages and commands, on SQLite (the others beside them):")
        plain = Leg("plain", folder, arguments)
        database = Leg("database", folder, arguments, aside=True, DATABASE_URL=url)
        machine = Leg("machine", folder, arguments, aside=True)
        legs = (plain, database, machine)
        if (status := plain.wait()) not in (0, 1, NOTHING_COLLECTED):
            # Interrupted, or wrong arguments: pytest has said so.
            database.stop()
            machine.stop()
            return status
        say("The tests that touch the database, on PostgreSQL:")
        database.show()
        say("Tests of containers, browsers and the whole product, on SQLite:")
        machine.show()
        total: Counter[str] = sum((leg.counts() for leg in legs), Counter())
        words = [f"{total[kind]} {kind}" for kind in KINDS if total[kind] or kind in KINDS[:2]]
        print(", ".join(words) + " (both databases together)", flush=True)
    codes = [code for leg in legs if (code := leg.wait()) != NOTHING_COLLECTED]
    return max(codes, default=NOTHING_COLLECTED)


def say(title: str) -> None:
    print(f"\n{title}", flush=True)


class Leg:
    """One pytest run, under way; `aside` keeps what it writes for `show`."""

    def __init__(
        self, name: str, folder: Path, arguments: list[str], *, aside: bool = False, **env: str
    ) -> None:
        self._counts = folder / f"{name}.counts"
        self._out = folder / f"{name}.out"
        own = {"MLEBENCH_WEB_TEST_COUNTS": str(self._counts), "MLEBENCH_WEB_TEST_LEG": name}
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(self._out.open("wb")) if aside else None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *arguments],
                cwd=ROOT,
                env=os.environ | own | env,
                stdout=out,
                stderr=out,
            )

    def wait(self) -> int:
        return self._process.wait()

    def show(self) -> None:
        """Print what it has written, and what it still writes, until it ends."""
        with self._out.open("rb") as written:
            while True:
                over = self._process.poll() is not None
                shutil.copyfileobj(written, sys.stdout.buffer)
                sys.stdout.buffer.flush()
                if over:
                    print(flush=True)
                    return
                time.sleep(LOOK_EVERY_SECONDS)

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
