"""The factories leave rows as the product would: every state and outcome keeps the constraints."""

import pytest

from runs.core.states import Outcome, Result, RunState, State
from runs.models import Run
from tests.factories import make_group, make_run

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("state", [state for state in State if state != State.ENDED])
def test_a_run_can_be_made_in_every_state(state: State) -> None:
    run = make_run(state=state)

    assert run.newest_attempt().state == state


@pytest.mark.parametrize("outcome", Outcome)
def test_a_run_can_be_made_with_every_outcome(outcome: Outcome) -> None:
    assert make_run(outcome=outcome).newest_attempt().outcome == outcome


@pytest.mark.parametrize("result", Result)
def test_a_result_is_copied_from_its_report(result: Result) -> None:
    run = make_run(result=result)

    assert (run.state, run.result) == (RunState.FINISHED, result)


def test_a_group_can_be_made_with_its_runs() -> None:
    group = make_group(seeds=3, runs=True)

    assert Run.objects.filter(group=group, state=RunState.QUEUED).count() == 3
