"""Who may do what. Pages and API ask `user.has_perm(name, object)`; nothing else decides.

| permission | object | who |
|---|---|---|
| runs.add_group | none | researchers and up |
| runs.download | none | researchers and up: files that an agent left |
| runs.import | none | researchers and up: results that were made elsewhere |
| runs.import_folder | none | admins: from any folder of the server |
| runs.cancel, runs.rerun, runs.regrade | run group or run | its owner, leads of its team, admins |
| runs.rerun_all | none | admins: failed runs of all groups at once |
| fleet.drain | none | admins |
| fleet.prepare | none | leads and up: data of a competition on a host |
| catalog.refresh, catalog.build | none | researchers and up |
| catalog.edit_config | none | leads and up; keys that open a container up: admins |
| catalog.change_checkouts | none | admins |
| accounts.keep_secret | none, or a team | researchers for themselves, leads for their team |
| accounts.invite, accounts.manage_people | none | admins |
| accounts.make_token | none | everybody, for themselves |

An inactive account may do nothing. `reason_against` says in a sentence why somebody may not.
"""

from typing import Any

import rules

from mlebench_web.accounts.models import Role, Team, User


@rules.predicate
def is_active(user: User) -> bool:
    return user.is_authenticated and user.is_active


def at_least(role: Role) -> rules.Predicate:
    def check(user: User) -> bool:
        return user.is_authenticated and user.is_at_least(role)

    return rules.predicate(check, name=f"at_least:{role}")


def _group_of(thing: Any) -> Any:
    """The run group of a run; a run group itself. No import: accounts knows no runs."""
    return getattr(thing, "group", thing)


@rules.predicate
def is_owner(user: User, thing: Any) -> bool:
    if thing is None:
        return False
    owner = _group_of(thing).created_by_id
    return owner is not None and owner == user.pk


@rules.predicate
def is_of_its_team(user: User, thing: Any) -> bool:
    if thing is None:
        return False
    team = _group_of(thing).team_id
    return team is not None and team == user.team_id


@rules.predicate
def may_keep_secret(user: User, team: Team | None) -> bool:
    """For themselves, where there is no team; else for this team."""
    if team is None:
        return user.is_authenticated and user.is_at_least(Role.RESEARCHER)
    if user.is_at_least(Role.ADMIN):
        return True
    return user.is_at_least(Role.LEAD) and user.team_id == team.pk


is_researcher = at_least(Role.RESEARCHER)
is_lead = at_least(Role.LEAD)
is_admin = at_least(Role.ADMIN)
may_change = is_admin | (is_researcher & is_owner) | (is_lead & is_of_its_team)

rules.add_perm("runs.add_group", is_researcher)
rules.add_perm("runs.download", is_researcher)
rules.add_perm("runs.import", is_researcher)
rules.add_perm("runs.import_folder", is_admin)
rules.add_perm("runs.cancel", may_change)
rules.add_perm("runs.rerun", may_change)
rules.add_perm("runs.regrade", may_change)
rules.add_perm("runs.rerun_all", is_admin)
rules.add_perm("fleet.drain", is_admin)
rules.add_perm("fleet.prepare", is_lead)
rules.add_perm("catalog.refresh", is_researcher)
rules.add_perm("catalog.build", is_researcher)
rules.add_perm("catalog.edit_config", is_lead)
rules.add_perm("catalog.change_checkouts", is_admin)
rules.add_perm("accounts.keep_secret", may_keep_secret)
rules.add_perm("accounts.invite", is_admin)
rules.add_perm("accounts.manage_people", is_admin)
rules.add_perm("accounts.make_token", is_active)

_OWNERS = "Only the owner, leads of the team and admins may do this."
_ADMINS = "Only admins may do this."
_LEADS = "Only leads and admins may do this."
_RESEARCHERS = "Viewers may look only; an admin can make you a researcher."
_REASONS = {
    "runs.add_group": _RESEARCHERS,
    "runs.download": _RESEARCHERS,
    "runs.import": _RESEARCHERS,
    "runs.import_folder": _ADMINS,
    "runs.cancel": _OWNERS,
    "runs.rerun": _OWNERS,
    "runs.regrade": _OWNERS,
    "runs.rerun_all": _ADMINS,
    "fleet.drain": _ADMINS,
    "fleet.prepare": _LEADS,
    "catalog.refresh": _RESEARCHERS,
    "catalog.build": _RESEARCHERS,
    "catalog.edit_config": _LEADS,
    "catalog.change_checkouts": _ADMINS,
    "accounts.keep_secret": "Researchers keep their own secrets; leads their team's.",
    "accounts.invite": _ADMINS,
    "accounts.manage_people": _ADMINS,
}


def reason_against(user: User, permission: str, thing: Any = None) -> str:
    """Why `user` may not, in a sentence for the page; empty when they may."""
    if user.has_perm(permission, thing):
        return ""
    return _REASONS.get(permission, "You may not do this.")
