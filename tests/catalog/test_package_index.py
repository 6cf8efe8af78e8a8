import configparser
from pathlib import Path

import pytest

from mlebench_web.catalog import package_index
from mlebench_web.catalog.package_index import PackageIndex


@pytest.fixture
def pip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    return tmp_path / "pip.conf"


def test_a_mirror_in_pips_file_is_used(pip_file: Path) -> None:
    pip_file.write_text(
        "[global]\nindex-url = https://mirror.example/simple/\n"
        "extra-index-url = file:///on/this/disk\n    https://more.example/simple\n"
    )

    found = package_index.configured()

    assert found.index_url == "https://mirror.example/simple"
    assert found.extra_index_urls == ("https://more.example/simple",)


def test_a_variable_wins_over_the_file(pip_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_file.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")

    assert package_index.configured().index_url == "https://other.example/simple"


def test_certificates_are_those_that_pip_uses(
    pip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.crt"
    bundle.write_text("")
    monkeypatch.setenv("PIP_CERT", str(bundle))

    assert package_index.configured().ca_bundle == bundle


def test_pip_in_the_image_reads_what_was_staged() -> None:
    index = PackageIndex(
        "https://me:p%40ss@mirror.example/simple",
        extra_index_urls=("https://a.example", "https://b.example"),
        timeout_seconds="180",
    )
    parser = configparser.RawConfigParser()

    parser.read_string(index.pip_conf())

    section = parser["global"]
    assert section["index-url"] == "https://me:p%40ss@mirror.example/simple"
    assert section["extra-index-url"].split() == ["https://a.example", "https://b.example"]
    assert section["timeout"] == "180"
