"""One notebook that carries a study: library, notebooks, parameters and commit; for Kaggle, Colab and schedules.

Kaggle's client uploads one file and takes no parameters, so everything stands in the notebook: what a person may want to
change in plain cells, the rest packed into a hidden one.
"""

import base64
import io
import json
import lzma
import re
import secrets
import tarfile
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pneumolib.project import in_root, project_root, run_files
from pneumolib.provenance import CHANGED, provenance_of_checkout
from pneumolib.remote.bootstrap import bootstrap_cell

LIBRARY = Path(__file__).resolve().parents[1]
LARGEST_KB = 900  # one megabyte is what is said to be the most that Kaggle takes; no source of its own was found
_TITLE = """\
# Study `{study}` of pneumolib

Made by `make {target} STUDY={study}` from commit `{commit}`{dirty}. The notebook carries the library, the study's notebooks
and its parameters: it needs nothing but the radiographs and, where packages are missing, the internet. Research only, not a
medical device.

Results lie in `reports/{study}/index.html` and `runs/{study}/`. Where the machine is taken away in the middle, attach the
output of this session to the next one: it goes on from there."""
_PARAMETERS = """\
# Parameters: change them here, and the study's own in the cells below.
study = "demo"
smoke = False  # True: a few drawn images, one epoch
hours = 8.5  # the study is ended after so long and goes on in the next session"""
_UNPACK = '''\
# The library at commit {commit}, packed; then the machine is made ready.
import base64, io, sys, tarfile, tempfile
from pathlib import Path

CODE = Path(tempfile.mkdtemp(prefix="pneumolib-"))
PACKED = """
{packed}
"""
tarfile.open(fileobj=io.BytesIO(base64.b64decode(PACKED)), mode="r:xz").extractall(CODE, filter="data")
sys.path.insert(0, str(CODE))
from pneumolib.remote.worker import run_study, settle

here = settle(CODE, "{commit}")'''


class BundleError(RuntimeError):
    """A bundle that cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Bundle:
    """A built notebook.

    Attributes:
        study: as asked for.
        notebook: the file.
        commit: `+changes` behind it where there are uncommitted ones, which the notebook carries as they are.
        stamp: drawn for each bundle; comes back in its outcome.
        needs_radiographs: the study reads the archive's folder.
    """

    study: str
    notebook: Path
    commit: str
    stamp: str
    needs_radiographs: bool

    @property
    def size_kb(self) -> int:
        return round(self.notebook.stat().st_size / 1000)


def build(study: str, target: str, smoke: bool = False, hours: float = 8.5) -> Bundle:
    """Write `build/<target>/<study>/pneumolib-<study>.ipynb`.

    Args:
        study: a folder of `params/`.
        target: `kaggle` or `colab`, whose folder it goes to.
        smoke, hours: written into the notebook's parameters, see `worker.run_study`.
    Raises:
        ParamsError: no such study, or a parameter file that cannot be used.
        BundleError: no commit is known, or the notebook is too large.
    """
    import nbformat
    import papermill

    needs = _needs_radiographs(study, smoke)
    commit, dirty = provenance_of_checkout()
    if commit is None:
        raise BundleError(f"{project_root()}: no git checkout, so there is no commit to carry. Build from a clone")
    marked, stamp = commit + (CHANGED if dirty else ""), secrets.token_hex(4)
    folder = in_root(f"build/{target}/{study}")
    folder.mkdir(parents=True, exist_ok=True)
    notebook = folder / f"{slug(study)}.ipynb"
    plain = nbformat.from_dict(_notebook(study, target, marked, commit, stamp))
    nbformat.validate(plain)
    injected = papermill.execute_notebook(
        plain, None, parameters={"study": study, "smoke": smoke, "hours": hours}, prepare_only=True, progress_bar=False
    )
    for extra in ("papermill", "kaggle", "colab", "widgets"):
        injected.metadata.pop(extra, None)
    nbformat.write(injected, notebook)
    bundle = Bundle(study, notebook, marked, stamp, needs)
    if bundle.size_kb > LARGEST_KB:
        raise BundleError(f"{notebook}: {bundle.size_kb} kB, more than the {LARGEST_KB} kB that are sure to be taken")
    return bundle


def slug(study: str) -> str:
    """The notebook's name: `pneumolib-tpu-cnn`; letters, digits and hyphens only, as Kaggle wants it."""
    return "pneumolib-" + re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")


def _needs_radiographs(study: str, smoke: bool) -> bool:
    """All files are checked here, at home, and not in a queue of hours."""
    from pneumolib.project import load_run

    loaded = [load_run(file, smoke=smoke)[0] for file in run_files(in_root(f"params/{study}"))]
    return loaded[0].data.source == "kaggle_folder"


def _notebook(study: str, target: str, marked: str, commit: str, stamp: str) -> dict:
    dirty = " and uncommitted changes, which it carries too" if marked != commit else ""
    title = _TITLE.format(study=study, target=target, commit=commit[:12], dirty=dirty)
    packed = textwrap.fill(base64.b64encode(_pack(study, commit)).decode(), 120)
    hidden = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True, "cellView": "form", "tags": ["packed"]}
    files = sorted(in_root(f"params/{study}").glob("*.yaml"))
    cells = [
        _cell("title", title, kind="markdown"),
        _cell("parameters", _PARAMETERS, {"tags": ["parameters"]}),
        _cell("packed", _UNPACK.format(commit=marked, packed=packed), hidden),
        *(_cell(f"file-{n}", _writing(f"params/{study}/{file.name}", file)) for n, file in enumerate(files)),
        _cell("run", f'outcome = run_study(here, study, smoke, hours, stamp="{stamp}")'),
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "cells": cells,
            "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}  # fmt: skip


def _writing(path: str, file: Path) -> str:
    """A cell that writes the file, its text to be read and changed there. IPython refuses to write an empty one."""
    return f"%%writefile {path}\n{file.read_text(encoding='utf-8').rstrip() or '# nothing of its own'}"


def _cell(name: str, source: str, metadata: dict | None = None, kind: str = "code") -> dict:
    more = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": metadata or {}, "source": source, **more}


def _pack(study: str, commit: str) -> bytes:
    """Library, notebooks, parameters and pyproject.toml as a tar.xz; the same files give the same bytes."""
    root = project_root()
    # Where the library is used from elsewhere than the project, its own pyproject.toml says what it needs.
    pyproject = LIBRARY.parent / "pyproject.toml"
    files = {file.relative_to(LIBRARY.parent): file.read_bytes() for file in _library_files()}
    files |= {file.relative_to(root): file.read_bytes() for file in sorted((root / f"params/{study}").glob("*.yaml"))}
    address = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        files[file.relative_to(root)] = json.dumps(_stamped(file, address, commit), indent=1).encode()
    files[Path("pyproject.toml")] = pyproject.read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name.as_posix())
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def _library_files() -> list[Path]:
    files = (file for file in sorted(LIBRARY.rglob("*")) if file.is_file())
    return [f for f in files if not any(part[0] in "._" for part in f.relative_to(LIBRARY).parts[:-1])]


def _stamped(file: Path, repository: str, commit: str) -> dict:
    """A notebook whose first cell installs this very commit."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    for number, cell in enumerate(notebook["cells"]):
        if "bootstrap" in cell["metadata"].get("tags", []):
            notebook["cells"][number] = bootstrap_cell(repository.rstrip("/"), commit)
    return notebook
