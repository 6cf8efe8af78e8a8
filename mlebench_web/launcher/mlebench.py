"""`./run mlebench`: a Python with what the graders of an mle-bench checkout need.

The package itself is not installed: grading and preparation import it from the checkout, so that a
`git pull` counts at once, and pip writes nothing into the checkout.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import django
from django.conf import settings

from mlebench_web.launcher.bootstrap import Environment, Failed, installer, mirror, only_one, step

ENVIRONMENT = Environment(".venv-mlebench")
# 600 MB to download and 2 GB on the disk, for none of the graders. Two preparations use it:
# cassava-leaf-disease-classification and siim-isic-melanoma-classification.
LARGE = ("tensorflow",)
# With pandas 3, tensorflow2-question-answering's grader refuses a submission without predictions
# that pandas 2 scores: it fills a column of nothing but NaN with text.
CONSTRAINTS = ("pandas<3",)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

HELP = """\
Makes .venv-mlebench, which grades and prepares competitions of an mle-bench checkout
(MLEBENCH_PYTHON). Without DIR: for every folder of MLEBENCH_DIR, and every clone of a git URL."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="./run mlebench",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkouts", nargs="*", metavar="DIR", type=Path)
    parser.add_argument(
        "--tensorflow",
        action="store_true",
        help="also tensorflow (2 GB): two competitions need it to be prepared, none to be graded",
    )
    options = parser.parse_args(arguments)
    checkouts = [folder.resolve() for folder in options.checkouts or known()]
    if not checkouts:
        raise Failed(
            "Name a checkout: ./run mlebench ~/mle-bench, or set MLEBENCH_DIR. You get one with\n"
            "  git clone https://github.com/openai/mle-bench"
        )
    own = ENVIRONMENT.python
    if Path(settings.MLEBENCH_PYTHON) != own:
        raise Failed(
            f"MLEBENCH_PYTHON names {settings.MLEBENCH_PYTHON}: install mle-bench's libraries "
            f"there yourself, or unset it to have them in {own.parent.parent}."
        )
    wanted = requirements(checkouts, with_large=options.tensorflow)
    title = f"Installing {len(wanted)} libraries that mle-bench asks for"
    with only_one("install-venv-mlebench"), step(title):
        if not ENVIRONMENT.works():
            ENVIRONMENT.make()
        fill(wanted)
    if not options.tensorflow:
        print("  Without tensorflow: --tensorflow adds it, for two preparations.", file=sys.stderr)
    told = [tell(folder) for folder in checkouts]
    print("A mlebench-web that runs takes it within seconds.", file=sys.stderr)
    sys.exit(0 if all(told) else 1)


def known() -> list[Path]:
    """Of MLEBENCH_DIR, and clones of git URLs in the data folder."""
    clones = sorted((settings.DATA_DIR / "checkouts").glob("*"))
    return [*settings.MLEBENCH_DIRS, *(folder for folder in clones if folder.is_dir())]


def requirements(checkouts: list[Path], *, with_large: bool) -> list[str]:
    """What the checkouts' pyproject.toml ask for. Raises Failed naming the file."""
    found: dict[str, None] = {}
    for folder in checkouts:
        path = folder / "pyproject.toml"
        try:
            asked = tomllib.loads(path.read_text())["project"]["dependencies"]
            # tqdm and scipy come with others upstream; a grader imports them by name.
            lines = [str(line) for line in asked] + ["scipy", "tqdm"]
        except FileNotFoundError as error:
            raise Failed(f"{folder} is no mle-bench checkout: it has no pyproject.toml.") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Failed(f"{path}: project.dependencies cannot be read: {error}") from error
        for line in lines:
            name = NAME.match(line)
            if name is None or "\n" in line:
                raise Failed(f"{path}: {line!r} is no name of a package.")
            if with_large or name.group().lower() not in LARGE:
                found[line] = None
    return list(found)


def fill(wanted: list[str]) -> None:
    """By uv, else by pip; what they say goes to standard error as it comes."""
    with tempfile.TemporaryDirectory(prefix="mlebench-web-") as name:
        asked, limits = Path(name) / "requirements.txt", Path(name) / "constraints.txt"
        asked.write_text("\n".join(wanted) + "\n")
        limits.write_text("\n".join(CONSTRAINTS) + "\n")
        files = ["-r", str(asked), "-c", str(limits)]
        uv = [*installer(), "pip", "install", "--python", str(ENVIRONMENT.python), *files]
        if subprocess.run(uv, stdout=sys.stderr, env={**os.environ, **mirror()}).returncode == 0:
            return
        print("  uv did not manage; trying pip.", file=sys.stderr)
        pip = [str(ENVIRONMENT.python), "-m", "pip", "install", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *files], stdout=sys.stderr)
        if done.returncode:
            raise Failed(f"pip failed with exit status {done.returncode}; its words are above.")


def tell(folder: Path) -> bool:
    """Whether every grader of a checkout loads; says which do not."""
    from mlebench_web.catalog import official_data
    from mlebench_web.catalog.data import DataError

    try:
        with step(f"Loading the graders of {folder}"):
            tried = official_data.try_graders(folder)
    except DataError as error:
        print(f"✗ {error}")
        return False
    for name, why in tried.broken.items():
        print(f"✗ {name}: {why}")
    good = tried.graders - len(tried.broken)
    print(f"{folder}: {good} of {tried.graders} competitions can be graded.")
    return not tried.broken


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlebench_web.settings")
    django.setup()
    try:
        main(sys.argv[1:])
    except Failed as failure:
        sys.exit(f"\n{failure}")
