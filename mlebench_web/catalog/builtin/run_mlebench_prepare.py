"""Prepare one competition with mle-bench's own code. Run by the Python of MLEBENCH_PYTHON.

Usage: run_mlebench_prepare.py CHECKOUT COMPETITION DATA_DIR ignore|compare

The last line on standard output is a JSON object: {"ok": true}, or {"failed": kind, "message",
"link"} with kind one of rules, credentials, checksums, package, other. What mle-bench says goes to
standard error. Nothing can ask a question: there is nobody to answer.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import traceback
import webbrowser
from pathlib import Path


class Asked(Exception):
    """mle-bench wanted to ask somebody something."""


def refuse(prompt: object = "") -> str:
    raise Asked(str(prompt))


def rules_link(competition: str) -> str:
    return f"https://www.kaggle.com/c/{competition}/rules"


def prepare(checkout: Path, competition: str, data_dir: Path, ignores: bool) -> dict[str, object]:
    sys.path.insert(0, str(checkout))
    try:
        from mlebench import data
        from mlebench.registry import registry
    except ImportError as error:
        return {"failed": "package", "message": f"mlebench cannot be imported: {error}"}
    found = registry.set_data_dir(data_dir).get_competition(competition)
    has_checksums = Path(found.checksums).is_file()
    try:
        data.download_and_prepare_dataset(
            competition=found,
            keep_raw=False,
            # Without a file mle-bench would write one, and the checkout is not ours to change.
            skip_verification=ignores or not has_checksums,
        )
    except Asked:
        return {
            "failed": "rules",
            "message": "The rules of the competition are not accepted yet.",
            "link": rules_link(competition),
        }
    except PermissionError as error:
        return {"failed": "credentials", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - mle-bench's and every preparer's own
        return {**kind_of(error, competition), "message": str(error) or type(error).__name__}
    return {"ok": True, "compared": has_checksums and not ignores}


def kind_of(error: Exception, competition: str) -> dict[str, object]:
    traceback.print_exc()
    status = getattr(error, "status", None)
    text = str(error)
    if status == 401:
        return {"failed": "credentials"}
    if status == 403:
        return {"failed": "rules", "link": rules_link(competition)}
    if isinstance(error, ValueError) and text.startswith("Checksum"):
        return {"failed": "checksums"}
    return {"failed": "other"}


def main() -> None:
    checkout, competition, data_dir, checksums = sys.argv[1:]
    answer = os.fdopen(os.dup(1), "w")
    # Whatever is printed, by whoever: the answer stands alone.
    os.dup2(2, 1)
    builtins.input = refuse
    webbrowser.open = lambda *_, **__: False  # type: ignore[assignment]
    try:
        said = prepare(Path(checkout), competition, Path(data_dir), checksums == "ignore")
    except SystemExit as error:
        # The Kaggle client's way of saying that it has no credentials.
        said = {"failed": "credentials", "message": f"The Kaggle client ended: {error}"}
    except Exception as error:  # noqa: BLE001 - the parent must hear of each
        traceback.print_exc()
        said = {"failed": "other", "message": f"{type(error).__name__}: {error}"}
    answer.write(json.dumps(said) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
