"""Who may import whom, and who may write a state: the shape of the code, held by its syntax."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Lower layers first; each may import itself and those before it.
LAYERS = ["mlebench_web.accounts", "mlebench_web.catalog", "mlebench_web.fleet", "runs"]
# Wiring: what puts the layers together may import all of them.
WIRING = ("mlebench_web/urls.py", "mlebench_web/launcher/", "/management/commands/", "tests/")
# Anybody's: settings, readers of variables, and the like.
PLAIN = "mlebench_web"


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "/migrations/" not in str(path) and "/builtin/" not in str(path):
                yield path


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from mlebench_web import fleet` imports a layer too.
            yield from (f"{node.module}.{name.name}" for name in node.names)


def layer(module: str) -> int | None:
    """The position of the layer that a dotted name belongs to; None: no layer."""
    for position, name in enumerate(LAYERS):
        if module == name or module.startswith(f"{name}."):
            return position
    return None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def is_wiring(path: Path) -> bool:
    return any(part in str(path.relative_to(ROOT)) for part in WIRING)


def upward(path: Path) -> list[str]:
    """Imports of this file that go the wrong way."""
    mine = layer(module_of(path))
    allowed = -1 if mine is None else mine
    wrong = []
    for name in imports(path):
        theirs = layer(name)
        if theirs is not None and theirs > allowed:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    return wrong


def test_imports_go_from_runs_to_fleet_to_catalog_to_accounts() -> None:
    files = [path for path in sources("mlebench_web", "runs") if not is_wiring(path)]
    assert len(files) > 20

    assert [
        wrong for path in files if layer(module_of(path)) is not None for wrong in upward(path)
    ] == []


def test_nothing_but_the_wiring_imports_runs() -> None:
    files = [path for path in sources("mlebench_web") if not is_wiring(path)]

    assert [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if layer(name) == LAYERS.index("runs")
    ] == []


def test_the_product_never_imports_its_launcher_or_tests() -> None:
    files = [path for path in sources("mlebench_web", "runs") if not is_wiring(path)]

    assert [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if name.startswith(("mlebench_web.launcher", "tests"))
    ] == []


def test_the_rules_know_no_django() -> None:
    files = list(sources("runs/core"))
    assert len(files) > 5

    foreign = ("django", "celery", "docker", "mlebench_web", "structlog")
    assert [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if name.split(".")[0] in foreign or (name.startswith("runs.") and ".core" not in name)
    ] == []


def test_the_first_half_of_run_needs_nothing_installed() -> None:
    bootstrap = ROOT / "mlebench_web" / "launcher" / "bootstrap.py"

    assert {name.split(".")[0] for name in imports(bootstrap)} <= sys.stdlib_module_names


def state_writes(path: Path) -> list[str]:
    """Places where an attempt's state or outcome, or a run's state, is written."""
    found = []
    for node in ast.walk(tree(path)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if (
                isinstance(target, ast.Attribute)
                and target.attr in ("state", "outcome")
                and isinstance(target.value, ast.Name)
                and target.value.id in ("attempt", "run")
            ):
                found.append(f"{path.name}:{node.lineno}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            writes = {word.arg for word in node.keywords} & {"state", "outcome"}
            about = ast.unparse(node.func.value)
            attempts = any(word in about for word in ("Attempt", "attempt", "Run.", "runs", "run."))
            if node.func.attr in ("update", "create", "save_held") and writes and attempts:
                found.append(f"{path.name}:{node.lineno}")
    return found


def test_only_the_models_write_a_state() -> None:
    models = ROOT / "runs" / "models"
    files = [path for path in sources("runs", "mlebench_web") if path.parent != models]

    assert [place for path in files for place in state_writes(path)] == []
    # The check sees a write where there is one.
    assert state_writes(models / "attempts.py")


@pytest.mark.parametrize(
    "line",
    [
        "attempt.state = 'ended'",
        "run.state = 'finished'",
        "Attempt.objects.filter(pk=1).update(state='ended')",
        "attempt.save_held(token, outcome='graded')",
        "Run.objects.filter(pk=1).update(state='failed')",
    ],
)
def test_the_check_of_state_writes_sees_each_way(line: str, tmp_path: Path) -> None:
    (tmp_path / "somewhere.py").write_text(line)

    assert state_writes(tmp_path / "somewhere.py") == ["somewhere.py:1"]


def test_a_task_is_a_few_calls_and_no_rule() -> None:
    module = tree(ROOT / "runs" / "tasks.py")
    tasks = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    assert tasks

    for task in tasks:
        body = [node for node in task.body if not is_docstring(node)]
        assert all(isinstance(node, ast.Expr) for node in body), task.name
        assert len(body) <= 3, task.name


def is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
