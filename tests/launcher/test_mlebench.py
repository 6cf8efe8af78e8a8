"""`./run mlebench`: what it would install, and whom it refuses. It downloads nothing here."""

from pathlib import Path
from typing import Any

import pytest

from mlebench_web.launcher import mlebench
from mlebench_web.launcher.bootstrap import Failed
from tests.support.checkout import write

PROJECT = """\
[project]
name = "mlebench"
dependencies = ["pandas>=2.2", "tensorflow>=2.16", "kaggle>=1.6,<1.7"]
"""


def test_the_libraries_are_those_of_the_checkout_without_what_no_grader_needs(
    tmp_path: Path,
) -> None:
    write(tmp_path, "one/pyproject.toml", PROJECT)
    write(tmp_path, "fork/pyproject.toml", PROJECT.replace("kaggle>=1.6,<1.7", "lightgbm"))
    both = [tmp_path / "one", tmp_path / "fork"]

    asked = mlebench.requirements(both, with_large=False)

    assert asked == ["pandas>=2.2", "kaggle>=1.6,<1.7", "scipy", "tqdm", "lightgbm"]
    assert "tensorflow>=2.16" in mlebench.requirements(both, with_large=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(None, "is no mle-bench checkout", id="none"),
        pytest.param("[project\n", "cannot be read", id="broken"),
        pytest.param("[project]\nname = 'x'\n", "cannot be read", id="no dependencies"),
        pytest.param("[project]\ndependencies = 3\n", "cannot be read", id="no list"),
        pytest.param(
            "[project]\ndependencies = ['--index-url=x']\n", "is no name of a package", id="option"
        ),
    ],
)
def test_a_folder_that_says_nothing_sensible_is_named(
    text: str | None, said: str, tmp_path: Path
) -> None:
    if text is not None:
        write(tmp_path, "pyproject.toml", text)

    with pytest.raises(Failed, match=said):
        mlebench.requirements([tmp_path], with_large=False)


def test_without_a_checkout_it_says_where_to_get_one(settings: Any, tmp_path: Path) -> None:
    settings.MLEBENCH_DIRS = []
    settings.DATA_DIR = tmp_path

    with pytest.raises(Failed, match=r"git clone https://github\.com/openai/mle-bench"):
        mlebench.main([])


def test_another_python_of_the_operators_is_left_to_them(settings: Any, tmp_path: Path) -> None:
    settings.MLEBENCH_PYTHON = tmp_path / "own" / "python"

    with pytest.raises(Failed, match="install mle-bench's libraries there yourself"):
        mlebench.main([str(tmp_path)])


def test_clones_of_git_urls_are_found_in_the_data_folder(settings: Any, tmp_path: Path) -> None:
    settings.MLEBENCH_DIRS = [tmp_path / "mine"]
    settings.DATA_DIR = tmp_path
    (tmp_path / "checkouts" / "fork").mkdir(parents=True)

    assert mlebench.known() == [tmp_path / "mine", tmp_path / "checkouts" / "fork"]
