"""How long a checkpoint takes, and how long the agent stands still for it.

    .venv/bin/python bench/checkpoint.py [--small 1000] [--big-mb 2048]

Two states of an agent, each below a temporary folder of the data folder's disk: many small files,
and one big one that nothing compresses. Each is saved, changed a little (as an agent would: written
aside and renamed; the big one grows), saved again, and restored, through the same code as in a run,
into Django's file storage. Meanwhile a process plays the agent: it rewrites a small file all the
time, and where the save cannot come to rest beside it, it is stopped (SIGSTOP) and its own clock
says for how long. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Beside the data folder, so that its disk is measured and nothing of it is touched.
HOME = Path(
    tempfile.mkdtemp(prefix="checkpoint-bench-", dir=os.environ.get("MLEBENCH_WEB_DATA") or None)
)
os.environ["MLEBENCH_WEB_DATA"] = str(HOME)
os.environ["DJANGO_SETTINGS_MODULE"] = "mlebench_web.settings"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import django  # noqa: E402

django.setup()

from runs.checkpoints import files as checkpoint_files  # noqa: E402
from runs.checkpoints import store as checkpoint_store  # noqa: E402
from runs.core.checkpoints import Entry, Manifest, Seen, unchanged  # noqa: E402

# What a busy agent does, for as long as it lives; the largest gap in its time goes to a file.
BUSY = """
import os, sys, time
folder, out = sys.argv[1:]
largest, last = 0.0, time.monotonic()
while True:
    with open(f"{folder}/.busy.tmp", "w") as file:
        file.write(str(last))
    os.replace(f"{folder}/.busy.tmp", f"{folder}/busy")
    time.sleep(float(os.environ["EVERY"]))
    now = time.monotonic()
    if now - last > largest:
        largest = now - last
        with open(out, "w") as file:
            file.write(str(largest))
    last = now
"""


@contextmanager
def busy(folder: Path, out: Path, every: float) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(folder), str(out)],
        env={**os.environ, "EVERY": str(every)},
    )
    try:
        time.sleep(0.3)
        out.unlink(missing_ok=True)
        yield process
    finally:
        process.kill()
        process.wait()


class Case:
    """One state of an agent, below `root`/ckpt, that is saved, changed, saved and restored."""

    def __init__(self, root: Path, every: float | None) -> None:
        """`every`: seconds between writes of the busy agent; None: there is none."""
        self.root = root
        self.every = every
        self.agent: subprocess.Popen[bytes] | None = None
        self.last: Manifest | None = None
        self.stored = ("", "")
        self.result: dict[str, float] = {}

    def measure(self) -> dict[str, float]:
        for name in ("first", "second"):
            if self.every is None:
                self.save(name)
            else:
                gap = self.root / "gap"
                with busy(self.root / "ckpt", gap, self.every) as self.agent:
                    self.save(name)
                    time.sleep(0.1)
                self.result[f"{name}_agents_gap_s"] = float(gap.read_text() or 0)
            change(self.root / "ckpt")
        self.restore()
        checkpoint_store.remove_all(1)
        return self.result

    def save(self, name: str) -> None:
        began = time.monotonic()
        copy = checkpoint_files.copy_aside(
            self.root,
            ["ckpt"],
            self.root / "saving",
            known=self.known,
            refuse=lambda _: "",
            freeze=self.freeze,
        )
        self.result[f"{name}_copy_s"] = time.monotonic() - began
        self.result[f"{name}_pause_s"] = copy.pause_seconds
        self.last, added = checkpoint_store.store(
            1,
            copy,
            self.known(copy.look.seen),
            attempt=1,
            host="here",
            sound=self.last.blobs() if self.last else set(),
        )
        self.stored = checkpoint_store.write_manifest(1, self.last)
        self.result[f"{name}_save_s"] = time.monotonic() - began
        self.result[f"{name}_added_bytes"] = added
        shutil.rmtree(self.root / "saving")

    def known(self, seen: Mapping[str, Seen]) -> dict[str, Entry]:
        return unchanged(seen, self.last, attempt=1, host="here")

    @contextmanager
    def freeze(self) -> Iterator[None]:
        if self.agent:
            self.agent.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if self.agent:
                self.agent.send_signal(signal.SIGCONT)

    def restore(self) -> None:
        began = time.monotonic()
        manifest = checkpoint_store.read_manifest(*self.stored, roots=["ckpt"])
        back = self.root / "back"
        (back / "ckpt").mkdir(parents=True)
        checkpoint_files.put_back(
            manifest.entries,
            back,
            read=lambda entry: checkpoint_store.content(1, entry),
            tick=lambda: None,
        )
        self.result["restore_s"] = time.monotonic() - began
        self.result |= {"bytes": manifest.size, "files": manifest.files}


def change(folder: Path) -> None:
    """One in a hundred of the small files anew; the big one grows by 16 MB."""
    for number, path in enumerate(sorted(folder.glob("small-*"))):
        if number % 100 == 0:
            aside = path.with_name(".aside")
            aside.write_bytes(os.urandom(path.stat().st_size))
            aside.replace(path)
    for path in folder.glob("big"):
        with path.open("ab") as file:
            file.write(os.urandom(2**24))


def fill_small(folder: Path, count: int) -> None:
    for number in range(count):
        # Half noise, half text, 1 to 20 KB.
        half = (1 + number % 20) * 512
        (folder / f"small-{number:05}").write_bytes(os.urandom(half) + b"step " * (half // 5))


def fill_big(folder: Path, megabytes: int) -> None:
    with (folder / "big").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", type=int, default=1000, help="how many small files")
    parser.add_argument("--big-mb", type=int, default=2048, help="MiB of the big file")
    options = parser.parse_args()
    small, big = f"{options.small} small files", f"{options.big_mb} MiB in one file"
    results: dict[str, dict[str, float]] = {}
    for title, fill, amount, every in (
        (small, fill_small, options.small, None),
        (f"{small}, busy agent", fill_small, options.small, 0.01),
        (big, fill_big, options.big_mb, None),
        (f"{big}, busy agent", fill_big, options.big_mb, 0.01),
    ):
        root = HOME / "attempt"
        (root / "ckpt").mkdir(parents=True)
        fill(root / "ckpt", amount)
        results[title] = Case(root, every).measure()
        shutil.rmtree(root)
        print(title)
        for name, value in results[title].items():
            shown = f"{value:,.3f}" if name.endswith("_s") else f"{value:,.0f}"
            print(f"    {name:24}{shown:>16}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
