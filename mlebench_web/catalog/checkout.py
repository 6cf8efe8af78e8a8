"""A folder in mle-bench's layout -> values and problems. No database; no code of it is run.

A broken file harms only its own entry, and is named with file and line.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mlebench_web.catalog import documents
from mlebench_web.catalog.documents import Entry, Unreadable
from mlebench_web.catalog.thresholds import Thresholds, thresholds

AGENTS = "agents"
SPLITS = "experiments/splits"
CONFIGS = "environment/config/container_configs"
COMPETITIONS = "mlebench/competitions"
# Keys of an agents/*/config.yaml that hold parts of agents.
HELPERS = frozenset({"defaults", "vars", "kwargs_common"})
KWARGS_TYPES = ("argparse", "omegaconf")
# Parts with / between them; none is a dot or two, which addresses give a meaning.
AGENT_ID = re.compile(r"(?!\.{1,2}(/|$))[^\s/\x00-\x1f]+(/(?!\.{1,2}(/|$))[^\s/\x00-\x1f]+)*")
COMPETITION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")
# What an agents/*/config.yaml and our own names need of a database column.
LONGEST_ID = 150
# A leaderboard has some thousand rows.
LEADERBOARD_BYTES = 32 * 2**20
SPLIT_BYTES = 2**20


@dataclass(frozen=True)
class Problem:
    """`error`: the entry was left out. `note`: it is there, and something should be known."""

    file: str
    line: int | None
    message: str
    level: Literal["error", "note"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class AgentEntry:
    name: str
    # The name of its folder: mle-bench's image name.
    image_name: str
    folder: Path
    # Relative to the folder; may begin with "..".
    start: str
    dockerfile: str
    kwargs: dict[str, Any]
    kwargs_type: str
    env_vars: dict[str, Any]
    privileged: bool


@dataclass(frozen=True)
class SplitEntry:
    name: str
    competitions: tuple[str, ...]
    file: str
    # The line of each competition.
    lines: tuple[int, ...]


@dataclass(frozen=True)
class ConfigEntry:
    name: str
    settings: dict[str, Any]
    file: str


@dataclass(frozen=True)
class CompetitionEntry:
    name: str
    title: str
    metric: str
    folder: Path
    answers: str
    sample_submission: str
    gold_submission: str
    # None: leaderboard.csv could not be used; `leaderboard_error` says why.
    thresholds: Thresholds | None
    team_count: int | None
    leaderboard_error: str
    leaderboard_is_pointer: bool


@dataclass
class Contents:
    agents: list[AgentEntry] = field(default_factory=list)
    splits: list[SplitEntry] = field(default_factory=list)
    configs: list[ConfigEntry] = field(default_factory=list)
    competitions: list[CompetitionEntry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class NoCheckout(Exception):
    """The folder is not mle-bench's layout."""


def read(root: Path) -> Contents:
    """Everything that the checkout offers. Raises NoCheckout when it offers nothing at all."""
    if not root.is_dir():
        raise NoCheckout(f"{root} is no folder.")
    if not any((root / part).is_dir() for part in (AGENTS, COMPETITIONS)):
        raise NoCheckout(
            f"{root} is no mle-bench checkout: it has neither {AGENTS} nor {COMPETITIONS}."
        )
    contents = Contents()
    _Reader(root, contents).read()
    return contents


def competition_names(text: str) -> list[tuple[str, int]]:
    """Names and their lines from a list that commas, spaces or line ends separate."""
    return [
        (word, number)
        for number, line in enumerate(text.splitlines(), 1)
        for word in re.split(r"[,\s]+", line.strip())
        if word
    ]


