#!/usr/bin/env python
"""Break everything that can break around running agents, and look whether anything was lost.

    bench/chaos.py --faults 40 --seed 1 --db sqlite
    bench/chaos.py --faults 40 --seed 1 --db postgres
    bench/chaos.py --resume --faults 12 --seed 1   runs go on from checkpoints
    bench/chaos.py --db sqlite --break fencing     must end non-zero: a guard is switched off
    bench/chaos.py --upgrades 20 --db sqlite       workers stopped and started in a row, under load

Starts a fleet of its own (web, control worker, two hosts with their own Docker Engines, Valkey over
TCP, SQLite or PostgreSQL) and removes it at the end. Needs root, Docker Engine's program `dockerd`,
and `./run setup` before. docs/chaos.md says what is done and what must hold.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"

if __name__ == "__main__":
    if not PYTHON.exists():
        sys.exit(f"{PYTHON} is not there: ./run setup installs it.")
    if Path(sys.prefix).resolve() != PYTHON.parent.parent.resolve():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
    from chaoskit.cli import main

    sys.exit(main())
