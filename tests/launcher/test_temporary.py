"""What test sessions leave in the temporary folder when they are killed."""

import subprocess
import sys
from pathlib import Path

from tests.support import temporary
from tests.support.product import ROOT

SESSION = """
import sys
from tests.support import temporary
print(temporary.session_folder(), flush=True)
sys.stdin.read()
"""


def session(tmp_path: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process that holds a session's folder until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_a_killed_session_is_swept_and_one_at_work_is_left_alone(tmp_path: Path) -> None:
    killed, its_folder = session(tmp_path)
    working, kept = session(tmp_path)
    (tmp_path / "mlw-somebody-elses").mkdir()
    killed.kill()
    killed.communicate()
    assert its_folder.is_dir()

    temporary.sweep(tmp_path)

    assert not its_folder.exists()
    assert (kept / "lock").exists()
    working.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlw-somebody-elses"]
