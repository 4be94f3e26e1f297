"""The direction of imports: schema and store at the bottom, the pipeline above the stages, the command line on top."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from spot.plugin import REGISTERED, load_registered

SOURCE = Path(__file__).parents[1] / "src" / "spot"

# Who may be imported (anywhere in the file, functions included) from a module or package of ours.
ALLOWED = {
    "terminal": set(),
    "errors": {"terminal"},
    "interrupt": {"errors"},
    "schema": set(),
    "chat_template": {"errors"},
    "progress": set(),
    "objectives": set(),
    "hub": {"errors", "plugin"},
    "plugin": {"errors"},
    "files": {"errors", "schema", "files"},
    "config": {"errors", "files.settings", "schema"},
    "models": {"chat_template", "errors", "hub", "schema", "files", "models"},
    "connect4": {"errors", "progress", "schema", "files", "connect4"},
    "verify": {"errors", "plugin", "schema", "verify", "connect4.answer", "connect4.board"},
    "pairs": {"errors", "hub", "schema", "pairs"},
    "rectify": {"errors", "files", "plugin", "schema", "models.base", "verify.base", "rectify"},
    "train": {
        *("chat_template", "errors", "files", "hub", "plugin", "progress", "schema", "objectives", "terminal", "train"),
    },
    "evaluate": {"connect4", "errors", "files", "plugin", "schema", "stages.asking", "verify", "evaluate"},
    "audit": {
        *("chat_template", "errors", "files", "hub", "interrupt", "progress", "schema", "config", "stages.opening"),
        *("models.base", "models.paid", "rectify", "pairs", "evaluate", "train", "plugin", "audit"),
    },
    "lab": {
        *(
            "audit.steps",
            "cli.shared",
            "errors",
            "evaluate.source",
            "evaluate.task",
            "files",
            "models.base",
            "progress",
        ),
        *("rectify", "schema", "terminal", "train.checkpoints", "verify", "lab"),
    },
    "stages": {
        *("__version__", "chat_template", "config", "errors", "evaluate", "files", "hub", "models", "pairs"),
        *("plugin", "progress", "rectify", "report", "schema", "stages", "terminal", "train", "verify", "audit"),
        "interrupt",
    },
    "report": {"errors", "files", "schema", "config", "connect4", "evaluate", "pairs", "audit.summary", "report"},
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


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if not name.endswith("__init__"):
            found = imports(path)
            graph[name] = {other for other in (one.rpartition(".")[0] for one in found) if other} | found
    graph = {name: {other for other in others if other in graph} for name, others in graph.items()}
    # Types only.
    graph["train.row"].discard("train.tokenize")
    graph["models.paid.gate"].discard("models.paid.recorded")
    assert len(graph) > 100 and sum(map(len, graph.values())) > 400
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_the_core_names_the_lab_in_its_registry_only() -> None:
    core = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "lab"]
    naming = {path.relative_to(SOURCE).as_posix() for path in core if "spot.lab" in path.read_text("utf-8")}
    assert len(core) > 100 and naming == {"plugin.py"}


def test_every_registered_name_leads_to_a_function() -> None:
    for kind, names in REGISTERED.items():
        assert all(callable(load_registered(kind, name)) for name in names)


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_no_stage(name: str) -> None:
    assert not {module for module in imports(SOURCE / name) if not is_allowed(module, {"objectives", "train"})}


def test_every_part_of_the_package_has_its_rule() -> None:
    parts = {path.stem for path in SOURCE.glob("*.py")} | {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert parts - set(ALLOWED) == {"__init__", "__main__", "cli"}


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
