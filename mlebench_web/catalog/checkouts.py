"""Checkouts of mle-bench -> rows of the catalog.

Rows are added, kept up to date and taken off the lists, never deleted: runs refer to them. The
checkout at position 0 gives its agents plain ids, a built-in agent of the same name becomes
`builtin/<id>`; ids of further checkouts begin with `<checkout>/`.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from mlebench_web.catalog import checkout as reader
from mlebench_web.catalog import git, importer
from mlebench_web.catalog.checkout import Contents, NoCheckout, Problem
from mlebench_web.catalog.git import GitFailed
from mlebench_web.catalog.models import (
    Agent,
    Checkout,
    Competition,
    ContainerConfig,
    ContainerConfigVersion,
    Split,
)
from mlebench_web.locks import alone

logger = structlog.get_logger(__name__)

# Behind those of the product, which know what they are for.
SPLIT_POSITION = 60
CONFIG_POSITION = 50


class CheckoutInvalid(Exception):
    """A checkout cannot be added; `field` and what to write."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


# ------------------------------------------------------------------------------- which there are


@transaction.atomic
def sync_settings() -> list[Checkout]:
    """Rows for the folders of MLEBENCH_DIR, in its order, before those of git URLs.

    A folder that is not named any more leaves the lists with all that came from it.
    """
    rows = []
    for position, folder in enumerate(settings.MLEBENCH_DIRS):
        row = Checkout.objects.filter(url="", path=str(folder)).first()
        if row is None:
            row = Checkout(name=_free_name(folder.name), path=str(folder))
        row.position = position
        row.is_listed = True
        row.save()
        rows.append(row)
    for row in Checkout.objects.filter(url="", is_listed=True).exclude(
        pk__in=[row.pk for row in rows]
    ):
        remove(row)
    for number, row in enumerate(Checkout.objects.filter(is_listed=True).exclude(url="")):
        Checkout.objects.filter(pk=row.pk).update(position=len(rows) + number)
    return rows


def add(url: str, ref: str = "", name: str = "") -> Checkout:
    """A checkout that is cloned from a git URL. It is read by the next refresh.

    Raises CheckoutInvalid.
    """
    try:
        git.check_address(url, ref)
    except GitFailed as error:
        raise CheckoutInvalid("url", str(error)) from error
    if name and not reader.NAME.fullmatch(name):
        raise CheckoutInvalid("name", "Letters, digits, dots and dashes.")
    if name and Checkout.objects.filter(name=name).exists():
        raise CheckoutInvalid("name", f"There is a checkout {name} already.")
    name = name or _free_name(re.sub(r"\.git$", "", url.rstrip("/").rpartition("/")[2]))
    last = Checkout.objects.filter(is_listed=True).order_by("-position").first()
    return Checkout.objects.create(
        name=name,
        path=str(settings.DATA_DIR / "checkouts" / name),
        url=url,
        ref=ref,
        position=last.position + 1 if last else 0,
        asked_at=timezone.now(),
    )


@transaction.atomic
def remove(row: Checkout) -> None:
    """Take it and what came from it off the lists. Its competitions go back to known facts."""
    Checkout.objects.filter(pk=row.pk).update(is_listed=False, asked_at=None)
    Agent.objects.filter(checkout=row).update(is_listed=False)
    ContainerConfig.objects.filter(checkout=row).update(is_listed=False)
    _forget_splits(Split.objects.filter(checkout=row))
    _forget_competitions(Competition.objects.filter(checkout=row))


def _forget_splits(splits: Any) -> None:
    """Those that no run group was started with; the others stay, and are nobody's."""
    splits.filter(rungroup__isnull=True).delete()
    splits.update(checkout=None)


def _forget_competitions(competitions: Any) -> None:
    competitions.update(checkout=None, folder="", threshold_note="")
    # Facts of the 82 come back; a custom one keeps what was known.
    importer.sync_builtin()


def _free_name(wanted: str) -> str:
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-.") or "mle-bench"
    base = "checkout" if base == "builtin" else base[:50]
    name, number = base, 1
    while Checkout.objects.filter(name=name).exists():
        number += 1
        name = f"{base}-{number}"
    return name


# --------------------------------------------------------------------------------------- reading


def refresh_all() -> list[Checkout]:
    """Every checkout that is in use, the first one first."""
    sync_settings()
    return [refresh(row) for row in Checkout.objects.filter(is_listed=True)]


def ask(by_rows: Iterable[Checkout] | None = None) -> None:
    """Have them read by a host service; None: all."""
    rows = Checkout.objects.filter(is_listed=True)
    if by_rows is not None:
        rows = rows.filter(pk__in=[row.pk for row in by_rows])
    rows.update(asked_at=timezone.now())


def do_asked() -> list[Checkout]:
    """Read what somebody asked for and this machine can see."""
    done = []
    for row in Checkout.objects.filter(is_listed=True, asked_at__isnull=False):
        waits = row.asked_at is None or timezone.now() - row.asked_at < settings.LEASE_TTL
        if not row.url and not Path(row.path).is_dir() and waits:
            # Another machine may have the folder; where none has it, that is said in the end.
            continue
        done.append(refresh(row))
    return done


