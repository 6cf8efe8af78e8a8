"""The run page: every state, the log, and files that a hostile program left."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from mlebench_web.accounts.models import Role
from runs import layout, logs
from runs.core.failures import Cause
from runs.core.interruptions import Interruption, Kind
from runs.core.states import Outcome, Result, RunState, State
from runs.models import Attempt, Installation, LogSegment, Run, SubmissionSnapshot
from tests.factories import make_report, make_run, make_user
from tests.web.conftest import World, signed_in
from tests.web.pages import Page, get, parse

pytestmark = pytest.mark.django_db


def write(attempt: Attempt, text: str, source: str = "agent") -> None:
    """The agent writes on in its log, and the supervisor ships it."""
    folder = Path(settings.ATTEMPTS_DIR) / f"test-{attempt.pk}-{attempt.run.uuid}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as file:
        file.write(text)
    logs.Shipper(attempt.pk, source, folder, "log").ship(final=True)


# ---------------------------------------------------------------------------- states


def test_a_failed_run_says_first_what_happened_and_what_to_do(world: World) -> None:
    run = world.by_outcome[Outcome.AGENT_FAILED]

    page = get(signed_in(world.alice), run.get_absolute_url())

    cause = next(t for t in page.tags if "cause" in t.attributes.get("class", "").split())
    for words in ("The agent crashed.", "Exit code1", "box-1", "Read the last lines", "seen <b>so"):
        assert words in cause.text.replace("\n", ""), words
    assert page.tags.index(cause) < page.tags.index(page.with_id("run-left"))


def test_lost_contact_is_amber_and_promises_nothing(world: World) -> None:
    text = signed_in(world.alice).get(world.lost.get_absolute_url()).content.decode()

    assert '<span role="status" class="st warn">Lost contact' in text
    assert "nothing is started anew for now" in text


def test_an_expired_lease_is_no_lost_contact_while_nobody_could_renew_one(world: World) -> None:
    Installation.this()
    Installation.objects.update(trust_leases_from=timezone.now() + timedelta(seconds=60))
    client = signed_in(world.alice)

    for thing in (world.lost, world.group):
        assert "Lost contact" not in client.get(thing.get_absolute_url()).content.decode()


def test_a_silent_engine_is_amber_and_says_since_when(world: World) -> None:
    run = world.by_state[State.RUNNING]
    Attempt.objects.filter(run=run).update(
        engine_silent_since=timezone.now() - timedelta(minutes=3),
        engine_silence="Connection <refused>",
    )

    text = signed_in(world.alice).get(run.get_absolute_url()).content.decode()

    assert '<span class="st warn">Engine silent</span>' in text
    assert "3 min ago" in text
    assert "Connection &lt;refused&gt;" in text


def test_what_is_not_charged_is_itemised(world: World) -> None:
    run = world.by_result[Result.GOLD]
    pause = Interruption(Kind.PAUSED, at=30, seconds=40).as_json()
    down = Interruption(Kind.DOWN, at=80, seconds=20).as_json()
    Attempt.objects.filter(run=run).update(
        interruptions=[pause, down],
        paused_seconds=40,
        down_seconds=20,
        overrides={"time_limit_s": 7200, "host": "box-1"},
    )

    page = get(signed_in(world.alice), run.get_absolute_url())

    chart = next(t for t in page.tags if "agent" in t.attributes.get("aria-label", ""))
    for words in ("waited in the queue 3 s", "start-up 1 s", "paused while its worker was cut off"):
        assert words in chart.attributes["aria-label"], words
    table = next(t for t in page.tags if t.name == "details" and "Where the time" in t.text)
    for words in ("40 s", "20 s", "on box-1, time limit 2 h", "may have counted that"):
        assert words in table.text, words


def test_the_score_over_time_is_shown_of_ended_attempts_only(world: World) -> None:
    ended, running = world.by_result[Result.GOLD], world.by_state[State.RUNNING]
    for run in (ended, running):
        for seconds, score in ((10, 0.3), (60, 0.2)):
            SubmissionSnapshot.objects.create(
                attempt=run.newest_attempt(),
                active_seconds=seconds,
                digest="d",
                size=1,
                is_valid=True,
                score=score,
            )
    client = signed_in(world.alice)

    text = client.get(ended.get_absolute_url()).content.decode()
    assert "Score over active time" in text
    assert "3 scored submissions: first 0.3 after 10 s" in text, "and what was left at the end"
    assert "Score over active time" not in client.get(running.get_absolute_url()).content.decode()


def test_a_rerun_takes_another_host_and_limit(world: World) -> None:
    run = world.by_outcome[Outcome.INFRASTRUCTURE_FAILED]
    client = signed_in(world.alice)

    wrong = client.post(
        reverse("rerun_run", args=[run.pk]), {"time_limit_hours": "soon"}, follow=True
    )
    assert "is no number" in wrong.content.decode()
    assert run.attempts.count() == 1
    asked = {"host": "box-2", "time_limit_hours": "0.5", "step_timeout_hours": "0.25"}
    client.post(reverse("rerun_run", args=[run.pk]), asked)

    overrides = {"host": "box-2", "time_limit_s": 1800, "step_timeout_s": 900}
    assert run.newest_attempt().overrides == overrides
    assert "on box-2" in client.get(run.get_absolute_url()).content.decode()


def test_all_attempts_stay_visible_with_their_causes(world: World) -> None:
    text = signed_in(world.alice).get(world.retried.get_absolute_url()).content.decode()

    for words in ("The host&#x27;s disk is full.", "Continued", "Graded", "attempt 3"):
        assert words in text, words
    assert "<svg" in text


def test_a_step_timeout_names_its_step(world: World) -> None:
    attempt = Attempt.objects.get(cause=Cause.STEP_TIMEOUT)
    words = "Step 6 (<fold>) took longer than 20 s. It is the third step timeout in a row."
    Attempt.objects.filter(pk=attempt.pk).update(cause_detail=words)

    text = signed_in(world.alice).get(attempt.run.get_absolute_url()).content.decode()

    assert escape(words) in text


def test_a_graded_run_shows_its_report_under_upstreams_names(world: World) -> None:
    page = get(signed_in(world.alice), world.by_result[Result.SILVER].get_absolute_url())

    report = page.with_id("run-right").text
    for name in ("competition_id", "gold_threshold", "submission_path", "is_lower_better"):
        assert name in report
    assert any("Score 0.09" in t.attributes.get("aria-label", "") for t in page.tags)


def test_an_invalid_submission_says_why_it_is_invalid(world: World) -> None:
    text = signed_in(world.alice).get(world.by_result[Result.INVALID].get_absolute_url())

    assert "Wrong number of rows." in text.content.decode()


def test_the_thresholds_of_a_result_stay_when_the_competitions_change(world: World) -> None:
    run = world.by_result[Result.GOLD]
    run.competition.gold_threshold = 0.001
    run.competition.save()

    text = get(signed_in(world.alice), run.get_absolute_url()).with_id("run-right").text

    assert "0.085" in text
    assert "0.001" not in text


def test_a_running_run_polls_and_an_ended_one_does_not(world: World) -> None:
    client = signed_in(world.alice)

    running = get(client, world.by_state[State.RUNNING].get_absolute_url())
    ended = get(client, world.by_result[Result.GOLD].get_absolute_url())

    for name in ("run-poll", "log-poll"):
        assert running.with_id(name).attributes["hx-trigger"] == "tick from:body"
        assert "hx-trigger" not in ended.with_id(name).attributes


def test_a_poll_replaces_all_parts_that_change_but_not_the_log(world: World) -> None:
    path = world.by_state[State.RUNNING].get_absolute_url()

    part = parse(signed_in(world.alice).get(path, headers={"HX-Request": "true"}))

    swapped = {t.attributes["id"] for t in part.tags if "hx-swap-oob" in t.attributes}
    assert swapped == {"run-head", "run-left", "run-right", "run-below", "run-poll"}
    assert not part.has_id("log")


def test_neighbours_are_those_of_the_grid(world: World) -> None:
    ordered = list(world.group.runs.order_by("competition__name", "seed"))

    page = get(signed_in(world.alice), ordered[1].get_absolute_url())

    keys = {t.attributes.get("data-key"): t.attributes.get("href") for t in page.tags}
    assert keys["["] == ordered[0].get_absolute_url()
    assert keys["]"] == ordered[2].get_absolute_url()


# ---------------------------------------------------------------------------- verbs


def test_the_owner_cancels_a_queued_run(world: World) -> None:
    run = world.by_state[State.QUEUED]

    signed_in(world.alice).post(reverse("cancel_run", args=[run.pk]))

    assert Run.objects.get(pk=run.pk).state == RunState.CANCELLED


def test_a_cancel_after_the_agents_end_is_refused_in_words(world: World) -> None:
    run = world.by_state[State.GRADING]

    response = signed_in(world.alice).post(reverse("cancel_run", args=[run.pk]), follow=True)

    assert "nothing left to cancel" in response.content.decode()


@pytest.mark.parametrize("verb", ["cancel_run", "rerun_run"])
def test_a_stranger_changes_no_run(world: World, verb: str) -> None:
    run = world.by_outcome[Outcome.INFRASTRUCTURE_FAILED]

    response = signed_in(make_user("charlie", team="speech")).post(reverse(verb, args=[run.pk]))

    assert response.status_code == 403
    assert run.attempts.count() == 1


def test_a_graded_run_is_offered_no_second_try(world: World) -> None:
    run = world.by_result[Result.VALID]
    client = signed_in(world.alice)

    page = get(client, run.get_absolute_url())
    client.post(reverse("rerun_run", args=[run.pk]))

    assert not page.posts_to(reverse("rerun_run", args=[run.pk]))
    assert run.attempts.count() == 1


def test_a_cut_short_run_may_run_again(world: World) -> None:
    run = world.by_result[Result.VALID]
    Run.objects.filter(pk=run.pk).update(is_cut_short=True)

    page = get(signed_in(world.alice), run.get_absolute_url())

    assert page.posts_to(reverse("rerun_run", args=[run.pk]))


# ---------------------------------------------------------------------------- log


def test_the_log_is_escaped_and_coloured(world: World) -> None:
    run = world.by_state[State.RUNNING]
    write(run.newest_attempt(), "\x1b[31mred\x1b[0m <script>alert(1)</script>\nsecond\n")

    text = signed_in(world.alice).get(run.get_absolute_url()).content.decode()

    assert '<span class="a-r">red</span>' in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert 'id="L2"' in text


def test_a_poll_of_the_log_brings_only_new_lines(world: World) -> None:
    run = world.by_state[State.RUNNING]
    attempt = run.newest_attempt()
    client = signed_in(world.alice)
    write(attempt, "one\ntwo\n")
    path = get(client, run.get_absolute_url()).with_id("log-poll").attributes["hx-get"]

    quiet = client.get(path)
    write(attempt, "three\nfo")
    news = client.get(path)
    page = parse(news)

    assert quiet.status_code == 204
    lines = [t.text for t in page.tags if t.name == "li"]
    assert lines == ["3three", "4fo"]
    # The line without an end stands apart: it may still grow, and comes again.
    assert page.with_id("log-rest").text == "4fo"
    write(attempt, "ur\n")
    following = page.with_id("log-poll").attributes["hx-get"]
    assert [t.text for t in parse(client.get(following)).tags if t.name == "li"] == ["4four"]


def test_the_log_stops_polling_when_all_of_an_ended_attempt_is_shown(world: World) -> None:
    attempt = world.by_result[Result.GOLD].newest_attempt()
    write(attempt, "done\n")

    page = parse(
        signed_in(world.alice).get(reverse("run_log", args=[attempt.run_id, attempt.number]))
    )

    assert "hx-trigger" not in page.with_id("log-poll").attributes


def test_the_tail_of_a_long_log_is_shown_and_the_rest_is_a_link_away(world: World) -> None:
    run = world.by_result[Result.GOLD]
    text = "".join(f"line {number}\n" for number in range(1, 6001))
    write(run.newest_attempt(), text)
    client = signed_in(world.alice)

    def lines(page: Page) -> list[int]:
        ids = [t.attributes.get("id", "") for t in page.tags if t.name == "li"]
        return [int(each[1:]) for each in ids if each.startswith("L")]

    def follow(page: Page, word: str) -> Page:
        return get(client, run.get_absolute_url() + next(x for x in page.links() if word in x))

    tail = get(client, run.get_absolute_url())
    middle = follow(tail, "before=")
    start = follow(middle, "before=")
    again = follow(start, "after=")

    # Reading back and on, no line is left out and none comes twice.
    assert lines(start) + lines(middle) + lines(tail) == list(range(1, 6001))
    assert lines(again) == lines(middle)
    assert not any("before=" in link for link in start.links())


def test_a_poll_that_has_much_to_bring_brings_it_in_parts(world: World) -> None:
    run = world.by_state[State.RUNNING]
    client = signed_in(world.alice)
    path = get(client, run.get_absolute_url()).with_id("log-poll").attributes["hx-get"]
    write(run.newest_attempt(), "".join(f"line {number}\n" for number in range(1, 2501)))

    first = parse(client.get(path))
    second = parse(client.get(first.with_id("log-poll").attributes["hx-get"]))

    assert [sum(t.name == "li" for t in page.tags) for page in (first, second)] == [2000, 500]


def test_the_raw_log_is_a_download_of_every_byte(world: World) -> None:
    attempt = world.by_result[Result.GOLD].newest_attempt()
    write(attempt, "a\x1b[31mb\n" * 300_000)

    response = signed_in(world.alice).get(
        reverse("raw_log", args=[attempt.run_id, attempt.number, "agent"])
    )

    assert b"".join(response) == b"a\x1b[31mb\n" * 300_000  # type: ignore[arg-type]
    assert response.headers["Content-Disposition"].startswith("attachment")
    assert "sandbox" in response.headers["Content-Security-Policy"]


def test_a_log_that_cannot_be_read_is_said_and_harms_nothing_else(world: World) -> None:
    run = world.by_result[Result.GOLD]
    write(run.newest_attempt(), "gone\n")
    LogSegment.objects.filter(attempt__run=run, source="agent").update(path="logs/nowhere")

    text = signed_in(world.alice).get(run.get_absolute_url()).content.decode()

    assert "Not readable" in text
    assert "Grading report" in text


def test_an_attempt_without_words_shows_what_we_did(world: World) -> None:
    """The container never started: the answer is in our own log, so that is what opens."""
    run = make_run(world.group, seed=90, outcome=Outcome.INFRASTRUCTURE_FAILED)
    logs.append(run.newest_attempt().pk, "run", "no such image")

    text = signed_in(world.alice).get(run.get_absolute_url()).content.decode()

    assert "no such image" in text


@pytest.mark.parametrize(
    ("outcome", "tabs"), [(None, len(LogSegment.Source.values)), (Outcome.GRADED, 1)]
)
def test_a_page_opened_before_the_first_word_leads_to_all_logs(
    world: World, outcome: Outcome | None, tabs: int
) -> None:
    """Its header is not polled. What an ended attempt never wrote is not offered."""
    run = make_run(world.group, seed=91, outcome=outcome)

    page = get(signed_in(world.alice), run.get_absolute_url())

    links = [t for t in page.tags if "source=" in t.attributes.get("href", "")]
    assert len(links) == tabs


# ---------------------------------------------------------------------------- files


@pytest.fixture
def left(world: World) -> Attempt:
    """An attempt that left a page of HTML, and tried to leave more than that."""
    attempt = world.by_result[Result.GOLD].newest_attempt()
    folder = Path(layout.attempt_folder(attempt))
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "page.html").write_text("<script>alert(1)</script>")
    secret = folder.parent / "secret.txt"
    secret.write_text("answers")
    (folder / "code" / "link.txt").symlink_to(secret)
    (folder / "run.log").write_text("answers")
    os.mkfifo(folder / "code" / "pipe")
    attempt.artifacts = [
        {"path": path, "bytes": 1}
        for path in ("code/page.html", "code/link.txt", "code/pipe", "../secret.txt", "gone.txt")
    ]
    attempt.save(update_fields=["artifacts"])
    return attempt


def file_path(attempt: Attempt, path: str) -> str:
    return reverse("artifact", args=[attempt.run_id, attempt.number, path])


def test_a_file_is_a_download_and_never_a_page_of_ours(world: World, left: Attempt) -> None:
    response = signed_in(world.alice).get(file_path(left, "code/page.html"))

    assert b"".join(response) == b"<script>alert(1)</script>"  # type: ignore[arg-type]
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Content-Disposition"] == 'attachment; filename="page.html"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("code/link.txt", id="a link to what lies outside"),
        pytest.param("code/pipe", id="a pipe, which would hang"),
        pytest.param("../secret.txt", id="a name that climbs, though it is in the list"),
        pytest.param("gone.txt", id="a file that is no longer there"),
        pytest.param("run.log", id="a file that is there but not in the list"),
        pytest.param("code/../code/page.html", id="another spelling of a listed file"),
    ],
)
def test_other_files_are_refused(world: World, left: Attempt, path: str) -> None:
    response = signed_in(world.alice).get(file_path(left, path))

    assert response.status_code in (403, 404)
    assert b"answers" not in response.content


def test_a_viewer_gets_no_files(world: World, left: Attempt) -> None:
    client = signed_in(make_user("vera", role=Role.VIEWER))

    response = client.get(file_path(left, "code/page.html"))
    page = get(client, left.run.get_absolute_url())

    assert response.status_code == 403
    assert file_path(left, "code/page.html") not in page.links()


def test_a_report_of_a_regrade_is_the_one_that_is_shown(world: World) -> None:
    run = world.by_result[Result.GOLD]
    make_report(run.newest_attempt(), result=Result.VALID, score=0.7)

    text = get(signed_in(world.alice), run.get_absolute_url()).with_id("run-right").text

    assert "0.7" in text


def test_times_in_the_future_do_not_break_the_page(world: World) -> None:
    """Hosts with wrong clocks exist."""
    attempt = world.by_state[State.RUNNING].newest_attempt()
    Attempt.objects.filter(pk=attempt.pk).update(
        agent_started_at=timezone.now() + timedelta(hours=2)
    )

    assert get(signed_in(world.alice), attempt.run.get_absolute_url()).check() == []
