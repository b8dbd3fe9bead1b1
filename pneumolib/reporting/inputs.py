"""What is a run made from, and what of it has changed? Content decides, never a time stamp.

Counted: the parameters that its notebook declares, the notebook's cells and tags (not its outputs), the parts of the
library that the notebook reaches (comments, docstrings and layout aside), the data's fingerprint, the versions of the
packages that decide numbers, and the results of the runs it builds on. TensorFlow is never imported here.
"""

import ast
import functools
import json
import platform
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from pneumolib.code_digest import code_digest, text_digest
from pneumolib.params import ParamsError, RunParams, in_root, notebook_of
from pneumolib.reporting.origin import package_versions

PACKAGE = Path(__file__).resolve().parents[1]
DECIDE_NO_NUMBER = {"papermill", "nbconvert"}  # named in `result.json`, but a new version of them reruns nothing
ROOTS = ("data.root", "external.data.root")
# How images are drawn, fetched, unpacked or listed concerns a run through the images alone; the data's fingerprint covers those.
SOURCES = "pneumolib.data.sources"
# Tag of the first code cell, which makes Colab and Kaggle ready and decides no number; in it stands the notebook's commit.
BOOTSTRAP = "bootstrap"
LEFT_OUT = {f"pneumolib.data.{name}" for name in ("synthetic", "csv_source", "npz", "tfrecord", "download")}


def notebook_path(run: str) -> Path:
    """The notebook that a run executes. Raises ParamsError when there is none."""
    path = in_root(f"notebooks/{notebook_of(run)}.ipynb")
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb")))
        raise ParamsError(f"{run}: looked for {path}; notebooks found: {found or 'none'}")
    return path


def read_cells(notebook: Path) -> list[dict]:
    """Cells as `{"type", "tags", "source"}`; outputs and metadata other than tags are not looked at.

    Raises ParamsError for a file that is no notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [
            {"type": c["cell_type"], "tags": c["metadata"].get("tags", []), "source": "".join(c["source"])}
            for c in cells
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as fault:
        raise ParamsError(
            f"{notebook}: not a notebook ({type(fault).__name__}: {fault}); open and save it in JupyterLab, or take it "
            f"back from git"
        ) from None


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and values of the notebook's parameters cell. Raises ParamsError unless there is exactly one."""
    cells = [c for c in read_cells(notebook) if "parameters" in c["tags"]]
    if len(cells) != 1:
        raise ParamsError(f"{notebook}: needs exactly one cell tagged `parameters`, found {len(cells)}")
    try:
        return dict(_plain_assignment(statement) for statement in ast.parse(cells[0]["source"]).body)
    except (SyntaxError, ValueError) as fault:
        raise ParamsError(
            f"{notebook}: the parameters cell may hold lines of the form `name = value` with plain values only: {fault}"
        ) from None


def _plain_assignment(statement: ast.stmt) -> tuple[str, Any]:
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    if not isinstance(target, ast.Name) or isinstance(statement, ast.AugAssign):
        raise ValueError(f"line {statement.lineno} is no such line")
    return target.id, ast.literal_eval(statement.value)


