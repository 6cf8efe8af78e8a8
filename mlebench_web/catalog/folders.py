"""Where a competition's or agent's folder is.

What ships with the product is stored as `builtin:<name>`, so that a moved checkout still finds it;
anything else is a path.
"""

from pathlib import Path

BUILTIN = Path(__file__).resolve().parent / "builtin"
COMPETITIONS = BUILTIN / "competitions"
AGENTS = BUILTIN / "agents"
PREFIX = "builtin:"


def builtin(name: str) -> str:
    """What is stored for a folder that ships with the product."""
    return PREFIX + name


def resolve(stored: str, builtin_parent: Path) -> Path | None:
    """The folder, or None when nothing is stored."""
    if not stored:
        return None
    if stored.startswith(PREFIX):
        return builtin_parent / stored.removeprefix(PREFIX)
    return Path(stored)
