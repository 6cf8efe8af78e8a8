"""What a manifest may say, and which checkpoints are kept, tried and dropped."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.core.checkpoints import (
    CHUNK_BYTES,
    MAX_DEPTH,
    MAX_LINK_BYTES,
    Chunk,
    Entry,
    Kind,
    Manifest,
    ManifestInvalid,
    Seen,
    Stand,
    Stored,
    decode,
    encode,
    gap_after,
    refusal,
    to_drop,
    to_try,
    unchanged,
)

ROOTS = ("ckpt", "state/0")
SHA = hashlib.sha256(b"x").hexdigest()


def file(path: str, size: int = 5, *, inode: int = 1) -> Entry:
    chunks = (Chunk(SHA, size, packed=False),) if size else ()
    return Entry(path, Seen(Kind.FILE, 0o644, 1000, 1000, Stand(size, 1, 2, inode)), SHA, chunks)


def folder(path: str) -> Entry:
    return Entry(path, Seen(Kind.FOLDER, 0o755, 1000, 1000))


def link(path: str, target: str) -> Entry:
    return Entry(path, Seen(Kind.LINK, 0o777, 1000, 1000, target=target))


def manifest(*entries: Entry) -> Manifest:
    return Manifest(7, "host-a", entries)


# ------------------------------------------------------------------------------ the manifest


def test_a_manifest_comes_back_as_it_was() -> None:
    before = manifest(
        folder("ckpt/a"),
        file("ckpt/a/model.bin"),
        file("ckpt/empty", 0),
        link("ckpt/latest", "../../etc/passwd"),
        # A name that is no text.
        file("state/0/\udcff"),
    )

    assert decode(encode(before), roots=ROOTS) == before
    assert (before.size, before.files) == (10, 3)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(file("/etc/passwd"), id="absolute"),
        pytest.param(file("ckpt/../../etc/passwd"), id="dots"),
        pytest.param(file("ckpt/.."), id="name is dots"),
        pytest.param(file("ckpt/"), id="no name"),
        pytest.param(file("ckpt"), id="a root itself"),
        pytest.param(file("submission/submission.csv"), id="another folder of the attempt"),
        pytest.param(file("state/1/x"), id="a state folder that is not declared"),
        pytest.param(file("ckpt/nowhere/x"), id="a folder that is not there"),
        pytest.param(file("ckpt/a\0b"), id="zero byte"),
        pytest.param(file(f"ckpt/{'n' * 256}"), id="a name too long"),
        pytest.param(link("ckpt/l", "t" * (MAX_LINK_BYTES + 1)), id="a link too long"),
        pytest.param(replace(file("ckpt/x"), sha256="../../x"), id="a hash that is a path"),
        pytest.param(
            replace(file("ckpt/x"), chunks=(Chunk("../x", 5, packed=False),)),
            id="a blob that is a path",
        ),
        pytest.param(
            replace(file("ckpt/x"), chunks=(Chunk(SHA, 4, packed=False),)), id="chunks too short"
        ),
        pytest.param(file("ckpt/x", CHUNK_BYTES + 1), id="a chunk too big"),
        pytest.param(replace(folder("ckpt/x"), chunks=(Chunk(SHA, 1, packed=True),)), id="content"),
    ],
)
def test_what_could_leave_the_folders_is_no_manifest(entry: Entry) -> None:
    with pytest.raises(ManifestInvalid):
        decode(encode(manifest(entry)), roots=ROOTS)


def test_nothing_is_restored_through_a_link_or_twice() -> None:
    through = manifest(link("ckpt/a", "/etc"), file("ckpt/a/passwd"))
    twice = manifest(file("ckpt/a"), file("ckpt/a"))

    for each in (through, twice):
        with pytest.raises(ManifestInvalid):
            decode(encode(each), roots=ROOTS)


def test_too_deep_is_refused() -> None:
    path, entries = "ckpt", []
    for _ in range(MAX_DEPTH + 1):
        path += "/d"
        entries.append(folder(path))

    with pytest.raises(ManifestInvalid, match="deeper"):
        decode(encode(manifest(*entries)), roots=ROOTS)


def test_set_user_id_is_not_restored() -> None:
    entry = replace(file("ckpt/x"), seen=replace(file("ckpt/x").seen, mode=0o4755))

    [back] = decode(encode(manifest(entry)), roots=ROOTS).entries

    assert back.seen.mode == 0o755


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"v": 2}', b"\xff", b'{"v":1,"attempt":1,"host":"h","entries":[7]}'],
)
def test_half_a_manifest_is_none(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        decode(data, roots=ROOTS)


@given(st.data())
def test_a_manifest_with_anything_exchanged_is_read_or_refused(data: st.DataObject) -> None:
    body = json.loads(encode(manifest(folder("ckpt/a"), file("ckpt/a/x"), link("ckpt/l", "x"))))
    junk = st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers()), st.booleans())
    entry = data.draw(st.sampled_from(body["entries"]))
    place = data.draw(st.sampled_from([body, entry, entry["seen"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(junk)

    try:
        read = decode(json.dumps(body).encode(), roots=ROOTS)
    except ManifestInvalid:
        return
    for each in read.entries:
        assert each.path.startswith(("ckpt/", "state/0/"))
        assert ".." not in each.path.split("/")


# ------------------------------------------------------------------------------ what changed


def test_only_a_file_that_stands_as_before_is_not_read_again() -> None:
    same, grown, gone = file("ckpt/same"), file("ckpt/grown"), file("ckpt/gone")
    before = manifest(same, grown, gone, folder("ckpt/f"))
    now = {
        "ckpt/same": same.seen,
        # As many bytes and the same mtime, as an agent can arrange; ctime tells.
        "ckpt/grown": replace(grown.seen, stand=Stand(5, 1, 3, 1)),
        "ckpt/new": file("ckpt/new").seen,
        "ckpt/f": folder("ckpt/f").seen,
    }

    assert unchanged(now, before, attempt=7, host="host-a") == {"ckpt/same": same}


@pytest.mark.parametrize(("attempt", "host"), [(8, "host-a"), (7, "host-b")])
def test_elsewhere_every_file_is_read(attempt: int, host: str) -> None:
    entry = file("ckpt/same")

    found = unchanged({"ckpt/same": entry.seen}, manifest(entry), attempt=attempt, host=host)

    assert found == {}


def test_what_is_too_much_is_refused_with_the_setting() -> None:
    seen = [file("ckpt/x", 2**31).seen]

    assert refusal(seen, quota_bytes=2**32) == ""
    assert refusal(seen, quota_bytes=2**30) == ("it has 2.0 GiB, and CHECKPOINT_QUOTA_GIB allows 1")
    assert "100,000 files" in refusal([file("ckpt/x", 0).seen] * 100_001, quota_bytes=1)


def test_nothing_is_no_checkpoint() -> None:
    assert refusal([folder("ckpt/x").seen], quota_bytes=1) == (
        "its checkpoint folder has no file yet"
    )


@pytest.mark.parametrize(("seconds", "gap"), [(0, 1), (0.1, 1), (1, 3), (40, 120)])
def test_saves_take_a_quarter_of_the_time_at_most(seconds: float, gap: float) -> None:
    assert gap_after(seconds) == gap


# ------------------------------------------------------------------------------ which


ROWS = [
    Stored(1, generation=2, number=4),
    Stored(2, generation=1, number=1),
    Stored(3, generation=1, number=2),
    Stored(4, generation=0, number=1),
]


@pytest.mark.parametrize(
    ("stored", "tried", "dropped"),
    [
        pytest.param([], [], [], id="none"),
        pytest.param(ROWS[:1], [1], [], id="one"),
        pytest.param(ROWS, [4, 3, 2, 1], [1, 2], id="two are kept"),
        pytest.param(
            [*ROWS[:3], replace(ROWS[3], is_corrupt=True)], [3, 2, 1], [1, 4], id="newest corrupt"
        ),
        pytest.param([replace(row, is_corrupt=True) for row in ROWS], [], [1, 2, 3, 4], id="all"),
    ],
)
def test_the_newest_sound_ones_are_tried_first_and_two_of_them_kept(
    stored: list[Stored], tried: list[int], dropped: list[int]
) -> None:
    assert to_try(stored) == tried
    assert to_drop(stored) == dropped
