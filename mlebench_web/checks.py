"""System checks: settings that do not fit each other or this machine, with what to do.

`manage.py check` prints them, every start runs them, and `./run doctor` shows them too.
"""

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from mlebench_web.sockets import LONGEST_FOLDER

# A lease must survive a beat that is late and one that is lost.
BEATS_A_LEASE = 3


@register()
def leases_outlive_beats(**_: object) -> Iterable[CheckMessage]:
    if settings.HEARTBEAT * BEATS_A_LEASE > settings.LEASE_TTL:
        yield Error(
            f"LEASE_TTL_SECONDS ({settings.LEASE_TTL.total_seconds():.0f}) is less than "
            f"{BEATS_A_LEASE} x HEARTBEAT_SECONDS ({settings.HEARTBEAT.total_seconds():.0f}).",
            hint="One late heartbeat would take a healthy run for lost. Raise LEASE_TTL_SECONDS.",
            id="mlebench_web.E001",
        )
    if settings.HOST_LOST_AFTER <= settings.LEASE_TTL:
        yield Error(
            "HOST_LOST_AFTER_MINUTES is not longer than LEASE_TTL_SECONDS.",
            hint="A host must lose contact before it is lost. Raise HOST_LOST_AFTER_MINUTES.",
            id="mlebench_web.E002",
        )


@register()
def sockets_are_short(**_: object) -> Iterable[CheckMessage]:
    if len(os.fsencode(settings.SOCKETS_DIR)) > LONGEST_FOLDER:
        yield Error(
            f"SOCKETS_DIR is too long for sockets: {settings.SOCKETS_DIR}",
            hint=f"Choose a folder whose path has at most {LONGEST_FOLDER} bytes.",
            id="mlebench_web.E003",
        )


@register()
def broker_is_a_redis(**_: object) -> Iterable[CheckMessage]:
    scheme = urlsplit(settings.CELERY_BROKER_URL).scheme
    if scheme not in ("redis", "rediss", "redis+socket", "amqp", "amqps", "memory"):
        yield Error(
            f"CELERY_BROKER_URL starts with {scheme or 'no scheme'}.",
            hint="Use redis://, rediss://, redis+socket:// or amqp://.",
            id="mlebench_web.E004",
        )


@register()
def ml_python_is_there(**_: object) -> Iterable[CheckMessage]:
    if not Path(settings.ML_PYTHON).exists():
        yield Warning(
            f"ML_PYTHON is not there: {settings.ML_PYTHON}",
            hint="Runs cannot be graded on this host. ./run setup installs it.",
            id="mlebench_web.W001",
        )


@register()
def checkout_is_there(**_: object) -> Iterable[CheckMessage]:
    for folder in settings.MLEBENCH_DIRS:
        if any((folder / part).is_dir() for part in ("agents", "mlebench")):
            continue
        yield Error(
            f"MLEBENCH_DIR: {folder} is no mle-bench checkout: it has neither a folder agents nor "
            "a folder mlebench.",
            hint="Clone mle-bench there, correct the path, or leave MLEBENCH_DIR empty.",
            id="mlebench_web.E005",
        )


@register(Tags.security, deploy=True)
def served_as_it_should_be(**_: object) -> Iterable[CheckMessage]:
    if "*" in settings.ALLOWED_HOSTS:
        yield Error(
            "ALLOWED_HOSTS holds *: any host name is answered.",
            hint="Name the hosts under which the pages are reached.",
            id="mlebench_web.E006",
        )
    if settings.HTTPS and not settings.PUBLIC_URL.startswith("https://"):
        yield Error(
            f"HTTPS=1, but PUBLIC_URL is {settings.PUBLIC_URL}.",
            hint="Links in invitations would lead elsewhere: set PUBLIC_URL to the https address.",
            id="mlebench_web.E007",
        )


@register()
def data_folder_is_this_machines(**_: object) -> Iterable[CheckMessage]:
    """SQLite and the embedded broker over a shared folder lose data: refused, with the reason."""
    reason = alone_on_this_machine()
    owner = machine_of(settings.DATA_DIR)
    if reason and owner and not owner.items() & this_machine().items():
        yield Error(
            f"The data folder {settings.DATA_DIR} belongs to another machine. {reason}",
            hint="If the folder was moved here for good, remove its file machine.json.",
            id="mlebench_web.E008",
        )


def this_machine() -> dict[str, str]:
    """Two names of this machine: one survives a reboot, one is the same in all its containers."""
    names = {
        "machine_id": Path("/etc/machine-id"),
        "boot_id": Path("/proc/sys/kernel/random/boot_id"),
    }
    read = {name: path.read_text().strip() for name, path in names.items() if path.exists()}
    return {name: value for name, value in read.items() if value} or {"node": platform.node()}


def machine_of(data_dir: Path) -> dict[str, str]:
    """The machine that last prepared this data folder; empty: none has."""
    try:
        return dict(json.loads((data_dir / "machine.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def mark_machine(data_dir: Path) -> None:
    (data_dir / "machine.json").write_text(json.dumps(this_machine()) + "\n")


def alone_on_this_machine() -> str:
    """Why a worker of another machine cannot take part with these settings; "" when one can."""
    if settings.DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
        return (
            "The database is SQLite, a file of the machine that runs the web. For workers on other "
            "machines set DATABASE_URL to a PostgreSQL."
        )
    broker = urlsplit(settings.CELERY_BROKER_URL)
    if broker.scheme == "redis+socket":
        return (
            "The broker is embedded, a socket of the machine that runs the web. For workers on "
            "other machines set CELERY_BROKER_URL to a Redis."
        )
    return ""
