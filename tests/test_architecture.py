"""The design's arrows and promises: a room imports only from those above it, every public name says what it is."""

import ast

from conftest import REPO

PACKAGE = REPO / "pneumolib"
ROOMS = ["errors", "text", "hosts", "params", "project", "provenance", "data", "learning", "evaluation", "audit", "reporting", "study",
         "serve", "remote", "__main__"]  # fmt: skip
# Rooms that know no network; TensorFlow and Keras are imported where they are at work alone.
WITHOUT_NETWORKS = {"evaluation", "audit"}
TENSORFLOW = {"data/augment.py", "data/batches.py", "learning/devices.py", "learning/explain.py"}
KERAS = {"learning", "serve/export_network.py"}


def trees() -> dict[str, ast.Module]:
    files = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def test_no_arrow_runs_back_and_imports_are_spelt_out():
    wrong = []
    for name, tree in trees().items():
        own = name.split("/")[0].removesuffix(".py")
        for node in ast.walk(tree):
            words = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            words += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if isinstance(node, ast.ImportFrom) and node.level:
                wrong.append(f"{name}:{node.lineno}: a relative import")
            if isinstance(node, ast.Import) and any(alias.name.startswith("pneumolib") for alias in node.names):
                wrong.append(f"{name}:{node.lineno}: study.inputs looks for `from pneumolib.room.module import`")
            for word in words:
                top, _, rest = word.partition(".")
                room = rest.split(".")[0]
                if top == "pneumolib" and room and ROOMS.index(room) > ROOMS.index(own):
                    wrong.append(f"{name}:{node.lineno}: imports {word}")
                if room == "learning" and own in WITHOUT_NETWORKS:
                    wrong.append(f"{name}:{node.lineno}: evaluation and audit know no network")
                if (top == "tensorflow" and name not in TENSORFLOW) or (top == "keras" and not {own, name} & KERAS):
                    wrong.append(f"{name}:{node.lineno}: imports {top}")
    assert wrong == []


def test_public_names_are_explained_and_are_no_modules():
    """Of a name that a room hands out and a module of the same name lazy_loader 0.4, which Colab brings, gives the module."""
    wrong = []
    for name, tree in trees().items():
        nodes = [tree, *(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef))]
        nodes = [n for n in nodes if not getattr(n, "name", "public").startswith("_")]
        wrong += [f"{name}: {getattr(n, 'name', 'module')}" for n in nodes if not ast.get_docstring(n)]
        modules = {path.stem for path in (PACKAGE / name).parent.iterdir()}
        for node in ast.walk(tree):
            if name.endswith("__init__.py") and isinstance(node, ast.keyword) and node.arg == "submod_attrs":
                handed_out = {n for names in ast.literal_eval(node.value).values() for n in names}
                wrong += [f"{name}: {n} is a module too" for n in handed_out & modules]
    assert wrong == []
