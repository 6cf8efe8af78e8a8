"""How long to wait after an infrastructure failure, and when a host is to blame."""

import pytest

from runs.core.failures import Cause, is_infrastructure
from runs.core.retries import AT_ONCE, HOSTS_OWN, Ended, wait_before_next, why_put_aside
from runs.core.states import Outcome

INFRA = Outcome.INFRASTRUCTURE_FAILED


@pytest.mark.parametrize(
    ("cause", "failures", "seconds"),
    [
        (Cause.ENGINE_ERROR, 1, 10),
        (Cause.ENGINE_ERROR, 2, 60),
        (Cause.DATA_MISSING, 3, 300),
        (Cause.IMAGE_MISSING, 9, 300),
        (Cause.PRODUCT_ERROR, 1, 10),
        (Cause.HOST_LOST, 1, 0),
        (Cause.CONTAINER_KILLED, 2, 0),
        (Cause.CONTAINER_REMOVED, 2, 0),
        (None, 1, 10),
    ],
)
def test_the_wait_grows_unless_the_run_did_nothing_to_its_host(
    cause: Cause | None, failures: int, seconds: float
) -> None:
    assert wait_before_next(cause, failures) == seconds


def test_every_cause_named_here_is_the_infrastructures() -> None:
    assert all(is_infrastructure(cause) for cause in HOSTS_OWN | AT_ONCE)


def engine(detail: str = "") -> Ended:
    return Ended(INFRA, Cause.ENGINE_ERROR, detail)


SUCCESS = Ended(Outcome.GRADED)
AGENT_FAILED = Ended(Outcome.AGENT_FAILED, Cause.AGENT_CRASHED)
CANCELLED = Ended(Outcome.CANCELLED, Cause.CANCELLED)
DATA = Ended(INFRA, Cause.DATA_MISSING)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([], id="nothing has run"),
        pytest.param([engine(), engine()], id="two"),
        pytest.param([engine(), engine(), SUCCESS, engine()], id="a success between"),
        pytest.param([engine(), AGENT_FAILED, engine(), engine()], id="an agent's own end between"),
        pytest.param([DATA, DATA, DATA], id="data"),
        pytest.param([Ended(INFRA, Cause.IMAGE_MISSING)] * 3, id="image"),
        pytest.param([Ended(INFRA, Cause.IMAGE_UNFIT)] * 3, id="an image that does not fit"),
        pytest.param([AGENT_FAILED] * 3, id="agent"),
        pytest.param([Ended(INFRA, Cause.CONTAINER_KILLED)] * 3, id="killed from outside"),
        pytest.param([Ended(INFRA, Cause.PRODUCT_ERROR)] * 3, id="our own error"),
    ],
)
def test_a_host_stays_in_use(history: list[Ended]) -> None:
    assert why_put_aside(history) == ""


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([engine()] * 3, id="three"),
        pytest.param([engine()] * 5, id="five"),
        pytest.param([engine(), DATA, engine(), CANCELLED, engine(), SUCCESS], id="others between"),
        pytest.param(
            [Ended(INFRA, Cause.GPU_LOST), Ended(INFRA, Cause.DISK_FULL), engine(), SUCCESS],
            id="different causes",
        ),
    ],
)
def test_a_host_that_fails_three_in_a_row_is_put_aside(history: list[Ended]) -> None:
    assert why_put_aside(history).startswith("3 attempts in a row failed here")


def test_the_reason_names_the_causes_and_what_the_newest_said() -> None:
    reason = why_put_aside(
        [engine("shim gone\nmore"), Ended(INFRA, Cause.GPU_LOST, "x"), engine("old")]
    )

    assert reason == "3 attempts in a row failed here (engine error, gpu lost): shim gone"
    assert len(why_put_aside([engine("y" * 1000)] * 3)) == 300
