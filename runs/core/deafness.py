"""Whether a worker is alive but deaf: it should do something, and for long does not. Pure."""

from collections.abc import Hashable, Set
from dataclasses import dataclass, field


@dataclass
class Deafness:
    """Remembers since when each thing waits for the worker. Seconds of a monotonic clock."""

    after: float
    _worker: Hashable = None
    _since: dict[tuple[str, int], float] = field(default_factory=dict)

    def look(
        self, *, now: float, worker: Hashable, unclaimed: Set[int], unwatched: Set[int]
    ) -> str:
        """Why the worker is to be restarted; "" while it is well.

        `worker`: who it is (a new one starts anew). `unclaimed`: queued attempts that fit this
        host and its free slots. `unwatched`: attempts of this host without a live supervisor. One
        and the same must wait for `after` seconds: a busy queue always has some that fit.
        """
        if worker != self._worker:
            self._worker, self._since = worker, {}
        waiting = {("unwatched", one) for one in unwatched} | {
            ("unclaimed", one) for one in unclaimed
        }
        self._since = {one: self._since.get(one, now) for one in waiting}
        late = sorted(one for one, since in self._since.items() if now - since >= self.after)
        if not late:
            return ""
        kind, attempt = late[-1]
        if kind == "unwatched":
            return f"attempt {attempt} has had no live supervisor for {self.after:.0f} s"
        return f"attempt {attempt} fits and has not been claimed for {self.after:.0f} s"
