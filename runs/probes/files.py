"""Reading an agent's own files: JSON that may be half written, too large, or not JSON at all."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from runs.workspace import Refused, names_beneath, open_beneath

# Python's objects take up to twenty times what they take as JSON.
MAX_JSON_BYTES = 16 * 2**20
MAX_NAMES = 20_000


class Unread(Exception):
    """A file of the agent's is not read, and why; for the run's log."""


@dataclass(frozen=True)
class Found:
    content: object
    # When it was written, by the host's clock.
    written_at: float


class JsonFile:
    """A file that the agent rewrites in place; read again when it has changed."""

    def __init__(self, root: Path, relative: str) -> None:
        self.root = root
        self.relative = relative
        self._stand: tuple[int, int, int] | None = None

    def read(self) -> Found | None:
        """Its content; None when it is not there, has not changed, or is half written (it is read
        again when it changes once more). Raises Unread."""
        try:
            with open_beneath(self.root, self.relative) as file:
                status = os.fstat(file.fileno())
                stand = (status.st_ino, status.st_size, status.st_mtime_ns)
                if stand == self._stand:
                    return None
                if status.st_size > MAX_JSON_BYTES:
                    # Without its size, so that the same words are told once.
                    raise Unread(f"{self.relative} is larger than {MAX_JSON_BYTES // 2**20} MiB")
                # As long as it was: a file that grows meanwhile is read again.
                data = file.read(status.st_size)
        except FileNotFoundError:
            return None
        except Refused as error:
            raise Unread(f"{self.relative}: {error}") from error
        except OSError as error:
            raise Unread(f"{self.relative}: {os.strerror(error.errno or 0)}") from error
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return None
        self._stand = stand
        return Found(content, status.st_mtime)


def names(root: Path, relative: str) -> list[str]:
    """Names in a folder of the agent's, sorted; [] where there is none. Raises Unread."""
    try:
        return names_beneath(root, relative, at_most=MAX_NAMES)
    except FileNotFoundError:
        return []
    except Refused as error:
        raise Unread(f"{relative}: {error}") from error
    except OSError as error:
        raise Unread(f"{relative}: {os.strerror(error.errno or 0)}") from error


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def rows(value: object) -> list[dict[str, object]]:
    """The objects of a list; [] of anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def record(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
