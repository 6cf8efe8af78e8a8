"""The agents that ship, run as the process runtime runs them: by start.sh, with folders from the
environment."""

import csv
import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from django.conf import settings

from mlebench_web.catalog import folders


class Validator(BaseHTTPRequestHandler):
    """Keeps what it was sent; says that it is valid."""

    sent: list[bytes]

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        self.sent.append(self.rfile.read(int(self.headers["Content-Length"])))
        body = b'{"result": "Submission is valid."}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass
class Place:
    """An agent's folders, and the address of a validation server."""

    root: Path
    server: str
    sent: list[bytes]

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def submission(self) -> Path:
        return self.root / "submission" / "submission.csv"

    def write(self, name: str, columns: list[str], rows: list[tuple[object, ...]]) -> None:
        with (self.data / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    def run(self, agent: str, **env: str) -> str:
        """What it printed. Fails unless it ended with 0."""
        ml = Path(settings.ML_PYTHON).parent
        done = subprocess.run(
            ["bash", folders.AGENTS / agent / "start.sh"],
            env={
                "PATH": f"{ml}:{os.environ['PATH']}",
                "DATA_DIR": str(self.data),
                "SUBMISSION_DIR": str(self.root / "submission"),
                "CODE_DIR": str(self.root / "code"),
                "LOGS_DIR": str(self.root / "logs"),
                "MLE_EVENTS_FILE": str(self.root / "logs" / "events.jsonl"),
                "MLE_VALIDATION_URL": self.server,
                "MLE_SEED": "0",
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                **env,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    def rows(self) -> list[dict[str, str]]:
        with self.submission.open(newline="") as file:
            return list(csv.DictReader(file))

    def events(self) -> list[dict[str, object]]:
        lines = (self.root / "logs" / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    for name in ("data", "submission", "code", "logs"):
        (tmp_path / name).mkdir()
    handler = type("OneTest", (Validator,), {"sent": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Place(tmp_path, f"http://127.0.0.1:{server.server_port}", handler.sent)
        server.shutdown()
        thread.join()


def prices(place: Place, count: int = 400) -> dict[str, int]:
    """A price that follows from size and kind, by id. The ids start with zeros."""
    chance = random.Random(1)
    rows = []
    for number in range(count):
        size, kind = chance.uniform(1, 9), chance.choice("abc")
        rows.append((f"{number:05d}", size, kind, round(size * 100 + "abc".index(kind) * 300)))
    place.write("train.csv", ["id", "size", "kind", "price"], rows[100:])
    place.write("test.csv", ["id", "size", "kind"], [row[:3] for row in rows[:100]])
    place.write("sample_submission.csv", ["id", "price"], [(row[0], 0) for row in rows[:100]])
    return {row[0]: row[3] for row in rows}


def test_dummy_hands_in_the_sample_and_asks_whether_it_is_valid(place: Place) -> None:
    prices(place)

    said = place.run("dummy")

    sample = (place.data / "sample_submission.csv").read_bytes()
    assert place.submission.read_bytes() == sample
    assert sample in place.sent[0]
    assert "Submission is valid." in said
    assert (place.root / "code" / "dummy.py").exists()
    assert [event["type"] for event in place.events()] == [
        "step_started", "submission", "step_finished",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["sampleSubmission.csv", "sample_submission_null.csv", "randomPredictions.csv"]
)
def test_dummy_finds_a_sample_of_another_name(place: Place, name: str) -> None:
    place.write(name, ["id", "y"], [(1, 0)])
    place.write("train.csv", ["id", "y"], [(2, 0)])

    place.run("dummy")

    assert place.rows() == [{"id": "1", "y": "0"}]


def test_dummy_says_that_the_validation_server_is_away_and_goes_on(place: Place) -> None:
    prices(place)

    said = place.run("dummy", MLE_VALIDATION_URL="http://127.0.0.1:9")

    assert "The validation server gave no answer" in said
    assert place.submission.exists()


def test_baseline_learns_a_number_and_keeps_the_ids_as_they_are(place: Place) -> None:
    truth = prices(place)
    (place.data / "description.md").write_text("Root mean squared logarithmic error (RMSLE).")

    said = place.run("baseline")

    rows = place.rows()
    assert rows[0]["id"] == "00000"
    off = [abs(float(row["price"]) / truth[row["id"]] - 1) for row in rows]
    assert sum(off) / len(off) < 0.1
    assert "out-of-fold rmsle" in said
    assert "Submission is valid." in said
    assert (place.root / "code" / "training.py").exists()


@pytest.mark.slow  # three trainings
def test_baseline_tells_its_steps_and_the_same_seed_gives_the_same_submission(place: Place) -> None:
    prices(place)

    answers = []
    for seed in ("3", "3", "4"):
        place.run("baseline", MLE_SEED=seed)
        answers.append(place.submission.read_bytes())

    assert answers[0] == answers[1] != answers[2]
    # Those of the first of the three; the file goes on with the second's.
    finished = [event for event in place.events() if event["type"] == "step_finished"][:5]
    assert [event["step"] for event in finished] == [1, 2, 3, 4, 5]
    assert all(event["total"] == 5 for event in finished)
    assert finished[0]["metric"]["name"] == "rmse"  # type: ignore[index]
    assert finished[0]["metric"]["maximize"] is False  # type: ignore[index]


def test_baseline_ends_a_fold_that_takes_longer_than_the_step_timeout(place: Place) -> None:
    prices(place)

    said = place.run("baseline", MLE_STEP_TIMEOUT_SECS="0.001")

    # After its first round, and with all five folds.
    assert said.count(", 1 rounds.") == 5
    assert [row["type"] for row in place.events()].count("step_finished") == 5


def test_baseline_without_time_leaves_the_sample_submission(place: Place) -> None:
    prices(place)

    said = place.run("baseline", TIME_LIMIT_SECS="0.01")

    assert "The time is over" in said
    assert place.submission.read_bytes() == (place.data / "sample_submission.csv").read_bytes()


def test_baseline_learns_labels_that_are_words(place: Place) -> None:
    chance = random.Random(2)
    rows = [(n, x, "cat" if x > 5 else "dog") for n in range(300) if (x := chance.uniform(0, 10))]
    place.write("train.csv", ["id", "x", "animal"], rows[50:])
    place.write("test.csv", ["id", "x"], [row[:2] for row in rows[:50]])
    place.write("sample_submission.csv", ["id", "animal"], [(row[0], "cat") for row in rows[:50]])

    place.run("baseline")

    right = [row["animal"] == known[2] for row, known in zip(place.rows(), rows[:50], strict=True)]
    assert sum(right) >= 45


def test_baseline_gives_a_probability_for_each_class_column(place: Place) -> None:
    chance = random.Random(3)
    rows = [(n, x, "abc"[int(x)]) for n in range(400) if (x := chance.uniform(0, 3))]
    place.write("train.csv", ["id", "x", "kind"], rows[50:])
    place.write("test.csv", ["id", "x"], [row[:2] for row in rows[:50]])
    sample = [(row[0], 0.3, 0.3, 0.4) for row in rows[:50]]
    place.write("sample_submission.csv", ["id", "a", "b", "c"], sample)

    place.run("baseline")

    right = 0
    for row, known in zip(place.rows(), rows[:50], strict=True):
        chances = {name: float(row[name]) for name in "abc"}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-3)
        right += max(chances, key=chances.__getitem__) == known[2]
    assert right >= 45


def test_baseline_learns_from_images_by_their_ids(place: Place) -> None:
    """Light and dark images, drawn by the Python that has Pillow."""
    draw = (
        "import random, sys; from pathlib import Path; from PIL import Image\n"
        "chance = random.Random(4)\n"
        "for n in range(160):\n"
        "    folder = Path(sys.argv[1], 'train' if n >= 40 else 'test')\n"
        "    folder.mkdir(exist_ok=True)\n"
        "    level = chance.randrange(0, 100) + 100 * (n % 2)\n"
        "    Image.new('RGB', (20, 20), (level, level, 50)).save(folder / f'{n:04d}.png')\n"
    )
    subprocess.run([settings.ML_PYTHON, "-c", draw, place.data], check=True)
    train = [(f"{n:04d}", n % 2) for n in range(40, 160)]
    place.write("train.csv", ["id", "is_light"], list(train))
    place.write("sample_submission.csv", ["id", "is_light"], [(f"{n:04d}", 0.5) for n in range(40)])
    (place.data / "description.md").write_text("Area under the ROC curve.")

    said = place.run("baseline")

    for row in place.rows():
        assert (float(row["is_light"]) > 0.5) == int(row["id"]) % 2
    assert "out-of-fold auc" in said


def test_baseline_says_what_it_does_not_understand_and_leaves_a_valid_file(place: Place) -> None:
    place.write("train.csv", ["id", "x"], [(1, 2)])
    place.write("sample_submission.csv", ["id", "colour"], [(1, "red")])

    said = place.run("baseline")

    assert "train.csv says nothing about colour" in said
    assert place.rows() == [{"id": "1", "colour": "red"}]
