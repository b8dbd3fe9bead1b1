"""A copy of a run's notebook for a person to work in, with that run's parameters in place of the demo's."""

import os
import subprocess
import sys
from pathlib import Path

import papermill

from pneumolib.project import in_root, load_run, project_root
from pneumolib.reporting.inputs import declared_parameters, notebook_path


def open_copy(path: Path, data_root: str | None = None, browse: bool = True, smoke: bool = False) -> int:
    """Write `runs/interactive/<study>-<run>.ipynb` and open it in JupyterLab; returns JupyterLab's exit code.

    A copy that a person has worked in is kept: the new one gets a number.
    """
    params, _ = load_run(path, data_root, smoke)
    notebook = notebook_path(path.stem)
    values = params.model_dump(include=set(declared_parameters(notebook)))
    copy = _free_name(in_root(f"runs/interactive/{params.study}-{path.stem}.ipynb"))
    copy.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(notebook, copy, parameters=values, prepare_only=True, progress_bar=False)
    print(f"Working copy: {os.path.relpath(copy, project_root())}. What it writes goes to runs/interactive/.")
    if not browse:
        return 0
    return subprocess.call([sys.executable, "-m", "jupyter", "lab", str(copy)], cwd=project_root())


def _free_name(path: Path) -> Path:
    names = (path.with_stem(f"{path.stem}-{n}") for n in range(2, 1000))
    return path if not path.exists() else next(name for name in names if not name.exists())
