"""Imports and exports over HTTP."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpResponse
from pytest_django.fixtures import Settings

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import User
from runs import imports, layout
from runs.core.states import Outcome, Result
from runs.models import Import, Run, RunGroup
from tests import factories
from tests.api.conftest import ApiClient
from tests.support.upstream import STAMP, row, run_id, tar_of, write_group

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def folders(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.RUN_GROUPS_DIR = tmp_path / "run-groups"
    settings.MEDIA_ROOT = tmp_path / "media"
    factories.make_competition("leaf")


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    return tar_of(write_group(tmp_path, f"{STAMP}_run-group_a", [(run_id("leaf"), row("leaf"))]))


def upload(
    api: ApiClient, *files: tuple[str, bytes], headers: dict[str, str] | None = None, **form: str
) -> tuple[int, Any]:
    data = {**form, "file": [SimpleUploadedFile(name, content) for name, content in files]}
    response = api.post(
        "/api/v1/imports",
        data,
        headers={"Authorization": f"Bearer {api.token}", **(headers or {})},
    )
    return response.status_code, json.loads(response.content)


def test_a_small_archive_is_imported_at_once(api: ApiClient, archive: bytes) -> None:
    status, answer = upload(api, ("old.tar.gz", archive), experiment="old")

    assert (status, answer["state"], answer["run_groups"], answer["runs"]) == (201, "done", 1, 1)
    group = RunGroup.objects.get()
    assert (group.imported_from, group.created_by.get_username()) == ("old.tar.gz", "alice")
    assert answer["groups"][0]["id"] == group.pk
    assert api.read(f"imports/{answer['id']}") == (200, answer)
    listed = api.read("imports")[1]
    assert [each["id"] for each in listed["items"]] == [answer["id"]]
    assert api.read(f"run-groups/{group.pk}")[1]["experiment"] == "old"


def test_a_dry_run_makes_nothing(api: ApiClient, archive: bytes) -> None:
    status, answer = upload(api, ("old.tar.gz", archive), dry_run="true")

    assert (status, answer["dry_run"], answer["run_groups"]) == (201, True, 1)
    assert not RunGroup.objects.exists()


def test_reports_are_seeds_in_the_order_that_they_were_sent(api: ApiClient) -> None:
    files = [
        (f"{9 - n}_report.json", json.dumps({"competition_reports": [row("leaf", score=n)]}))
        for n in range(3)
    ]

    status, answer = upload(api, *((name, text.encode()) for name, text in files), experiment="e")

    assert (status, answer["run_groups"]) == (201, 3)
    runs = Run.objects.order_by("group__folder")
    assert [run.score for run in runs] == [0, 1, 2]


def test_the_same_upload_again_changes_nothing_with_and_without_a_key(
    api: ApiClient, archive: bytes
) -> None:
    key = {"Idempotency-Key": "once"}

    first = upload(api, ("a.tar.gz", archive), headers=key)
    again = upload(api, ("a.tar.gz", archive), headers=key)
    other = upload(api, ("b.tar.gz", archive), headers=key)
    without = upload(api, ("a.tar.gz", archive))

    assert first == again
    assert other[0] == 409
    assert (without[1]["run_groups"], without[1]["known"]) == (0, 1)
    assert RunGroup.objects.count() == 1


def test_a_large_upload_waits_for_a_host_service(
    api: ApiClient, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "INLINE_BYTES", 10)

    status, answer = upload(api, ("big.tar.gz", archive))
    assert (status, answer["state"], answer["run_groups"]) == (202, "waiting", None)
    imports.do_asked()

    answer = api.read(f"imports/{answer['id']}")[1]
    assert (answer["state"], answer["run_groups"], answer["source"]) == ("done", 1, "big.tar.gz")
    assert Import.objects.get().upload == ""
    stored = Path(imports.settings.MEDIA_ROOT) / imports.UPLOADS
    assert list(stored.iterdir()) == []


def test_what_is_in_the_way_is_named_and_leaves_nothing(api: ApiClient, archive: bytes) -> None:
    bad = io.BytesIO()
    with tarfile.open(fileobj=bad, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../x"))

    for files, form, field, message in (
        ([("bad.tar", bad.getvalue())], {}, "file", "bad.tar: ../x: the name leads out"),
        ([], {}, "file", "Choose a tar"),
        ([("a.tar", archive), ("b.tar", archive)], {}, "file", "Send one archive"),
        ([("r.json", b"{}")], {}, "file", "r.json is no grading report"),
        ([("a.tgz", archive)], {"experiment": "x" * 201}, "file", "An experiment has a name"),
        ([("a.tgz", archive)], {"dry_run": "maybe"}, "dry_run", "true or false"),
        ([("a.tgz", archive)], {"split": "low"}, "split", "no such field"),
    ):
        status, answer = upload(api, *files, **form)
        assert (status, answer["errors"][0]["field"]) == (422, field)
        assert message in answer["errors"][0]["message"]

    assert not RunGroup.objects.exists()
    assert not Import.objects.exists()


def test_an_upload_that_is_too_large_says_what_to_do(
    api: ApiClient, archive: bytes, settings: Settings
) -> None:
    settings.IMPORT_UPLOAD_MAX_BYTES = 100

    status, answer = upload(api, ("big.tar.gz", archive))

    assert status == 422
    assert "from a folder of the server" in answer["detail"]


def test_a_folder_of_the_server_is_for_admins(
    api: ApiClient, admin_api: ApiClient, viewer_api: ApiClient, tmp_path: Path, archive: bytes
) -> None:
    body = {"path": str(tmp_path / f"{STAMP}_run-group_a"), "experiment": "e"}

    assert api.send("imports", body)[0] == 403
    assert upload(viewer_api, ("a.tar.gz", archive))[0] == 403
    status, answer = admin_api.send("imports", body)
    imports.do_asked()

    assert (status, answer["state"]) == (202, "waiting")
    assert admin_api.read(f"imports/{answer['id']}")[1]["runs"] == 1
    for wrong, field in (
        ({"path": "runs"}, "path"),
        ({"path": "/nowhere/at/all"}, "path"),
        ({}, "path"),
        ({"path": "/x", "why": 1}, "body"),
        ({"path": 3}, "path"),
    ):
        status, answer = admin_api.send("imports", wrong)
        assert status == 422, wrong
        assert answer["errors"][0]["field"] in (field, "why")
    assert admin_api.send("imports", b"{")[0] == 400


def test_an_import_that_is_not_there_is_404(api: ApiClient) -> None:
    assert api.read("imports/1")[0] == 404
    assert api.read(f"imports/{2**70}")[0] == 404


# ---------------------------------------------------------------------------- export


def exported(api: ApiClient, group: RunGroup) -> tuple[HttpResponse, dict[str, bytes]]:
    response = api.ask("GET", f"run-groups/{group.pk}/export")
    data = b"".join(response.streaming_content)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {
            info.name: file.read()
            for info in tar.getmembers()
            if (file := tar.extractfile(info)) is not None
        }
    return response, files


def finished(group: RunGroup, **fields: Any) -> Run:
    run = factories.make_run(group, **fields)
    folder = layout.attempt_folder(run.newest_attempt())
    for name, text in (("submission/submission.csv", "id,y\n"), ("code/train.py", "print(1)\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return run


def test_a_run_group_is_exported_in_upstreams_layout(api: ApiClient, alice: User) -> None:
    group = factories.make_group(owner=alice, experiment="e")
    gold = finished(group, result=Result.GOLD)
    failed = finished(group, seed=1, outcome=Outcome.AGENT_FAILED)
    broken = factories.make_run(group, seed=2, outcome=Outcome.INFRASTRUCTURE_FAILED)

    response, files = exported(api, group)

    assert response.headers["Content-Disposition"] == f'attachment; filename="{group.folder}.tar"'
    assert response.headers["Content-Type"] == "application/x-tar"
    top = group.folder
    metadata = json.loads(files[f"{top}/metadata.json"])
    assert metadata["runs"] == {
        gold.upstream_id: {"success": True},
        failed.upstream_id: {"success": False},
    }
    [report] = [name for name in files if "grading_report" in name]
    rows = json.loads(files[report])["competition_reports"]
    assert rows[0]["submission_path"] == f"{top}/{gold.upstream_id}/submission/submission.csv"
    assert files[f"{top}/{gold.upstream_id}/submission/submission.csv"] == b"id,y\n"
    assert b"Run completed in" in files[f"{top}/{gold.upstream_id}/run.log"]
    harness = json.loads(files[f"{top}/harness.json"])
    assert harness["runs"][broken.upstream_id]["outcome"] == "infrastructure_failed"
    assert not any(broken.upstream_id in name for name in files)


def test_secrets_that_were_stored_since_are_taken_out(api: ApiClient, alice: User) -> None:
    agent = factories.make_agent("keyed", env_vars={"KEY": "${{ secrets.API_KEY }}"})
    group = factories.make_group(owner=alice, agent=agent, experiment="my sk-very-secret-0001")
    group.agent_env = agent.env_vars
    group.save()
    run = finished(group, result=Result.GOLD)
    log = layout.attempt_folder(run.newest_attempt()) / "code" / "train.py"
    log.write_text("key = 'sk-very-secret-0001'\n" * 100_000)

    vault.put("API_KEY", "sk-very-secret-0001", owner=alice, by=alice)
    _, files = exported(api, group)

    assert b"sk-very-secret-0001" not in b"".join(files.values())
    assert "•••".encode() in files[f"{group.folder}/{run.upstream_id}/code/train.py"]
    assert json.loads(files[f"{group.folder}/harness.json"])["experiment"] == "my •••"


def test_what_no_import_would_take_is_left_out_and_named(api: ApiClient, alice: User) -> None:
    group = factories.make_group(owner=alice)
    run = finished(group, result=Result.GOLD)
    code = layout.attempt_folder(run.newest_attempt()) / "code"
    (code / "evil\u202egpj.sh").write_text("x")
    (code / "link").symlink_to("/etc/passwd")

    _, files = exported(api, group)

    harness = json.loads(files[f"{group.folder}/harness.json"])
    why = {each["path"].rsplit("/", 1)[1]: each["why"] for each in harness["left_out"]}
    assert "cannot be seen" in why["evil\\u202egpj.sh"]
    assert why["link"] == "link is a symbolic link, not a regular file"
    assert harness["left_out_count"] == 2


def test_an_export_is_for_those_who_may_download(
    viewer_api: ApiClient, api: ApiClient, alice: User
) -> None:
    group = factories.make_group(owner=alice)

    assert viewer_api.read(f"run-groups/{group.pk}/export")[0] == 403
    assert api.read("run-groups/999/export")[0] == 404
