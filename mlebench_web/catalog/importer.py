"""What ships with the product -> rows. Called after every `migrate`.

Rows are added and kept up to date, never deleted: runs refer to them. Rows that came from
elsewhere (a checkout of mle-bench, the admin) are left alone.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import yaml
from django.db import models, transaction
from django.db.models import Q

from mlebench_web.catalog import competition_config, folders
from mlebench_web.catalog.competition_config import ConfigInvalid, Loader
from mlebench_web.catalog.models import Agent, Competition, ContainerConfig, Split

# mle-bench's 75 competitions and its 7 for development, read from the mle-bench repository at
# commit 783b15a: docs/demo-split.md says which column comes from where.
FACTS = folders.BUILTIN / "mlebench_competitions.csv"
DEMO = "demo"

Row = dict[str, Any]


@transaction.atomic
def sync_builtin() -> None:
    """Idempotent. Some 15 ms when nothing changed: five files are read and six queries made."""
    demo = [_demo_competition(folder) for folder in competition_folders()]
    facts, members = _facts()
    members[DEMO] = [row["name"] for row in demo]
    theirs = set(Competition.objects.filter(checkout__isnull=False).values_list("name", flat=True))
    save(Competition, [*demo, *(row for row in facts if row["name"] not in theirs)])
    save(Split, [{"name": name, **row} for name, row in _yaml("splits.yaml").items()])
    save_members(members)
    _save_agents([row for folder in agent_folders() for row in _agents(folder)])
    _save_configs(
        [
            {"name": name, "runtime": ContainerConfig.Runtime.DOCKER, "is_builtin": True, **row}
            for name, row in _yaml("container_configs.yaml").items()
        ]
    )


def competition_folders() -> list[Any]:
    return sorted(path.parent for path in folders.COMPETITIONS.glob("*/config.yaml"))


def agent_folders() -> list[Any]:
    return sorted(path.parent for path in folders.AGENTS.glob("*/config.yaml"))


def _yaml(name: str) -> dict[str, Row]:
    return yaml.load((folders.BUILTIN / name).read_text(), Loader)  # noqa: S506


def _demo_competition(folder: Any) -> Row:
    config = competition_config.read(folder)
    if config.name != folder.name:
        raise ConfigInvalid(f"{folder}: id in config.yaml is {config.name}; it names the folder.")
    found = config.thresholds()
    return {
        "name": config.name,
        "title": config.title,
        "is_demo": True,
        "category": config.category,
        "metric": config.metric,
        "is_lower_better": config.is_lower_better,
        "dataset_size_bytes": config.dataset_bytes,
        "gold_threshold": found.gold if found else None,
        "silver_threshold": found.silver if found else None,
        "bronze_threshold": found.bronze if found else None,
        "median_threshold": found.median if found else None,
        "folder": folders.builtin(config.name),
        "answers_path": config.answers,
        "sample_submission_path": config.sample_submission,
        "ships_data": config.ships_data,
        "threshold_source": Competition.ThresholdSource.LEADERBOARD if found else "",
    }


def _facts() -> tuple[list[Row], dict[str, list[str]]]:
    """Rows of mle-bench's competitions, and the names in each split."""
    rows, members = [], defaultdict(list)
    with FACTS.open(newline="") as file:
        for fact in csv.DictReader(file):
            name = fact["name"]
            for split in fact["splits"].split():
                members[split].append(name)
            # `folder` is not here: a checkout of mle-bench may have filled it in.
            rows.append(
                {
                    "name": name,
                    "title": fact["title"],
                    "is_demo": False,
                    "category": fact["category"],
                    "metric": fact["metric"],
                    "is_lower_better": fact["is_lower_better"] == "true",
                    "dataset_size_bytes": _number(fact["dataset_bytes"], int),
                    "team_count": _number(fact["teams"], int),
                    "gold_threshold": _number(fact["gold"], float),
                    "silver_threshold": _number(fact["silver"], float),
                    "bronze_threshold": _number(fact["bronze"], float),
                    "median_threshold": _number(fact["median"], float),
                    "known_issue": fact["known_issue"],
                    "answers_path": f"{name}/{fact['answers']}",
                    "sample_submission_path": f"{name}/{fact['sample_submission']}",
                    "threshold_source": Competition.ThresholdSource.FACTS,
                }
            )
    return rows, members


