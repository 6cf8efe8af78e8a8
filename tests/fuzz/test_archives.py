"""Archives of results: hostile entries beside honest ones, and damaged bytes."""

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.core.archives import ArchiveRefused, Limits, unpack
from tests.fuzz.cases import count, fuzz
from tests.fuzz.strategies import mutated

LIMITS = Limits(
    entries=20, total_bytes=50_000, ratio=50, ratio_from_bytes=30_000, depth=5, path_bytes=200
)
HONEST = ("g/metadata.json", "g/run_1/submission/submission.csv", "g/run_1/run.log", "report.json")
HOSTILE = (
    "../out.txt", "/etc/cron.d/x", "g/../../out.txt", "g/./a", "g//a", "C:\\x", "g\\..\\..\\x",
    "", ".", "..", "g/", "a" * 300, "a/b/c/d/e/f/g/h", "g/\0x", "g/\nx", "g/\u202ex", "g/COM1",
    "g/a:b", "~/x", "g/metadata.json/x", "G/METADATA.JSON", "g/e\u0301", "g/\u00e9", "-rf", "g/ ",
    "g/x.",
)  # fmt: skip
KINDS = (
    tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
    tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z",
)  # fmt: skip
CONTENT = st.binary(max_size=80) | st.sampled_from([b"", b"{}", b"0" * 40_000, b"0" * 60_000])
Member = tuple[str, bytes, bytes]
NAMES = st.sampled_from(HONEST * 8 + tuple(f"g/run_{number}/x" for number in range(30)) + HOSTILE)
members = st.lists(
    st.tuples(
        NAMES | NAMES | st.text(max_size=12),
        st.sampled_from((tarfile.REGTYPE,) * 40 + KINDS),
        CONTENT,
    ),
    max_size=5,
    unique_by=lambda member: member[0],
)


def tar_of(wanted: list[Member], *, packed: bool) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content in wanted:
            info = tarfile.TarInfo(written(name))
            info.type = kind
            info.mode = 0o7777
            info.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else "g/metadata.json"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    return gzip.compress(data, 1) if packed else data


def written(name: str) -> str:
    """As an archive holds it: up to a NUL, and not empty."""
    return name.partition("\0")[0] or "empty"


def zip_of(wanted: list[Member]) -> bytes:
    modes = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind, content in wanted:
            info = zipfile.ZipInfo(written(name))
            info.external_attr = (modes.get(kind, stat.S_IFREG) | 0o777) << 16
            archive.writestr(info, content)
    return out.getvalue()


def tried(data: bytes, folder: Path) -> dict[str, bytes] | None:
    """What was unpacked; None: refused. Nothing else may have been touched."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    (folder / "beside").write_text("as it was")
    try:
        done = unpack(io.BytesIO(data), folder / "out", limits=LIMITS)
        refusal = ""
    except ArchiveRefused as error:
        done, refusal = None, str(error)
    assert refusal.isprintable()
    assert sorted(os.listdir(folder)) == ["beside", "out"]
    assert (folder / "beside").read_text() == "as it was"
    found: dict[str, bytes] = {}
    for at, folders, names in os.walk(folder / "out"):
        for name in (*folders, *names):
            path = Path(at, name)
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            assert not mode & 0o7022, "nobody else writes it, and it is nobody's to run as"
            if stat.S_ISREG(mode):
                found[str(path.relative_to(folder / "out"))] = path.read_bytes()
    assert sum(map(len, found.values())) <= LIMITS.total_bytes
    if done is None:
        count("archives", "refused")
        return None
    count("archives", "unpacked")
    assert (done.files, done.bytes) == (len(found), sum(map(len, found.values())))
    return found


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@given(wanted=members, kind=st.sampled_from(["tar", "tar.gz", "zip"]))
@fuzz(150)
def test_an_archive_becomes_exactly_its_plain_files_or_nothing(
    wanted: list[Member], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        data = zip_of(wanted) if kind == "zip" else tar_of(wanted, packed=kind == "tar.gz")
    except (ValueError, UnicodeError, tarfile.TarError):
        # No archive can hold that.
        return

    found = tried(data, tmp_path_factory.getbasetemp() / "fuzzed-archive")

    if found is None:
        return
    for said, entry_kind, content in wanted:
        name = written(said)
        if name.endswith("/"):
            continue
        plain = entry_kind in (tarfile.REGTYPE, tarfile.CONTTYPE) or kind == "zip"
        folder = entry_kind == tarfile.DIRTYPE and kind != "zip"
        assert plain or folder or entry_kind not in KINDS, "wrong acceptance"
        if plain and entry_kind == tarfile.REGTYPE:
            inside = os.path.normpath(name)
            assert not inside.startswith(("..", "/")), "wrong acceptance"
            assert found[inside] == content


BASES = [
    tar_of([(name, tarfile.REGTYPE, b"{}" * 300) for name in HONEST], packed=False),
    tar_of([(name, tarfile.REGTYPE, b"{}" * 300) for name in HONEST], packed=True),
    zip_of([(name, tarfile.REGTYPE, b"{}" * 300) for name in HONEST]),
]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@given(data=st.one_of([mutated(base) for base in BASES]) | st.binary(max_size=600))
@fuzz(200)
def test_a_damaged_archive_is_unpacked_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tried(data, tmp_path_factory.getbasetemp() / "fuzzed-archive")
