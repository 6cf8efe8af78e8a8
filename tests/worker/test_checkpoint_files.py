"""An agent's state is copied aside as it was at one moment, and comes back as it was.

What is copied belongs to a hostile program; nothing of it may lead outside.
"""

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from pytest_django import Settings

from runs.checkpoints import store as checkpoint_store
from runs.checkpoints.files import Copy, Restless, TooMuch, copy_aside, look_at, put_back
from runs.checkpoints.store import Corrupt
from runs.core.checkpoints import (
    CHUNK_BYTES,
    Entry,
    Kind,
    Manifest,
    ManifestInvalid,
    Seen,
    decode,
    encode,
    unchanged,
)

ROOTS = ["ckpt", "state/home-agent-logs"]
RUN = 7


@pytest.fixture(autouse=True)
def storage(settings: object, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"  # type: ignore[attr-defined]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "attempt"
    for name in ROOTS:
        (root / name).mkdir(parents=True)
    return root


def copied(root: Path, last: Manifest | None = None, **fields: object) -> Copy:
    def known(seen: Mapping[str, Seen]) -> Mapping[str, Entry]:
        return unchanged(seen, last, attempt=1, host="here")

    values: dict[str, object] = {"known": known, "refuse": lambda seen: "", **fields}
    return copy_aside(root, ROOTS, root / "saving", **values)  # type: ignore[arg-type]


def saved(root: Path, last: Manifest | None = None) -> tuple[Manifest, int]:
    """The manifest, and the bytes that it added to storage."""
    copy = copied(root, last)
    return checkpoint_store.store(
        RUN,
        copy,
        unchanged(copy.look.seen, last, attempt=1, host="here"),
        attempt=1,
        host="here",
        sound=last.blobs() if last else frozenset(),
    )


def restored(manifest: Manifest, into: Path) -> Path:
    for name in ROOTS:
        (into / name).mkdir(parents=True)
    put_back(
        decode(encode(manifest), roots=ROOTS).entries,
        into,
        read=lambda entry: checkpoint_store.content(RUN, entry),
        tick=lambda: None,
    )
    return into


# ------------------------------------------------------------------------------ there and back


def test_everything_comes_back_with_content_rights_and_times(root: Path, tmp_path: Path) -> None:
    deep = root / "ckpt/a/b"
    deep.mkdir(parents=True)
    (deep / "model.bin").write_bytes(os.urandom(3 * 2**20))
    (root / "ckpt/empty").touch()
    (root / "ckpt/run.sh").write_text("echo")
    (root / "ckpt/run.sh").chmod(0o755)
    os.utime(root / "ckpt/run.sh", (1e9, 1e9))
    (root / "ckpt/readonly").mkdir()
    (root / "ckpt/readonly/x").write_text("x")
    (root / "ckpt/readonly").chmod(0o555)
    (root / "state/home-agent-logs/journal.json").write_text('{"nodes": []}')
    odd = os.fsdecode(b"ckpt/\xff name")
    (root / odd).write_text("odd")

    back = restored(saved(root)[0], tmp_path / "back")

    for path in (p for p in sorted(root.rglob("*")) if p.is_file() and "saving" not in p.parts):
        same = back / path.relative_to(root)
        assert same.read_bytes() == path.read_bytes()
        assert same.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert (back / "ckpt/run.sh").stat().st_mode & 0o777 == 0o755
    # A folder that its owner could not write in would stop the agent that goes on.
    assert (back / "ckpt/readonly").stat().st_mode & 0o700 == 0o700
    assert (back / odd).read_text() == "odd"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_belong_to_the_user_of_the_image_again(root: Path, tmp_path: Path) -> None:
    (root / "ckpt/x").write_text("x")
    os.chown(root / "ckpt/x", 1000, 1000)

    back = restored(saved(root)[0], tmp_path / "back")

    assert (back / "ckpt/x").stat().st_uid == 1000


def test_only_new_pieces_are_stored(root: Path) -> None:
    noise = os.urandom(CHUNK_BYTES)
    (root / "ckpt/big").write_bytes(noise + b"1" * 100)
    (root / "ckpt/same").write_bytes(os.urandom(5000))
    first, added = saved(root)
    assert added > CHUNK_BYTES

    with (root / "ckpt/big").open("ab") as file:
        file.write(b"2" * 100)
    (root / "ckpt/copy").write_bytes((root / "ckpt/same").read_bytes())
    second, added = saved(root, first)

    assert added < 1000
    assert saved(root, second)[1] == 0


def test_text_is_packed_and_noise_is_not(root: Path) -> None:
    (root / "ckpt/text").write_bytes(b"epoch 1 loss 0.1\n" * 10_000)
    (root / "ckpt/noise").write_bytes(os.urandom(170_000))

    manifest, added = saved(root)

    assert {each.path: each.chunks[0].packed for each in manifest.entries} == {
        "ckpt/text": True,
        "ckpt/noise": False,
    }
    assert 170_000 <= added < 180_000


# ------------------------------------------------------------------------------ hostile content


def test_links_come_back_as_links_and_are_never_followed(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inner").write_text("of the host")
    (root / "ckpt/file").symlink_to(secret)
    (root / "ckpt/folder").symlink_to(folder)
    (root / "ckpt/latest").symlink_to("step-3")

    manifest, added = saved(root)
    back = restored(manifest, tmp_path / "back")

    assert added == 0
    assert {each.seen.kind for each in manifest.entries} == {Kind.LINK}
    assert os.readlink(back / "ckpt/latest") == "step-3"
    assert secret.read_text() == "of the host"
    assert [each.name for each in folder.iterdir()] == ["inner"]


def test_pipes_sockets_and_devices_are_left_out(root: Path) -> None:
    os.mkfifo(root / "ckpt/pipe")
    (root / "ckpt/x").write_text("x")

    manifest, _ = saved(root)

    assert ([each.path for each in manifest.entries], manifest.left_out) == (["ckpt/x"], 1)


def test_a_folder_that_is_a_link_itself_is_not_entered(root: Path, tmp_path: Path) -> None:
    (root / "ckpt").rmdir()
    (root / "ckpt").symlink_to(tmp_path)

    with pytest.raises(NotADirectoryError):
        look_at(root, ROOTS)


def test_too_deep_is_refused_and_says_so(root: Path) -> None:
    at = root / "ckpt"
    for _ in range(80):
        at /= "d"
        at.mkdir()

    with pytest.raises(TooMuch, match="deep"):
        copied(root)


def test_a_hard_link_is_its_content(root: Path, tmp_path: Path) -> None:
    (root / "ckpt/one").write_text("1")
    os.link(root / "ckpt/one", root / "ckpt/two")

    back = restored(saved(root)[0], tmp_path / "back")

    assert (back / "ckpt/two").read_text() == "1"


def test_what_is_refused_is_not_copied(root: Path) -> None:
    (root / "ckpt/x").write_text("x")

    with pytest.raises(TooMuch, match="over the quota"):
        copied(root, refuse=lambda seen: "over the quota")

    assert not list((root / "saving").iterdir())


# ------------------------------------------------------------------------------ while it writes


def test_files_that_do_not_stand_still_are_copied_while_the_agent_does(root: Path) -> None:
    is_frozen, number = False, 0

    @contextmanager
    def freeze() -> Iterator[None]:
        nonlocal is_frozen
        is_frozen = True
        yield
        is_frozen = False

    def agent_writes(seen: Iterable[Seen]) -> str:
        """Between the look and the copy, in each round in which it runs."""
        nonlocal number
        if not is_frozen:
            number += 1
            (root / "ckpt/x").write_text(str(number))
        return ""

    (root / "ckpt/x").write_text("")
    (root / "ckpt/same").write_text("same")

    copy = copied(root, freeze=freeze, refuse=agent_writes)

    assert copy.pause_seconds > 0
    assert copy.files["ckpt/x"].read_text() == str(number)
    assert copy.files["ckpt/same"].read_text() == "same"


def test_files_that_change_all_the_same_are_no_checkpoint(root: Path) -> None:
    number = 0

    def refuse(seen: Iterable[Seen]) -> str:
        nonlocal number
        number += 1
        (root / "ckpt/x").write_text("x" * number)
        return ""

    (root / "ckpt/x").write_text("")

    with pytest.raises(Restless, match="ckpt/x"):
        copied(root, refuse=refuse)


def test_a_file_that_was_only_just_written_is_waited_for(root: Path) -> None:
    (root / "ckpt/x").write_text("half")
    late = threading.Timer(0.3, lambda: (root / "ckpt/x").write_text("whole"))
    late.start()

    copy = copied(root, settled=True)
    late.join()

    assert copy.files["ckpt/x"].read_text() == "whole"


# ------------------------------------------------------------------------------ half, corrupt


def blobs() -> list[str]:
    folder = f"checkpoints/{RUN}/blobs"
    return [f"{folder}/{name}" for name in default_storage.listdir(folder)[1]]


def test_half_a_blob_of_a_save_that_was_cut_off_is_stored_anew(root: Path, tmp_path: Path) -> None:
    (root / "ckpt/x").write_bytes(os.urandom(1000))
    saved(root)
    [name] = blobs()
    default_storage.delete(name)
    default_storage.save(name, ContentFile(b"half"))

    # No checkpoint is known: nothing that lies there is believed.
    back = restored(saved(root)[0], tmp_path / "back")

    assert (back / "ckpt/x").read_bytes() == (root / "ckpt/x").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"other", b"x" * 5000])
