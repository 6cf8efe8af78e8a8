"""Documents that are compared with what they describe."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from runs.core.failures import EXPLAINED, Cause

ROOT = Path(__file__).resolve().parent.parent
# Variables that are read elsewhere than in settings.py, with where.
READ_ELSEWHERE = {
    "PYTHON": ROOT / "run",
    "MLEBENCH_WEB_DATA": ROOT / "manage.py",
}


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def variables_of_settings() -> set[str]:
    """Every environment variable that settings.py reads, by its calls of `env` and os.environ."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "mlebench_web" / "settings.py").read_text())):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        name = ast.unparse(node.func)
        if name.startswith("env.") or name in ("os.environ.get", "os.getenv"):
            first = node.args[0]
            assert isinstance(first, ast.Constant), f"a variable name that is no text: {name}"
            found.add(str(first.value))
    return found


def documented_variables() -> set[str]:
    text = (ROOT / "docs" / "configuration.md").read_text()
    return set(re.findall(r"^### `([A-Z_]+)`$", text, re.MULTILINE))


def test_every_setting_is_documented_and_every_documented_one_is_there() -> None:
    assert len(variables_of_settings()) > 30

    assert documented_variables() - set(READ_ELSEWHERE) == variables_of_settings() - set(
        READ_ELSEWHERE
    )
    for name, path in READ_ELSEWHERE.items():
        assert name in path.read_text()
        assert name in documented_variables()


def test_every_cause_is_explained_on_its_page_in_the_words_of_the_product() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]*) \| ?([^|]*?) ?\|",
        (ROOT / "docs" / "causes.md").read_text(),
        re.MULTILINE,
    )

    assert {name: (what, fix) for name, what, fix in rows} == {
        cause.value: words for cause, words in EXPLAINED.items()
    }
    assert set(EXPLAINED) == set(Cause)


def test_the_readme_shows_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()

    assert "./run demo" in readme
    assert "./run test" in readme


def test_every_document_stands_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()

    assert [path.name for path in tracked("docs/*.md") if f"({path.name})" not in index] == [
        "README.md"
    ]


@pytest.mark.parametrize("path", tracked("*.md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{path.name} links to {target}"


def anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces become dashes, other signs go."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_no_file_names_a_machine_or_a_registry() -> None:
    """A clone works anywhere: where packages come from is the machine's own business."""
    machine = re.compile(
        r"(?<![\w./-])/(work|farm|root)/\w|/tmp/(bash_jobs|team|h\d)|index-url *=? *https?://(?!\S*\.example\b)"
        r"|--extra-index|\"resolved\": \"http"
    )
    wrong = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in (".png", ".woff2", ".gz", ".csv", ".parquet"):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
            for line in text.splitlines()
            if machine.search(line)
        ]

    assert wrong == []


def test_requirements_are_pinned_with_hashes() -> None:
    for path in tracked("requirements/*.txt"):
        pins = re.findall(r"^[a-zA-Z0-9._\[\]-]+==\S+", path.read_text(), re.MULTILINE)
        blocks = re.split(r"\n(?=\S)", path.read_text().strip())
        assert pins
        assert all("--hash=sha256:" in block for block in blocks), path.name
