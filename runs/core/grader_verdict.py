"""How a grader child ended -> whose fault it is. Pure; docs/grading.md has the same table."""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What the child was doing. The first two do not depend on the submission."""

    LOAD = "load"
    ANSWERS = "answers"
    SUBMISSION = "submission"
    GRADE = "grade"


class Fault(StrEnum):
    NOBODY = "nobody"
    SUBMISSION = "submission"
    GRADER = "grader"
    # The sample submission decides: if it can be graded, the submission is at fault.
    UNSURE = "unsure"


@dataclass(frozen=True)
class Ended:
    """What was seen of a grader child."""

    phase: Phase
    # It returned a number; None with `has_score`: one that is not finite.
    has_score: bool = False
    score: float | None = None
    exception: str = ""
    text: str = ""
    declared_invalid: bool = False
    # The last lines of its traceback, for the grader's log only.
    detail: str = ""
    signal: int | None = None
    # We ended it at the time limit.
    over_time: bool = False
    # Name and version of the libraries that decide about a score; "" where they are ours.
    libraries: str = ""


@dataclass(frozen=True)
class GraderVerdict:
    fault: Fault
    # A sentence for people; of a valid submission, empty or what is odd about its score.
    message: str = ""
    # Whether an agent that is still running may read the message.
    may_be_told: bool = True


SIGKILL, SIGXCPU = 9, 24


def decide(ended: Ended, *, memory_bytes: int, limit_seconds: float) -> GraderVerdict:
    """Whose fault an ending is.

    An exception's text is for the agent only when it cannot speak of the answers: pandas on the
    submission's own bytes, and what the grader's author wrote into InvalidSubmissionError.
    """
    if ended.has_score:
        odd = "" if ended.score is not None else "The score is not a finite number: no medal."
        return GraderVerdict(Fault.NOBODY, odd)
    if ended.declared_invalid and ended.phase == Phase.GRADE:
        return GraderVerdict(Fault.SUBMISSION, ended.text or "The grader gave no reason.")
    what = in_words(ended, memory_bytes=memory_bytes, limit_seconds=limit_seconds)
    if ended.phase in (Phase.LOAD, Phase.ANSWERS):
        doing = "Loading the grader" if ended.phase == Phase.LOAD else "Reading the answers"
        return GraderVerdict(Fault.GRADER, f"{doing} {what}", may_be_told=False)
    if ended.signal == SIGKILL and not ended.over_time:
        return GraderVerdict(Fault.GRADER, f"Grading {what}", may_be_told=False)
    if ended.phase == Phase.SUBMISSION:
        is_pandas = bool(ended.exception) and ended.exception != "MemoryError"
        message = f"Reading the submission {what}"
        if is_pandas:
            message = ended.text.rstrip() or ended.exception
        return GraderVerdict(Fault.SUBMISSION, message)
    return GraderVerdict(Fault.UNSURE, f"Grading the submission {what}", may_be_told=False)


def in_words(ended: Ended, *, memory_bytes: int, limit_seconds: float) -> str:
    """ "needed more than 8 GiB of memory.": the end of a sentence."""
    if ended.over_time or ended.signal == SIGXCPU:
        return f"took longer than {limit_seconds:g} s."
    if ended.exception == "MemoryError":
        return f"needed more than {memory_bytes / 2**30:.3g} GiB of memory."
    if ended.signal == SIGKILL:
        return "was killed from outside (signal 9): the host may be out of memory."
    if ended.signal is not None:
        return f"crashed with signal {ended.signal}."
    if ended.exception:
        said = " ".join(ended.text.split()).rstrip(".")
        return f"failed with {ended.exception}: {said}".rstrip(": ") + "."
    return "ended the grader's process without a result."


def told(verdict: GraderVerdict, ended: Ended) -> str:
    """The message for an agent that is still running: nothing that could be an answer."""
    if verdict.may_be_told:
        return verdict.message
    if ended.exception and ended.exception != "MemoryError":
        return f"The grader stopped with {ended.exception}."
    return verdict.message
