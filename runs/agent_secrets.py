"""Secrets of a run group's agent: what it asks for, its values, and what its logs must not show.

A group keeps placeholders (`${{ secrets.NAME }}`) only. Values are read when a container is made,
and are nowhere but in that container's environment and arguments.
"""

from collections.abc import Mapping
from typing import Any

from mlebench_web.accounts import placeholders, vault
from mlebench_web.accounts.models import Team, User
from mlebench_web.accounts.placeholders import Missing
from runs.models import RunGroup

# Names of variables whose values are kept out of logs, wherever they came from.
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class Unavailable(Exception):
    """A secret that the agent needs is not there; a sentence with its name."""


def names_of(group: RunGroup) -> set[str]:
    # A variable of the group goes before the agent's own of that name.
    return placeholders.names_in({**group.agent_env, **group.env}, group.agent_kwargs)


def missing(user: User | None, team: Team | None, *mappings: Mapping[str, Any]) -> list[str]:
    """Names that these mappings ask for and that runs of this user and team cannot have."""
    return sorted(placeholders.names_in(*mappings) - vault.names_of(user, team))


def values_for(group: RunGroup) -> dict[str, str]:
    """By name, all that the group's agent asks for. Raises Unavailable."""
    names = names_of(group)
    try:
        found = vault.values_of(group.created_by, group.team, names)
    except vault.Sealed as error:
        raise Unavailable(str(error)) from error
    if lacking := names - found.keys():
        raise Unavailable(f"{Missing(lacking)} {fix_for(group.created_by)}")
    return found


def fix_for(user: User | None) -> str:
    """What to do about a missing secret, as a sentence."""
    if user is None:
        return "A run of the server's shell has none: submit it with --user, whose secrets it gets."
    return (
        "Store it on the page Secrets, for yourself or your team, or with "
        f"`manage.py set_secret NAME --user {user.get_username()}`."
    )


def words(group: RunGroup) -> list[str]:
    """What must not stand in anything that a run of the group leaves."""
    plain = {**group.agent_env, **group.env}
    named = [
        str(value)
        for name, value in plain.items()
        if any(word in name.upper() for word in SECRET_WORDS)
        and placeholders.name_in(value) is None
    ]
    return [*named, *vault.words_to_hide(group.created_by, group.team, names_of(group))]
