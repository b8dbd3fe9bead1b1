"""The arrows of the design: a room imports only from those above it; evaluation and audit know no network."""

import ast

import pytest

from conftest import REPO
from pneumolib.reporting.inputs import imported_modules

PACKAGE = REPO / "pneumolib"
ROOMS = [
    "host_packages",
    "kept_runs",
    "hosts",
    "code_digest",
    "model_params",
    "data_params",
    "evaluation_params",
    "params",
    "smoke",
    "param_files",
    "data",
    "learning",
    "evaluation",
    "audit",
    "reporting",
    "serving",
    "remote",
    "__main__",
]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(module: str) -> str:
    return module.split(".")[1]


def all_imports(path) -> set[str]:
    """Top-level names of every import, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_arrow_runs_back(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    reached = {room_of(m) for m in imported_modules(ast.parse(path.read_text(encoding="utf-8")))}
    assert {room for room in reached if ROOMS.index(room) > ROOMS.index(own)} == set()
    assert own not in ("code_digest", "model_params") or reached == set()
    assert own not in ("evaluation", "audit") or "learning" not in reached


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_are_spelt_out(path):
    """Full module paths only: what the arrows and the up-to-date check read are these."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"line {node.lineno}: a relative import"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "pneumolib" not in names, f"line {node.lineno}: a bare `import pneumolib`"


def test_where_tensorflow_and_keras_may_be_imported():
    users = {
        name: {str(p.relative_to(PACKAGE)) for p in MODULES if name in all_imports(p)}
        for name in ("tensorflow", "keras")
    }
    assert users["tensorflow"] == {
        "data/augment.py",
        "data/pipeline.py",
        "learning/devices.py",
        "learning/explain.py",
    }
    assert {p.split("/")[0] for p in users["keras"]} == {"learning"}


def test_no_public_name_is_a_modules_name_too():
    """Of such a pair lazy_loader 0.4, which Colab brings, gives the module."""
    for init in PACKAGE.glob("*/__init__.py"):
        names = {
            name for node in ast.walk(ast.parse(init.read_text(encoding="utf-8")))
            if isinstance(node, ast.keyword) and node.arg == "submod_attrs"
            for names in ast.literal_eval(node.value).values() for name in names
        }  # fmt: skip
        assert not names & {path.stem for path in init.parent.iterdir()}, init


def test_every_public_name_has_a_docstring():
    missing = []
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [tree, *(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef))]
        nodes = [n for n in nodes if not getattr(n, "name", "public").startswith("_")]
        missing += [f"{path.name}: {getattr(n, 'name', 'module')}" for n in nodes if not ast.get_docstring(n)]
    assert missing == []


def test_functions_and_modules_stay_short():
    long = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 300:
            long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and len(node.body) and node.end_lineno - node.body[0].lineno > 35:
                long.append(f"{path.name}: {node.name}")
    assert long == []
