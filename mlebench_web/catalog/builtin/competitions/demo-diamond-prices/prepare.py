"""Split the diamonds into train and test. Standard library only, so that a first start is quick."""

import csv
import gzip
import random
import statistics
from pathlib import Path

COLUMNS = ["carat", "cut", "color", "clarity", "depth", "table", "x", "y", "z"]
TEST_SHARE = 0.2
SEED = 20260101


def prepare(raw: Path, public: Path, private: Path) -> None:
    """Equal diamonds are kept once, so that no test row has its twin in the training rows."""
    with gzip.open(raw / "diamonds.csv.gz", "rt", newline="") as file:
        rows = list({tuple(row.values()): row for row in csv.DictReader(file)}.values())
    # The source is sorted by price, so an id may say nothing of the row's place in it.
    # shuffle() gives the same order for the same seed on every Python 3.
    random.Random(SEED).shuffle(rows)  # noqa: S311
    for number, row in enumerate(rows, start=1):
        row["id"] = str(number)
    test = rows[: round(len(rows) * TEST_SHARE)]
    train = rows[len(test) :]
    median = str(statistics.median(int(row["price"]) for row in train))
    write(public / "train.csv", ["id", *COLUMNS, "price"], train)
    write(public / "test.csv", ["id", *COLUMNS], test)
    write(private / "test.csv", ["id", "price"], test)
    sample = [{"id": row["id"], "price": median} for row in test]
    write(public / "sample_submission.csv", ["id", "price"], sample)


def write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
