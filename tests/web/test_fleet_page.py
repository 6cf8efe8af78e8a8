"""The fleet pages: hosts, GPUs, and who may drain."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from mlebench_web.accounts.models import AuditEntry, Role
from mlebench_web.fleet.models import Gpu, Host
from runs.core.states import State
from runs.models import Run
from tests.factories import make_host, make_run, make_user
from tests.web.conftest import World, signed_in
from tests.web.pages import get

pytestmark = pytest.mark.django_db


def test_every_host_says_how_it_is_and_when_it_was_seen(world: World) -> None:
    text = signed_in(world.alice).get(reverse("fleet")).content.decode()

    for words in (
        "Online",
        "Silent, last seen 1 h ago",
        "Never seen",
        "No engine",
        "driver mismatch",
    ):
        assert words in text, words


def test_a_host_whose_worker_alone_is_silent_says_so() -> None:
    make_host("box-9", worker_seen_at=timezone.now() - timedelta(minutes=30))

    text = signed_in(make_user()).get(reverse("fleet")).content.decode()

    assert "Worker silent, seen 30 min ago" in text


def test_a_leased_gpu_leads_to_its_run_and_a_faulty_one_says_why(world: World) -> None:
    page = get(signed_in(world.alice), reverse("host", args=["box-2"]))

    assert world.lost.get_absolute_url() in page.links()
    assert any("Lost." in t.text for t in page.tags if t.attributes.get("class") == "st bad")


def test_gpus_that_a_broken_driver_hides_are_missed(world: World) -> None:
    Gpu.objects.filter(host__name="box-2").update(is_present=False)

    text = signed_in(world.alice).get(reverse("fleet")).content.decode()

    assert "2 GPUs no longer reported" in text


def test_what_was_not_measured_is_not_zero(world: World) -> None:
    page = get(signed_in(world.alice), reverse("host", args=["box-3"]))

    figures = next(t for t in page.tags if t.attributes.get("class") == "kpis").text
    assert figures.count("n/a") >= 3


def test_an_admin_drains_and_undrains(world: World) -> None:
    client = signed_in(world.admin)

    client.post(reverse("drain", args=["box-1"]))
    assert Host.objects.get(name="box-1").is_draining
    client.post(reverse("undrain", args=["box-1"]))

    assert not Host.objects.get(name="box-1").is_draining
    assert list(AuditEntry.objects.values_list("action", flat=True)) == ["undrain", "drain"]


def five_hours_left(host: Host) -> None:
    """A run with 5 h 20 of its 24 h left, and one with less."""
    began = timezone.now() - timedelta(hours=18, minutes=40, seconds=1)
    make_run(state=State.RUNNING, host=host, began=began)
    make_run(state=State.RUNNING, host=host, began=began - timedelta(hours=3))


@pytest.mark.parametrize("path", ["fleet", "host"])
def test_draining_says_how_long_it_takes_before_it_is_confirmed(path: str) -> None:
    host, idle = make_host("box-1"), make_host("box-2")
    five_hours_left(host)
    client = signed_in(make_user("ada", role=Role.ADMIN))

    page = get(client, reverse(path, args=["box-1"] if path == "host" else []))

    dialog = page.with_id(f"drain-{host.pk}")
    assert "that takes at most 5 h 20 of agent time." in dialog.text
    assert page.check() == []
    opens = [
        tag.text for tag in page.tags if tag.attributes.get("popovertarget") == f"drain-{host.pk}"
    ]
    assert opens == ["Drain…", "Leave"]
    if path == "fleet":
        assert "No agent is at work on it now." in page.with_id(f"drain-{idle.pk}").text


def test_a_draining_host_says_how_long_it_takes() -> None:
    host = make_host("box-1")
    five_hours_left(host)
    client = signed_in(make_user("ada", role=Role.ADMIN))
    address = reverse("host", args=["box-1"])

    def note() -> str:
        return next(
            tag.text
            for tag in get(client, address).tags
            if tag.attributes.get("class") == "note info"
        )

    answer = client.post(reverse("drain", args=["box-1"]), follow=True).content.decode()
    assert "What it has is finished after at most 5 h 20 of agent time." in answer
    assert note().endswith("What it has is finished after at most 5 h 20 of agent time.")
    moved = client.post(reverse("drain", args=["box-1"]), {"move": "1"}, follow=True)
    assert f"drain-{host.pk}" not in moved.content.decode(), "nothing left to confirm"

    Run.objects.all().delete()

    assert note() == "DrainingIt takes no new runs, and has none left."


@pytest.mark.parametrize("role", [Role.VIEWER, Role.RESEARCHER, Role.LEAD])
def test_others_see_why_they_may_not_drain(role: Role) -> None:
    make_host("box-1")
    client = signed_in(make_user("someone", role=role))

    page = get(client, reverse("host", args=["box-1"]))
    refused = client.post(reverse("drain", args=["box-1"]))

    button = next(t for t in page.tags if t.name == "button" and t.text == "Drain")
    assert "disabled" in button.attributes
    assert "only admins may do this" in page.with_id("live").text
    assert refused.status_code == 403
    assert not Host.objects.get(name="box-1").is_draining


def test_a_host_that_was_put_aside_is_red_and_an_admin_uses_it_again(world: World) -> None:
    Host.objects.filter(name="box-1").update(put_aside="3 attempts in a row failed here")
    client = signed_in(world.admin)

    text = client.get(reverse("host", args=["box-1"])).content.decode()
    assert '<span class="st bad">Put aside</span><p>3 attempts in a row failed here' in text
    client.post(reverse("use_again", args=["box-1"]))

    assert Host.objects.get(name="box-1").put_aside == ""
    assert "Use again" not in client.get(reverse("host", args=["box-1"])).content.decode()


def test_a_silent_host_loses_contact_first_and_is_silent_later(world: World) -> None:
    def seen(minutes: float) -> str:
        then = timezone.now() - timedelta(minutes=minutes)
        Host.objects.filter(name="box-2").update(worker_seen_at=then, service_seen_at=then)
        return signed_in(world.alice).get(reverse("host", args=["box-2"])).content.decode()

    assert '<span class="st warn"' in seen(5)
    assert "Lost contact, last seen 5 min ago" in seen(5)
    assert "Silent, last seen 20 min ago" in seen(20)
    fleet = signed_in(world.alice).get(reverse("fleet")).content.decode()
    assert "1 run without contact since 5 min ago" in fleet


def test_an_admin_says_that_a_silent_host_is_gone(world: World) -> None:
    client = signed_in(world.admin)
    refused = client.post(reverse("host_lost", args=["box-2"]), follow=True)
    assert "so it is not gone" in refused.content.decode()
    then = timezone.now() - timedelta(minutes=5)
    Host.objects.filter(name="box-2").update(worker_seen_at=then, service_seen_at=then)
    page = get(client, reverse("host", args=["box-2"]))
    assert "end as host lost at once" in page.with_id("gone").text

    answer = client.post(reverse("host_lost", args=["box-2"]), follow=True)

    assert "1 run ended there" in answer.content.decode()
    assert "Said to be gone" in answer.content.decode()
    assert world.lost.newest_attempt().state == State.QUEUED


@pytest.mark.parametrize("verb", ["use_again", "host_lost"])
@pytest.mark.parametrize("role", [Role.VIEWER, Role.LEAD])
def test_nobody_else_decides_about_hosts(world: World, role: Role, verb: str) -> None:
    client = signed_in(make_user("someone", role=role))

    assert client.post(reverse(verb, args=["box-3"])).status_code == 403
    assert not Host.objects.get(name="box-3").declared_lost_at


def test_an_empty_fleet_says_how_to_add_a_host() -> None:
    text = signed_in(make_user()).get(reverse("fleet")).content.decode()

    assert "./run" in text
