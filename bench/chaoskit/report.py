"""The table, the figures and the last line."""

from collections import defaultdict
from typing import Any

from chaoskit.ledger import Fault, Ledger


def table(faults: list[Fault]) -> str:
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_kind[fault.kind].append(fault)
    head = f"{'fault':<28}{'times':>6}{'recovery s':>16}{'paused s':>10}{'redone s':>10}{'lost':>6}"
    lines = [head, "-" * len(head)]
    for kind in sorted(by_kind):
        group = by_kind[kind]
        took = [fault.recovery for fault in group if fault.recovery is not None]
        span = f"{sum(took) / len(took):.1f} (max {max(took):.1f})" if took else "none"
        lines.append(
            f"{kind:<28}{len(group):>6}{span:>16}{sum(f.paused for f in group):>10.1f}"
            f"{sum(f.redone for f in group):>10.1f}{sum(f.lost_attempts for f in group):>6}"
        )
    return "\n".join(lines)


EXPLAINED = """\
recovery: from the end of the fault until all parts, all leases and two running agents were back.
paused: agent seconds without a step; redone: work of attempts that did not count; lost: those.
"""


def summary(ledger: Ledger, figures: dict[str, Any], *, seconds: float, title: str) -> str:
    faults = ledger.faults
    word = "violation" if ledger.violations else "all invariants held"
    if len(ledger.violations) > 1:
        word = "violations"
    count = f"{len(ledger.violations)} " if ledger.violations else ""
    return (
        f"chaos: {title}: {len(faults)} faults of {len({f.kind for f in faults})} kinds in "
        f"{seconds / 60:.1f} min, {figures.get('runs', 0)} runs, {figures.get('attempts', 0)} "
        f"attempts, {figures.get('lines', 0)} log lines, at least "
        f"{min((f.running for f in faults), default=0)} attempts running at each fault: "
        f"{count}{word}"
    )
