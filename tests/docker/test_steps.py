"""Steps of agents in real containers, and what a supervisor that takes over makes of them."""

import json

import pytest

from mlebench_web.fleet.models import Host
from runs import queue, steps, worker
from runs.core.states import Outcome, State
from runs.models import Attempt
from runs.steps import StepPart
from tests.docker.road import PERFECT, Killed, Road, die_at

# Agents that take their time, in containers.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

STEPS = 6
SAY = """\
say() { echo "$1" >> "$MLE_EVENTS_FILE"; }
now() { date +%s.%N; }
"""
# A start is written in two pieces, so that a look finds half a line now and then.
COUNT = (
    SAY
    + f"""\
for i in $(seq {STEPS}); do
  printf '{{"v":1,"type":"step_st' >> "$MLE_EVENTS_FILE"
  sleep 0.1
  say 'arted","t":'$(now)',"total":{STEPS},"step":'$i',"name":"fold '$i'"}}'
  sleep 0.2
  say '{{"type":"step_finished","t":'$(now)',"step":'$i',"metric":{{"name":"auc","value":0.'$i'}}}}'
done
"""
    + PERFECT
)


def rows(attempt: Attempt) -> list[tuple[int, str, str]]:
    return list(attempt.steps.values_list("number", "name", "end"))


def test_what_an_agent_says_of_its_steps_stands_in_the_rows(road: Road) -> None:
    attempt = road.run(COUNT)

    assert rows(attempt) == [
        (number, f"fold {number}", "finished") for number in range(1, STEPS + 1)
    ]
    assert attempt.step_feed["total"] == STEPS
    assert attempt.step_feed["faults"] == 0
    last = attempt.steps.last()
    assert last is not None
    assert last.seconds is not None
    assert 0.1 < last.seconds <= attempt.active_seconds
    assert (last.metric_name, last.metric_maximize) == ("auc", None)
    assert last.ended_seconds is not None
    assert last.ended_seconds <= attempt.active_seconds


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_supervisor_that_dies_while_it_writes_steps_loses_none(
    road: Road, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    attempt = road.queued(COUNT)
    die_at(monkeypatch, Attempt, "record_steps", after=after)

    with pytest.raises(Killed):
        road.supervise()
    assert attempt.steps.exists() is after
    # The process that the row names is gone; the agent goes on meanwhile.
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    lease = queue.take_work(Host.objects.get(pk=road.host.pk))
    assert lease is not None
    assert lease.adopted
    worker.supervise(lease)

    attempt.refresh_from_db()
    assert attempt.outcome == Outcome.GRADED
    assert rows(attempt) == [
        (number, f"fold {number}", "finished") for number in range(1, STEPS + 1)
    ]
    assert attempt.step_feed["lines"] == 2 * STEPS, "none lost, none read twice"


def test_the_step_that_an_agent_crashes_in_is_interrupted(road: Road) -> None:
    start = json.dumps({"type": "step_started", "step": 1, "name": "all of it"})

    attempt = road.run(f"{SAY} say '{start}'; exit 3")

    assert (attempt.state, attempt.outcome) == (State.ENDED, Outcome.AGENT_FAILED)
    assert rows(attempt) == [(1, "all of it", "interrupted")]


def test_an_events_file_that_leads_out_of_the_container_is_not_read(road: Road) -> None:
    attempt = road.run(f'ln -s /etc/passwd "$MLE_EVENTS_FILE"; {PERFECT}')

    assert attempt.outcome == Outcome.GRADED
    assert not attempt.steps.exists()
    assert "events.jsonl is a symbolic link" in road.text(attempt, "run")


def test_an_agent_that_does_not_speak_is_read_from_its_own_files(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of its recipe is called aide: so is its manifest."""
    monkeypatch.setattr(steps, "PROBE_EVERY", 0.1)
    monkeypatch.setattr(StepPart, "every", 0.1)
    nodes = [
        {"plan": f"plan {number}", "is_buggy": False, "metric": {"value": 0.5, "maximize": True}}
        for number in (1, 2)
    ]
    script = "".join(
        f"echo '{json.dumps({'nodes': nodes[:count]})}' > /home/logs/journal.json; sleep 1\n"
        for count in (1, 2)
    )

    attempt = road.queued(f"sleep 1\n{script}{PERFECT}")
    agent = attempt.run.group.agent
    assert agent is not None
    type(agent).objects.filter(pk=agent.pk).update(image_name="aide")
    road.supervise()

    # The third was never begun: the agent ended by itself.
    assert rows(attempt) == [(1, "plan 1", "finished"), (2, "plan 2", "finished")]
    assert {step.source for step in attempt.steps.all()} == {"probe"}
