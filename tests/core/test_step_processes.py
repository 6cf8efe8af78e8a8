"""Which of an agent's processes does a step."""

from runs.core.step_processes import AgentProcess, of_the_step, with_all_below

# The shapes that were seen: the shell's own command line holds the script's, and workers of a
# training are copies of it.
MLAB = [
    AgentProcess(20, 1, 0, "bash /home/agent/start.sh"),
    AgentProcess(30, 20, 0, "python -m MLAgentBench.runner --device 0"),
    AgentProcess(40, 30, 0, "/bin/sh -c CUDA_VISIBLE_DEVICES=0 python -u train.py"),
    AgentProcess(41, 40, 0, "python -u train.py"),
    AgentProcess(42, 41, 0, "python -u train.py"),
    AgentProcess(43, 41, 0, "python -u train.py"),
    AgentProcess(50, 30, 0, "git status"),
]
PATTERN = r"python -u \S+\.py"


def ids(processes: list[AgentProcess]) -> list[int]:
    return [each.pid for each in processes]


def test_the_process_of_a_step_is_the_one_that_the_pattern_begins() -> None:
    assert ids(of_the_step(MLAB, PATTERN)) == [41]
    assert ids(with_all_below([MLAB[3]], MLAB)) == [41, 42, 43]
    assert of_the_step(MLAB[:3], PATTERN) == []
    assert of_the_step(MLAB, "") == []


def test_a_process_that_the_agent_names_is_believed_when_it_is_one_of_its_own() -> None:
    assert ids(of_the_step(MLAB, PATTERN, named=50)) == [50]
    assert of_the_step(MLAB, "", named=1) == []
    assert ids(of_the_step(MLAB, PATTERN, named=7)) == [41]


def test_a_list_that_goes_in_a_circle_has_an_end() -> None:
    circle = [
        AgentProcess(2, 3, 0, "python -u a.py"),
        AgentProcess(3, 2, 0, "python -u a.py"),
        AgentProcess(4, 4, 0, "x"),
    ]
    assert of_the_step(circle, PATTERN) == []
    assert ids(with_all_below(circle[:1], circle)) == [2, 3]
