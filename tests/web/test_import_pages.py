"""The pages of imports, the marks of what came in, and the button that lets it out."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from mlebench_web.accounts.models import Role, User
from runs import imports
from runs.models import Import, RunGroup
from tests.factories import make_competition, make_split, make_user
from tests.support.upstream import STAMP, row, run_id, tar_of, write_group, write_report
from tests.web.conftest import signed_in
from tests.web.pages import get, parse

pytestmark = pytest.mark.django_db
GROUP = f"{STAMP}_run-group_aide"


@pytest.fixture(autouse=True)
def folders(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.RUN_GROUPS_DIR = tmp_path / "run-groups"
    settings.MEDIA_ROOT = tmp_path / "media"
    make_split("pair", [make_competition("leaf"), make_competition("cactus")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [(run_id(name), row(name, "gold")) for name in ("leaf", "cactus")]
    return write_group(tmp_path / "runs", GROUP, rows)


@pytest.fixture
def client() -> Client:
    return signed_in(make_user("alice"))


def send(client: Client, data: bytes, *, what: str, **fields: str) -> HttpResponse:
    upload = SimpleUploadedFile("old.tar.gz", data)
    return client.post(reverse("imports"), {"file": upload, "what": what, **fields})


def test_a_dry_run_then_the_import_by_the_form(client: Client, folder: Path) -> None:
    write_report(folder.parent, "x_grading_report.json", [("", row("unheard-of"))])

    dry = send(client, tar_of(folder.parent), what="dry")
    page = get(client, dry.headers["Location"])

    text = parse_text(page)
    assert "Nothing was changed" in text
    assert GROUP in text
    assert "Unknown competitions: unheard-of" in text
    assert page.check() == []
    assert not RunGroup.objects.exists()

    done = send(client, tar_of(folder.parent), what="import", experiment="old")

    group = RunGroup.objects.get()
    page = get(client, done.headers["Location"])
    assert group.get_absolute_url() in page.links()
    assert group.experiment.name == "old"
    assert get(client, reverse("imports")).check() == []


def parse_text(page: object) -> str:
    return " ".join(tag.text for tag in page.tags if tag.name == "main")  # type: ignore[attr-defined]


def test_a_refused_upload_is_told_at_the_form(client: Client) -> None:
    bad = io.BytesIO()
    with tarfile.open(fileobj=bad, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("/etc/x"))

    for data, message in (
        (bad.getvalue(), "old.tar.gz: /etc/x: the name is an absolute path"),
        (b"", "The archive is empty"),
    ):
        response = send(client, data, what="import")

        assert response.status_code == 422
        assert message in response.content.decode()
        assert parse(response).check() == []
    assert not Import.objects.exists()


def test_only_admins_may_name_a_folder_of_the_server(folder: Path, client: Client) -> None:
    admin = signed_in(make_user("ada", role=Role.ADMIN))
    asked = {"folder": str(folder), "what": "import"}

    refused = client.post(reverse("imports"), asked)
    taken = admin.post(reverse("imports"), asked)
    waiting = parse_text(get(admin, taken.headers["Location"]))
    imports.do_asked()
    done = parse_text(get(admin, taken.headers["Location"]))

    assert refused.status_code == 403
    assert "Waiting for a host service" in waiting
    assert "Done" in done
    assert "or a folder or archive of the server" not in parse_text(get(client, reverse("imports")))


def test_a_viewer_may_look_only(folder: Path) -> None:
    viewer = signed_in(make_user("vera", role=Role.VIEWER))

    assert "Viewers may look only" in parse_text(get(viewer, reverse("imports")))
    assert send(viewer, tar_of(folder), what="import").status_code == 403


def test_what_came_in_is_marked_with_its_source_on_every_page(client: Client, folder: Path) -> None:
    (folder / "harness.json").write_text(
        json.dumps({"harness": "mlebench-web", "experiment": "old", "agent": "their/agent"})
    )
    send(client, tar_of(folder), what="import")
    group = RunGroup.objects.get()
    run = group.runs.first()
    assert run is not None

    group_page = get(client, group.get_absolute_url())
    run_page = get(client, run.get_absolute_url())

    for page in (group_page, run_page):
        assert "imported from old.tar.gz" in parse_text(page)
        assert page.check() == []
    assert "their/agent, not in the catalog" in parse_text(group_page)
    assert "Its source does not say what it had." in parse_text(run_page)
    assert "imported" in parse_text(get(client, reverse("leaderboard") + "?split=pair"))
    assert "imported" in parse_text(get(client, reverse("groups")))


def test_the_button_of_a_run_group_gives_a_tar(client: Client, folder: Path, viewer: User) -> None:
    send(client, tar_of(folder), what="import")
    group = RunGroup.objects.get()
    path = reverse("export_group", args=[group.pk])
    assert path in get(client, group.get_absolute_url()).links()

    response = client.get(path)

    data = io.BytesIO(b"".join(response.streaming_content))  # type: ignore[attr-defined]
    with tarfile.open(fileobj=data) as archive:
        assert f"{GROUP}/metadata.json" in archive.getnames()
    assert "sandbox" in response.headers["Content-Security-Policy"]
    assert signed_in(viewer).get(path).status_code == 403