class _Reader:
    def __init__(self, root: Path, contents: Contents) -> None:
        self.root = root
        self.into = contents

    def read(self) -> None:
        self._competitions()
        self._splits()
        self._configs()
        self._agents()

    # ------------------------------------------------------------------------ small things

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _problem(
        self,
        path: Path,
        message: str,
        line: int | None = None,
        *,
        level: Literal["error", "note"] = "error",
    ) -> None:
        self.into.problems.append(Problem(self._name(path), line, message, level))

    def _files(self, folder: str, pattern: str) -> list[Path]:
        """Sorted, so that of two agents of one id the same one is taken everywhere."""
        base = self.root / folder
        if not base.is_dir():
            return []
        return sorted(path for path in base.glob(pattern) if path.is_file())

    # ------------------------------------------------------------------------ agents

    def _agents(self) -> None:
        taken: dict[str, Path] = {}
        for path in self._files(AGENTS, "**/config.yaml"):
            try:
                entries = documents.yaml_entries(documents.read(path))
            except Unreadable as error:
                self._problem(path, error.message, error.line)
                continue
            for entry in entries:
                if entry.name in HELPERS:
                    continue
                if entry.error:
                    self._problem(path, f"{entry.name}: {entry.error}", entry.error.line)
                    continue
                if not _is_agent(entry.value):
                    # Another helper: upstream finds no agent in it either.
                    continue
                try:
                    agent = self._agent(path, entry)
                except Unreadable as error:
                    self._problem(path, f"{entry.name}: {error.message}", error.line or entry.line)
                    continue
                if entry.name in taken:
                    first = self._name(taken[entry.name])
                    self._problem(path, f"{entry.name}: {first} has this id already", entry.line)
                    continue
                taken[entry.name] = path
                self.into.agents.append(agent)

    def _agent(self, path: Path, entry: Entry) -> AgentEntry:
        if len(entry.name) > LONGEST_ID or not AGENT_ID.fullmatch(entry.name):
            raise Unreadable(
                f"this is no agent id: no spaces, no / at the ends, at most {LONGEST_ID} characters"
            )
        if entry.name.startswith("builtin/"):
            raise Unreadable("builtin/ is for the agents of mlebench-web itself")
        value = entry.value
        for name in ("start", "dockerfile"):
            if not isinstance(value.get(name), str):
                raise Unreadable(f"{name} is missing: write its path below {AGENTS}/")
        kwargs = _mapping(value, "kwargs")
        env_vars = _mapping(value, "env_vars")
        kwargs_type = value.get("kwargs_type")
        if kwargs_type is None and kwargs:
            raise Unreadable(f"it has kwargs, so it needs kwargs_type: {' or '.join(KWARGS_TYPES)}")
        if not isinstance(kwargs_type, str | None):
            raise Unreadable(f"kwargs_type is one of {', '.join(KWARGS_TYPES)}")
        if kwargs_type and kwargs_type not in KWARGS_TYPES:
            self._problem(
                path,
                f"{entry.name}: mle-bench knows no kwargs_type {kwargs_type}, "
                "and hands on no kwargs",
                entry.line,
                level="note",
            )
        privileged = value.get("privileged", False)
        if not isinstance(privileged, bool):
            raise Unreadable("privileged is true or false")
        folder = path.parent
        if len(folder.name) > 100:
            raise Unreadable("the name of its folder has more than 100 characters")
        return AgentEntry(
            name=entry.name,
            image_name=folder.name,
            folder=folder,
            start=self._below_agents(value["start"], "start", folder),
            dockerfile=self._below_agents(value["dockerfile"], "dockerfile", folder),
            kwargs=kwargs,
            kwargs_type=(kwargs_type or "")[:20],
            env_vars=env_vars,
            privileged=privileged,
        )

    def _below_agents(self, text: str, name: str, folder: Path) -> str:
        """A path of config.yaml, relative to the agent's folder."""
        base = self.root / AGENTS
        path = base / text
        try:
            is_file = path.is_file()
        except OSError as error:
            # A name that no file system takes, a folder that nobody may enter.
            raise Unreadable(f"{name}: {error.strerror} ({text[:60]})") from error
        if not is_file:
            raise Unreadable(f"{name}: there is no file {AGENTS}/{text}")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise Unreadable(f"{name}: {text} is outside the checkout")
        relative = path.relative_to(folder, walk_up=True).as_posix()
        if len(relative) > 300:
            raise Unreadable(f"{name}: the path has more than 300 characters")
        return relative

    # ------------------------------------------------------------------------ splits

    def _splits(self) -> None:
        for path in self._files(SPLITS, "*.txt"):
            try:
                if path.stat().st_size > SPLIT_BYTES:
                    raise Unreadable(f"is larger than {SPLIT_BYTES // 1024} KB")
                names = competition_names(documents.read(path))
                if not NAME.fullmatch(path.stem) or len(path.stem) > 60:
                    raise Unreadable("its name is no name of a split: letters, digits, . _ -")
                if not names:
                    raise Unreadable("names no competition")
            except Unreadable as error:
                self._problem(path, error.message, error.line)
                continue
            lines: dict[str, int] = {}
            for name, line in names:
                if name in lines:
                    self._problem(
                        path, f"{name} is named twice and counts once", line, level="note"
                    )
                lines.setdefault(name, line)
            self.into.splits.append(
                SplitEntry(path.stem, tuple(lines), self._name(path), tuple(lines.values()))
            )

    # ------------------------------------------------------------------------ configs

    def _configs(self) -> None:
        for path in self._files(CONFIGS, "*.json"):
            try:
                if not NAME.fullmatch(path.stem) or len(path.stem) > 60:
                    raise Unreadable("its name is no name of a config: letters, digits, . _ -")
                settings = documents.json_mapping(documents.read(path))
            except Unreadable as error:
                self._problem(path, error.message, error.line)
                continue
            self.into.configs.append(ConfigEntry(path.stem, settings, self._name(path)))

    # ------------------------------------------------------------------------ competitions

    def _competitions(self) -> None:
        pointers = []
        for path in self._files(COMPETITIONS, "*/config.yaml"):
            try:
                entries = {
                    entry.name: entry for entry in documents.yaml_entries(documents.read(path))
                }
                found = self._competition(path, entries)
            except Unreadable as error:
                self._problem(path, error.message, error.line)
                continue
            self.into.competitions.append(found)
            if found.leaderboard_is_pointer:
                pointers.append(found.name)
            elif found.leaderboard_error:
                self._problem(
                    path.parent / "leaderboard.csv", found.leaderboard_error, level="note"
                )
        if pointers:
            shown = ", ".join(pointers[:3]) + (", …" if len(pointers) > 3 else "")
            self.into.problems.append(
                Problem(
                    f"{COMPETITIONS}/*/leaderboard.csv",
                    None,
                    f"{len(pointers)} are Git LFS pointers, not leaderboards ({shown}). Where "
                    "mlebench-web knows the competition, its own facts give the thresholds. "
                    "`git lfs pull` in the checkout gets the files; then refresh.",
                    "note",
                )
            )

    def _competition(self, path: Path, entries: dict[str, Entry]) -> CompetitionEntry:
        folder = path.parent
        name = _take(entries, "id", str)
        if name != folder.name:
            raise Unreadable(
                f"id: {name} is not the folder's name {folder.name}, by which mle-bench finds it",
                entries["id"].line,
            )
        if not COMPETITION_ID.fullmatch(name) or len(name) > 100:
            raise Unreadable(
                "id: letters, digits, dots and dashes only, at most 100", entries["id"].line
            )
        if "_" in name:
            self._problem(
                path,
                f"{name}: mle-bench takes what stands before the first _ of a run's name for the "
                "competition, so that its scripts do not grade this one",
                entries["id"].line,
                level="note",
            )
        dataset = _take(entries, "dataset", dict)
        grader = _take(entries, "grader", dict)
        for key in ("grade_fn", "name"):
            if not isinstance(grader.get(key), str):
                raise Unreadable(f"grader: {key} is missing", entries["grader"].line)
        _take(entries, "preparer", str)
        paths = {}
        for key, needed in (
            ("answers", True),
            ("sample_submission", True),
            ("gold_submission", False),
        ):
            text = dataset.get(key)
            if text is None and not needed:
                paths[key] = ""
                continue
            if not isinstance(text, str) or not _is_inside(text, name):
                raise Unreadable(
                    f"dataset: {key} should be a path such as {name}/prepared/private/test.csv",
                    entries["dataset"].line,
                )
            paths[key] = text
        if documents.is_pointer(folder / "description.md"):
            self._problem(
                folder / "description.md", "is a Git LFS pointer, not the text", level="note"
            )
        found, count, error, is_pointer = _leaderboard(folder / "leaderboard.csv")
        return CompetitionEntry(
            name=name,
            title=str(entries["name"].value if "name" in entries else name)[:200],
            metric=grader["name"][:100],
            folder=folder,
            answers=paths["answers"],
            sample_submission=paths["sample_submission"],
            gold_submission=paths["gold_submission"],
            thresholds=found,
            team_count=count,
            leaderboard_error=error,
            leaderboard_is_pointer=is_pointer,
        )