def test_a_blob_that_is_not_what_was_saved_is_corrupt(
    root: Path, tmp_path: Path, content: bytes | None
) -> None:
    (root / "ckpt/x").write_text("step " * 1000)
    manifest, _ = saved(root)
    [name] = blobs()
    default_storage.delete(name)
    if content is not None:
        default_storage.save(name, ContentFile(content))

    with pytest.raises(Corrupt, match="ckpt/x"):
        restored(manifest, tmp_path / "back")


def test_a_manifest_of_another_content_is_corrupt(root: Path) -> None:
    (root / "ckpt/x").write_text("x")
    path, digest = checkpoint_store.write_manifest(RUN, saved(root)[0])

    assert checkpoint_store.read_manifest(path, digest, roots=ROOTS).files == 1
    with pytest.raises(Corrupt, match="not the one"):
        checkpoint_store.read_manifest(path, "0" * 64, roots=ROOTS)
    with pytest.raises(Corrupt, match="cannot be used"):
        checkpoint_store.read_manifest(path, digest, roots=["elsewhere"])
    default_storage.delete(path)
    with pytest.raises(Corrupt, match="gone"):
        checkpoint_store.read_manifest(path, digest, roots=ROOTS)


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "half"])
def test_what_verifies_a_checkpoint_is_one_guard(
    root: Path, tmp_path: Path, settings: Settings, is_gone: bool
) -> None:
    """bench/chaos.py switches it off, to see that it would notice."""
    (root / "ckpt/x").write_bytes(os.urandom(1000))
    manifest, _ = saved(root)
    [name] = blobs()
    default_storage.delete(name)
    if not is_gone:
        default_storage.save(name, ContentFile(b"half"))
    with pytest.raises(Corrupt):
        restored(manifest, tmp_path / "on")

    settings.CHAOS_BREAK = "manifest"

    assert len((restored(manifest, tmp_path / "off") / "ckpt/x").read_bytes()) < 1000