def builtin_name(name: str) -> str:
    """Today's name of a built-in agent: `builtin/<name>` where a checkout has one of its name."""
    aside = f"builtin/{name}"
    return aside if Agent.objects.filter(is_builtin=True, name=aside).exists() else name


def facts_by_name() -> dict[str, Row]:
    """What is known of mle-bench's own 82 without a checkout."""
    return {row["name"]: row for row in _facts()[0]}


def _number(text: str, kind: type) -> Any:
    return kind(text) if text else None


def _agents(folder: Any) -> list[Row]:
    """Agents of a config.yaml in mle-bench's format."""
    path = folder / "config.yaml"
    config = yaml.load(path.read_text(), Loader)  # noqa: S506
    rows = []
    for name, agent in config.items():
        try:
            ours = agent["mlebench_web"]
            rows.append(
                {
                    "name": name,
                    "image_name": folder.name,
                    "folder": folders.builtin(folder.name),
                    # There relative to the folder of all agents, here to the agent's own.
                    "start": agent["start"].removeprefix(f"{folder.name}/"),
                    "dockerfile": agent["dockerfile"].removeprefix(f"{folder.name}/"),
                    "kwargs": agent.get("kwargs") or {},
                    "kwargs_type": agent.get("kwargs_type") or "",
                    "env_vars": agent.get("env_vars") or {},
                    "privileged": agent.get("privileged", False),
                    "is_builtin": True,
                    "runs_as_process": ours["runs_as_process"],
                    "network": ours["network"],
                    "description": ours["description"],
                    "resume_note": ours["resume_note"],
                    "is_listed": True,
                }
            )
        except (KeyError, TypeError) as error:
            raise ConfigInvalid(f"{path}: {name}: {type(error).__name__}: {error}") from error
    return rows


def save(model: type[models.Model], rows: Iterable[Row]) -> None:
    """Add what is missing, update what differs, by name. One query when all is as it should be."""
    existing = {row.name: row for row in model._default_manager.all()}  # type: ignore[attr-defined]
    new, changed, fields = [], [], set()
    for row in rows:
        found = existing.get(row["name"])
        if found is None:
            new.append(model(**row))
            continue
        different = [name for name, value in row.items() if getattr(found, name) != value]
        for name in different:
            setattr(found, name, row[name])
        if different:
            changed.append(found)
            fields.update(different)
    if new:
        model._default_manager.bulk_create(new)
    if changed:
        model._default_manager.bulk_update(changed, fields)


def save_members(members: dict[str, list[str]]) -> None:
    """Exactly these competitions in these splits; other splits stay as they are."""
    through = Split.competitions.through
    names = dict(Competition.objects.values_list("name", "pk"))
    splits = dict(Split.objects.filter(name__in=members).values_list("name", "pk"))
    wanted = {(splits[split], names[name]) for split, list_ in members.items() for name in list_}
    links = through.objects.filter(split__in=splits.values())
    existing = {(link.split_id, link.competition_id): link.pk for link in links}
    stale = [pk for pair, pk in existing.items() if pair not in wanted]
    if stale:
        through.objects.filter(pk__in=stale).delete()
    through.objects.bulk_create(
        through(split_id=split, competition_id=competition)
        for split, competition in sorted(wanted - existing.keys())
    )


def _save_agents(rows: list[Row]) -> None:
    """Under `builtin/<name>` where an agent of the same name came from a checkout."""
    taken = set(Agent.objects.filter(is_builtin=False).values_list("name", flat=True))
    # Ours may have had to give way earlier: a run's agent keeps its name.
    moved = set(
        Agent.objects.filter(is_builtin=True, name__startswith="builtin/").values_list(
            "name", flat=True
        )
    )
    for row in rows:
        aside = f"builtin/{row['name']}"
        if row["name"] in taken or aside in moved:
            row["name"] = aside
    save(Agent, rows)


def _save_configs(rows: list[Row]) -> None:
    # One that somebody has changed stays as they want it.
    own = set(
        ContainerConfig.objects.filter(Q(is_builtin=False) | Q(version__gt=1)).values_list(
            "name", flat=True
        )
    )
    save(ContainerConfig, [row for row in rows if row["name"] not in own])
