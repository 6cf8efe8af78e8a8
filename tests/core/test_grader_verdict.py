"""Whose fault the end of a grader child is: the table of docs/grading.md, line by line."""

import pytest

from runs.core.grader_verdict import Ended, Fault, Phase, decide, told

GIB = 2**30
SECRET = "[1, 0, 0, 1]"


@pytest.mark.parametrize(
    ("ended", "fault", "message"),
    [
        pytest.param(
            Ended(Phase.LOAD, exception="SyntaxError", text="invalid syntax"),
            Fault.GRADER,
            "Loading the grader failed with SyntaxError: invalid syntax.",
            id="a broken grade.py",
        ),
        pytest.param(
            Ended(Phase.LOAD, exception="InvalidSubmissionError", declared_invalid=True),
            Fault.GRADER,
            "Loading the grader failed with InvalidSubmissionError.",
            id="declared invalid before it was read",
        ),
        pytest.param(
            Ended(Phase.ANSWERS, exception="FileNotFoundError", text="test.csv"),
            Fault.GRADER,
            "Reading the answers failed with FileNotFoundError: test.csv.",
            id="no answers",
        ),
        pytest.param(
            Ended(Phase.ANSWERS, over_time=True),
            Fault.GRADER,
            "Reading the answers took longer than 60 s.",
            id="slow answers",
        ),
        pytest.param(
            Ended(Phase.SUBMISSION, exception="ParserError", text="Expected 2 fields, saw 5\n"),
            Fault.SUBMISSION,
            "Expected 2 fields, saw 5",
            id="ragged",
        ),
        pytest.param(
            Ended(Phase.SUBMISSION, exception="MemoryError"),
            Fault.SUBMISSION,
            "Reading the submission needed more than 8 GiB of memory.",
            id="too large to read",
        ),
        pytest.param(
            Ended(Phase.SUBMISSION, over_time=True),
            Fault.SUBMISSION,
            "Reading the submission took longer than 60 s.",
            id="too long to read",
        ),
        pytest.param(
            Ended(Phase.SUBMISSION, signal=24),
            Fault.SUBMISSION,
            "Reading the submission took longer than 60 s.",
            id="CPU time",
        ),
        pytest.param(
            Ended(Phase.SUBMISSION, signal=11),
            Fault.SUBMISSION,
            "Reading the submission crashed with signal 11.",
            id="crash of the parser",
        ),
        pytest.param(
            Ended(Phase.SUBMISSION, signal=9),
            Fault.GRADER,
            "Grading was killed from outside (signal 9): the host may be out of memory.",
            id="killed from outside while reading",
        ),
        pytest.param(
            Ended(Phase.GRADE, signal=9),
            Fault.GRADER,
            "Grading was killed from outside (signal 9): the host may be out of memory.",
            id="killed from outside while grading",
        ),
        pytest.param(
            Ended(Phase.GRADE, signal=9, over_time=True),
            Fault.UNSURE,
            "Grading the submission took longer than 60 s.",
            id="killed by us at the time limit",
        ),
        pytest.param(
            Ended(
                Phase.GRADE,
                exception="InvalidSubmissionError",
                text="4 rows, not 3",
                declared_invalid=True,
            ),
            Fault.SUBMISSION,
            "4 rows, not 3",
            id="declared invalid",
        ),
        pytest.param(
            Ended(Phase.GRADE, exception="InvalidSubmissionError", declared_invalid=True),
            Fault.SUBMISSION,
            "The grader gave no reason.",
            id="declared invalid without a word",
        ),
        pytest.param(
            Ended(Phase.GRADE, exception="KeyError", text="'id'"),
            Fault.UNSURE,
            "Grading the submission failed with KeyError: 'id'.",
            id="not foreseen",
        ),
        pytest.param(
            Ended(Phase.GRADE),
            Fault.UNSURE,
            "Grading the submission ended the grader's process without a result.",
            id="hard exit",
        ),
        pytest.param(Ended(Phase.GRADE, has_score=True, score=0.5), Fault.NOBODY, "", id="graded"),
        pytest.param(
            Ended(Phase.GRADE, has_score=True),
            Fault.NOBODY,
            "The score is not a finite number: no medal.",
            id="not a number",
        ),
    ],
)
def test_whose_fault_it_is(ended: Ended, fault: Fault, message: str) -> None:
    verdict = decide(ended, memory_bytes=8 * GIB, limit_seconds=60)

    assert (verdict.fault, verdict.message) == (fault, message)


@pytest.mark.parametrize("phase", [Phase.LOAD, Phase.ANSWERS, Phase.GRADE])
def test_an_agent_is_not_told_what_may_quote_the_answers(phase: Phase) -> None:
    ended = Ended(phase, exception="ValueError", text=f"bad labels {SECRET}", detail=SECRET)
    verdict = decide(ended, memory_bytes=GIB, limit_seconds=60)

    assert SECRET in verdict.message
    assert told(verdict, ended) == "The grader stopped with ValueError."


def test_an_agent_is_told_what_is_wrong_with_its_own_file() -> None:
    ended = Ended(Phase.SUBMISSION, exception="ParserError", text="Expected 2 fields, saw 5")

    assert told(decide(ended, memory_bytes=GIB, limit_seconds=60), ended) == ended.text
