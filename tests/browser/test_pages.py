"""The pages in a real browser: policy, console, widths, themes, and what works without script."""

from collections.abc import Callable, Iterator

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, expect

from runs import logs
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, RunState, State, Verdict
from runs.models import Run
from tests.browser.conftest import NARROW, WIDE, Window, open_window
from tests.factories import make_run
from tests.web.conftest import World, signed_in
from tests.web.conftest import world as world
from tests.web.pages import get

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

Open = Callable[..., Window]


@pytest.fixture
def window(chromium: Browser, live_server: object, world: World) -> Iterator[Open]:
    """Opens windows on a live server over the database of `world`, signed in as alice."""
    opened = []

    def make(**options: object) -> Window:
        new = open_window(chromium, str(live_server), **options)
        opened.append(new)
        return new.sign_in(world.alice)

    yield make
    for each in opened:
        each.context.close()


def paths_of_each_kind(client: Client, world: World) -> list[str]:
    runs = [*world.by_result.values(), *world.by_state.values(), *world.by_outcome.values()]
    return [
        "/",
        "/groups/",
        "/groups/?state=failed",
        "/groups/new/",
        world.group.get_absolute_url(),
        world.group.get_absolute_url() + "?order=failed",
        world.finished.get_absolute_url(),
        *[run.get_absolute_url() for run in (*runs[::3], world.lost, world.retried)],
        world.group.experiment.get_absolute_url(),
        "/leaderboard/",
        "/leaderboard/?split=demo",
        "/leaderboard/?split=low&sort=-low",
        "/competitions/",
        reverse("competition", args=["demo-diamond-prices"]),
        "/fleet/",
        *[reverse("host", args=[name]) for name in ("box-2", "box-3")],
        reverse("tokens"),
        reverse("people"),
        reverse("account_change_password"),
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_page_breaks_the_policy_complains_or_scrolls_sideways(
    window: Open, world: World, theme: str, size: dict[str, int]
) -> None:
    world.alice.role = "admin"
    world.alice.save()
    shown = window(viewport=size, color_scheme=theme)

    wide = []
    for path in paths_of_each_kind(signed_in(world.alice), world):
        shown.go(path)
        if pixels := shown.scrolls_sideways_by():
            wide.append((path, pixels))

    assert shown.complaints == []
    assert wide == []


def test_the_django_admin_keeps_the_policy_too(window: Open, world: World) -> None:
    world.alice.is_staff = world.alice.is_superuser = True
    world.alice.save()
    admin = window()

    for path in ("/django-admin/", "/django-admin/runs/run/", "/django-admin/accounts/user/"):
        admin.go(path)
        expect(admin.page.locator("#site-name, #header").first).to_be_visible()

    assert admin.complaints == []


def test_a_group_page_follows_its_runs_without_a_reload_and_then_stops(
    window: Open, world: World
) -> None:
    group = world.finished
    run = make_run(group, seed=1)
    shown = window()
    page = shown.go(group.get_absolute_url())
    page.evaluate("window.wasNotReloaded = true")
    expect(page.locator(f"#c{run.pk}")).to_have_attribute("title", "seed 1: queued")

    run.newest_attempt().move(
        State.ENDED, token=None, by="test", outcome=Outcome.CANCELLED, ended_at=timezone.now()
    )

    expect(page.locator(f"#c{run.pk}")).to_have_attribute("title", "seed 1: cancelled")
    expect(page.locator("#live")).not_to_have_attribute("hx-trigger", "tick from:body")
    assert page.evaluate("window.wasNotReloaded")
    assert shown.complaints == []


def test_new_lines_of_a_log_appear_and_are_followed(window: Open, world: World) -> None:
    run = world.by_state[State.RUNNING]
    attempt = run.newest_attempt()
    logs.append(attempt.pk, "agent", "\n".join(f"line {number}" for number in range(100)))
    shown = window()
    page = shown.go(run.get_absolute_url())
    expect(page.locator("#L100")).to_be_in_viewport()

    logs.append(attempt.pk, "agent", "\n".join(f"more {number}" for number in range(50)))

    expect(page.locator("#L150")).to_be_in_viewport()
    assert page.locator("#log-list li").count() == 150
    # Whoever scrolls up is left in peace.
    page.locator("#log-lines").evaluate("log => { log.scrollTop = 0 }")
    expect(page.get_by_label("Follow")).not_to_be_checked()
    assert shown.complaints == []


def test_the_log_of_the_next_attempt_follows_that_of_the_last(window: Open, world: World) -> None:
    """Its container is lost, and it goes on: who watches sees it go on."""
    run = world.by_state[State.RUNNING]
    first = run.newest_attempt()
    logs.append(first.pk, "agent", "the first attempt's line")
    shown = window()
    page = shown.go(run.get_absolute_url())
    expect(page.locator("#log-list")).to_contain_text("the first attempt's line")

    killed = Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.CONTAINER_KILLED)
    first.seal(killed, token=first.lease_token, by="a test")
    second = run.newest_attempt()
    logs.append(second.pk, "agent", "the second attempt's line")

    expect(page.locator("#log-list")).to_contain_text("the second attempt's line")
    expect(page.locator("#log")).to_contain_text("attempt 2")
    logs.append(second.pk, "agent", "\n".join(f"more {number}" for number in range(99)))
    expect(page.locator("#L100")).to_be_attached()
    page.wait_for_function(
        "() => { const log = document.getElementById('log-lines');"
        " return log.scrollTop > 0 && log.scrollHeight - log.scrollTop - log.clientHeight < 40 }"
    )
    assert shown.complaints == []


