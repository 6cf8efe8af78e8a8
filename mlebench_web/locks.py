"""One process at a time on this machine; the system frees a lock when its process dies."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _say_nothing() -> None:
    pass


@contextmanager
def alone(lock: Path, waiting: Callable[[], None] = _say_nothing) -> Iterator[int]:
    """The lock's handle. `waiting` is called when another process has it; it is waited for."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
