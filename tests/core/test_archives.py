"""Archives from strangers: each hostile one is refused by the name of its entry."""

import contextlib
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs.core.archives import ArchiveRefused, Limits, Unpacked, check_name, unpack

SMALL = Limits(
    entries=20, total_bytes=100_000, ratio=50, ratio_from_bytes=30_000, depth=5, path_bytes=200
)


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return out.getvalue()


def zip_mode(name: str, mode: int, data: bytes = b"/etc/passwd") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return out.getvalue()


def take(data: bytes, into: Path, limits: Limits | None = SMALL) -> Unpacked:
    into.mkdir(exist_ok=True)
    return unpack(io.BytesIO(data), into, limits=limits)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "tar": lambda content: tar(*(member(name, data) for name, data in content.items())),
    "tar.gz": lambda content: tar(
        *(member(name, data) for name, data in content.items()), mode="w:gz"
    ),
    "zip": lambda content: zipped(*content.items()),
    "stored zip": lambda content: zipped(*content.items(), method=zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_what_was_packed_comes_out(kind: str, tmp_path: Path) -> None:
    content = {"g/metadata.json": b"{}", "g/c_1/run.log": b"line\n" * 100, "g/R&D, Ä.txt": b""}

    done = take(PACKERS[kind](content), tmp_path / "out")

    assert files(tmp_path / "out") == dict(sorted(content.items()))
    assert (done.files, done.bytes) == (3, 502)


def test_what_tar_itself_packs_comes_out(tmp_path: Path) -> None:
    """`tar -C folder .` writes "./" before each name, and folders of their own."""
    folders = [member(name, b"", type=tarfile.DIRTYPE) for name in ("./", "./g")]

    take(tar(*folders, member("./g/a")), tmp_path / "out")

    assert files(tmp_path / "out") == {"g/a": b"x"}


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
LONG = "/".join(["d" * 60] * 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(tar(member("g/../../x")), r"g/\.\./\.\./x: the name leads out", id="dots"),
        pytest.param(tar(member("..")), r"leads out", id="only dots"),
        pytest.param(tar(member("/etc/x")), r"/etc/x: the name is an absolute path", id="absolute"),
        pytest.param(tar(member("C:/x")), r"C:/x: the name is an absolute", id="a drive"),
        pytest.param(tar(member("a\\..\\x")), r"has a backslash", id="backslashes"),
        pytest.param(tar(member("a//b")), r"a//b: the name has an empty part", id="empty part"),
        pytest.param(tar(member("g/l", b"", **LINK)), r"g/l: it is a symbolic link", id="link"),
        pytest.param(
            tar(member("g/a"), member("g/l", b"", type=tarfile.LNKTYPE, linkname="g/a")),
            r"g/l: it is a hard link \(to g/a\)",
            id="hard link",
        ),
        pytest.param(
            tar(member("g/d", b"", **LINK), member("g/d/x")), r"g/d: it is a symbolic", id="below"
        ),
        pytest.param(
            tar(member("n", b"", type=tarfile.CHRTYPE)), r"n: it is a device", id="a device"
        ),
        pytest.param(
            tar(member("p", b"", type=tarfile.FIFOTYPE)), r"p: it is a named pipe", id="a pipe"
        ),
        pytest.param(tar(member("a"), member("a")), r"a: the archive has this name twice", id="2"),
        pytest.param(tar(member("a"), member("a/b")), r"a/b: it lies below a, which", id="file/"),
        pytest.param(tar(member("a/b"), member("a")), r"a: .*twice", id="folder and file"),
        pytest.param(
            tar(member("\u00e9"), member("e\u0301")), r"has this name twice", id="two spellings"
        ),
        pytest.param(
            tar(member("a\u202egpj.sh")), r"a\\u202egpj.sh: .*cannot be seen", id="right to left"
        ),
        pytest.param(tar(member("a\u200bb")), r"cannot be seen \(\\u200b\)", id="no width"),
        pytest.param(tar(member("a\nb")), r"a\\nb: .*cannot be seen", id="a line end"),
        pytest.param(tar(member("a\udcffb")), r"cannot be seen \(\\udcff\)", id="no utf-8"),
        pytest.param(tar(member("d" * 256)), r"longer than 255 bytes", id="long part"),
        pytest.param(tar(member(LONG)), r"the path is longer than 200 bytes", id="long path"),
        pytest.param(tar(member("a/b/c/d/e/f")), r"deeper than 5 folders", id="deep"),
        pytest.param(
            tar(*(member(f"f{number}") for number in range(21))), r"f20: .*more than 20", id="many"
        ),
        pytest.param(
            tar(*(member(f"a{number}/b/c/d/e") for number in range(5))),
            r"more than 20 files and folders",
            id="many folders",
        ),
        pytest.param(
            tar(member("a", b"1" * 60_000), member("b", b"1" * 60_000)),
            r"b: .*unpacks to more than 97.7 KiB",
            id="large",
        ),
        pytest.param(
            tar(member("zeros", bytes(90_000)), mode="w:gz"),
            r"zeros: with it the archive unpacks to more than 50 times",
            id="tar bomb",
        ),
        pytest.param(zipped(("zeros", bytes(90_000))), r"zeros: .*50 times", id="zip bomb"),
        pytest.param(zipped(("g/../x", b"")), r"leads out", id="zip: dots"),
        pytest.param(zipped(("/x", b"")), r"absolute", id="zip: absolute"),
        pytest.param(zip_mode("l", stat.S_IFLNK | 0o777), r"l: it is a symbolic", id="zip: link"),
        pytest.param(zip_mode("d", stat.S_IFCHR), r"d: it is a device", id="zip: device"),
        pytest.param(
            zipped(("a", b"x"), method=zipfile.ZIP_LZMA), r"a: it is compressed in a", id="lzma"
        ),
        pytest.param(b"", r"The archive is empty", id="nothing"),
        pytest.param(b"PK nothing", r"is neither a tar", id="no archive"),
        pytest.param(b"\xfd7zXZ\x00" + bytes(600), r"is compressed with xz", id="xz"),
        pytest.param(gzip.compress(b"no tar" * 200), r"is damaged", id="a gzip of text"),
        pytest.param(tar(member("a", b"1" * 5000))[:3000], r"is damaged", id="half a file"),
        pytest.param(tar(member("a"), mode="w:gz")[:-6], r"is damaged", id="half a gzip"),
        pytest.param(tar(member("a"))[:1024], r"a: the archive ends after it", id="no end"),
        pytest.param(
            tar(member("a"))[:1024] + b"?" * 2048, r"a: what comes after it", id="bad header"
        ),
        pytest.param(
            gzip.compress(tar(member("a")) + b"x" * 2**21), r"goes on after its end", id="more"
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_hostile_archive_is_refused_by_name(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match=message):
        take(data, tmp_path / "out")

    assert os.listdir(tmp_path) == ["out"]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_zip_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    data = zipped(("a", b"1"), ("b", b"2"))

    with pytest.raises(ArchiveRefused, match="a: the archive has this name twice"):
        take(data.replace(b"b", b"a"), tmp_path / "out")


def test_a_name_with_a_nul_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="NUL"):
        take(zipped(("a_.txt", b"x")).replace(b"a_.txt", b"a\0.txt"), tmp_path / "out")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(("a", b"x")))
    data[data.index(b"PK\x01\x02") + 8] |= 1

    with pytest.raises(ArchiveRefused, match="a: it is encrypted"):
        take(bytes(data), tmp_path / "out")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    """Its entry says 10 bytes; there are more, and the checksum tells."""
    data = bytearray(zipped(("a", b"0123456789" * 100)))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = (10).to_bytes(4, "little")

    with pytest.raises(ArchiveRefused, match="a: it is damaged"):
        take(bytes(data), tmp_path / "out")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """One of a few bytes may say that it is terabytes long."""
    info, _ = member("s", b"", type=tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    # Its real size, and a checksum that fits.
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    with pytest.raises(ArchiveRefused, match="s: it is a sparse file"):
        take(bytes(header) + bytes(10240), tmp_path / "out")


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    info, _ = member("x", b"", type=tarfile.XHDTYPE)
    info.size = 2**33
    bomb = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4 * 2**20))

    with pytest.raises(ArchiveRefused, match="header after it is larger than 1 MiB"):
        take(bomb, tmp_path / "out", Limits())


