"""What a hostile agent leaves in its folders harms nobody."""

import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from runs import workspace as module
from runs.containers.process import ProcessEngine
from runs.workspace import Refused, Workspace, open_beneath


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    path.write_text("the answers")
    return path


@pytest.fixture
def work(tmp_path: Path, settings: Settings) -> Iterator[Workspace]:
    settings.ATTEMPTS_DIR = tmp_path / "attempts"
    work = Workspace.for_attempt(7)
    work.make()
    yield work
    work.remove(ProcessEngine())


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "run-groups" / "group" / "test-prices_1"


def no_tick() -> None: ...


def left_out(collected: module.Collected) -> dict[object, object]:
    return {row["path"]: row["why"] for row in collected.left_out}


# ---------------------------------------------------------------------------- folders


def test_folders_are_made_open_to_the_image_and_closed_to_others(work: Workspace) -> None:
    work.make()
    for name in ("submission", "logs", "code", "ckpt", "state"):
        assert (work.root / name).stat().st_mode & 0o777 == 0o777
    assert work.root.stat().st_mode & 0o777 == 0o700
    assert work.socket_dir.stat().st_mode & 0o777 == 0o700


def test_a_folder_too_deep_for_a_socket_is_refused_with_what_to_do(
    work: Workspace, settings: Settings, tmp_path: Path
) -> None:
    settings.SOCKETS_DIR = tmp_path / ("x" * 100)
    with pytest.raises(OSError, match="set SOCKETS_DIR") as caught:
        work.make()
    assert caught.value.errno == errno.ENAMETOOLONG


# ---------------------------------------------------------------------------- reads


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("0\n", 0),
        ("137\n", 137),
        ("", None),
        ("x", None),
        ("\xff", None),
        ("1" * 99, int("1" * 16)),
    ],
)
def test_the_exit_code_is_read_or_unknown(work: Workspace, text: str, code: int | None) -> None:
    (work.logs / "agent.rc").write_bytes(text.encode("latin1"))
    assert work.agent_exit_code() == code


def test_an_exit_code_that_is_no_file_is_unknown(work: Workspace, secret: Path) -> None:
    assert work.agent_exit_code() is None
    os.mkfifo(work.logs / "agent.rc")
    assert work.agent_exit_code() is None
    (work.logs / "agent.rc").unlink()
    (work.logs / "agent.rc").symlink_to(secret)
    assert work.agent_exit_code() is None


def make_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def make_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path, secret: Path) -> None:
    path.mkdir()


def make_socket(path: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path, secret: Path) -> None:
    os.mknod(path, 0o644 | 0o020000, os.makedev(1, 5))


SPECIAL = [
    pytest.param(make_link, "a symbolic link", id="link"),
    pytest.param(make_pipe, "a named pipe", id="pipe"),
    pytest.param(make_socket, "a socket", id="socket"),
    pytest.param(make_folder, "a folder", id="folder"),
]
if os.geteuid() == 0:
    # Only root makes devices; an agent has no CAP_MKNOD, but a folder may come from elsewhere.
    SPECIAL.append(pytest.param(make_device, "a device", id="device"))


@pytest.mark.parametrize(("make", "words"), SPECIAL)
def test_a_submission_that_is_no_regular_file_is_refused_in_words(
    work: Workspace, into: Path, secret: Path, make: Callable[[Path, Path], None], words: str
) -> None:
    make(work.submission / "submission.csv", secret)
    assert work.submission_file() is None
    refused = work.refused_submission()
    assert refused is not None
    assert f"submission.csv is {words}" in refused
    with pytest.raises(Refused, match=words):
        open_beneath(work.submission, "submission.csv")
    collected = work.collect(into, tick=no_tick)
    assert not (into / "submission" / "submission.csv").is_file()
    assert not (into / "submission" / "submission.csv").is_symlink()
    if make is not make_folder:
        assert left_out(collected) == {"submission/submission.csv": words}


def test_a_hard_link_is_a_regular_file(work: Workspace) -> None:
    (work.code / "x.csv").write_text("a,b\n")
    os.link(work.code / "x.csv", work.submission / "submission.csv")
    found = work.submission_file()
    assert found is not None
    assert found.size == 4
    assert work.refused_submission() is None


def test_no_link_is_followed_on_the_way(work: Workspace, secret: Path) -> None:
    (work.code / "out").symlink_to(secret.parent)
    with pytest.raises(Refused, match="a symbolic link"):
        open_beneath(work.root, "code/out/answers.csv")


