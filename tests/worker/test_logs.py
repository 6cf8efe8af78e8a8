"""Shipping an agent's log, and reading it: nothing lost, nothing doubled, nothing leaked."""

import os
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.files.storage import default_storage
from django.db import connection
from pytest_django import (
    DjangoAssertNumQueries,
    DjangoCaptureOnCommitCallbacks,
    Settings,
)

from runs import logs
from runs.core import redaction
from runs.logs import LogStorageError, Shipper
from runs.models import Attempt, LogSegment
from tests.support.log_streams import stream

AGENT = LogSegment.Source.AGENT
RUN = LogSegment.Source.RUN
NAME = "agent.stdout"


class Clock:
    """Stands in for the monotonic clock."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(logs.shipping.time, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def media(tmp_path: Path, settings: Settings) -> Path:
    settings.MEDIA_ROOT = tmp_path / "media"
    return tmp_path / "media"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    root = tmp_path / "attempt"
    root.mkdir()
    return root / NAME


def write(file: Path, data: bytes) -> None:
    with file.open("ab") as log:
        log.write(data)


MakeShipper = Callable[..., Shipper]


@pytest.fixture
def shipper(attempt: Attempt, file: Path) -> MakeShipper:
    def make(*secrets: str) -> Shipper:
        return Shipper(attempt.pk, AGENT, file.parent, NAME, secrets)

    return make


# ---------------------------------------------------------------------------- shipping


def test_nothing_is_shipped_before_the_file_exists(shipper: MakeShipper) -> None:
    assert shipper().ship() == 0
    assert shipper().ship(final=True) == 0


def test_a_few_lines_wait_two_seconds(
    attempt: Attempt, file: Path, shipper: MakeShipper, clock: Clock
) -> None:
    ours = shipper()
    write(file, b"one\ntwo\nthr")

    assert ours.ship() == 0
    clock.now += logs.SHIP_AFTER_SECONDS
    assert ours.ship() == 8

    assert stream(attempt) == b"one\ntwo\n"


def test_many_lines_go_at_once(
    attempt: Attempt, file: Path, shipper: MakeShipper, clock: Clock
) -> None:
    write(file, b"line\n" * 20_000 + b"half")

    assert shipper().ship() == 100_000
    assert stream(attempt) == b"line\n" * 20_000


def test_a_line_without_an_end_goes_when_it_has_waited(
    attempt: Attempt, file: Path, shipper: MakeShipper, clock: Clock
) -> None:
    ours = shipper()
    write(file, b"one\n 10%\r")
    ours.ship()
    clock.now += 2
    ours.ship()
    assert stream(attempt) == b"one\n"

    clock.now += 2
    ours.ship()

    assert stream(attempt) == b"one\n 10%\r"


def test_the_last_call_ships_all(attempt: Attempt, file: Path, shipper: MakeShipper) -> None:
    data = os.urandom(3_000_000)
    write(file, data)

    assert shipper().ship(final=True) == len(data)
    assert stream(attempt) == data


def test_an_idle_shipper_asks_the_database_nothing(
    attempt: Attempt,
    file: Path,
    shipper: MakeShipper,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    ours = shipper()
    write(file, b"one\n")
    ours.ship(final=True)

    with django_assert_num_queries(0):
        assert ours.ship() == 0


def test_a_new_supervisor_goes_on_where_the_dead_one_stopped(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    write(file, b"a secret-value\n")
    shipper("secret-value").ship(final=True)
    write(file, b"b\n")

    assert shipper("secret-value").ship(final=True) == 2

    assert stream(attempt).decode() == "a •••\nb\n"


def test_a_supervisor_that_died_before_the_row_leaves_only_an_orphan(
    attempt: Attempt, file: Path, shipper: MakeShipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, b"one\ntwo\n")

    def die(**fields: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(LogSegment.objects, "create", die)
        with pytest.raises(SystemExit):
            shipper().ship(final=True)
    folder = f"logs/{attempt.pk}/agent"
    (orphan,) = default_storage.listdir(folder)[1]

    shipper().ship(final=True)

    assert stream(attempt) == b"one\ntwo\n"
    assert logs.remove_orphans(attempt.pk) == 0  # too young: it might be about to get its row
    assert logs.remove_orphans(attempt.pk, older_than=timedelta(0)) == 1
    assert orphan not in default_storage.listdir(folder)[1]
    assert stream(attempt) == b"one\ntwo\n"


def test_of_two_shippers_the_second_finds_that_the_first_was_first(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    write(file, b"one\n")
    first, second = shipper(), shipper()
    first.ship(final=True)
    second.ship(final=True)
    write(file, b"two\n")

    assert first.ship(final=True) == 4
    assert second.ship(final=True) == 0

    assert stream(attempt) == b"one\ntwo\n"


def test_a_stale_shipper_doubles_nothing_after_its_place_was_merged_away(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    """The row at the byte where it would insert is gone: the constraint alone would let it."""
    write(file, b"0\n")
    stale, busy = shipper(), shipper()
    stale.ship(final=True)
    for number in range(1, 40):
        write(file, f"{number}\n".encode())
        busy.ship(final=True)
    assert LogSegment.objects.count() < 20

    stale.ship(final=True)

    assert stream(attempt) == "".join(f"{number}\n" for number in range(40)).encode()


@pytest.mark.django_db(transaction=True)
def test_shippers_and_writers_at_once_lose_and_double_nothing(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    lines = [f"line {number}\n".encode() for number in range(600)]
    failures: list[BaseException] = []

    def ship() -> None:
        ours = shipper()
        try:
            while ours.ship(final=True) or len(file.read_bytes()) < len(b"".join(lines)):
                pass
            ours.ship(final=True)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            connection.close()

    file.touch()
    threads = [threading.Thread(target=ship) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(0, len(lines), 5):
        write(file, b"".join(lines[start : start + 5]))
    for thread in threads:
        thread.join()

    assert not failures
    assert stream(attempt) == b"".join(lines)


@pytest.mark.django_db(transaction=True)
def test_processes_that_append_at_once_all_get_their_lines_in(attempt: Attempt) -> None:
    def say(name: str) -> None:
        for number in range(20):
            logs.append(attempt.pk, RUN, f"{name} {number}")
        connection.close()

    threads = [threading.Thread(target=say, args=[name]) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    words = [line[22:] for line in stream(attempt, RUN).decode().splitlines()]
    assert sorted(words) == sorted(f"{name} {number}" for name in "abc" for number in range(20))


def test_a_file_that_was_cut_is_read_from_its_start_and_the_log_says_so(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    write(file, b"a long first line")
    shipper().ship(final=True)
    file.write_bytes(b"new\n")

    shipper().ship(final=True)

    first, note, new = stream(attempt).decode().splitlines()
    assert (first, new) == ("a long first line", "new")
    assert note == (
        "[mlebench-web: the file was cut or replaced; what follows is read from its start]"
    )


def test_a_file_that_was_replaced_by_a_longer_one_is_read_from_its_start(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    write(file, b"old\n")
    shipper().ship(final=True)
    other = file.with_name("other")
    other.write_bytes(b"new and longer\n")
    other.replace(file)

    shipper().ship(final=True)

    assert stream(attempt).startswith(b"old\n[mlebench-web: ")
    assert stream(attempt).endswith(b"start]\nnew and longer\n")


def test_a_link_in_place_of_the_log_is_not_followed_and_said_once(
    attempt: Attempt, file: Path, shipper: MakeShipper, tmp_path: Path
) -> None:
    (tmp_path / "answers").write_text("the answers\n")
    file.symlink_to(tmp_path / "answers")
    ours = shipper()

    for _ in range(3):
        assert ours.ship() == 0
    assert ours.ship(final=True) == 0

    (line,) = stream(attempt).decode().splitlines()
    assert line.startswith("[mlebench-web: the log is not read: ")
    assert "symbolic link" in line


def test_the_log_stops_at_its_limit_and_says_so(
    attempt: Attempt, file: Path, shipper: MakeShipper, settings: Settings
) -> None:
    settings.LOG_MAX_BYTES = 100
    ours = shipper()
    write(file, b"0123456789\n" * 50)
    ours.ship(final=True)
    kept = stream(attempt)
    write(file, b"more\n")

    grown = ours.ship(final=True)

    assert kept[:100] == (b"0123456789\n" * 50)[:100]
    assert kept[100:].decode().splitlines() == [
        "",
        "[mlebench-web: the log has reached 9.31323e-08 GiB; what follows is not kept here]",
    ]
    assert stream(attempt) == kept
    assert grown > 0  # still a sign of life
    assert ours.ship(final=True) == 0


# ---------------------------------------------------------------------------- storage


@pytest.fixture
def broken_storage(media: Path) -> Path:
    """A file where the folder of the log should be."""
    media.mkdir()
    (media / "logs").write_text("in the way")
    return media / "logs"


def test_a_storage_that_fails_costs_no_byte(
    attempt: Attempt, file: Path, shipper: MakeShipper, clock: Clock, broken_storage: Path
) -> None:
    ours = shipper()
    write(file, b"x" * 100_000)
    assert ours.ship() == 0
    with pytest.raises(LogStorageError, match="could not be stored"):
        ours.ship(final=True)

    broken_storage.unlink()
    ours.ship(final=True)

    assert stream(attempt) == b"x" * 100_000


def test_a_missing_object_is_an_error_that_says_so(attempt: Attempt) -> None:
    logs.append(attempt.pk, RUN, "hello")
    default_storage.delete(LogSegment.objects.get().path)

    with pytest.raises(LogStorageError, match="missing in the storage"):
        logs.window(attempt.pk, RUN)


def test_rows_stay_few_and_objects_of_merged_rows_go(
    attempt: Attempt,
    file: Path,
    shipper: MakeShipper,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    ours = shipper()
    expected = b""
    draw = random.Random(3)
    with django_capture_on_commit_callbacks(execute=True):
        for number in range(300):
            data = f"{number} ".encode() + b"x" * draw.choice([1, 50, 3000, 70_000]) + b"\n"
            write(file, data)
            expected += data
            ours.ship(final=True)

    rows = LogSegment.objects.filter(attempt=attempt)
    assert stream(attempt) == expected
    assert rows.count() < 70
    assert not logs.segments.short_ones(list(rows.order_by("first_byte")))
    names = default_storage.listdir(f"logs/{attempt.pk}/agent")[1]
    assert len(names) == rows.count()


def test_a_day_of_one_short_line_in_two_seconds_keeps_few_rows(attempt: Attempt) -> None:
    """The rule alone, over 43,200 shipments: rows as values, no storage."""
    lengths: list[LogSegment] = []
    most = 0
    for _ in range(43_200):
        lengths.append(LogSegment(length=80))
        while short := logs.segments.short_ones(lengths[-80:]):
            joined = LogSegment(length=sum(row.length for row in short))
            lengths[-len(short) :] = [joined]
        most = max(most, len(lengths))

    assert sum(row.length for row in lengths) == 43_200 * 80
    assert most < 70


# ---------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("text", "secrets", "clean"),
    [
        pytest.param("key=abcdef!", ["abcdef"], "key=•••!", id="plain"),
        pytest.param("abcde", ["abcde"], "abcde", id="too short"),
        pytest.param("abcdefabcdef", ["abcdef"], "•••", id="twice"),
        pytest.param("xabcdefXYZ123qwe.", ["abcdefXYZ123", "XYZ123qwe"], "x•••.", id="overlap"),
        pytest.param("abcdefghij", ["abcdef", "abcdefghij"], "•••", id="one in the other"),
        pytest.param("p: line-1\nline-2\n", ["line-1\nline-2\n"], "p: •••\n", id="two lines"),
        pytest.param("nothing", [], "nothing", id="none"),
    ],
)
def test_secrets_are_replaced(text: str, secrets: list[str], clean: str) -> None:
    assert redaction.redact(text.encode(), secrets).decode() == clean


@pytest.mark.parametrize("secret", ["s3cret-token", "two\nlines-of-it", "abcabc", "aaaaaaab"])
def test_a_secret_is_replaced_however_the_writer_cuts_it(
    attempt: Attempt, file: Path, shipper: MakeShipper, clock: Clock, secret: str
) -> None:
    text = f"before {secret}{secret} between\n{secret} after\n" + secret[:5]
    draw = random.Random(4)
    ours = shipper(secret)
    at = 0
    while at < len(text):
        step = draw.randint(1, 4)
        write(file, text[at : at + step].encode())
        at += step
        ours.ship()
        clock.now += 2
        if draw.random() < 0.2:
            ours = shipper(secret)  # a new supervisor

    ours.ship(final=True)

    whole = stream(attempt).decode()
    assert whole.replace("•••", "") == f"before  between\n after\n{secret[:5]}"


def test_a_secret_on_the_border_of_two_reads_is_replaced(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    secret = "s3cret-token"
    for offset in range(len(secret) + 1):
        write(file, b"x" * (logs.shipping.READ_BYTES - offset) + secret.encode() + b"\n")
        ours = shipper(secret)
        ours.ship(final=True)
        assert secret.encode() not in stream(attempt)
        file.unlink()
        LogSegment.objects.all().delete()


def test_a_secret_of_two_lines_at_the_start_holds_nothing_back(
    attempt: Attempt, file: Path, shipper: MakeShipper
) -> None:
    write(file, b"two\nlines-of-it" + b"x" * (3 * logs.shipping.READ_BYTES))

    shipper("two\nlines-of-it").ship(final=True)

    assert stream(attempt) == "•••".encode() + b"x" * (3 * logs.shipping.READ_BYTES)
