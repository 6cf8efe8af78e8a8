"""A real Chromium, and people signed in to it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

from mlebench_web.accounts.models import User
from tests.factories import PASSWORD

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE: ViewportSize = {"width": 1440, "height": 1000}
NARROW: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The machine's own browser; without one the test is skipped, in CI it fails."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        no_browser = "no Chromium on this machine (CHROMIUM names one)"
        if os.environ.get("CI"):
            pytest.fail(no_browser)
        pytest.skip(no_browser)
    # Playwright runs an event loop in this thread, and Django then refuses the database here.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    with sync_playwright() as playwright:
        # No sandbox: CI runs as root in a container.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@dataclass
class Window:
    """A browser window that remembers what went wrong on its pages."""

    context: BrowserContext
    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        self.page.goto(self.address + path)
        return self.page

    def sign_in(self, user: User) -> "Window":
        page = self.go("/account/login/")
        page.get_by_label("Login").fill(user.get_username())
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(self.address + "/")
        return self

    def scrolls_sideways_by(self) -> int:
        """Pixels that the page is wider than the window; panels may scroll, the page not."""
        pixels: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return pixels


def open_window(browser: Browser, address: str, **options: object) -> Window:
    context = browser.new_context(**{"viewport": WIDE, **options})  # type: ignore[arg-type]
    context.set_default_timeout(20_000)
    window = Window(context, context.new_page(), address)
    # A violation of the content security policy is an error on the console.
    window.page.on(
        "console",
        lambda message: (
            window.complaints.append(f"{window.page.url}: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    window.page.on("pageerror", lambda error: window.complaints.append(str(error)))
    return window
