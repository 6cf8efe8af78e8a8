"""The events file of an agent, as it grows under a hostile program's hands."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs import event_file
from runs.core.steps import MAX_LINE_BYTES
from runs.event_file import Place, Tail


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs/events.jsonl"


@pytest.fixture
def tail(tmp_path: Path, file: Path) -> Tail:
    return Tail(tmp_path)


def add(file: Path, data: bytes) -> None:
    with file.open("ab") as end:
        end.write(data)


def test_there_is_nothing_before_the_agent_writes(tail: Tail) -> None:
    assert tail.read().lines == []


def test_whole_lines_are_taken_once(tail: Tail, file: Path) -> None:
    add(file, b"one\ntwo\n\n")
    assert tail.read().lines == [b"one", b"two"]
    assert tail.read().lines == []

    add(file, b"three\n")
    assert tail.read().lines == [b"three"]


def test_a_half_line_waits_for_its_end(tail: Tail, file: Path) -> None:
    add(file, b"one\nhal")
    assert tail.read().lines == [b"one"]

    add(file, b"f\n")
    assert tail.read().lines == [b"half"]


def test_another_supervisor_goes_on_where_this_one_was(tail: Tail, file: Path) -> None:
    add(file, b"one\ntwo\nthr")
    tail.read()

    add(file, b"ee\nfour\n")
    other = Tail(tail.root, place=Place(**vars(tail.place)))

    assert other.read().lines == [b"three", b"four"]


def test_a_file_that_was_replaced_is_read_from_its_start_and_told(tail: Tail, file: Path) -> None:
    add(file, b"one\n")
    tail.read()
    aside = file.with_name("aside")
    aside.write_bytes(b"another, and longer\n")
    aside.replace(file)

    found = tail.read()

    assert (found.lines, found.fault) == ([b"another, and longer"], "the file was cut or replaced")
    assert tail.read() == event_file.Lines()


def test_a_file_that_was_cut_is_read_from_its_start(tail: Tail, file: Path) -> None:
    add(file, b"one\ntwo\n")
    tail.read()
    file.write_bytes(b"new\n")

    assert tail.read().lines == [b"new"]


def test_a_line_without_an_end_is_left_out_and_costs_no_memory(
    tail: Tail, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_file, "READ_BYTES", 4 * MAX_LINE_BYTES)
    add(file, b"one\n" + b"x" * (9 * MAX_LINE_BYTES))

    first, *others = (tail.read() for _ in range(4))
    assert (first.lines, first.fault) == ([b"one"], "a line is too long")
    assert [other.lines for other in others] == [[], [], []]
    assert tail.place.offset == file.stat().st_size

    add(file, b"its end\nnext\n")
    assert tail.read().lines == [b"next"]


def test_more_than_one_look_takes_waits_for_the_next(
    tail: Tail, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_file, "READ_BYTES", 10)
    add(file, b"1234\n" * 3)

    looks = [tail.read() for _ in range(3)]

    assert [look.lines for look in looks] == [[b"1234"] * 2, [b"1234"], []]
    assert [look.is_behind for look in looks] == [True, False, False]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_a_regular_file_is_read_and_the_refusal_told_once(
    tail: Tail, file: Path, kind: str
) -> None:
    secret = tail.root / "secret"
    secret.write_bytes(b"one\n")
    if kind == "link":
        file.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()

    first, second = tail.read(), tail.read()

    assert (first.lines, second) == ([], event_file.Lines())
    assert first.fault.startswith("the file is not read: events.jsonl is ")


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.jsonl").write_bytes(b"one\n")
    root = tmp_path / "root"
    root.mkdir()
    (root / "logs").symlink_to(elsewhere)

    assert Tail(root).read().lines == []


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12), st.data())
def test_no_line_is_lost_or_doubled_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], data: st.DataObject
) -> None:
    """In any pieces, and with a new supervisor after any of them."""
    root = tmp_path_factory.mktemp("root")
    (root / "logs").mkdir()
    file = root / "logs/events.jsonl"
    tail, lines = Tail(root), []
    for piece in pieces:
        add(file, piece)
        lines += tail.read().lines
        if data.draw(st.booleans()):
            tail = Tail(root, place=Place(**vars(tail.place)))

    whole = b"".join(pieces)
    ended = whole[: whole.rfind(b"\n") + 1]
    assert lines == [line for line in ended.split(b"\n") if line.strip()]