def _is_agent(value: Any) -> bool:
    """Neither key: a helper under another name, such as a block of shared kwargs."""
    return isinstance(value, dict) and ("start" in value or "dockerfile" in value)


def _mapping(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Unreadable(f"{name} should be a mapping: `key: value` lines")
    return found


def _take[T](entries: dict[str, Entry], name: str, kind: type[T]) -> T:
    entry = entries.get(name)
    if entry is None:
        raise Unreadable(f"{name} is missing")
    if entry.error:
        raise Unreadable(f"{name}: {entry.error.message}", entry.error.line)
    if not isinstance(entry.value, kind):
        words = "a mapping" if kind is dict else "text"
        raise Unreadable(f"{name} should be {words}", entry.line)
    return entry.value


def _is_inside(text: str, name: str) -> bool:
    path = PurePosixPath(text)
    return (
        len(text) <= 300
        and not path.is_absolute()
        and ".." not in path.parts
        and path.parts[:2] == (name, "prepared")
    )


def _leaderboard(path: Path) -> tuple[Thresholds | None, int | None, str, bool]:
    """Thresholds, rows, why there are none, and whether the file is a Git LFS pointer."""
    if not path.is_file():
        return None, None, "there is no leaderboard.csv", False
    if documents.is_pointer(path):
        return None, None, "leaderboard.csv is a Git LFS pointer, not a leaderboard", True
    try:
        if path.stat().st_size > LEADERBOARD_BYTES:
            return None, None, f"is larger than {LEADERBOARD_BYTES // 2**20} MB", False
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            scores = list(_scores(csv.DictReader(file)))
        found = thresholds(scores)
    except (OSError, ValueError, csv.Error) as error:
        return None, None, str(error), False
    return found, len(scores), "", False


def _scores(rows: "csv.DictReader[str]") -> Iterator[float]:
    if "score" not in (rows.fieldnames or ()):
        raise ValueError("has no column `score`")
    for row in rows:
        text = row["score"]
        try:
            value = float(text)
        except (TypeError, ValueError):
            raise ValueError(f"line {rows.line_num}: {text!r} is no score") from None
        if not math.isfinite(value):
            raise ValueError(f"line {rows.line_num}: {text!r} is no score")
        yield value


def differences(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """What a list has more and less than another, in words; empty when they are the same."""
    more, less = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    parts = []
    for word, names in (("more", more), ("less", less)):
        if names:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            parts.append(f"{len(names)} {word} ({shown})")
    return " and ".join(parts)
