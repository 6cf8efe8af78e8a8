"""Who may do what: alice owns the run group, bob is of her team, charlie is a stranger."""

import pytest

from mlebench_web.accounts.models import Role, User
from mlebench_web.accounts.rules import reason_against
from tests.factories import make_group, make_run, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def people(db: None) -> dict[str, User]:
    return {
        "alice": make_user("alice", role=Role.RESEARCHER, team="vision"),
        "bob": make_user("bob", role=Role.RESEARCHER, team="vision"),
        "lead": make_user("lena", role=Role.LEAD, team="vision"),
        "charlie": make_user("charlie", role=Role.RESEARCHER, team="speech"),
        "foreign lead": make_user("frank", role=Role.LEAD, team="speech"),
        "viewer": make_user("vera", role=Role.VIEWER, team="vision"),
        "admin": make_user("ada", role=Role.ADMIN, team=None),
    }


@pytest.mark.parametrize("permission", ["runs.cancel", "runs.rerun"])
@pytest.mark.parametrize(
    ("who", "may"),
    [
        pytest.param("alice", True, id="the owner"),
        pytest.param("bob", False, id="a researcher of the team"),
        pytest.param("lead", True, id="the team's lead"),
        pytest.param("charlie", False, id="a stranger"),
        pytest.param("foreign lead", False, id="a lead of another team"),
        pytest.param("viewer", False, id="a viewer of the team"),
        pytest.param("admin", True, id="an admin"),
    ],
)
def test_who_may_change_a_run_group_and_its_runs(
    people: dict[str, User], permission: str, who: str, may: bool
) -> None:
    group = make_group(owner=people["alice"])
    run = make_run(group)

    assert people[who].has_perm(permission, group) is may
    assert people[who].has_perm(permission, run) is may
    assert bool(reason_against(people[who], permission, run)) is not may


@pytest.mark.parametrize(
    ("permission", "least"),
    [
        ("runs.add_group", Role.RESEARCHER),
        ("runs.download", Role.RESEARCHER),
        ("runs.rerun_all", Role.ADMIN),
        ("fleet.drain", Role.ADMIN),
        ("accounts.invite", Role.ADMIN),
        ("accounts.manage_people", Role.ADMIN),
        ("accounts.make_token", Role.VIEWER),
    ],
)
@pytest.mark.parametrize("role", Role)
def test_each_role_may_all_that_the_one_before_may(
    permission: str, least: Role, role: Role
) -> None:
    order = list(Role)
    user = make_user("someone", role=role)

    assert user.has_perm(permission) is (order.index(role) >= order.index(least))


def test_an_owner_who_became_a_viewer_may_no_longer_cancel(people: dict[str, User]) -> None:
    group = make_group(owner=people["alice"])
    people["alice"].role = Role.VIEWER

    assert not people["alice"].has_perm("runs.cancel", group)


@pytest.mark.parametrize("role", Role)
def test_an_inactive_account_may_do_nothing(role: Role) -> None:
    user = make_user("gone", role=role)
    user.is_active = False

    assert not any(
        user.has_perm(name)
        for name in ("runs.add_group", "fleet.drain", "accounts.invite", "accounts.make_token")
    )


def test_two_people_without_a_team_share_nothing() -> None:
    """Null equals null in Python: two teamless people must not become one team."""
    owner = make_user("loner", team=None)
    group = make_group(owner=owner)

    assert not make_user("stray", role=Role.LEAD, team=None).has_perm("runs.cancel", group)