@pytest.mark.parametrize("path", ["../answers.csv", "/etc/passwd", "code/../../x", "", ".", "a//b"])
def test_a_path_that_leaves_its_folder_is_refused(work: Workspace, path: str) -> None:
    with pytest.raises(Refused):
        open_beneath(work.root, path)


def test_used_bytes_counts_blocks_of_a_tree_of_any_depth(work: Workspace) -> None:
    empty = work.used_bytes()
    with (work.code / "sparse").open("wb") as file:
        file.truncate(2**40)
    (work.checkpoint / "real").write_bytes(os.urandom(2**20))
    os.link(work.checkpoint / "real", work.code / "again")
    (work.logs / "loop").symlink_to(work.root)
    deepen(work.code, 3000)
    used = work.used_bytes() - empty
    assert 2**20 <= used < 40 * 2**20


def deepen(folder: Path, levels: int) -> None:
    """A tree whose path is longer than any system call takes."""
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(levels):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)


# ---------------------------------------------------------------------------- collection


def test_outputs_are_copied_and_ours_are_left_behind(work: Workspace, into: Path) -> None:
    (work.submission / "submission.csv").write_text("id\n1\n")
    (work.logs / ".started").mkdir()
    (work.logs / "agent.rc").write_text("0\n")
    (work.logs / "agent.stdout").write_text("hello")
    (work.code / "src" / "deep").mkdir(parents=True)
    (work.code / "src" / "deep" / "train.py").write_text("pass")
    (work.checkpoint / "model.bin").write_text("not an output")
    collected = work.collect(into, tick=no_tick)
    assert collected.artifacts == [
        {"path": "submission/submission.csv", "bytes": 5},
        {"path": "logs/agent.stdout", "bytes": 5},
        {"path": "code/src/deep/train.py", "bytes": 4},
    ]
    assert (collected.files, collected.bytes, collected.left_out) == (3, 14, [])
    found = sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())
    assert found == ["code/src/deep/train.py", "logs/agent.stdout", "submission/submission.csv"]
    assert (into / "submission" / "submission.csv").stat().st_mode & 0o777 == 0o644
    assert list(into.parent.iterdir()) == [into]


def test_a_second_collection_replaces_the_first_and_keeps_what_is_not_its_own(
    work: Workspace, into: Path
) -> None:
    (work.code / "old").write_text("1")
    work.collect(into, tick=no_tick)
    (into / "run.log").write_text("ours")
    (work.code / "old").unlink()
    (work.code / "new").write_text("2")
    dead = into.parent / f".{into.name}.7.dead"
    dead.mkdir()
    work.collect(into, tick=no_tick)
    assert sorted(path.name for path in into.iterdir()) == ["code", "logs", "run.log", "submission"]
    assert [path.name for path in (into / "code").iterdir()] == ["new"]
    assert not dead.exists()


def test_special_files_and_links_are_left_out_by_name(
    work: Workspace, into: Path, secret: Path
) -> None:
    (work.code / "to-file").symlink_to(secret)
    (work.code / "to-folder").symlink_to(secret.parent)
    os.mkfifo(work.logs / "pipe")
    (work.code / "good").write_text("x")
    collected = work.collect(into, tick=no_tick)
    assert left_out(collected) == {
        "code/to-file": "a symbolic link",
        "code/to-folder": "a symbolic link",
        "logs/pipe": "a named pipe",
    }
    assert (into / "code" / "good").exists()
    assert not any(path.is_symlink() for path in into.rglob("*"))


def test_a_folder_of_ours_that_became_a_link_is_left_out(
    work: Workspace, into: Path, secret: Path
) -> None:
    work.code.rmdir()
    work.code.symlink_to(secret.parent)
    collected = work.collect(into, tick=no_tick)
    assert "code" in left_out(collected)
    assert list((into / "code").iterdir()) == []


def test_names_with_odd_bytes_survive_and_can_be_shown(work: Workspace, into: Path) -> None:
    odd = b"caf\xe9\n\x1b[31m.txt"
    with open(os.fsencode(work.code) + b"/" + odd, "wb") as file:
        file.write(b"x")
    collected = work.collect(into, tick=no_tick)
    assert os.listdir(os.fsencode(into / "code")) == [odd]
    (row,) = collected.artifacts
    assert row["path"] == "code/caf\\xe9\n\x1b[31m.txt"
    str(row["path"]).encode("utf-8")


