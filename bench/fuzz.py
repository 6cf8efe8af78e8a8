#!/usr/bin/env python3
"""Fuzz what strangers write: grading reports, archives, registries, configs, submissions, events.

    bench/fuzz.py [--cases 2000] [WORDS...]

Runs the properties of tests/fuzz with so many new cases each (another set at each run), and prints
what became of them. WORDS choose tests as pytest's -k does. Ends with 1 when a case crashed
something or was accepted wrongly; Hypothesis then shows the smallest such case.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what strangers write.")
    parser.add_argument("--cases", type=int, default=2000, help="of each property (2000)")
    parser.add_argument("words", nargs="*", help="choose tests, as pytest's -k does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/fuzz"]
        if options.words:
            command += ["-k", " or ".join(options.words)]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"FUZZ_EXAMPLES": str(options.cases), "FUZZ_COUNTS": str(counts)},
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - began
        found = json.loads(counts.read_text()) if counts.exists() else {}
    for what, became in sorted(found.items()):
        words = ", ".join(f"{count} {word}" for word, count in sorted(became.items()))
        print(f"{what:22} {words}")
    wrong = len(re.findall(r"^E .*AssertionError: wrong (?:acceptance|score)", done.stdout, re.M))
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-5_000:], sep="\n")
    failed = re.search(r"(\d+) failed", done.stdout)
    print(
        f"{sum(sum(became.values()) for became in found.values())} counted in {seconds:.0f} s; "
        f"properties broken: {failed[1] if failed else 0}, wrong acceptances among them: {wrong}"
    )
    return min(done.returncode, 1)


if __name__ == "__main__":
    sys.exit(main())