def gather(run: str, params: RunParams, fingerprint: str, upstream: dict[str, str]) -> dict[str, Any]:
    """Everything a run is made from, as plain JSON values.

    Args:
        run: its name.
        params: its parameters; `data.root` and `external.data.root` do not count, the data's content does.
        fingerprint: of the manifest, and of that of another source.
        upstream: name to hash of the results it builds on.
    """
    notebook = notebook_path(run)
    names = declared_parameters(notebook)
    cells = [BOOTSTRAP if BOOTSTRAP in cell["tags"] else cell for cell in read_cells(notebook)]
    return {
        "parameters": {k: v for k, v in flatten(params.model_dump(include=set(names))).items() if k not in ROOTS},
        "notebook": [text_digest(json.dumps(cell, sort_keys=True)) for cell in cells],
        "library": library_digests(python_code([cell for cell in cells if cell != BOOTSTRAP])),
        "data": fingerprint,
        "packages": {"python": platform.python_version()}
        | {name: v for name, v in package_versions().items() if name not in DECIDE_NO_NUMBER},
        "upstream": upstream,
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed from `old` to `new` of `gather`, in words a person understands; empty when nothing did."""
    if not old:
        return ["no record of what it was made from"]
    found = [f"parameter {text}" for text in _changed(old["parameters"], new["parameters"])]
    if old["notebook"] != new["notebook"]:
        pairs = list(zip(old["notebook"], new["notebook"], strict=False))
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        found.append(f"notebook: cell {first + 1} changed")
    edited = sorted(
        m for m in old["library"].keys() | new["library"].keys() if old["library"].get(m) != new["library"].get(m)
    )
    found += [f"library: {module} changed" for module in edited]
    if old["data"] != new["data"]:
        found.append(f"data changed: fingerprint {old['data']} -> {new['data']}")
    found += [f"package {text}" for text in _changed(old["packages"], new["packages"])]
    return found + [f"{run} has other results" for run in _changed_keys(old["upstream"], new["upstream"])]


def _changed_keys(old: dict, new: dict) -> list[str]:
    return sorted(k for k in old.keys() | new.keys() if old.get(k, ...) != new.get(k, ...))


def _changed(old: dict, new: dict) -> list[str]:
    return [f"{k}: {old.get(k, 'none')} -> {new.get(k, 'none')}" for k in _changed_keys(old, new)]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"image": {"size_px": 96}}` to `{"image.size_px": 96}`."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def python_code(cells: list[dict]) -> str:
    """The code cells as one text, magics and shell lines turned into the calls that IPython makes of them."""
    return "\n".join(TransformerManager().transform_cell(c["source"]) for c in cells if c["type"] == "code")


def library_digests(code: str) -> dict[str, str]:
    """Module to digest for every module of the library that `code` reaches, directly or through other modules."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # all counts; the run will fail with a page that says where
        rooms = ("data", "learning", "evaluation", "audit", "reporting")
        tree = ast.parse("\n".join(f"import pneumolib.{room}" for room in rooms))
    todo, seen = _used_by_notebook(tree), {}
    while todo:
        module = todo.pop()
        if module not in seen:
            source = _module_file(module).read_text(encoding="utf-8")
            digest, imports = _read_module(source)
            seen[module] = digest
            todo |= imports - seen.keys() - (LEFT_OUT if module == SOURCES else set())
    return dict(sorted(seen.items()))


def _module_file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _read_module(source: str) -> tuple[str, frozenset[str]]:
    """A digest of what a module does, and the modules of ours that it imports."""
    return code_digest(source), frozenset(imported_modules(ast.parse(source)))


def imported_modules(tree: ast.AST) -> set[str]:
    """Modules of ours named in `import` statements, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pneumolib":
            for alias in node.names:
                found |= _resolve([*node.module.split(".")[1:], alias.name])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("pneumolib."):
                    found |= _resolve(alias.name.split(".")[1:])
    return found


def _used_by_notebook(tree: ast.AST) -> set[str]:
    """Modules behind every `pn.room.name` of a notebook, and behind its imports."""
    aliases = {
        a.asname or a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.Import)
        for a in n.names
        if a.name == "pneumolib"
    }
    found = imported_modules(tree)
    # `pn.data` inside `pn.data.read_manifest` is no use of the whole room: only the longest chain counts.
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        words = []
        while isinstance(node, ast.Attribute) and (words or id(node) not in inner):
            words.insert(0, node.attr)
            node = node.value
        if words and isinstance(node, ast.Name) and node.id in aliases:
            found |= _resolve(words)
    return found


def _resolve(words: list[str]) -> set[str]:
    """`["data", "read_manifest"]` to `{"pneumolib.data.manifest"}`; a room alone to all its modules."""
    path = PACKAGE
    for depth, word in enumerate(words):
        if (path / f"{word}.py").is_file():
            return {".".join(["pneumolib", *words[: depth + 1]])}
        if not (path / word).is_dir():
            return {f"pneumolib.{module}" for module in _handed_on(path, word)}
        path = path / word
    inner = path.relative_to(PACKAGE).parts
    return {".".join(["pneumolib", *inner, f.stem]) for f in path.glob("*.py") if f.stem != "__init__"}


def _handed_on(package: Path, name: str) -> set[str]:
    """The module that a room's `__init__.py` takes `name` from; every one of the room when it is not found there."""
    prefix = ".".join(package.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            homes = ast.literal_eval(node.value)
            found = {f"{prefix}.{module}".strip(".") for module, names in homes.items() if name in names}
            if found:
                return found
    return {f"{prefix}.{f.stem}".strip(".") for f in package.glob("*.py") if not f.stem.startswith("__")}