def test_a_tree_too_deep_is_left_out_below_a_level(work: Workspace, into: Path) -> None:
    deepen(work.code, 3000)
    (work.code / "z").write_text("still here")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    collected = work.collect(into, tick=no_tick)
    (why,) = left_out(collected).values()
    assert "deeper than" in str(why)
    assert (into / "code" / "z").exists()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_over_the_quota_is_left_out_and_the_submission_comes_first(
    work: Workspace, into: Path, settings: Settings
) -> None:
    settings.OUTPUT_QUOTA_BYTES = 100
    (work.submission / "aaa").write_bytes(b"x" * 90)
    (work.submission / "submission.csv").write_bytes(b"x" * 60)
    with (work.code / "sparse").open("wb") as file:
        file.truncate(2**40)
    (work.code / "small").write_bytes(b"x" * 40)
    collected = work.collect(into, tick=no_tick)
    assert [row["path"] for row in collected.artifacts] == [
        "submission/submission.csv",
        "code/small",
    ]
    assert set(left_out(collected)) == {"submission/aaa", "code/sparse"}


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([], id="nothing but a hole"),
        pytest.param([0], id="a hole at the end"),
        pytest.param([2**26], id="a hole before and after"),
        pytest.param([0, 2**26, 2**30 - 11], id="holes between"),
    ],
)
def test_a_sparse_file_is_kept_as_it_reads_and_takes_no_more_room(
    work: Workspace, into: Path, places: list[int]
) -> None:
    source = work.code / "sparse"
    with source.open("wb") as file:
        for place in places:
            file.seek(place)
            file.write(b"a secret w1")
        file.truncate(2**30)

    collected = work.collect(into, tick=no_tick, secrets=["secret w1"])

    kept = into / "code" / "sparse"
    # What stands in place of the secret is as long as that.
    assert len("•••".encode()) == len("secret w1")
    assert {"path": "code/sparse", "bytes": 2**30} in collected.artifacts
    assert kept.stat().st_size == 2**30
    assert kept.stat().st_blocks <= source.stat().st_blocks + 16
    with kept.open("rb") as file:
        for place in places:
            file.seek(place)
            assert file.read(11) == "a •••".encode()
        file.seek(2**20)
        assert not any(file.read(2**16))


def test_data_behind_holes_is_copied_byte_for_byte(work: Workspace, into: Path) -> None:
    rng = random.Random(7)
    with (work.code / "swiss").open("wb") as file:
        for _ in range(60):
            file.write(rng.randbytes(rng.choice([1, 100, 4096, 5000])))
            file.seek(rng.choice([0, 1, 4096, 2**16, 2**21]), os.SEEK_CUR)
        file.truncate(file.tell() + 3)

    work.collect(into, tick=no_tick)

    assert (into / "code" / "swiss").read_bytes() == (work.code / "swiss").read_bytes()


def test_a_full_disk_is_an_error_that_keeps_what_was_copied(
    work: Workspace, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.submission / "submission.csv").write_bytes(b"x" * 100)
    (work.code / "big").write_bytes(b"x" * 2**20)

    def fill_up() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Tick is called inside the copy of the big file only: the disk is full from there on.
    monkeypatch.setattr(module, "CHUNK", 2**10)
    with pytest.raises(OSError, match="No space left") as caught:
        work.collect(into, tick=fill_up)
    assert caught.value.errno == errno.ENOSPC
    assert (into / "submission" / "submission.csv").stat().st_size == 100
    assert (work.code / "big").exists()
    assert list(into.parent.iterdir()) == [into]


@pytest.mark.slow
def test_a_hundred_thousand_files_are_collected_in_seconds_with_a_heartbeat(
    work: Workspace, into: Path
) -> None:
    for folder in range(100):
        (work.code / str(folder)).mkdir()
        here = os.open(work.code / str(folder), os.O_RDONLY)
        for number in range(1000):
            os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)
    ticks: list[float] = []
    began = time.monotonic()
    collected = work.collect(into, tick=lambda: ticks.append(time.monotonic()))
    assert time.monotonic() - began < 60
    assert collected.files == 100_000
    assert len(collected.artifacts) == module.MAX_LISTED
    assert max(b - a for a, b in zip([began, *ticks], ticks, strict=False)) < 10


def test_a_hostile_tree_is_removed_whole(work: Workspace) -> None:
    deepen(work.code, 3000)
    (work.code / "x").symlink_to("/etc")
    work.remove(ProcessEngine())
    assert not work.root.exists()
    assert not work.socket_dir.exists()
    assert Path("/etc").exists()
