"""Where this run happens: folders, limits, seed, events. Standard library only."""

import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

STARTED = time.monotonic()
DATA = Path(os.environ.get("DATA_DIR", "/home/data"))
SUBMISSION = Path(os.environ.get("SUBMISSION_DIR", "/home/submission")) / "submission.csv"
CODE = Path(os.environ.get("CODE_DIR", "/home/code"))
SERVER = os.environ.get("MLE_VALIDATION_URL", "http://localhost:5000")
EVENTS = os.environ.get("MLE_EVENTS_FILE", "")
# Empty: nobody keeps checkpoints.
CHECKPOINT = os.environ.get("MLE_CHECKPOINT_DIR", "")
IS_RESUMED = os.environ.get("MLE_RESUME") == "1"
SEED = int(os.environ.get("MLE_SEED") or 0)
TIME_LIMIT_SECONDS = float(os.environ.get("TIME_LIMIT_SECS") or 24 * 3600)
STEP_TIMEOUT_SECONDS = float(os.environ.get("MLE_STEP_TIMEOUT_SECS") or math.inf)
MEMORY_BYTES = int(float(os.environ.get("MLE_MEM_BYTES") or 0)) or 4 * 1024**3
# What is left for the last predictions and for writing.
RESERVE = 0.1


def sample_submission() -> Path:
    """It has several names among MLE-bench's competitions. Raises FileNotFoundError."""
    patterns = ("sample_submission.csv", "sampleSubmission.csv", "*ample*ubmission*.csv")
    for pattern in (*patterns, "*sample*.csv", "randomPredictions.csv", "*ubmission*.csv"):
        if found := sorted(DATA.glob(pattern)):
            return found[0]
    raise FileNotFoundError(f"There is no sample submission in {DATA}.")


def threads() -> int:
    """CPUs that this run may use; inside a container the machine's own number says nothing."""
    for name in ("OMP_NUM_THREADS", "MLE_CPUS"):
        if text := os.environ.get(name):
            return max(1, math.floor(float(text)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def seconds_left() -> float:
    return TIME_LIMIT_SECONDS * (1 - RESERVE) - (time.monotonic() - STARTED)


def step_seconds_left(began: float) -> float:
    """Of a step that began then, by the monotonic clock."""
    return STEP_TIMEOUT_SECONDS * (1 - RESERVE) - (time.monotonic() - began)


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def event(kind: str, **fields: object) -> None:
    if EVENTS:
        with open(EVENTS, "a") as file:
            file.write(json.dumps({"v": 1, "t": time.time(), "type": kind, **fields}) + "\n")


def data_files() -> list[Path]:
    """What lies at the top of the data folder: the tables."""
    return [path for path in DATA.iterdir() if path.is_file()]


def keep_code() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        shutil.copyfile(path, CODE / path.name)


def submit(write: Callable[[Path], object]) -> None:
    """`write(path)` makes the file; it replaces the old one whole or not at all."""
    part = SUBMISSION.with_name(".submission.part")
    write(part)
    part.replace(SUBMISSION)
    event("submission", path=str(SUBMISSION))


def validate() -> str:
    """The validation server's answer, or why there is none."""
    boundary = "mlebench-web-baseline"
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="submission.csv"\r\n'
        "Content-Type: text/csv\r\n\r\n"
    )
    body = head.encode() + SUBMISSION.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(  # noqa: S310
        f"{SERVER}/validate",
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    # Straight to the server: a proxy of the machine knows nothing of it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as reply:
            return str(json.loads(reply.read()).get("result"))
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"The validation server gave no answer: {error}"
