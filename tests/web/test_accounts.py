"""Coming in: set-up link, invitations, sign-in; people, roles and tokens."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse

from mlebench_web.accounts import people
from mlebench_web.accounts.forms import PersonForm
from mlebench_web.accounts.models import ApiToken, AuditEntry, OneTimeLink, Role, User
from mlebench_web.accounts.tokens import user_of
from tests.factories import PASSWORD, make_user
from tests.web.conftest import signed_in
from tests.web.pages import get, parse

pytestmark = pytest.mark.django_db

NEW = {
    "username": "grace",
    "email": "grace@example.org",
    "password1": "a long pass phrase",
    "password2": "a long pass phrase",
}
SETUP, INVITE = OneTimeLink.Purpose.SETUP, OneTimeLink.Purpose.INVITE


@pytest.fixture
def admin(db: None) -> User:
    user = make_user("ada", role=Role.ADMIN)
    people.set_role(user, Role.ADMIN)
    user.save()
    return user


def link_of(purpose: OneTimeLink.Purpose, **fields: object) -> str:
    token = OneTimeLink.make(purpose, lasts=timedelta(hours=1), **fields)  # type: ignore[arg-type]
    return reverse("setup" if purpose == SETUP else "invitation", args=[token])


# ---------------------------------------------------------------------------- one-time links


def test_the_set_up_link_makes_an_admin_and_signs_in() -> None:
    client = Client()
    path = link_of(SETUP)

    form = get(client, path)
    response = client.post(path, NEW)

    assert form.check() == []
    assert response.headers["Location"] == "/"
    user = User.objects.get(username="grace")
    assert (user.role, user.is_staff) == (Role.ADMIN, True)
    assert user.check_password(NEW["password1"])
    assert client.get("/").status_code == 200
    assert client.get("/django-admin/").status_code == 200


def test_a_used_link_is_gone_for_everybody() -> None:
    path = link_of(SETUP)
    Client().post(path, NEW)

    again = Client().post(path, NEW | {"username": "mallory", "email": ""})

    assert again.status_code == 410
    assert not User.objects.filter(username="mallory").exists()


def test_two_people_who_open_one_link_make_one_account() -> None:
    """Both have seen the form, so both hold a link that was good a moment ago."""
    OneTimeLink.make(SETUP, lasts=timedelta(hours=1))
    first, second = OneTimeLink.objects.get(), OneTimeLink.objects.get()
    forms = [PersonForm(NEW), PersonForm(NEW | {"username": "mallory", "email": ""})]
    assert all(form.is_valid() for form in forms)

    people.come_in(first, forms[0])
    with pytest.raises(people.LinkGone):
        people.come_in(second, forms[1])

    assert [user.username for user in User.objects.all()] == ["grace"]


def test_a_refused_password_leaves_the_link_usable() -> None:
    path = link_of(SETUP)

    refused = Client().post(path, NEW | {"password1": "short", "password2": "short"})
    accepted = Client().post(path, NEW)

    assert "too short" in refused.content.decode()
    assert accepted.status_code == 302


def test_an_expired_link_is_gone() -> None:
    token = OneTimeLink.make(SETUP, lasts=timedelta(seconds=-1))

    assert Client().get(reverse("setup", args=[token])).status_code == 410


def test_an_invitation_cannot_be_used_as_a_set_up_link() -> None:
    token = OneTimeLink.make(INVITE, lasts=timedelta(hours=1))

    assert Client().get(reverse("setup", args=[token])).status_code == 410


def test_an_invitation_gives_its_role_and_the_inviters_team(admin: User) -> None:
    page = parse(
        signed_in(admin).post(reverse("people"), {"role": "lead", "email": "", "days": "2"})
    )
    path = page.with_id("made").text.strip()
    client = Client()

    client.post(path, NEW)

    user = User.objects.get(username="grace")
    assert (user.role, user.team, user.is_staff) == (Role.LEAD, admin.team, False)
    assert AuditEntry.objects.filter(action="invited", actor=admin).exists()


def test_an_invitation_can_be_withdrawn(admin: User) -> None:
    path = link_of(INVITE, made_by=admin)
    link = OneTimeLink.objects.get()

    signed_in(admin).post(reverse("withdraw_invitation", args=[link.pk]))

    assert Client().get(path).status_code == 410


def test_two_accounts_never_share_an_address(admin: User) -> None:
    response = Client().post(link_of(INVITE), NEW | {"email": admin.email.upper()})

    assert "Somebody here has this address already" in response.content.decode()


# ---------------------------------------------------------------------------- people


@pytest.mark.parametrize("role", [Role.VIEWER, Role.RESEARCHER, Role.LEAD])
def test_only_admins_see_and_change_people(role: Role) -> None:
    client = signed_in(make_user("someone", role=role))
    other = make_user("other")

    assert client.get(reverse("people")).status_code == 403
    path = reverse("change_person", args=[other.pk])
    assert client.post(path, {f"u{other.pk}-role": "admin"}).status_code == 403
    assert client.get("/django-admin/").status_code in (302, 403)


def change(client: Client, user: User, **fields: str) -> str:
    values = {"role": user.role, "team": "", "is_active": "on"} | fields
    return (
        client.post(
            reverse("change_person", args=[user.pk]),
            {f"u{user.pk}-{name}": value for name, value in values.items() if value},
            follow=True,
        )
    ).content.decode()


def test_an_admin_changes_role_and_team(admin: User) -> None:
    user = make_user("bob")

    change(signed_in(admin), user, role="admin", team="new team")

    user.refresh_from_db()
    assert (user.role, str(user.team), user.is_staff) == (Role.ADMIN, "new team", True)
    entry = AuditEntry.objects.get(action="changed")
    assert entry.detail["before"]["role"] == "researcher"
    assert entry.detail["after"]["role"] == "admin"


def test_the_last_admin_stays_admin(admin: User) -> None:
    text = change(signed_in(admin), admin, role="viewer")

    admin.refresh_from_db()
    assert admin.role == Role.ADMIN
    assert "This is the last admin" in text


def test_the_last_admin_stays_active(admin: User) -> None:
    change(signed_in(admin), admin, is_active="")

    admin.refresh_from_db()
    assert admin.is_active


def test_a_former_admin_loses_the_django_admin(admin: User) -> None:
    other = make_user("bob", role=Role.ADMIN)
    people.set_role(other, Role.ADMIN)
    other.save()

    change(signed_in(admin), other, role="viewer")

    assert signed_in(other).get("/django-admin/").status_code == 302


# ---------------------------------------------------------------------------- sign-in


def test_signing_in_leads_back_to_the_page_that_was_asked_for() -> None:
    make_user("alice")

    response = Client().post(
        reverse("account_login") + "?next=/groups/",
        {"login": "alice", "password": PASSWORD, "next": "/groups/"},
    )

    assert response.headers["Location"] == "/groups/"


def test_a_wrong_password_does_not_say_whether_the_name_exists() -> None:
    make_user("alice")

    errors = [
        parse(
            Client().post(reverse("account_login"), {"login": name, "password": "wrong password"})
        )
        for name in ("alice", "nobody")
    ]

    said = [
        next(t.text for t in page.tags if t.attributes.get("role") == "alert") for page in errors
    ]
    assert said[0] == said[1]


def test_signing_up_is_closed() -> None:
    response = Client().post(reverse("account_signup"), NEW)

    assert "Accounts are by invitation" in response.content.decode()
    assert not User.objects.exists()


def test_the_django_admin_has_no_second_door() -> None:
    response = Client().get("/django-admin/login/", follow=True)

    assert response.redirect_chain[-1][0].startswith(reverse("account_login"))


@pytest.mark.parametrize("name", ["account_login", "account_signup"])
def test_pages_for_strangers_are_whole(name: str) -> None:
    assert get(Client(), reverse(name)).check() == []


@pytest.mark.parametrize("name", ["account_logout", "account_change_password"])
def test_pages_about_oneself_are_whole(name: str) -> None:
    assert get(signed_in(make_user()), reverse(name)).check() == []


def test_signing_out_takes_a_press_of_a_button() -> None:
    client = signed_in(make_user())

    client.get(reverse("account_logout"))
    assert client.get("/").status_code == 200
    client.post(reverse("account_logout"))
    assert client.get("/").status_code == 302


# ---------------------------------------------------------------------------- tokens


def test_a_token_is_shown_once_and_works_until_it_is_revoked() -> None:
    alice = make_user()
    client = signed_in(alice)

    value = parse(client.post(reverse("tokens"), {"name": "ci"})).with_id("made").text.strip()
    later = client.get(reverse("tokens")).content.decode()

    assert user_of(value) == alice
    assert value not in later
    client.post(reverse("revoke_token", args=[ApiToken.objects.get().pk]))
    assert user_of(value) is None


def test_nobody_revokes_somebody_elses_token() -> None:
    token, _ = ApiToken.make(make_user("alice"), name="ci")

    response = signed_in(make_user("bob")).post(reverse("revoke_token", args=[token.pk]))

    assert response.status_code == 404
    assert ApiToken.objects.filter(pk=token.pk).exists()
