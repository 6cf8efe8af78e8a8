"""The fleet's database, read and set up from outside: catalog, audit triggers, what is true now.

`begin()` must be called before anything else of this module; the rest imports Django's models.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COUNTER = "chaos-counter"
COMPETITION = "test-prices"
# The same with something to learn.
TABLE = "test-table"
CONFIG = "chaos"
GPU_CONFIG = "chaos-gpu"
TABLE_CONFIG = "chaos-table"
LIMITS: dict[str, Any] = {"nano_cpus": 2e8, "mem_limit": "128m", "shm_size": "16m"}

# The audit sees each change of a lease token and each move, whoever makes it. A move that is made
# under another token than the row's is a stale write that was accepted.
AUDIT = {
    "sqlite": [
        """CREATE TABLE chaos_lease (id INTEGER PRIMARY KEY, attempt INT, state TEXT, old TEXT,
           new TEXT, old_pid INT, new_pid INT, still_valid INT)""",
        """CREATE TABLE chaos_move (id INTEGER PRIMARY KEY, attempt INT, old TEXT, new TEXT,
           outcome TEXT, cause TEXT, by TEXT, token TEXT, held TEXT)""",
        """CREATE TRIGGER chaos_lease AFTER UPDATE OF lease_token ON runs_attempt
           WHEN OLD.lease_token IS NOT NULL AND NEW.lease_token IS NOT OLD.lease_token BEGIN
           INSERT INTO chaos_lease (attempt, state, old, new, old_pid, new_pid, still_valid) VALUES
           (NEW.id, NEW.state, OLD.lease_token, NEW.lease_token, OLD.supervisor_pid,
            NEW.supervisor_pid, OLD.lease_until >= STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')); END""",
        """CREATE TRIGGER chaos_move AFTER INSERT ON runs_move BEGIN
           INSERT INTO chaos_move (attempt, old, new, outcome, cause, by, token, held) SELECT
           NEW.attempt_id, NEW."old", NEW."new", NEW.outcome, NEW.cause, NEW."by",
           NEW.lease_token,
           (SELECT lease_token FROM runs_attempt WHERE id = NEW.attempt_id); END""",
    ],
    "postgresql": [
        """CREATE TABLE chaos_lease (id SERIAL PRIMARY KEY, attempt BIGINT, state TEXT, old TEXT,
           new TEXT, old_pid INT, new_pid INT, still_valid INT)""",
        """CREATE TABLE chaos_move (id SERIAL PRIMARY KEY, attempt BIGINT, old TEXT, new TEXT,
           outcome TEXT, cause TEXT, by TEXT, token TEXT, held TEXT)""",
        """CREATE FUNCTION chaos_lease() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO chaos_lease (attempt, state, old, new, old_pid, new_pid, still_valid) VALUES
           (NEW.id, NEW.state, OLD.lease_token, NEW.lease_token, OLD.supervisor_pid,
            NEW.supervisor_pid, (OLD.lease_until >= statement_timestamp())::int);
           RETURN NULL; END $$""",
        """CREATE TRIGGER chaos_lease AFTER UPDATE OF lease_token ON runs_attempt FOR EACH ROW WHEN
           (OLD.lease_token IS NOT NULL AND NEW.lease_token IS DISTINCT FROM OLD.lease_token)
           EXECUTE FUNCTION chaos_lease()""",
        """CREATE FUNCTION chaos_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO chaos_move (attempt, old, new, outcome, cause, by, token, held) SELECT
           NEW.attempt_id, NEW."old", NEW."new", NEW.outcome, NEW.cause, NEW."by",
           NEW.lease_token,
           (SELECT lease_token FROM runs_attempt WHERE id = NEW.attempt_id);
           RETURN NULL; END $$""",
        """CREATE TRIGGER chaos_move AFTER INSERT ON runs_move FOR EACH ROW
           EXECUTE FUNCTION chaos_move()""",
    ],
}


def begin(env: dict[str, str]) -> None:
    """Make this process a reader of the fleet's database."""
    os.environ.update(env)
    import django

    django.setup()


def set_up(*, gpus: bool) -> str:
    """Fill the catalog of a migrated database, lay the audit; a token for the API."""
    from django.db import connection

    from mlebench_web.accounts.models import ApiToken, Role, User
    from mlebench_web.catalog.models import Competition
    from tests.support import small_competition

    # Nothing to prepare or download beside the runs.
    Competition.objects.filter(ships_data=True).delete()
    small_competition.make()
    add_config(CONFIG, {})
    if gpus:
        add_config(GPU_CONFIG, {"gpus": 1})
    with connection.cursor() as cursor:
        for statement in AUDIT[connection.vendor]:
            cursor.execute(statement)
    user = User.objects.create_user("chaos", role=Role.ADMIN)
    return str(ApiToken.make(user, name="chaos")[1])


def add_config(name: str, settings: dict[str, Any]) -> None:
    from mlebench_web.catalog.models import ContainerConfig

    ContainerConfig.objects.create(name=name, settings={**LIMITS, **settings})


def add_agent(name: str, image_id: str) -> None:
    """One that is the bench's own."""
    from mlebench_web.catalog.models import Agent

    Agent.objects.create(
        name=name,
        image_name=name,
        folder="/nowhere",
        start="start.sh",
        dockerfile="Dockerfile",
        network="internet",
    )
    add_image(name, image_id)