def test_a_reader_who_follows_no_more_keeps_the_log_that_is_read(
    window: Open, world: World
) -> None:
    run = world.by_state[State.RUNNING]
    first = run.newest_attempt()
    logs.append(first.pk, "agent", "the first attempt's line")
    shown = window()
    page = shown.go(run.get_absolute_url())
    page.get_by_label("Follow").uncheck()

    killed = Verdict(Outcome.INFRASTRUCTURE_FAILED, Cause.CONTAINER_KILLED)
    first.seal(killed, token=first.lease_token, by="a test")
    logs.append(run.newest_attempt().pk, "agent", "the second attempt's line")

    expect(page.locator("#run-head")).to_contain_text("attempt 2")
    expect(page.locator("#log-live")).to_contain_text("ended")
    expect(page.locator("#log-list")).to_contain_text("the first attempt's line")
    page.get_by_label("Follow").check()
    expect(page.locator("#log-list")).to_contain_text("the second attempt's line")
    assert shown.complaints == []


def test_a_line_has_an_address(window: Open, world: World) -> None:
    run = world.by_result[Result.GOLD]
    logs.append(run.newest_attempt().pk, "agent", "\n".join(f"line {n}" for n in range(500)))

    page = window().go(run.get_absolute_url() + "?source=agent#L250")

    expect(page.locator("#L250")).to_be_in_viewport()


def test_the_panel_follows_the_form(window: Open, world: World) -> None:
    shown = window()
    page = shown.go("/groups/new/?split=demo&agent=baseline")
    expect(page.get_by_role("button", name="Check again")).to_be_hidden()
    before = page.locator("#preflight strong").inner_text()

    page.get_by_label("Seeds").fill("7")
    page.get_by_label("Seeds").blur()

    expect(page.locator("#preflight strong")).not_to_have_text(before)
    expect(page.locator("#preflight")).to_contain_text("7 seeds")
    expect(page.get_by_role("button", name="Check again")).to_be_hidden()
    assert shown.complaints == []


def test_the_theme_changes_at_once_and_stays(window: Open, world: World) -> None:
    shown = window(color_scheme="light")
    page = shown.go("/groups/")
    light = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")

    page.get_by_role("button", name="Dark").click()

    dark = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    page.reload()
    still = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert light != dark == still


def test_arrows_move_in_the_grid(window: Open, world: World) -> None:
    page = window().go(world.group.get_absolute_url())
    cells = page.locator(".grid a.c")

    cells.first.focus()
    page.keyboard.press("ArrowRight")

    expect(cells.nth(1)).to_be_focused()


def test_a_run_group_is_started_cancelled_and_re_run_without_script(
    window: Open, world: World
) -> None:
    shown = window(java_script_enabled=False)
    page = shown.go(world.group.get_absolute_url())

    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Drop queued only").click()
    expect(page.get_by_text("cancelled, or stopping now")).to_be_visible()
    assert Run.objects.get(pk=world.by_state[State.QUEUED].pk).state == RunState.CANCELLED

    row = page.get_by_role("row").filter(has_text="The host was lost.")
    row.get_by_role("button", name="Re-run…").click()
    page.locator(".dialog:popover-open").get_by_role("button", name="Re-run", exact=True).click()
    expect(page.get_by_text("1 run queued again")).to_be_visible()

    page = shown.go("/groups/new/")
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_role("heading", name="Pre-flight")).to_be_visible()


def test_a_dialog_is_not_closed_by_the_next_poll(window: Open, world: World) -> None:
    page = window().go(world.group.get_absolute_url())
    page.get_by_role("button", name="Cancel…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()

    # The next tick would come within three seconds; this asks for one at once.
    with page.expect_event("console", timeout=20_000):
        page.evaluate("setTimeout(() => console.log('later'), 3500)")

    expect(dialog).to_be_visible()


def test_every_field_of_the_form_can_be_reached_by_its_name(window: Open, world: World) -> None:
    page = window().go("/groups/new/")

    for name in ("Agent", "Experiment", "Seeds", "Time limit a run, h", "Priority"):
        expect(page.get_by_label(name, exact=True)).to_be_visible()
    assert get(signed_in(world.alice), "/groups/new/").check() == []
