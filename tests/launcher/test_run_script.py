"""`./run` finds a Python that works, also behind shims that do not."""

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent.parent / "run"


def python(folder: Path, name: str, *, fits: bool) -> Path:
    """A stand-in: it passes or fails the trial, and says that it was chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exit {0 if fits else 1}; fi\necho "$0 $*"\n'
    )
    file.chmod(0o755)
    return file


def run(
    tmp_path: Path, script: Path = RUN, *arguments: str, cwd: str = "/", **env: str
) -> "subprocess.CompletedProcess[str]":
    # The stand-ins come first; what sh itself needs comes after, without a Python.
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("dirname", "pwd", "sh"):
        if not (tools / name).exists():
            (tools / name).symlink_to(f"/usr/bin/{name}")
    return subprocess.run(
        ["/bin/sh", str(script), *arguments],
        env={"PATH": f"{tmp_path / 'bin'}:{tools}", "HOME": str(tmp_path / "home")} | env,
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def no_system_python(tmp_path: Path) -> Path:
    """A copy of the script that does not look into /usr/local."""
    script = tmp_path / "checkout" / "run"
    script.parent.mkdir()
    script.write_text(RUN.read_text().replace("/usr/local/bin/", f"{tmp_path}/local/"))
    return script


def test_the_newest_on_path_is_taken(tmp_path: Path, no_system_python: Path) -> None:
    python(tmp_path / "bin", "python3", fits=True)
    newest = python(tmp_path / "bin", "python3.13", fits=True)

    done = run(tmp_path, no_system_python, "doctor")

    assert done.stdout.split()[0] == newest.name or done.stdout.startswith(str(newest))
    assert done.stdout.strip().endswith("bootstrap.py doctor")


def test_a_shim_that_refuses_to_run_is_passed_over(tmp_path: Path, no_system_python: Path) -> None:
    python(tmp_path / "bin", "python3.13", fits=False)
    good = python(tmp_path / "home" / ".pyenv" / "versions" / "3.12.1" / "bin", "python", fits=True)

    done = run(tmp_path, no_system_python)

    assert done.stdout.startswith(str(good))


def test_pyenv_is_found_where_its_variable_says(tmp_path: Path, no_system_python: Path) -> None:
    good = python(tmp_path / "py env" / "versions" / "3.14.0" / "bin", "python", fits=True)

    done = run(tmp_path, no_system_python, PYENV_ROOT=str(tmp_path / "py env"))

    assert done.stdout.startswith(str(good))


def test_one_that_uv_installed_is_found(tmp_path: Path, no_system_python: Path) -> None:
    folder = tmp_path / "home/.local/share/uv/python/cpython-3.12.9-linux/bin"
    good = python(folder, "python3", fits=True)

    assert run(tmp_path, no_system_python).stdout.startswith(str(good))


def test_the_one_that_was_asked_for_is_not_replaced(tmp_path: Path, no_system_python: Path) -> None:
    python(tmp_path / "bin", "python3.13", fits=True)
    old = python(tmp_path / "old", "python3", fits=False)

    done = run(tmp_path, no_system_python, PYTHON=str(old))

    assert done.returncode == 1
    assert str(old) in done.stderr


def test_without_any_python_the_message_says_how_to_get_one(
    tmp_path: Path, no_system_python: Path
) -> None:
    done = run(tmp_path, no_system_python)

    assert done.returncode == 1
    assert "Python 3.12 or newer" in done.stderr
    assert "apt install python3" in done.stderr
    assert not done.stdout


def test_it_runs_from_another_folder_and_from_a_path_with_spaces(
    tmp_path: Path, no_system_python: Path
) -> None:
    python(tmp_path / "bin", "python3", fits=True)
    spaced = tmp_path / "a checkout" / "run"
    spaced.parent.mkdir()
    spaced.write_text(no_system_python.read_text())

    done = run(tmp_path, spaced, "demo", "--data", "a folder", cwd="/")

    assert f"{spaced.parent}/mlebench_web/launcher/bootstrap.py demo --data a folder" in done.stdout


def test_the_script_is_plain_sh() -> None:
    assert RUN.read_text().startswith("#!/bin/sh\n")
    assert os.access(RUN, os.X_OK)
    assert subprocess.run(["/bin/sh", "-n", str(RUN)]).returncode == 0
