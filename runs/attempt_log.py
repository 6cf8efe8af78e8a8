"""What is written down of an attempt that is supervised: its log files, and words of our own."""

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from runs import agent_secrets, logs
from runs.core.redaction import redact
from runs.models import LogSegment, RunGroup

logger = structlog.get_logger(__name__)

# How long the last lines of a log wait for a storage that does not take them.
STORAGE_PATIENCE_SECONDS = 60


class AttemptLog:
    """Ships an attempt's log files and our own lines, without the secrets of its agent."""

    def __init__(
        self, attempt_id: int, group: RunGroup, root: Path, *, tick: Callable[[], None]
    ) -> None:
        """`root`: the attempt's folder. `tick` is called while a storage is waited for."""
        self.attempt_id = attempt_id
        self.group = group
        self.tick = tick
        # What stands in nothing that is kept: see `hide`.
        self.secrets = agent_secrets.words(group)
        self._agent, self._container = (
            logs.Shipper(attempt_id, source, root, path, self.secrets)
            for source, path in (
                (LogSegment.Source.AGENT, "logs/agent.stdout"),
                (LogSegment.Source.CONTAINER, "logs/entrypoint.log"),
            )
        )
        self._said: list[str] = []

    def say(self, text: str) -> None:
        """A line for the run's own log; written out with the next shipment."""
        self._said.append(self.redact(text))

    def redact(self, text: str) -> str:
        """The text as it may be kept: what an agent or the engine said may hold its secrets."""
        return redact(text.encode(errors="replace"), self.secrets).decode(errors="replace")

    def hide(self) -> None:
        """Learn the secrets anew: one may have been replaced since the attempt was claimed."""
        self.secrets = agent_secrets.words(self.group)
        for shipper in (self._agent, self._container):
            shipper.hide(self.secrets)

    def ship(self, *, final: bool = False) -> int:
        """Ship what the logs have grown by; the number of the agent's bytes."""
        until = time.monotonic() + STORAGE_PATIENCE_SECONDS
        while True:
            try:
                if self._said:
                    logs.append(self.attempt_id, LogSegment.Source.RUN, "\n".join(self._said))
                    self._said = []
                self._container.ship(final=final)
                return self._agent.ship(final=final)
            except logs.LogStorageError as error:
                logger.warning("log.not_shipped", attempt=self.attempt_id, error=str(error))
                if not final or time.monotonic() > until:
                    # A later call ships it. After the last one the whole file is among the
                    # collected outputs: lines are missing on a page, no more.
                    return 0
            # A disk that is full for a moment: no run should end for that.
            self.tick()
            time.sleep(1)

    def last_lines(self, count: int) -> list[str]:
        """The agent's, or where it said nothing its container's."""
        for source in (LogSegment.Source.AGENT, LogSegment.Source.CONTAINER):
            if lines := logs.last_lines(self.attempt_id, source, count):
                return lines
        return []
