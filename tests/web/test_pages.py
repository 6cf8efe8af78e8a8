"""Every page: renders in all states, keeps the content security policy, and reads only."""

import re
from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from mlebench_web.accounts.models import Role, User
from runs.models import Run
from tests.factories import make_host, make_user
from tests.web.conftest import World, signed_in
from tests.web.pages import Page, get, parse

pytestmark = pytest.mark.django_db

# Parts with tests of their own; downloads are no pages.
NOT_CRAWLED = ("/api/", "/django-admin/", "/account/logout/")
FACTS = re.compile(r"/competitions/(?!AI4Code/)[^/]+/|/groups/new/\?competition=.*")
WRITES = ("INSERT", "UPDATE", "DELETE")


def crawl(client: Client, start: str = "/") -> Iterator[tuple[str, Page]]:
    """Every page that links lead to, each once; a query changes the page, so it counts."""
    seen, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith(NOT_CRAWLED) or "/files/" in path:
            continue
        # The 82 that ship as facts are all alike: one will do.
        if "demo-" not in path and FACTS.fullmatch(path):
            continue
        seen.add(path)
        if path.endswith((".log", ".csv", ".tar")) or ".csv?" in path:
            continue
        page = get(client, path)
        yield path, page
        here = path.partition("?")[0]
        for link in page.links():
            # One page of each kind of filter is enough; they do not multiply.
            if link.count("&") < 1:
                waiting.append(here + link if link.startswith("?") else link)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER])
def test_every_page_that_links_lead_to_is_whole_keeps_the_policy_and_writes_nothing(
    world: World, role: Role
) -> None:
    user = world.admin if role == Role.ADMIN else make_user("vera", role=role)
    client = signed_in(user)

    with CaptureQueriesContext(connection) as queries:
        problems = {path: page.check() for path, page in crawl(client)}

    assert {path: found for path, found in problems.items() if found} == {}
    # Reading writes nothing.
    assert [q["sql"] for q in queries if q["sql"].lstrip().upper().startswith(WRITES)] == []
    assert len(problems) > 30
    runs = {reverse("run", args=[pk]) for pk in Run.objects.values_list("pk", flat=True)}
    assert runs <= set(problems)
    for name in ("groups", "new_group", "leaderboard", "competitions", "fleet", "tokens"):
        assert reverse(name) in problems


def test_every_page_sends_the_policy_without_exceptions(world: World) -> None:
    response = signed_in(world.alice).get("/")

    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def all_patterns(
    patterns: list[URLPattern | URLResolver], before: str = ""
) -> Iterator[tuple[str, str]]:
    for each in patterns:
        if isinstance(each, URLResolver):
            yield from all_patterns(each.url_patterns, before + str(each.pattern))
        elif each.name:
            yield each.name, before + str(each.pattern)


OPEN_TO_ALL = {
    "account_login",
    "account_signup",
    "account_inactive",
    "setup",
    "invitation",
    "theme",
    "healthz",
    "favicon",
    # Shows nothing without an account: it leads to sign-in by itself.
    "account_logout",
}


@pytest.mark.django_db
def test_without_signing_in_every_address_leads_to_sign_in() -> None:
    values = {"pk": 1, "number": 1, "name": "x", "path": "x", "source": "agent"}
    open_ones = []
    for name, pattern in all_patterns(get_resolver().url_patterns):
        if pattern.startswith(("api/", "django-admin/")) or name in OPEN_TO_ALL:
            continue
        used = {key: value for key, value in values.items() if f":{key}>" in pattern}
        for method in ("get", "post"):
            response = getattr(Client(), method)(reverse(name, kwargs=used))
            # 405: it takes the other method only, whoever asks.
            leads = (
                response.status_code == 302 and "/account/login/" in response.headers["Location"]
            )
            if not leads and response.status_code != 405:
                open_ones.append((name, method, response.status_code))

    assert open_ones == []


def test_a_page_that_is_not_there_says_so(world: World) -> None:
    response = signed_in(world.alice).get("/runs/999999/")

    assert response.status_code == 404
    assert "There is no such page" in response.content.decode()


def test_the_first_page_of_a_fresh_installation_offers_the_demo(db: None) -> None:
    page = get(signed_in(make_user()), "/")

    assert any("?split=demo" in link for link in page.links())


def test_a_process_run_is_marked_unsandboxed_on_every_page_that_shows_it(world: World) -> None:
    run = Run.objects.get(group__runtime="process")
    client = signed_in(world.alice)

    for path in (
        "/",
        reverse("groups"),
        run.group.get_absolute_url(),
        run.get_absolute_url(),
        run.group.experiment.get_absolute_url(),
        reverse("competition", args=[run.competition.name]),
        reverse("leaderboard") + "?split=demo",
        reverse("competitions"),
        reverse("configs"),
    ):
        assert "unsandboxed" in client.get(path).content.decode(), path


@pytest.mark.parametrize(
    ("fields", "mark"),
    [
        ({"engine_id": "", "engine_version": "", "engine_error": "no socket"}, "unsandboxed"),
        ({"accepts_privileged": True}, "accepts privileged"),
        ({}, ""),
    ],
)
def test_the_fleet_marks_hosts_on_which_agents_are_not_held(
    admin: User, fields: dict[str, object], mark: str
) -> None:
    make_host("box-9", **fields)

    page = signed_in(admin).get(reverse("fleet")).content.decode()

    marks = re.findall(r'class="chip unsandboxed"[^>]*>([^<]+)<', page)
    assert marks == ([mark] if mark else [])


def test_the_theme_is_remembered_without_script(world: World) -> None:
    client = signed_in(world.alice)

    response = client.post(reverse("theme"), {"theme": "dark", "next": "/groups/"})

    assert response.headers["Location"] == "/groups/"
    assert parse(client.get("/groups/")).tags[0].attributes["data-theme"] == "dark"


def test_the_theme_form_leads_to_no_other_site(world: World) -> None:
    response = Client().post(reverse("theme"), {"theme": "dark", "next": "https://evil.example/"})

    assert response.headers["Location"] == "/"
