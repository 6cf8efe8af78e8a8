"""A competition's folder in mle-bench's layout, read into values."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlebench_web.catalog.thresholds import Thresholds, thresholds

# libyaml's loader is ten times quicker and reads the same.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ConfigInvalid(Exception):
    """A folder that ships competitions or agents is not as it should be; says file and field."""


@dataclass(frozen=True)
class Source:
    """Where the raw files come from."""

    kind: str  # "folder": files beside config.yaml; "pypi": members of a pinned wheel
    path: str = ""
    package: str = ""
    version: str = ""
    file: str = ""
    bytes: int = 0
    sha256: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompetitionConfig:
    folder: Path
    name: str
    title: str
    metric: str
    answers: str
    sample_submission: str
    is_lower_better: bool
    category: str
    source: Source
    # prepare.py imports requirements/ml.txt.
    needs_ml: bool
    # Size of what an agent gets.
    dataset_bytes: int | None
    checksums: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def ships_data(self) -> bool:
        return self.source.kind == "folder"

    def thresholds(self) -> Thresholds | None:
        """From leaderboard.csv; None before it was made.

        Raises ConfigInvalid when its direction is not the declared one.
        """
        path = self.folder / "leaderboard.csv"
        if not path.exists():
            return None
        try:
            with path.open(newline="") as file:
                scores = [float(row["score"]) for row in csv.DictReader(file)]
            found = thresholds(scores)
        except (OSError, KeyError, ValueError) as error:
            raise ConfigInvalid(f"{path}: {error}") from error
        if found.is_lower_better != self.is_lower_better:
            raise ConfigInvalid(
                f"{path} should be best first: is_lower_better is {self.is_lower_better}."
            )
        return found


def read(folder: Path) -> CompetitionConfig:
    """Raises ConfigInvalid naming the file and what is missing in it."""
    path = folder / "config.yaml"
    try:
        config: dict[str, Any] = yaml.load(path.read_text(), Loader)  # noqa: S506
        ours = config["mlebench_web"]
        source = dict(ours["source"])
        source["members"] = tuple(source.get("members", ()))
        checksums_file = folder / "checksums.yaml"
        checksums = {}
        if checksums_file.exists():
            checksums = yaml.load(checksums_file.read_text(), Loader)  # noqa: S506
        return CompetitionConfig(
            folder=folder,
            name=config["id"],
            title=config["name"],
            metric=config["grader"]["name"],
            answers=config["dataset"]["answers"],
            sample_submission=config["dataset"]["sample_submission"],
            is_lower_better=ours["is_lower_better"],
            category=ours.get("category", ""),
            source=Source(**source),
            needs_ml=ours.get("needs_ml", False),
            dataset_bytes=ours.get("dataset_bytes"),
            checksums=checksums,
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigInvalid(f"{path}: {type(error).__name__}: {error}") from error
