"""What is a run made from, and what of it has changed? Content decides, never a time stamp.

Counted: the parameters that its notebook declares, the notebook's cells and tags (not its outputs), the modules of the
library that the notebook reaches (comments, docstrings and layout aside), the data's fingerprint, the versions of the
packages that decide numbers, and the results of the runs it builds on. TensorFlow is never imported here.
"""

import ast
import functools
import itertools
import json
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pneumolib import provenance
from pneumolib.errors import ParamsError
from pneumolib.params import RunParams
from pneumolib.project import in_root, notebook_of, write_whole
from pneumolib.provenance import package_versions, statements, text_digest, without_docstrings

PACKAGE = Path(__file__).resolve().parents[1]
DECIDE_NO_NUMBER = {"papermill", "nbconvert"}  # named in `result.json`, but a new version of them reruns nothing
ROOTS = ("data.root", "external.data.root")
# How images are listed, drawn or downloaded concerns a run only through the images, and the data's fingerprint covers
# those. So this module does not count, and neither does what only this module imports.
SOURCES = "pneumolib.data.sources"
# Tag of the first code cell, which prepares Colab and Kaggle and decides no number. It holds the notebook's commit.
BOOTSTRAP = "bootstrap"


def notebook_path(run: str) -> Path:
    """The notebook that a run executes. Raises ParamsError when there is none."""
    path = in_root(f"notebooks/{notebook_of(run)}.ipynb")
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb")))
        raise ParamsError(f"{run}: looked for {path}; notebooks found: {found or 'none'}")
    return path


def read_cells(notebook: Path) -> list[dict]:
    """Cells as `{"type", "tags", "source"}`, without outputs and other metadata.

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
        return {
            _target(statement): ast.literal_eval(statement.value) for statement in ast.parse(cells[0]["source"]).body
        }
    except (SyntaxError, ValueError) as fault:
        raise ParamsError(
            f"{notebook}: the parameters cell may hold lines of the form `name = value` with plain values only: {fault}"
        ) from None


def _target(statement: ast.stmt) -> str:
    match statement:
        case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name), value=ast.expr()):
            return name
    raise ValueError(f"line {statement.lineno} is no such line")


def gather(run: str, params: RunParams, fingerprint: str, upstream: dict[str, str]) -> dict[str, Any]:
    """Everything a run is made from, as plain JSON values.

    Args:
        run: its name.
        params: its parameters; `data.root` and `external.data.root` do not count, the data's content does.
        fingerprint: of the manifest, and of the manifest of another source.
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
    found = [f"parameter {key}: {a} -> {b}" for key, a, b in _changed(old["parameters"], new["parameters"])]
    cells = enumerate(itertools.zip_longest(old["notebook"], new["notebook"]), 1)
    found += [f"notebook: cell {number} changed" for number, (a, b) in cells if a != b][:1]
    found += [f"library: {module} changed" for module, *_ in _changed(old["library"], new["library"])]
    if old["data"] != new["data"]:
        found.append(f"data changed: fingerprint {old['data']} -> {new['data']}")
    found += [f"package {name}: {a} -> {b}" for name, a, b in _changed(old["packages"], new["packages"])]
    return found + [f"{run} has other results" for run, *_ in _changed(old["upstream"], new["upstream"])]


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key, old and new value for each that differs."""
    keys = sorted(old.keys() | new.keys())
    return [(k, old.get(k, "none"), new.get(k, "none")) for k in keys if old.get(k, ...) != new.get(k, ...)]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"image": {"size_px": 96}}` to `{"image.size_px": 96}`."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def python_code(cells: list[dict]) -> str:
    """The code cells as one text, magics and shell lines turned into the calls that IPython makes of them."""
    sources = [cell["source"] for cell in cells if cell["type"] == "code"]
    try:
        _read_module("\n".join(sources))
    except SyntaxError:
        # Imported here: IPython takes as long to load as the whole up-to-date check, and few notebooks need it.
        from IPython.core.inputtransformer2 import TransformerManager

        sources = [TransformerManager().transform_cell(source) for source in sources]
    return "\n".join(sources)


def library_digests(code: str, package: Path = PACKAGE) -> dict[str, str]:
    """Module to digest for every module of the library that `code` reaches, directly or through other modules."""
    homes = _homes(package)
    try:
        todo = _modules(_read_module(code)[1], homes)
    except SyntaxError:  # all counts; the run will fail with a page that says where
        todo = set().union(*homes.values())
    digests = {SOURCES: ""}
    while todo:
        module = todo.pop()
        if module not in digests:
            source = (package.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
            digests[module], imported = _read_module(source)
            todo |= _modules(imported, homes)
    del digests[SOURCES]
    return dict(sorted(digests.items()))


@functools.cache
def _read_module(source: str) -> tuple[str, list[str]]:
    """A digest of what a module or a notebook's code does, and what it imports of ours.

    Kept in `.cache/modules/` under the text itself: reading all modules takes as long as the rest of an up-to-date check.
    """
    file = in_root(f".cache/modules/{text_digest(_reader() + source)}.json")
    try:
        digest, imported = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or cut short
        tree = without_docstrings(source)
        digest, imported = text_digest(ast.dump(tree)), sorted(_imported_names(tree))
        write_whole(file, json.dumps([digest, imported]))
    return digest, imported


@functools.cache
def _reader() -> str:
    """What else decides the digest of a module: Python, and the code that reads it."""
    code = [Path(file).read_text(encoding="utf-8") for file in (__file__, provenance.__file__)]
    return "".join([platform.python_version(), *code])


def _modules(names: Iterable[str], homes: dict[str, set[str]]) -> set[str]:
    """`pneumolib.params.check` is no name of `homes`, but `pneumolib.params` is."""
    found = set()
    for name in names:
        while name not in homes:
            name = name.rpartition(".")[0]
        found |= homes[name]
    return found


def _imported_names(tree: ast.AST) -> set[str]:
    """Names of ours in `import` statements, inside functions too, and those that are used as `pn.room.name`."""
    names, aliases, inner = set(), set(), set()
    for node in statements(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if "." in alias.name}
            aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "pneumolib"}
    for node in ast.walk(tree) if aliases else ():
        if isinstance(node, ast.Attribute):
            inner.add(node.value)  # `pn.data` inside `pn.data.read_manifest` is no use of the whole room
            chain = re.fullmatch(r"(\w+)\.([\w.]+)", ast.unparse(node)) if node not in inner else None
            if chain and chain[1] in aliases:
                names.add(f"pneumolib.{chain[2]}")
    return {name for name in names if name.startswith("pneumolib.")}


def _homes(package: Path) -> dict[str, set[str]]:
    """Modules that a name of ours stands for: a module itself, a room all its modules, `pneumolib.data.read_manifest` its home."""
    homes = {}
    for file in package.rglob("*.py"):
        room = ".".join(file.relative_to(package.parent).parent.parts)
        if file.stem == "__init__":
            handed_out = _handed_out(file.read_text(encoding="utf-8"))
            homes |= {f"{room}.{name}": {f"{room}.{module}"} for name, module in handed_out.items()}
        elif file.stem != "__main__":
            module = f"{room}.{file.stem}"
            homes[module] = {module}
            homes.setdefault(room, set()).add(module)
    return homes


@functools.cache
def _handed_out(init: str) -> dict[str, str]:
    """Name to module for all that the text of a room's `__init__.py` hands out by `submod_attrs`."""
    found = [n.value for n in ast.walk(ast.parse(init)) if isinstance(n, ast.keyword) and n.arg == "submod_attrs"]
    return {name: module for homes in found for module, names in ast.literal_eval(homes).items() for name in names}
