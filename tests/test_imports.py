"""The direction of imports, and what a start-up may cost: the shape of the code, held by the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "lm_eval", "mlflow", "datasets", "pandas", "scipy", "numpy")
FILES = sorted((ROOT / "fusion").rglob("*.py")) + sorted((ROOT / "harness").rglob("*.py"))
# Only these may know the engine, beside what calls it in a worker or checks against its tables.
KNOW_FUSION = {
    "aligning", "answers", "build", "candidates", "cli", "compare", "compared", "ensembles", "evaluate", "evaluating",
    "execute", "expand", "facts", "fetching", "fusing", "guided", "kin", "kinship_rows", "loading", "making", "merging",
    "order", "overlap", "plan", "pocket", "problems", "relate", "relate_table", "relating", "report", "samples",
    "schema", "smoke", "spec", "suite", "work", "yamlfile",
}  # fmt: skip


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found: set[str] = set()
    package = module(path).split(".") if path.name == "__init__.py" else module(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` depends on the module, not on what the package's __init__ says.
            inside = {f"{name}.{alias.name}" for alias in node.names}
            found.update(inside if inside <= MODULES else {name})
    return found


EDGES = {module(path): imports(path) for path in FILES}


def test_the_engine_knows_nothing_of_the_bench():
    engine = {name: found for name, found in EDGES.items() if name.startswith("fusion")}
    assert not [name for name, found in engine.items() if any(f.split(".")[0] == "harness" for f in found)]


def test_only_stations_that_need_the_engine_import_it():
    users = {name.split(".")[1] for name, found in EDGES.items() if name.startswith("harness.") and _uses_fusion(found)}
    assert users <= KNOW_FUSION, f"new importers of the engine: {sorted(users - KNOW_FUSION)}"


def _uses_fusion(found: set[str]) -> bool:
    return any(f == "fusion" or f.startswith("fusion.") for f in found)


def test_no_two_modules_import_each_other():
    both = [(a, b) for a in EDGES for b in EDGES[a] if b in EDGES and a in EDGES[b] and a < b]
    assert not both


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], HEAVY),
        (["run", "--help"], HEAVY),
        (["check-nothing"], HEAVY),
        (["leaderboard", "latest"], HEAVY[:-2]),
        (["compare", "a", "b"], HEAVY[:-2]),
    ],
)
def test_start_up_imports_nothing_heavy(arguments, heavy):
    code = f"""
import sys
sys.argv = ["fuse-bench", *{arguments!r}]
from harness.cli import main
try:
    main()
except SystemExit:
    pass
print(sorted(set(sys.modules) & set({heavy!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
