"""What is a run made from, and what of it has changed? Content decides, never a time stamp.

Counted: the parameters that its notebook declares, the notebook's cells and tags (not its outputs), the modules of the
library that the notebook names or they import (comments, docstrings and layout aside), the data's fingerprint, the versions of the
packages that decide numbers, and the results of the runs it builds on. TensorFlow is never imported here.
"""

import ast
import functools
import itertools
import json
import platform
import re
from pathlib import Path
from typing import Any

from pneumolib.errors import ParamsError
from pneumolib.params import RunParams, flatten
from pneumolib.project import in_root, notebook_of, write_whole
from pneumolib.provenance import package_versions, text_digest, without_docstrings

PACKAGE = Path(__file__).resolve().parents[1]
DECIDE_NO_NUMBER = {"papermill"}  # named in `result.json`, but a new version of it reruns nothing
# They say where images are and how large they may be; which images are read, the data's content shows.
NOT_COUNTED = {f"{of}.{key}" for of in ("data", "external.data") for key in ("root", "max_megapixels", "max_file_mb")}
# How images are listed, drawn or downloaded concerns a run only through the images, and the data's fingerprint covers
# those. So this module does not count, and neither does what only this module imports.
SOURCES = "pneumolib.data.sources"
# An import from a room, with the names where they can be read; and what a notebook uses of the library, or the whole of it.
_IMPORT = re.compile(r"from (pneumolib[\w.]*) import (\([^)]*\)|[\w, ]+(?=[;#\n]|$)|)")
_USE = re.compile(r"(?<!`)\b(?:pn|pneumolib)\b([\w.]*)")  # not in a comment's `pneumolib report`
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
        return {_target(line): ast.literal_eval(line.value) for line in ast.parse(cells[0]["source"]).body}
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
        params: its parameters; those of `NOT_COUNTED` do not count, the data's content does.
        fingerprint: of the manifest, and of the manifest of another source.
        upstream: name to hash of the results it builds on.
    """
    notebook = notebook_path(run)
    names = declared_parameters(notebook)
    cells = [BOOTSTRAP if BOOTSTRAP in cell["tags"] else cell for cell in read_cells(notebook)]
    return {
        "parameters": {k: v for k, v in flatten(params.model_dump(include=set(names))).items() if k not in NOT_COUNTED},
        "notebook": [text_digest(json.dumps(cell, sort_keys=True)) for cell in cells],
        "library": library_digests("\n".join(c["source"] for c in cells if c != BOOTSTRAP and c["type"] == "code")),
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


def library_digests(code: str, package: Path = PACKAGE) -> dict[str, str]:
    """Module to digest for every module of the library that `code` names, directly or through other modules.

    Names are looked for in the text: `pn.room.name`, and what follows `from pneumolib.room import`. A name that no room
    hands out stands for its whole room, and the library under another name than `pn` for all of it. So too many modules
    may count, in a comment for example, and never too few.
    """
    homes = _homes(package)
    used = _USE.findall(_IMPORT.sub("", re.sub(r"import pneumolib as pn\b", "", code)))
    todo = _modules([*_imported(code), *(f"pneumolib{name}" for name in used)], homes)
    digests = {SOURCES: ""}
    while left := todo - digests.keys():
        module = left.pop()
        source = (package.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        digests[module] = _digest(source)
        todo |= _modules(_imported(source), homes)
    del digests[SOURCES]
    return dict(sorted(digests.items()))


@functools.cache
def _digest(source: str) -> str:
    """Of what a module does: comments, docstrings and layout do not count. Kept in `.cache/modules`, under the text itself."""
    file = in_root(f".cache/modules/{text_digest(platform.python_version() + source)}")
    if not file.is_file():  # to take a module apart is slower than all else of a check
        write_whole(file, text_digest(ast.dump(without_docstrings(source))))
    return file.read_text(encoding="utf-8")


def _imported(text: str) -> list[str]:
    return [f"{room}.{word}" for room, names in _IMPORT.findall(text) for word in re.findall(r"\w+", names) or [""]]


def _modules(names: list[str], homes: dict[str, set[str]]) -> set[str]:
    """`pneumolib.params.check` is no name of `homes`, but `pneumolib.params` is."""
    found = set()
    for name in names:
        while name not in homes:
            name = name.rpartition(".")[0]
        found |= homes[name]
    return found


def _homes(package: Path) -> dict[str, set[str]]:
    """Modules that a name of ours stands for: a module itself, a room all its modules, `pneumolib.data.read_manifest` its home."""
    homes = {}
    for file in package.rglob("*.py"):
        room = ".".join(file.relative_to(package.parent).parent.parts)
        if file.stem == "__init__":  # of `submod_attrs`
            for module, names in re.findall(r'"([\w.]+)": \[([^]]*)\]', file.read_text(encoding="utf-8")):
                homes |= {f"{room}.{name}": {f"{room}.{module}"} for name in re.findall(r'"(\w+)"', names)}
        elif file.stem != "__main__":
            module = f"{room}.{file.stem}"
            homes[module] = {module}
            for whole in {room, "pneumolib"}:
                homes.setdefault(whole, set()).add(module)
    return homes