def refresh(row: Checkout) -> Checkout:
    """Read it now and bring the rows up to date. What is wrong stands in the row; never raises
    for a broken checkout, and then leaves what was read before as it was.
    """
    with alone(settings.DATA_DIR / "locks" / f"checkout-{row.name}"):
        return _refresh(row)


def _refresh(row: Checkout) -> Checkout:
    asked = row.asked_at
    root = Path(row.path)
    try:
        if row.url:
            git.fetch(row.url, row.ref, root)
        contents = reader.read(root)
    except (GitFailed, NoCheckout, OSError) as error:
        _finish(row, asked, error=str(error))
        logger.warning("checkout.not_read", checkout=row.name, error=str(error))
        return row
    seen = git.revision(root)
    with transaction.atomic():
        _save(row, contents)
        _finish(
            row,
            asked,
            error="",
            problems=[vars(problem) for problem in contents.problems],
            commit=seen.commit,
            branch=(row.ref if row.url and not seen.branch else seen.branch)[:200],
            is_dirty=seen.is_dirty,
            read_at=timezone.now(),
        )
    logger.info(
        "checkout.read",
        checkout=row.name,
        commit=seen.commit[:12],
        agents=len(contents.agents),
        competitions=len(contents.competitions),
        problems=sum(problem.level == "error" for problem in contents.problems),
    )
    return row


def _finish(row: Checkout, asked: Any, **fields: Any) -> None:
    Checkout.objects.filter(pk=row.pk).update(**fields)
    # Somebody who asked meanwhile is still to be served.
    Checkout.objects.filter(pk=row.pk, asked_at=asked).update(asked_at=None)
    row.refresh_from_db()


def _save(row: Checkout, contents: Contents) -> None:
    _save_competitions(row, contents)
    _save_splits(row, contents)
    _save_configs(row, contents)
    _save_agents(row, contents)


def _error(contents: Contents, file: str, message: str, line: int | None = None) -> None:
    contents.problems.append(Problem(file, line, message, "error"))


def _note(contents: Contents, file: str, message: str) -> None:
    contents.problems.append(Problem(file, None, message, "note"))


def _save_competitions(row: Checkout, contents: Contents) -> None:
    """Their folders and graders; thresholds of the leaderboard, else the facts, labelled."""
    existing = {each.name: each for each in Competition.objects.select_related("checkout")}
    facts = importer.facts_by_name()
    rows = []
    for entry in contents.competitions:
        known = existing.get(entry.name)
        if known and known.is_demo:
            _error(
                contents,
                f"{reader.COMPETITIONS}/{entry.name}/config.yaml",
                f"{entry.name} is the name of a demo competition of mlebench-web",
            )
            continue
        owner = known.checkout if known else None
        if owner and owner.pk != row.pk and owner.is_listed and owner.position < row.position:
            # One data folder holds one set of answers for a name: the first checkout's it is.
            if str(entry.folder) != known.folder:  # type: ignore[union-attr]
                _note(
                    contents,
                    f"{reader.COMPETITIONS}/{entry.name}/config.yaml",
                    f"{entry.name} is taken from the checkout {owner}, which comes first",
                )
            continue
        found: dict[str, Any] = dict(facts.get(entry.name, {"name": entry.name, "is_demo": False}))
        found |= {
            "title": entry.title,
            "metric": entry.metric,
            "folder": str(entry.folder),
            "answers_path": entry.answers,
            "sample_submission_path": entry.sample_submission,
            "gold_submission_path": entry.gold_submission,
            "checkout": row,
            "threshold_note": "",
        }
        if entry.thresholds:
            found |= {
                "is_lower_better": entry.thresholds.is_lower_better,
                "gold_threshold": entry.thresholds.gold,
                "silver_threshold": entry.thresholds.silver,
                "bronze_threshold": entry.thresholds.bronze,
                "median_threshold": entry.thresholds.median,
                "team_count": entry.team_count,
                "threshold_source": Competition.ThresholdSource.LEADERBOARD,
            }
        elif entry.name in facts:
            found |= {
                "threshold_source": Competition.ThresholdSource.FACTS,
                "threshold_note": entry.leaderboard_error[:300],
            }
        else:
            found |= {
                "is_lower_better": None,
                "gold_threshold": None,
                "silver_threshold": None,
                "bronze_threshold": None,
                "median_threshold": None,
                "team_count": None,
                "threshold_source": "",
                "threshold_note": entry.leaderboard_error[:300],
            }
        rows.append(found)
    importer.save(Competition, rows)
    gone = Competition.objects.filter(checkout=row).exclude(name__in=[r["name"] for r in rows])
    if gone.exists():
        _forget_competitions(gone)


