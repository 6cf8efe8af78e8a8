"""Submissions of a stranger through the real grader, beside a check that knows nothing of it.

The check reads the file with Python's own csv module and says, by the competition's description
alone, what every row is. A submission that the product takes must be one by that check too, with
the same score.
"""

import csv
import io
import math
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from hypothesis import given
from hypothesis import strategies as st

from mlebench_web.catalog.folders import COMPETITIONS
from mlebench_web.catalog.models import Competition
from runs import grading
from runs.core.grader_verdict import Fault
from tests.fuzz.cases import count, fuzz
from tests.fuzz.strategies import PIECES, mutated

pytestmark = pytest.mark.usefixtures("warm_grader")

TRUE = {"1": 326.0, "2": 2757.0, "7": 15000.0, "8": 0.0, "11": 554.5, "12": 4321.0}
ANSWERS = "id,price\n" + "".join(f"{name},{price!r}\n" for name, price in TRUE.items())
SAMPLE = "id,price\n" + "".join(f"{name},1000\n" for name in TRUE)
# pandas' words for no value (its documentation of read_csv, na_values).
NO_VALUE = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


@pytest.fixture(scope="module")
def competition() -> Competition:
    """The demo's prices, with six answers. Not saved: grading asks no database."""
    home = Path(django_settings.COMPETITIONS_DIR) / "fuzzed" / "prepared"
    for part, name, text in (
        ("public", "sample_submission.csv", SAMPLE),
        ("private", "test.csv", ANSWERS),
    ):
        (home / part).mkdir(parents=True, exist_ok=True)
        (home / part / name).write_text(text)
    return Competition(
        name="fuzzed",
        is_lower_better=True,
        folder=str(COMPETITIONS / "demo-diamond-prices"),
        answers_path="fuzzed/prepared/private/test.csv",
        sample_submission_path="fuzzed/prepared/public/sample_submission.csv",
    )


def number(text: str) -> float | None:
    """A finite number, as CSV files write them."""
    text = text.strip()
    if text in NO_VALUE or "_" in text:
        return None
    try:
        value = float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.lower())
    return value if math.isfinite(value) else None


def by_hand(data: bytes) -> float | None:
    """The score by the competition's description; None: it is no valid submission."""
    try:
        text = data.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (UnicodeDecodeError, csv.Error):
        return None
    if not rows:
        return None
    head, *body = rows
    if "id" not in head or "price" not in head:
        return None
    # A row that is longer than the head begins with a name of its own, as tables with an index do.
    more = max([0, *(len(row) - len(head) for row in body)])
    body = [row[more:] for row in body]
    at_id, at_price = head.index("id"), head.index("price")
    seen: dict[float, float] = {}
    for row in body:
        if len(row) <= max(at_id, at_price):
            return None
        name, price = number(row[at_id]), number(row[at_price])
        if name is None or price is None or price < 0 or name in seen:
            return None
        seen[name] = price
    if set(seen) != {float(name) for name in TRUE}:
        return None
    errors = [
        (math.log1p(seen[float(name)]) - math.log1p(true)) ** 2 for name, true in TRUE.items()
    ]
    return math.sqrt(sum(errors) / len(errors))


CELLS = st.one_of(
    st.sampled_from(["1", "2", "7", "8", "11", "12", "1.0", "01", " 1", "1 ", "+1", "1e0", "-1"]),
    st.floats().map(repr),
    st.sampled_from(PIECES),
    st.sampled_from(sorted(NO_VALUE)),
    st.sampled_from(["1,000", '"5"', "True", "1e400", "٣", "1_0", "0x10", "1d3", "$5", "5 %"]),
)


HEADS = (
    *(["id", "price"], ["price", "id"], ["id", "price", "x"], ["id"], ["ID", "price"]),
    *(["id", "price", "price"], ["", "id", "price"], ["id ", "price"], ["id", "id", "price"]),
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A right submission with some of its cells, columns or rows made wrong, or nearly so."""
    # Most are right so far: what follows changes one thing.
    head = draw(st.sampled_from([HEADS[0]] * 6 + list(HEADS)))
    rows = []
    for name in draw(st.permutations(list(TRUE))):
        price = repr(draw(st.floats(0, 1e6)))
        row = {"id": name, "price": price, "x": "0", "ID": name, "id ": name}
        rows.append([row.get(column, "9") for column in head])
    for _ in range(draw(st.integers(0, 2))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        if row:
            row[draw(st.integers(0, len(row) - 1))] = draw(CELLS)
    change = draw(st.sampled_from(["none"] * 4 + ["double", "drop", "longer", "shorter", "index"]))
    if change == "double":
        rows.append(list(rows[0]))
    elif change == "drop":
        rows.pop()
    elif change == "longer":
        rows[0].append(draw(CELLS))
    elif change == "shorter":
        rows[0].pop()
    elif change == "index":
        rows = [[str(number), *row] for number, row in enumerate(rows)]
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [",".join(row) for row in [head, *rows]]
    text = draw(st.sampled_from(["", "\ufeff"])) + end.join(lines) + end
    return text.encode("utf-8", "replace")


def judged(competition: Competition, path: Path, data: bytes) -> tuple[Fault, float | None]:
    path.write_bytes(data)
    with grading.open_submission(path) as file:
        ended, verdict = grading.judge(competition, file, tick=lambda: None)
    return verdict.fault, ended.score


@given(data=tables() | mutated(SAMPLE.encode()) | st.binary(max_size=60))
@fuzz(150)
def test_a_submission_is_valid_only_if_a_plain_reader_says_so_too(
    competition: Competition, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fault, score = judged(competition, tmp_path_factory.getbasetemp() / "fuzzed.csv", data)

    assert fault in (Fault.NOBODY, Fault.SUBMISSION), "a submission is never the grader's fault"
    if fault == Fault.SUBMISSION:
        count("CSV submissions", "invalid")
        return
    count("CSV submissions", "valid")
    expected = by_hand(data)
    assert expected is not None, f"wrong acceptance: {data!r}"
    assert score == pytest.approx(expected, abs=2e-5), f"wrong score: {data!r}"


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        (SAMPLE, True),
        (SAMPLE.replace("1000", "nan"), False),
        (SAMPLE.replace("\n1,", "\n1,2,"), False),
        (SAMPLE + "12,1000\n", False),
        (SAMPLE.replace("id,", "ID,"), False),
        (SAMPLE.replace("1000", "-0.5"), False),
    ],
)
def test_the_plain_reader_knows_right_from_wrong(
    competition: Competition, text: str, is_valid: bool, tmp_path: Path
) -> None:
    fault, _ = judged(competition, tmp_path / "submission.csv", text.encode())

    assert (by_hand(text.encode()) is not None) == is_valid == (fault == Fault.NOBODY)