def test_a_chain_of_headers_is_refused(tmp_path: Path) -> None:
    """Each long name says that the next header is the one it names."""
    long_name, data = member("././@LongLink", b"n\0", type=tarfile.GNUTYPE_LONGNAME)
    link = long_name.tobuf(tarfile.GNU_FORMAT) + data.ljust(512, b"\0")

    with pytest.raises(ArchiveRefused, match=r"is damaged|header after it"):
        take(link * 2000, tmp_path / "out")


def test_tick_hears_how_far_it_is(tmp_path: Path) -> None:
    heard: list[int] = []
    (tmp_path / "out").mkdir()

    unpack(
        io.BytesIO(tar(member("a", b"1" * 10), member("b", b"2" * 5))),
        tmp_path / "out",
        tick=heard.append,
    )

    assert heard == [10, 15]


NAMES = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["a/../b", "/a", "./a", "a/./b", "..", ".", "a/", "a//", "C:\\x", "a\0b"]
)


@given(NAMES)
def test_a_name_that_passes_stays_inside(name: str) -> None:
    try:
        parts = check_name(name)
    except ArchiveRefused as error:
        parts, refused = (), str(error)
    else:
        refused = ""

    assert refused.isprintable()
    assert all(part not in ("", ".", "..") and "/" not in part for part in parts)
    assert os.path.normpath(os.path.join("/base", *parts)).startswith("/base")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    base=st.sampled_from(
        [
            tar(member("g/metadata.json", b"{}"), member("g/a", b"1" * 600)),
            tar(member("g/metadata.json", b"{}"), mode="w:gz"),
            zipped(("g/metadata.json", b"{}"), ("g/a", b"1" * 600)),
        ]
    ),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    cut=st.none() | st.integers(0, 4000),
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_damaged_archive_is_unpacked_or_refused_and_never_leaves_its_folder(
    base: bytes, changes: list[tuple[int, int]], cut: int | None, tmp_path_factory: object
) -> None:
    folder = tmp_path_factory.mktemp("a")  # type: ignore[attr-defined]
    data = bytearray(base[:cut])
    for at, value in changes:
        if at < len(data):
            data[at] = value

    with contextlib.suppress(ArchiveRefused):
        take(bytes(data), folder / "out")

    assert os.listdir(folder) == ["out"]