def _save_splits(row: Checkout, contents: Contents) -> None:
    """Upstream's own lists stay what they are: a fork's other list of one name gets its own."""
    known = set(Competition.objects.values_list("name", flat=True))
    members: dict[str, list[str]] = {}
    rows = []
    own = {
        split.name: split
        for split in Split.objects.prefetch_related("competitions").select_related("checkout")
    }
    for entry in contents.splits:
        unknown = [
            (name, line)
            for name, line in zip(entry.competitions, entry.lines, strict=True)
            if name not in known
        ]
        if unknown:
            names = ", ".join(name for name, _ in unknown[:10])
            _error(contents, entry.file, f"there is no competition {names}", line=unknown[0][1])
            continue
        name = entry.name if row.position == 0 else f"{row.name}/{entry.name}"
        taken = own.get(entry.name)
        if taken and taken.checkout_id is None:
            theirs = [each.name for each in taken.competitions.all()]
            differing = reader.differences(theirs, entry.competitions)
            if not differing:
                continue
            name = f"{row.name}/{entry.name}"
            _note(
                contents,
                entry.file,
                f"is not mle-bench's own list of that name: {differing}. It is offered as {name}",
            )
        members[name] = list(entry.competitions)
        rows.append({"name": name, "title": name, "position": SPLIT_POSITION, "checkout": row})
    importer.save(Split, rows)
    importer.save_members(members)
    _forget_splits(Split.objects.filter(checkout=row).exclude(name__in=members))


def _save_configs(row: Checkout, contents: Contents) -> None:
    """As they stand, unknown keys too: who may use which keys is decided at the start of a run."""
    own = {config.name: config for config in ContainerConfig.objects.all()}
    names = []
    for entry in contents.configs:
        name = entry.name if row.position == 0 else f"{row.name}/{entry.name}"
        taken = own.get(name)
        if taken and taken.checkout_id != row.pk:
            if same_settings(taken.settings, entry.settings):
                continue
            name = f"{row.name}/{entry.name}"
            _note(contents, entry.file, f"{entry.name} is taken already: it is offered as {name}")
        names.append(name)
        put_config(
            name,
            entry.settings,
            description=f"of the checkout {row}",
            by=f"checkout {row.name}",
            defaults={"checkout": row, "position": CONFIG_POSITION},
        )
    ContainerConfig.objects.filter(checkout=row).exclude(name__in=names).update(is_listed=False)


def same_settings(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Null and absent mean the same, and so do 4e9 and 4000000000."""
    return {k: v for k, v in one.items() if v is not None} == {
        k: v for k, v in other.items() if v is not None
    }


@transaction.atomic
def put_config(
    name: str,
    settings_: dict[str, Any],
    *,
    description: str,
    by: str,
    defaults: dict[str, Any] | None = None,
) -> ContainerConfig:
    """Make or change a config. A change is a new version; the same again is none."""
    config, made = ContainerConfig.objects.select_for_update().get_or_create(
        name=name,
        defaults={"settings": settings_, "description": description, **(defaults or {})},
    )
    if not made:
        changed = config.settings != settings_ or config.description != description
        if not changed and config.is_listed:
            return config
        if not config.versions.exists():
            # What shipped with the product, before anybody changed it.
            _keep_version(config, by="mlebench-web")
        config.settings = settings_
        config.description = description
        config.is_listed = True
        if changed:
            config.version = F("version") + 1
        config.save()
        config.refresh_from_db()
    if not config.versions.filter(number=config.version).exists():
        _keep_version(config, by=by)
    return config


def _keep_version(config: ContainerConfig, *, by: str) -> None:
    ContainerConfigVersion.objects.create(
        config=config,
        number=config.version,
        description=config.description,
        settings=config.settings,
        by=by,
    )


def _save_agents(row: Checkout, contents: Contents) -> None:
    prefix = "" if row.position == 0 else f"{row.name}/"
    others = set(
        Agent.objects.filter(is_builtin=False)
        .exclude(Q(checkout=row) | Q(is_listed=False))
        .values_list("name", flat=True)
    )
    rows = []
    for entry in contents.agents:
        name = f"{prefix}{entry.name}"
        if name in others:
            file = f"{entry.folder.relative_to(row.path).as_posix()}/config.yaml"
            _error(contents, file, f"{name}: another checkout has this id already")
            continue
        rows.append(
            {
                "name": name,
                "image_name": entry.image_name,
                "folder": str(entry.folder),
                "start": entry.start,
                "dockerfile": entry.dockerfile,
                "kwargs": entry.kwargs,
                "kwargs_type": entry.kwargs_type,
                "env_vars": entry.env_vars,
                "privileged": entry.privileged,
                "is_builtin": False,
                "runs_as_process": False,
                "network": "internet",
                "is_listed": True,
                "checkout": row,
            }
        )
    names = [str(each["name"]) for each in rows]
    _move_builtin_aside(names)
    importer.save(Agent, rows)
    Agent.objects.filter(checkout=row).exclude(name__in=names).update(is_listed=False)


def _move_builtin_aside(names: Iterable[str]) -> None:
    """The row itself gets the new name: what it has run stays with it."""
    for agent in Agent.objects.filter(is_builtin=True, name__in=list(names)):
        Agent.objects.filter(pk=agent.pk).update(name=f"builtin/{agent.name}")
