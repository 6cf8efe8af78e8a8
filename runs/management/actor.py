"""Who acts when a command of the server's shell does, and how it says what is wrong."""

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.core.management import CommandError

from mlebench_web.accounts.models import User
from runs.request import FieldError

# As argparse: the command line is wrong, as opposed to "it could not be done" (1).
BAD_INPUT = 2


def add_user(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--user", help="in whose name; left out: the server's shell, which may do all"
    )


def user_named(name: str | None) -> User | None:
    if name is None:
        return None
    user = User.objects.filter(username=name, is_active=True).select_related("team").first()
    if user is None:
        raise refused([FieldError("user", f"There is no active user {name!r}.", _usernames())])
    return user


def _usernames() -> list[str]:
    return list(
        User.objects.filter(is_active=True).order_by("username").values_list("username", flat=True)
    )


def demand(user: User | None, permission: str, thing: Any = None) -> None:
    """`--user` binds: what that person may not do on a page is refused here too."""
    from mlebench_web.accounts.rules import reason_against

    if user and (why := reason_against(user, permission, thing)):
        raise CommandError(f"--user {user}: {why}")


def refused(errors: Sequence[FieldError], names: dict[str, str] | None = None) -> CommandError:
    """One line a field: the option, what is wrong, what is allowed. `names`: field -> option."""
    lines = []
    for error in errors:
        option = (names or {}).get(error.field, f"--{error.field.replace('_', '-')}")
        allowed = f" Allowed: {', '.join(error.allowed)}." if error.allowed else ""
        lines.append(f"{option}: {error.message}{allowed}")
    return CommandError("\n".join(lines), returncode=BAD_INPUT)
