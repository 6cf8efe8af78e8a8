"""Grade one submission, in a child of the grader process. No Django here.

A competition of ours is graded by the grade.py of its folder, one of an mle-bench checkout by the
`grade_fn` of its config.yaml with mle-bench's own readers of tables (official.py).

What is said goes to `say` as dictionaries: first each phase as it begins, then exactly one
ending: {"score"} or {"exception", "text", "declared_invalid", "detail"}. What that means for the
submission is decided elsewhere (runs/core/grader_verdict.py).
"""

import importlib
import importlib.util
import io
import json
import math
import numbers
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official  # type: ignore[import-not-found]
import pandas as pd

Say = Callable[[dict[str, Any]], None]

# Of an exception's text: what a page can show. A ParserError can quote a whole line.
TEXT_LIMIT = 2_000
DETAIL_LIMIT = 8_000
STANDIN = Path(__file__).resolve().parent / "standin"


def offer_grade_helpers() -> None:
    """Graders import mlebench.grade_helpers: the real one where it is installed, else ours."""
    if importlib.util.find_spec("mlebench") is None:
        sys.path.append(str(STANDIN))


def warm_up() -> None:
    """Do once, in the parent, what pandas and scikit-learn put off until the first call."""
    from sklearn import metrics

    frame = pd.read_csv(io.BytesIO(b"id,y\n1,0.5\n2,0.25\n"), float_precision="round_trip")
    frame = frame.merge(frame, on="id").sort_values("id").set_index("id")
    pd.to_numeric(frame["y_x"]).duplicated().any()
    metrics.roc_auc_score([0, 1], [0.25, 0.5])
    metrics.log_loss([0, 1], [0.25, 0.5])
    importlib.import_module("mlebench.grade_helpers")


def read_csv(source: Any) -> pd.DataFrame:
    """As upstream reads submissions and answers: exact floats, an empty file is an empty frame."""
    try:
        return pd.read_csv(source, float_precision="round_trip")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def read_answers(path: Path) -> Any:
    if path.suffix == ".csv":
        return read_csv(path)
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    raise ValueError(f"Answers in {path.name}: a .csv or .jsonl file is needed.")


def load_grade_function(folder: Path, name: str) -> Callable[[pd.DataFrame, Any], Any]:
    """The function `name` of the competition's grade.py."""
    file = folder / "grade.py"
    # A grader may have helper modules beside it.
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("competition_grade", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["competition_grade"] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def rounded(score: Any) -> float:
    """The score to five places, rounded by its own type as upstream does."""
    if not isinstance(score, numbers.Real):
        raise TypeError(f"The grader returned {type(score).__name__}, not a number.")
    return float(round(score, 5))


def declares_invalid(error: BaseException) -> bool:
    """Whether the grader's author says so. By name: a grader may bring its own class."""
    return any(base.__name__ == "InvalidSubmissionError" for base in type(error).__mro__)


def tools_for(request: dict[str, Any]) -> official.Tools:
    if request["checkout"]:
        return official.tools(Path(request["checkout"]), request["function"])
    grade = load_grade_function(Path(request["folder"]), request["function"])
    return official.Tools(grade, read_csv, read_answers)


def grade_one(request: dict[str, Any], submission: int, say: Say) -> None:
    """Grade the open file `submission`. Says an ending for everything but its own death."""
    try:
        say({"phase": "load"})
        tools = tools_for(request)
        say({"phase": "answers", "libraries": tools.libraries})
        answers = tools.read_answers(Path(request["answers"]))
        say({"phase": "submission"})
        with open(submission, "rb") as file:
            frame = tools.read_submission(file)
        say({"phase": "grade"})
        score = rounded(tools.grade(frame, answers))
    except BaseException as error:  # noqa: BLE001 - also SystemExit: the process ends after this
        # A formatted traceback needs memory, which may be what is missing.
        is_memory = isinstance(error, MemoryError)
        say(
            {
                "exception": type(error).__name__,
                "text": "" if is_memory else str(error)[:TEXT_LIMIT],
                "declared_invalid": declares_invalid(error),
                "detail": "" if is_memory else traceback.format_exc()[-DETAIL_LIMIT:],
            }
        )
    else:
        # JSON has no NaN and no infinity.
        say({"score": score if math.isfinite(score) else None})
