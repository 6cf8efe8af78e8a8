"""What was done to the fleet and when: the excuse for what is then seen, and nothing else is one.

All times are this process's monotonic clock.
"""

import time
from dataclasses import dataclass, field


@dataclass
class Outage:
    """One host could not do its work: dead, frozen, or cut off from the database."""

    host: str
    why: str
    begin: float
    end: float | None = None


@dataclass
class Fault:
    number: int
    kind: str
    target: str
    begin: float
    # Attempts that ran under a live lease when it began.
    running: int
    end: float = 0
    # From the end of the fault until all was well again.
    recovery: float | None = None
    note: str = ""
    # Agent seconds: pauses of agents that lived, and the work of those that did not.
    paused: float = 0
    redone: float = 0
    # Attempts that ended as infrastructure failures by it.
    lost_attempts: int = 0


@dataclass
class Ledger:
    outages: list[Outage] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    # Pids that this bench has killed or frozen, with the time.
    hit: dict[int, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    # Worth knowing, and no violation.
    notes: list[str] = field(default_factory=list)

    def begin_outage(self, host: str, why: str) -> Outage:
        outage = Outage(host, why, time.monotonic())
        self.outages.append(outage)
        return outage

    def end_outage(self, outage: Outage) -> None:
        outage.end = time.monotonic()

    def longest_outage(self, host: str, *, before: float, within: float) -> float:
        """Seconds of the longest stretch in which this host was out, that ended in `within`
        seconds before `before` or goes on."""
        longest = 0.0
        for one in self.outages:
            end = before if one.end is None else min(one.end, before)
            if one.host == host and one.begin < before and end >= before - within:
                longest = max(longest, end - one.begin)
        return longest

    def violate(self, what: str, evidence: str) -> None:
        text = f"violation: {what}: {evidence}"
        if text not in self.violations:
            self.violations.append(text)
            print(text, flush=True)

    def fault_at(self, moment: float, *, slack: float) -> Fault | None:
        """The newest fault that explains what began at `moment`."""
        before = [
            fault
            for fault in self.faults
            if fault.begin <= moment <= max(fault.end, fault.begin) + slack
        ]
        return before[-1] if before else None
