"""Rules of the whole suite, as a pytest plugin: what CI may not skip, and the legs."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The reasons for which a test may be skipped in CI: what CI has no way to install.
ALLOWED_SKIPS = ("the shared folder is absent", "MLEBENCH_DIR names no checkout of mle-bench")
# "machine": only tests of containers, browsers and the whole product, which mostly wait;
# "plain": all others; "database": of those, what touches the database, for a run on PostgreSQL.
# Empty: all tests.
LEG = os.environ.get("MLEBENCH_WEB_TEST_LEG", "")
# A file that gets the counts, for the runner that adds up both legs.
COUNTS = os.environ.get("MLEBENCH_WEB_TEST_COUNTS", "")

counts: Counter[str] = Counter()


def uses_machine(item: pytest.Item) -> bool:
    if any(item.get_closest_marker(name) for name in ("docker", "browser")):
        return True
    return bool(set(getattr(item, "fixturenames", ())) & {"product", "running_product", "engine"})


def touches_database(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    asks = bool(item.get_closest_marker("django_db") or fixtures & {"db", "transactional_db"})
    # Engines and browsers don't care about the database; what is slow is slow for other reasons.
    return asks and not uses_machine(item) and not item.get_closest_marker("slow")


TAKES: dict[str, Callable[[pytest.Item], bool]] = {
    "": lambda item: True,
    "machine": uses_machine,
    "plain": lambda item: not uses_machine(item),
    "database": touches_database,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if TAKES[LEG](item)]
    if len(kept) == len(items):
        return
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    refuse_skip(report)
    return report


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI everything that tests need is installed, so a skip is a hole, and fails."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(allowed in reason for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"Skipped in CI, where nothing may be: {reason}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        counts["failed" if report.when == "call" else "errors"] += 1
    elif report.skipped:
        counts["skipped"] += 1
    elif report.when == "call":
        counts["passed"] += 1


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        counts["errors"] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if COUNTS and not hasattr(session.config, "workerinput"):
        Path(COUNTS).write_text(json.dumps(counts))
