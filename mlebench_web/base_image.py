"""What the built-in agents' image is built on, remembered in the data folder.

Asked for in this order: `--base-image`, the variable BASE_IMAGE, what the last build stood on, and
Python's own image. Without a memory each start of a machine that reaches no registry would ask for
Python's image again. Imports no Django: the launcher asks before there is one.
"""

from pathlib import Path

DEFAULT = "python:3.12-slim"


def of(data: Path) -> str:
    """The image to build on where neither option nor variable names one."""
    return _remembered(data) or DEFAULT


def remember(data: Path, image: str) -> None:
    """The built-in agents were built on `image`: the next start does without naming it."""
    if image == _remembered(data):
        return
    if image == DEFAULT:
        # Forgotten rather than kept: another release may have another default.
        _file(data).unlink(missing_ok=True)
        return
    new = _file(data).with_suffix(".new")
    new.write_text(image + "\n")
    new.replace(_file(data))


def _remembered(data: Path) -> str:
    try:
        return _file(data).read_text().strip()
    except FileNotFoundError:
        return ""


def _file(data: Path) -> Path:
    return data / "base-image"