def add_image(name: str, image_id: str) -> None:
    """The image that runs of an agent start from."""
    from mlebench_web.catalog.models import Agent, AgentImage

    known = Agent.objects.get(name=name)
    AgentImage.objects.create(
        image_name=known.image_name,
        folder=known.folder,
        state=AgentImage.State.READY,
        image_id=image_id,
        source_digest="0" * 64,
    )


def add_competition(name: str, files: dict[str, str]) -> None:
    """Judged as COMPETITION is; `files`: path below the prepared folder, and content."""
    from django.conf import settings

    from mlebench_web.catalog.models import Competition

    home = Path(settings.COMPETITIONS_DIR) / name / "prepared"
    for path, text in files.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
    row = Competition.objects.get(name=COMPETITION)
    row.pk, row.name, row.title = None, name, name
    row.answers_path = f"{name}/prepared/private/test.csv"
    row.sample_submission_path = f"{name}/prepared/public/sample_submission.csv"
    row.save()


@dataclass(frozen=True)
class Row:
    """An unended attempt."""

    id: int
    run: int
    state: str
    host: str
    pid: int | None
    container: str
    # Its lease has not expired.
    is_held: bool


@dataclass(frozen=True)
class Lease:
    """A change of an attempt's lease token."""

    attempt: int
    state: str
    old_pid: int | None
    new_pid: int | None
    # By the database's clock, at the moment of the change.
    was_valid: bool


@dataclass(frozen=True)
class Moved:
    attempt: int
    old: str
    new: str
    outcome: str
    cause: str
    by: str
    # Of the mover, and of the row at that moment.
    token: str | None
    held: str | None


@dataclass
class Seen:
    """What the database says at one moment."""

    at: float = 0
    attempts: list[Row] = field(default_factory=list)
    queued: int = 0
    # Of them those that wait for a host, not for the end of a back-off.
    ready: int = 0
    put_aside: dict[str, str] = field(default_factory=dict)

    def running(self, host: str | None = None) -> list[Row]:
        """Attempts whose agents are at work under a live lease."""
        return [
            row
            for row in self.attempts
            if row.state == "running" and row.is_held and host in (None, row.host)
        ]

    def on(self, host: str) -> list[Row]:
        return [row for row in self.attempts if row.host == host]


class Audit:
    """Reads the two audit tables on, from where it was."""

    def __init__(self) -> None:
        self._lease = self._move = 0

    def leases(self) -> list[Lease]:
        rows = self._new("chaos_lease", "attempt, state, old_pid, new_pid, still_valid", "_lease")
        return [Lease(*row[:4], was_valid=bool(row[4])) for row in rows]

    def moves(self) -> list[Moved]:
        names = "attempt, old, new, outcome, cause, by, token, held"
        return [Moved(*row) for row in self._new("chaos_move", names, "_move")]

    def _new(self, table: str, names: str, mark: str) -> list[tuple[Any, ...]]:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT id, {names} FROM {table} WHERE id > %s ORDER BY id", [getattr(self, mark)]
            )
            rows = cursor.fetchall()
        if rows:
            setattr(self, mark, rows[-1][0])
        return [row[1:] for row in rows]


def look() -> Seen:
    """One reading. Raises OperationalError or InterfaceError while there is no database."""
    from mlebench_web.fleet import hosts
    from mlebench_web.fleet.models import Host
    from runs.models import Attempt

    now = hosts.now()
    seen = Seen(at=time.monotonic())
    for row in Attempt.objects.unended().select_related("host").order_by("id"):
        if row.state == "queued":
            seen.queued += 1
            seen.ready += row.not_before is None or row.not_before <= now
            continue
        seen.attempts.append(
            Row(
                id=row.pk,
                run=row.run_id,
                state=row.state,
                host=row.host.name if row.host else "",
                pid=row.supervisor_pid,
                container=row.container_id,
                is_held=bool(row.lease_until and row.lease_until >= now),
            )
        )
    seen.put_aside = dict(Host.objects.exclude(put_aside="").values_list("name", "put_aside"))
    return seen


def use_again(host: str) -> None:
    """What an admin does with a host that was put aside."""
    from mlebench_web.fleet.models import Host

    Host.objects.filter(name=host).update(put_aside="")


def outcome_of(attempt_id: int) -> tuple[str, str, str]:
    """State, outcome and cause of an attempt."""
    from runs.models import Attempt

    state, outcome, cause = Attempt.objects.values_list("state", "outcome", "cause").get(
        pk=attempt_id
    )
    return str(state), str(outcome), str(cause)


def forget_connection() -> None:
    from django.db import connection

    connection.close()


def errors() -> tuple[type[Exception], ...]:
    """What is raised while there is no database."""
    from django.db import InterfaceError, OperationalError

    return (OperationalError, InterfaceError)


def library(source: Path, target: Path, *options: str) -> str:
    """Compile a shared library; what stood against it, "" when all is well."""
    import subprocess

    try:
        done = subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", *options, "-o", str(target), str(source)],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "no C compiler"
    return done.stderr.strip()[-300:] if done.returncode else ""
