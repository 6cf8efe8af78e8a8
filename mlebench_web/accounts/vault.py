"""Stored secrets: sealed in the database, opened only to start an agent and to clean its logs.

Keys are in a file of the data folder, apart from SECRET_KEY and from the database: who has only
one of the two reads nothing. The first key seals and all of them open, so that keys can change.
A value can be written and replaced, and never be shown again.
"""

import base64
import json
import os
import re
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import structlog
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import Secret, Team, User
from mlebench_web.locks import alone

logger = structlog.get_logger(__name__)

# As mle-bench's placeholder takes it, and as environment variables are named.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LONGEST_NAME = 100
# A shorter one could not be taken out of a log without taking common words with it.
SHORTEST = 6
LONGEST = 64 * 1024
# Longer than a run may last: whoever cleans its logs must know a value that is gone.
RETIRED_FOR = timedelta(days=31)


class SecretInvalid(Exception):
    """A secret cannot be stored; `field` and what to write."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Sealed(Exception):
    """A stored secret cannot be opened: no key of the key file fits."""


# ---------------------------------------------------------------------------------------- keys


def key_file() -> Path:
    return Path(settings.DATA_DIR) / "secret-store-keys"


def _keys() -> MultiFernet:
    """Made at the first use. The newest key is the first line."""
    path = key_file()
    if not path.exists():
        with alone(settings.DATA_DIR / "locks" / "secret-store-keys"):
            if not path.exists():
                _replace(path, [Fernet.generate_key()])
    return MultiFernet([Fernet(key) for key in path.read_bytes().split()])


def _write(path: Path, keys: list[bytes]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(b"\n".join(keys) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def rotate() -> int:
    """A new key seals from now on, and everything is sealed again with it; how many secrets.

    Older keys are dropped once nothing needs them. A process that dies in between leaves all keys
    in the file, and the next call goes on.
    """
    _keys()
    path = key_file()
    with alone(settings.DATA_DIR / "locks" / "secret-store-keys"):
        old = path.read_bytes().split()
        new = Fernet.generate_key()
        _replace(path, [new, *old])
        keys = _keys()
        count = 0
        with transaction.atomic():
            for secret in Secret.objects.select_for_update():
                try:
                    secret.sealed = keys.rotate(secret.sealed.encode()).decode()
                except InvalidToken as error:
                    raise Sealed(
                        f"{secret} cannot be opened with any key of {path}: nothing was changed. "
                        "Put the missing key back as a line of that file, or delete the secret."
                    ) from error
                secret.save(update_fields=["sealed"])
                count += 1
        _replace(path, [new])
    return count


def _replace(path: Path, keys: list[bytes]) -> None:
    temporary = path.with_suffix(".new")
    _write(temporary, keys)
    temporary.replace(path)


# --------------------------------------------------------------------------------------- writing


def put(name: str, value: str, *, owner: User | Team, by: User | None) -> Secret:
    """Store a secret, or replace the one of this name and owner. Raises SecretInvalid."""
    value = value.strip("\r\n")
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise SecretInvalid(
            "name", "Letters, digits and _ only, as a variable: OPENAI_API_KEY, for example."
        )
    if len(value.strip()) < SHORTEST:
        raise SecretInvalid(
            "value", f"At least {SHORTEST} characters: a shorter one cannot be kept out of logs."
        )
    if len(value) > LONGEST:
        raise SecretInvalid("value", f"At most {LONGEST // 1024} KB.")
    if "\0" in value:
        raise SecretInvalid("value", "A NUL character cannot stand in a variable.")
    try:
        sealed = _keys().encrypt(value.encode()).decode()
    except UnicodeEncodeError as error:
        raise SecretInvalid("value", "That is no Unicode text.") from error
    who = _owned_by(owner)
    with transaction.atomic():
        _active().filter(name=name, **who).update(retired_at=timezone.now())
        secret = Secret.objects.create(name=name, sealed=sealed, made_by=audit.name_of(by), **who)
        audit.record(by, "store secret", secret, detail={"name": name, "owner": str(owner)})
    return secret


def forget(secret: Secret, *, by: User | None) -> None:
    """No run gets it any more. The sealed value goes when no run can still have it."""
    with transaction.atomic():
        if _active().filter(pk=secret.pk).update(retired_at=timezone.now()):
            audit.record(
                by,
                "delete secret",
                secret,
                detail={"name": secret.name, "owner": str(secret.user or secret.team)},
            )


def purge() -> int:
    """Delete the values that were replaced or deleted long ago; how many."""
    gone, _ = Secret.objects.filter(retired_at__lt=timezone.now() - RETIRED_FOR).delete()
    return gone


def _active() -> QuerySet[Secret]:
    return Secret.objects.filter(retired_at__isnull=True)


def _owned_by(owner: User | Team) -> dict[str, User | Team]:
    return {"user" if isinstance(owner, User) else "team": owner}


# --------------------------------------------------------------------------------------- reading


def listed(user: User) -> QuerySet[Secret]:
    """Names (never values) that a person may see: their own and their team's."""
    return _active().filter(_of(user, user.team)).select_related("user", "team").order_by("name")


def names_of(user: User | None, team: Team | None) -> set[str]:
    """Which secrets a run of this user and team can ask for."""
    return set(_active().filter(_of(user, team)).values_list("name", flat=True))


def values_of(user: User | None, team: Team | None, names: Collection[str]) -> dict[str, str]:
    """Values of these names as far as they are stored; a person's own goes before the team's.

    Only for the moment at which a container is made. Raises Sealed.
    """
    if not names:
        return {}
    keys = _keys()
    found: dict[str, str] = {}
    rows = _active().filter(_of(user, team), name__in=names)
    # The team's first: the person's own is written over it.
    for secret in sorted(rows, key=lambda row: row.user_id is not None):
        found[secret.name] = _open(keys, secret)
    rows.update(last_used_at=timezone.now())
    return found


def words_to_hide(user: User | None, team: Team | None, names: Collection[str]) -> list[str]:
    """Everything that must not appear in what a run with these secrets left, also values that
    were replaced while it ran, and the shapes in which programs print them.
    """
    if not names:
        return []
    keys = _keys()
    words: dict[str, None] = {}
    for secret in Secret.objects.filter(_of(user, team), name__in=names):
        try:
            words.update(dict.fromkeys(_shapes(_open(keys, secret))))
        except Sealed:
            # It cannot have been given to anybody either.
            logger.warning("secret.sealed", name=secret.name)
    return list(words)


def _open(keys: MultiFernet, secret: Secret) -> str:
    try:
        return keys.decrypt(secret.sealed.encode()).decode()
    except InvalidToken as error:
        raise Sealed(
            f"The secret {secret.name} cannot be opened: its key is not in {key_file()}. "
            "Store it again, or put the key back."
        ) from error


def _shapes(value: str) -> Iterator[str]:
    raw = value.encode()
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield quote(value, safe="")
    # What stands in an Authorization: Basic header begins elsewhere; this is the value alone.
    yield base64.b64encode(raw).decode().rstrip("=")
    for line in value.splitlines():
        # A log that is cut into lines shows a key file line by line.
        if len(line.strip()) >= 16:
            yield line


def _of(user: User | None, team: Team | None) -> Q:
    mine = Q(user=user) if user else Q(pk__in=[])
    return mine | (Q(team=team) if team else Q(pk__in=[]))
