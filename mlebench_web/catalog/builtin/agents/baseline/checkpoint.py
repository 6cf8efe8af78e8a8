"""A checkpoint for each fold: what the model said, whole or not at all, and only for the same data.

One folder for a run of the same data, code and settings; its name is their hash, so that a fold of
anything else is never taken for one of this.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# More of a file is not read for the hash: its size and this beginning tell files apart.
HASHED_BYTES = 2**20


@dataclass(frozen=True)
class Fold:
    # What the model says of the rows that it has not seen, and of the rows to predict.
    held_out_prediction: np.ndarray
    test_prediction: np.ndarray
    rounds: int


def fingerprint(files: Iterable[Path], code: Iterable[Path], settings: dict[str, object]) -> str:
    """The same data, code and settings give the same."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            digest.update(file.read(HASHED_BYTES))
    for path in sorted(code):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


class Checkpoints:
    """Below the folder that the product saves. Without one, nothing is kept."""

    def __init__(self, folder: Path | None, of: str) -> None:
        self.folder = folder / of if folder else None
        if folder and self.folder:
            # Folds of other data or another version: they would only be carried along.
            for other in folder.glob("*"):
                if other.is_dir() and other != self.folder:
                    shutil.rmtree(other, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)

    def fold(self, step: int) -> Fold | None:
        """None: not there, or not whole. Half a file is never there: see `keep`."""
        if self.folder is None:
            return None
        try:
            data = (self.folder / f"fold-{step}.npz").read_bytes()
            told = json.loads((self.folder / f"fold-{step}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Fold(arrays["held_out"], arrays["test"], int(told["rounds"]))

    def keep(self, step: int, fold: Fold) -> bool:
        """The arrays first, then the manifest with their hash: it says that the fold is whole."""
        if self.folder is None:
            return False
        buffer = io.BytesIO()
        np.savez(buffer, held_out=fold.held_out_prediction, test=fold.test_prediction)
        data = buffer.getvalue()
        told = {"rounds": fold.rounds, "sha256": hashlib.sha256(data).hexdigest()}
        write(self.folder / f"fold-{step}.npz", data)
        write(self.folder / f"fold-{step}.json", json.dumps(told).encode())
        return True


def write(path: Path, content: bytes) -> None:
    """On the disk under its name, or not there at all."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
