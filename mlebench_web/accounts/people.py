"""Who comes in, and what they are: the verbs behind the pages about people."""

from django.db import transaction

from mlebench_web.accounts import audit
from mlebench_web.accounts.forms import PersonForm
from mlebench_web.accounts.models import OneTimeLink, Role, Team, User


class LinkGone(Exception):
    """Somebody used the link first."""


class LastAdmin(Exception):
    """Nobody would be left who can make admins."""


@transaction.atomic
def come_in(link: OneTimeLink, form: PersonForm) -> User:
    """The new account of a one-time link. Raises LinkGone when the link was used meanwhile.

    One transaction: an account that cannot be made leaves the link usable.
    """
    if not link.use():
        raise LinkGone
    user: User = form.save(commit=False)
    is_setup = link.purpose == OneTimeLink.Purpose.SETUP
    set_role(user, Role.ADMIN if is_setup else Role(link.role))
    user.team = link.made_by.team if link.made_by else None
    user.save()
    audit.record(user, "came in", user, detail={"role": user.role, "by link": link.purpose})
    return user


def set_role(user: User, role: Role) -> None:
    """Admins are staff, so that the Django admin lets them in. The caller saves."""
    user.role = role
    user.is_staff = user.is_superuser = role == Role.ADMIN


@transaction.atomic
def change(user: User, *, role: Role, team: Team | None, is_active: bool, by: User) -> None:
    """Raises LastAdmin rather than leave an installation without an active admin."""
    others = User.objects.filter(role=Role.ADMIN, is_active=True).exclude(pk=user.pk)
    if not (role == Role.ADMIN and is_active) and not others.exists():
        raise LastAdmin("This is the last admin. Make somebody else an admin first.")
    before = {"role": user.role, "team": str(user.team or ""), "active": user.is_active}
    set_role(user, role)
    user.team = team
    user.is_active = is_active
    user.save(update_fields=["role", "is_staff", "is_superuser", "team", "is_active"])
    after = {"role": user.role, "team": str(user.team or ""), "active": user.is_active}
    audit.record(by, "changed", user, detail={"before": before, "after": after})
