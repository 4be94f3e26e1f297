"""The direction of imports: schema and store at the bottom, the pipeline above the stages, the command line on top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "spot"

# Who may be imported (anywhere in the file, functions included) from a module or package of ours.
ALLOWED = {
    "terminal": set(),
    "errors": {"terminal"},
    "interrupt": {"errors"},
    "escapes": set(),
    "schema": set(),
    "chat": {"errors"},
    "progress": set(),
    "objectives": set(),
    "hub": {"errors", "lab.student"},
    "plugin": {"errors"},
    "disk": {"errors"},
    "formats": {"errors"},
    "store": {"disk", "errors", "escapes", "formats", "schema"},
    "config": {"errors", "escapes", "schema"},
    "models": {"chat", "errors", "hub", "schema", "store", "models"},
    "connect4": {"errors", "progress", "schema", "store", "connect4"},
    "verify": {"errors", "plugin", "schema", "verify", "lab.verify", "connect4.answer", "connect4.board"},
    "pairs": {"errors", "hub", "schema", "pairs"},
    "answer": {"errors", "schema", "store", "models.base", "verify.base"},
    "rectify": {"disk", "errors", "escapes", "plugin", "schema", "store", "models.base", "verify.base", "rectify"},
    "train": {
        "chat",
        "disk",
        "errors",
        "formats",
        "hub",
        "plugin",
        "progress",
        "schema",
        "store",
        "objectives",
        "terminal",
        "train",
    },
    "evaluate": {
        *("disk", "answer", "connect4", "errors", "escapes", "formats", "lab", "plugin", "schema", "store", "verify"),
        "evaluate",
    },
    "audit": {
        *("chat", "disk", "errors", "hub", "interrupt", "progress", "schema", "store", "config", "opening"),
        *("models.base", "models.ledger", "rectify", "pairs", "evaluate", "train", "lab", "audit"),
    },
    "lab": {"disk", "errors", "schema", "models.base", "rectify", "verify", "lab"},
    "opening": {"chat", "errors", "hub", "schema", "store", "config", "models", "rectify", "verify", "lab"},
    "account": {"disk", "errors", "schema", "store", "config", "opening", "models", "rectify"},
    "sets": {"disk", "errors", "schema", "store", "config", "opening", "stages"},
    "during": {"errors", "schema", "terminal", "config", "stages", "evaluate", "models", "train"},
    "measure": {
        "disk",
        "errors",
        "schema",
        "store",
        "terminal",
        "config",
        "models.base",
        "opening",
        "stages",
        "evaluate",
    },
    "report": {
        "disk",
        "errors",
        "schema",
        "store",
        "config",
        "connect4",
        "evaluate",
        "pairs",
        "audit.summary",
        "report",
    },
    "doctor": {"errors", "schema", "models"},
}
# Pure numerics: usable without a run, a config or a store.
PURE = [
    "objectives.py",
    *(f"train/{name}.py" for name in ("logps", "row", "attention", "head", "layers", "packing", "products")),
]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and (node.module + ".").startswith("spot."):
            inner = node.module.removeprefix("spot").removeprefix(".")
            found |= {f"{inner}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("spot.") for alias in node.names if alias.name.startswith("spot.")}
    return found


def is_allowed(imported: str, allowed: set[str]) -> bool:
    return any(imported == name or imported.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_downwards(part: str) -> None:
    files = [SOURCE / f"{part}.py"] if (SOURCE / f"{part}.py").exists() else sorted((SOURCE / part).rglob("*.py"))
    assert files, part
    for path in files:
        wrong = {name for name in imports(path) if not is_allowed(name, ALLOWED[part])}
        assert not wrong, f"{path.relative_to(SOURCE)} imports {wrong}"


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_no_stage(name: str) -> None:
    assert not {module for module in imports(SOURCE / name) if not is_allowed(module, {"objectives", "train"})}


def test_every_part_of_the_package_has_its_rule() -> None:
    parts = {path.stem for path in SOURCE.glob("*.py")} | {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert parts - set(ALLOWED) == {"__init__", "__main__", "cli", "pipeline", "stages"}


@pytest.mark.parametrize("call", ["import spot", "import spot.cli"])
def test_import_is_light(call: str) -> None:
    heavy = ("torch", "pydantic", "transformers", "rich.progress")
    code = f"import sys; {call}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from spot.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pydantic', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
