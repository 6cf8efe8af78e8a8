"""The whole road in a real browser: set up, start the baseline, watch it, find its medals.

Nothing is faked: `./run` serves the pages, its worker runs the agent and grades what it leaves.
"""

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import NARROW, open_window
from tests.support.product import Product

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.docker]

PASSWORD = "a long pass phrase"
COMPETITION = "demo-diamond-prices"
SEEDS = 2
# Trains a real model; on a loaded machine of two cores the image is built first.
RUNS_WITHIN_MS = 400_000


def test_from_the_set_up_link_to_the_leaderboard(
    chromium: Browser, running_product: Product
) -> None:
    window = open_window(chromium, running_product.address)
    page = window.page

    # The link that the terminal printed makes the first admin, once.
    page.goto(running_product.setup_link)
    page.get_by_label("Username").fill("grace")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password confirmation").fill(PASSWORD)
    page.get_by_role("button", name="Make admin and sign in").click()
    expect(page.get_by_text("You are signed in")).to_be_visible()

    # A run group of the baseline.
    window.go(f"/groups/new/?agent=baseline&competition={COMPETITION}&experiment=first+light")
    page.get_by_label("Seeds").fill(str(SEEDS))
    page.get_by_label("Seeds").blur()
    start = page.get_by_role("button", name=f"Start {SEEDS} runs")
    expect(start).to_be_visible()
    start.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("first light")
    group = page.url

    # A run is watched live: its log grows without a reload.
    page.locator(".grid a.c").first.click()
    expect(page.locator("#log-list li").first).to_be_visible(timeout=RUNS_WITHIN_MS)
    expect(page.locator("#run-poll")).not_to_have_attribute(
        "hx-trigger", "tick from:body", timeout=RUNS_WITHIN_MS
    )
    expect(page.locator("#run-right")).to_contain_text("Score")
    expect(page.locator("#run-left")).to_contain_text("submission.csv")

    # The group ends by itself, every run with a result.
    page.goto(group)
    expect(page.locator(".st.ok").first).to_contain_text("Finished", timeout=RUNS_WITHIN_MS)
    words = page.locator(".grid a.c").first.get_attribute("aria-label") or ""
    assert words.rsplit(", ", 1)[1] in ("gold", "silver", "bronze"), words

    # The leaderboard shows medals, hardware and time.
    window.go("/leaderboard/?split=demo")
    row = page.get_by_role("row").filter(has_text="first light")
    expect(row).to_contain_text("CPU")
    expect(row.get_by_role("link").last).to_contain_text("s")
    row.get_by_role("link", name="first light").click()
    times = page.get_by_role("row").filter(has_text=COMPETITION)
    expect(times).to_contain_text("·")
    assert window.complaints == []

    # And on a telephone nothing scrolls sideways.
    page.set_viewport_size(NARROW)
    for path in ("/", "/leaderboard/?split=demo"):
        window.go(path)
        assert window.scrolls_sideways_by() == 0, path
    window.context.close()
