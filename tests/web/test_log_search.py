"""The search in a run's log: a form that works without script, over all of the log."""

import pytest
from django.utils.html import escape

from mlebench_web.accounts.models import Role
from runs import logs
from runs.core.states import Result
from tests.factories import make_user
from tests.web.conftest import World, signed_in
from tests.web.pages import Page, get
from tests.web.test_run_page import write

pytestmark = pytest.mark.django_db


@pytest.fixture
def log_of(world: World) -> str:
    """The path of a run whose log is longer than a page; its lines 10 and 5000 are special."""
    run = world.by_result[Result.GOLD]
    text = "".join(
        f"line {number}{' <b>LOSS 0.5</b>' if number in (10, 5000) else ''}\n"
        for number in range(1, 6001)
    )
    write(run.newest_attempt(), text)
    return str(run.get_absolute_url())


def found(page: Page) -> dict[str, str]:
    """The lines that are shown: number and where it leads."""
    hrefs = [tag.attributes.get("href", "") for tag in page.tags if tag.name == "a"]
    pairs = [href.split("#L") for href in hrefs if href.startswith("?") and "#L" in href]
    return {number: link for link, number in pairs}


def test_lines_are_found_in_all_of_the_log_whatever_their_case(world: World, log_of: str) -> None:
    client = signed_in(make_user("vera", role=Role.VIEWER))

    page = get(client, f"{log_of}?find=loss+0.5")

    assert list(found(page)) == ["10", "5000"]
    text = client.get(f"{log_of}?find=loss+0.5").content.decode()
    assert "2 lines of this log hold <q>loss 0.5</q>" in text
    assert "line 5000 &lt;b&gt;LOSS" in text
    assert 'id="log-poll"' not in text, "what was found does not grow by itself"


def test_a_found_line_leads_to_its_place(world: World, log_of: str) -> None:
    client = signed_in(world.alice)
    link = found(get(client, f"{log_of}?find=loss"))["5000"]

    page = get(client, log_of + link)

    ids = [tag.attributes.get("id", "") for tag in page.tags if tag.name == "li"]
    assert [each for each in ids if each.startswith("L")][0] == "L5000"  # noqa: RUF015
    assert "find=" not in link


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "no such words", "%00", "é" * 300])
def test_nothing_found_is_said(world: World, log_of: str, text: str) -> None:
    answer = signed_in(world.alice).get(log_of, {"find": text})

    assert answer.status_code == 200
    body = answer.content.decode()
    assert f"0 lines of this log hold <q>{escape(text[:200])}</q>" in body
    assert "<script>alert" not in body


def test_an_empty_search_shows_the_log(world: World, log_of: str) -> None:
    assert 'id="L6000"' in signed_in(world.alice).get(f"{log_of}?find=+").content.decode()


def test_more_than_a_page_of_lines_is_counted(
    world: World, log_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = signed_in(world.alice)

    text = client.get(f"{log_of}?find=line").content.decode()

    assert "6,000 lines of this log hold <q>line</q>; the first 200 are shown" in text


def test_a_search_that_took_too_long_says_that_there_may_be_more(
    world: World, log_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = logs.Found(count=0, lines=(), complete=False, total_lines=0)
    monkeypatch.setattr(logs, "search", lambda *_, **__: nothing)

    text = signed_in(world.alice).get(f"{log_of}?find=x").content.decode()

    assert "as far as it was looked through" in text
