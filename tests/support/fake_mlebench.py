"""A package `mlebench` for tests: what mle-bench offers to its callers, with Kaggle played.

It stands at the edge of the product, in the place of a package that needs tensorflow and of a site
that asks for an account. What it does is in the file `behaviour` beside it.
"""

from pathlib import Path

from tests.support.checkout import write

REGISTRY = """\
from pathlib import Path
from types import SimpleNamespace

import yaml

HERE = Path(__file__).parent


class Registry:
    def __init__(self, data_dir=None):
        self.data_dir = data_dir

    def set_data_dir(self, data_dir):
        return Registry(data_dir)

    def get_competition(self, name):
        folder = HERE / "competitions" / name
        config = yaml.safe_load((folder / "config.yaml").read_text())
        return SimpleNamespace(
            id=name, folder=folder, home=self.data_dir / name,
            checksums=folder / "checksums.yaml", config=config,
        )


registry = Registry()
"""
DATA = """\
import os
import sys
import time
from pathlib import Path

BEHAVIOUR = Path(__file__).parent / "behaviour"


class ApiException(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def log(text):
    print(text, file=sys.stderr, flush=True)


def download_and_prepare_dataset(competition, keep_raw=True, skip_verification=False):
    behaviour = BEHAVIOUR.read_text().strip()
    print("noise on standard output")
    log(f"Downloading the dataset for `{competition.id}`")
    if behaviour == "rules":
        input("Would you like to open the competition page in your browser now? (y/n): ")
    if behaviour == "forbidden":
        raise ApiException(403, "403 - Forbidden")
    if behaviour == "unauthorised":
        raise ApiException(401, "401 - Unauthorized")
    if behaviour == "no credentials":
        raise PermissionError("Kaggle authentication failed!")
    if behaviour == "needs credentials" and os.environ.get("KAGGLE_KEY") != "of-alice-123":
        raise PermissionError("Kaggle authentication failed!")
    if behaviour == "client ends":
        sys.exit("Could not find kaggle.json")
    if behaviour == "dies":
        os._exit(137)
    if behaviour == "reads":
        assert sys.stdin.read() == ""
    if behaviour == "breaks":
        raise RuntimeError("the preparer met a file that it does not know")
    competition.home.mkdir(parents=True, exist_ok=True)
    (competition.home / "data.zip").write_bytes(b"z" * 1000)
    if behaviour == "hangs":
        (competition.home / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    for part, name in (
        ("public", "sample_submission.csv"), ("public", "description.md"), ("private", "test.csv"),
    ):
        folder = competition.home / "prepared" / part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("id,ripe\\n1,1\\n")
    if behaviour == "differs" and not skip_verification:
        raise ValueError(
            f"Checksums do not match for `{competition.id}`!\\n- test.csv: aaa\\n+ test.csv: bbb"
        )
    if not skip_verification:
        assert competition.checksums.is_file()
"""


def add(root: Path, behaviour: str = "ok") -> None:
    """Into a small checkout."""
    write(root, "mlebench/__init__.py", "")
    write(root, "mlebench/registry.py", REGISTRY)
    write(root, "mlebench/data.py", DATA)
    write(root, "mlebench/competitions/our-pears/checksums.yaml", "zip: 0\n")
    behave(root, behaviour)


def behave(root: Path, behaviour: str) -> None:
    write(root, "mlebench/behaviour", behaviour)