def test_one_that_was_replaced_removes_nothing_that_came_after(root: Path, tmp_path: Path) -> None:
    """A supervisor that stood still between its proof and its sweep."""
    (root / "ckpt/x").write_text("first")
    first, _ = saved(root)
    checkpoint_store.write_manifest(RUN, first)
    among = checkpoint_store.stored(RUN)
    (root / "ckpt/x").write_text("second")
    second, _ = saved(root, first)
    new, digest = checkpoint_store.write_manifest(RUN, second)

    checkpoint_store.remove_unused(RUN, (), (), among=among)

    manifest = checkpoint_store.read_manifest(new, digest, roots=ROOTS)
    assert (restored(manifest, tmp_path / "back") / "ckpt/x").read_text() == "second"
    checkpoint_store.remove_all(RUN)


def test_what_nothing_needs_is_removed_and_the_rest_stays(root: Path, tmp_path: Path) -> None:
    (root / "ckpt/x").write_text("first")
    first, _ = saved(root)
    old, _ = checkpoint_store.write_manifest(RUN, first)
    (root / "ckpt/x").write_text("second")
    second, _ = saved(root, first)
    new, digest = checkpoint_store.write_manifest(RUN, second)

    among = checkpoint_store.stored(RUN)
    assert checkpoint_store.remove_unused(RUN, second.blobs(), [new], among=among) == 2

    assert not default_storage.exists(old)
    manifest = checkpoint_store.read_manifest(new, digest, roots=ROOTS)
    assert (restored(manifest, tmp_path / "back") / "ckpt/x").read_text() == "second"
    checkpoint_store.remove_all(RUN)
    assert not default_storage.exists(f"checkpoints/{RUN}")


def test_a_manifest_cannot_write_over_a_link_of_its_own(root: Path) -> None:
    (root / "ckpt/a").symlink_to("/etc")
    (root / "ckpt/b").mkdir()
    (root / "ckpt/b/passwd").write_text("x")
    manifest, _ = saved(root)
    moved = [
        Entry("ckpt/a/passwd", each.seen, each.sha256, each.chunks)
        if each.path == "ckpt/b/passwd"
        else each
        for each in manifest.entries
    ]

    with pytest.raises(ManifestInvalid):
        decode(encode(Manifest(1, "here", tuple(moved))), roots=ROOTS)


def test_copies_are_seen_by_nobody_else(root: Path) -> None:
    (root / "ckpt/x").write_text("x")
    copied(root)

    assert stat.S_IMODE((root / "saving").stat().st_mode) == 0o700
