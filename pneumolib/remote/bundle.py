"""One notebook that carries a study (library, notebooks, parameters, commit), and what its cells call on the borrowed machine.

Kaggle's client uploads one file and takes no parameters, so everything is in the notebook: what a person may want to change in
plain cells, the rest packed into a hidden one. There the study runs through the same command as at home, in a process of its
own. Such machines are taken away after some hours, and Kaggle keeps nothing of a session that it had to end: so the study is
ended in time, and goes on in the next session.
"""

import base64
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumolib.errors import PneumolibError
from pneumolib.hosts import Prepared, add_pages, prepare
from pneumolib.params import DataParams
from pneumolib.project import SMOKE, evaluated, in_root, load_run, project_root, study_runs, write_whole
from pneumolib.provenance import CHANGED, COMMIT_VARIABLE, provenance_of_checkout

LIBRARY = Path(__file__).resolve().parents[1]
_PASSED_OVER = {"__pycache__", ".ipynb_checkpoints"}
OUTCOME = "outcome.json"
GRACE_S = 90.0  # from the interrupt, after which a run tidies up, to the end by force
ENDED_IN_TIME = 75  # beside the command line's own codes
_STATES = {0: "finished", 1: "a run failed", 2: "stopped before any run", 130: "interrupted"}
_LATE = "ended after {:g} hours, before the machine was taken away; the next session goes on from here"


@dataclass(frozen=True)
class Bundle:
    """A built notebook.

    Attributes:
        notebook: the file.
        commit: `+changes` behind it where there are uncommitted ones, which the notebook carries as they are.
        stamp: drawn for each bundle; comes back in its outcome.
        needs_radiographs: the study reads the archive's folder.
    """

    notebook: Path
    commit: str
    stamp: str
    needs_radiographs: bool


def build(study: str, target: str, smoke: bool = False, hours: float = 8.5) -> Bundle:
    """Write `build/<target>/<study>/pneumolib-<study>.ipynb`.

    Args:
        study: a folder of `params/`.
        target: `kaggle` or `colab`, whose folder it goes to.
        smoke, hours: written into the notebook's parameters, see `run_study`.
    Raises:
        ParamsError: no such study, or a parameter file that cannot be used.
        PneumolibError: no commit is known.
    """
    from nbformat import v4, writes

    needs = _study_data(study, smoke).source == "kaggle_folder"
    commit, dirty = provenance_of_checkout()
    if commit is None:
        raise PneumolibError(f"{project_root()}: no git checkout, so there is no commit to carry. Build from a clone")
    marked, stamp = commit + (CHANGED if dirty else ""), secrets.token_hex(4)
    packed = textwrap.fill(base64.b64encode(_packed(study, commit)).decode(), 120)
    values = {"study": study, "target": target, "smoke": smoke, "hours": hours, "stamp": stamp}
    values |= {"commit": commit, "marked": marked, "dirty": dirty, "packed": packed}
    title, parameters, unpack, last = rendered("bundle.ipynb", **values).split("\n# %%\n")
    hidden = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True, "cellView": "form", "tags": ["packed"]}
    cells = [
        v4.new_markdown_cell(title),
        v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        v4.new_code_cell(unpack, metadata=hidden),
        *(v4.new_code_cell(_writing(file)) for file in sorted(in_root(f"params/{study}").glob("*.yaml"))),
        v4.new_code_cell(last),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")  # letters, digits and hyphens only, as Kaggle wants it
    bundle = Bundle(in_root(f"build/{target}/{study}/pneumolib-{slug}.ipynb"), marked, stamp, needs)
    write_whole(bundle.notebook, writes(v4.new_notebook(cells=cells, metadata=metadata)) + "\n")
    return bundle


def rendered(template: str, **values: Any) -> str:
    """The text of `<template>.j2` beside this module, with all `values` that it asks for."""
    # Imported here: a borrowed machine may lack what that needs until it is prepared.
    from pneumolib.reporting.prose import templates

    return templates("plain", Path(__file__).parent).get_template(f"{template}.j2").render(values)


def _study_data(study: str, smoke: bool = False) -> DataParams:
    """Where the study's images come from. All of its files are checked: at home, and not in a queue of hours."""
    runs = study_runs(in_root(f"params/{study}"))
    loaded = [load_run(file, smoke=smoke, run=evaluated(run))[0] for run, file in runs.items()]
    return loaded[0].data


def _writing(file: Path) -> str:
    """A cell that writes the file, its text to be read and changed there. IPython refuses to write an empty one."""
    text = file.read_text(encoding="utf-8").rstrip() or "# nothing of its own"
    return f"%%writefile params/{file.parent.name}/{file.name}\n{text}"


def _packed(study: str, commit: str) -> bytes:
    """Library, notebooks, parameters and pyproject.toml as a tar.xz; the same files give the same bytes."""
    root, home = project_root(), LIBRARY.parent
    # Where the library is used from elsewhere than the project, its own pyproject.toml says what it needs.
    files = {file.relative_to(home): file.read_bytes() for file in [home / "pyproject.toml", *LIBRARY.rglob("*.*")]
             if file.is_file() and not _PASSED_OVER & set(file.parts)}  # fmt: skip
    files |= {file.relative_to(root): file.read_bytes() for file in (root / f"params/{study}").glob("*.yaml")}
    for file in (root / "notebooks").glob("*.ipynb"):
        # Its first cell installs this very commit.
        text = re.sub(
            r'(?<=LIBRARY, REF = )(\\".*?\\"), \\".*?\\"', rf'\1, \\"{commit}\\"', file.read_text(encoding="utf-8")
        )
        files[file.relative_to(root)] = text.encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name.as_posix())
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def settle(code: str, commit: str) -> Prepared:
    """Prepare the machine and put notebooks and parameters of the unpacked bundle into the project's folder.

    Parameters and notebooks that an earlier session left there are replaced by the bundle's; results stay.

    Args:
        code: the folder that the bundle was unpacked to; the library is used from there.
        commit: what the bundle carries.
    """
    here = prepare(local_project=Path.cwd() / "pneumolib")
    add_pages(here.project)  # now, and not after the first training
    os.environ[COMMIT_VARIABLE] = commit
    # For the processes to come; this one has it on its path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    for part in ("notebooks", "params"):
        shutil.copytree(Path(code, part), here.project / part, dirs_exist_ok=True)
    os.chdir(here.project)
    return here


def run_study(here: Prepared, study: str, smoke: bool = False, hours: float = 8.5, stamp: str = "") -> dict:
    """Run `pneumolib report STUDY` in the project, show what it says, and leave `outcome.json`.

    Args:
        here: from `settle`.
        study, smoke: as on the command line.
        hours: after so long the study is interrupted; what it has reached is kept.
        stamp: of the bundle, so that a result is never taken for that of another.
    Returns:
        what `outcome.json` holds: `study` (with `-smoke` where it was run small), `commit` (`+changes` behind it where there
        were uncommitted ones), `state` in words, `code` of the command (75: ended in time, to go on next time), `seconds`,
        `headline` (what each run has to show) and `stamp`.
    """
    from pneumolib.study.pages import study_headline

    began, name = time.monotonic(), study + SMOKE if smoke else study
    options = ["-v", "--smoke"] if smoke else ["-v", *_data_option(here, study)]
    code = _watch([sys.executable, "-u", "-m", "pneumolib", "report", study, *options], here.project, 3600 * hours)
    state = _LATE.format(hours) if code == ENDED_IN_TIME else _STATES.get(code, f"ended with code {code}")
    outcome = {"study": name, "commit": os.environ.get(COMMIT_VARIABLE, ""), "state": state, "code": code,
               "seconds": round(time.monotonic() - began, 1), "headline": study_headline(name), "stamp": stamp}  # fmt: skip
    (here.project / OUTCOME).write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    if here.host == "kaggle":
        # It keeps what is in the working folder: not the images, drawn or attached (of a link, the link alone is deleted),
        # and not what was made of them.
        for part in (".cache", "data"):
            shutil.rmtree(here.project / part, ignore_errors=True)
    print(f"\nStudy {name}: {state}.\nIndex: {here.project / 'reports' / name / 'index.html'}\n{outcome['headline']}")
    return outcome


def _watch(command: list[str], project: Path, limit_s: float) -> int:
    """Run a command, its lines shown as they come; returns its code, or `ENDED_IN_TIME` where it had to be interrupted."""
    until = time.monotonic() + limit_s
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        # Neither does anything to a process that has ended.
        interrupt = threading.Timer(limit_s, process.send_signal, [signal.SIGINT])
        kill = threading.Timer(limit_s + GRACE_S, process.kill)
        for timer in (interrupt, kill):
            timer.daemon = True
            timer.start()
        for line in process.stdout:
            print(line, end="", flush=True)
    return ENDED_IN_TIME if process.returncode and time.monotonic() > until else process.returncode


def _data_option(here: Prepared, study: str) -> list[str]:
    """`--data` for a study of an archive's folder: the one found whose path names the study's own, else the first."""
    data = _study_data(study)
    if data.source != "kaggle_folder" or not here.radiographs:
        return []
    return ["--data", str(min(here.radiographs, key=lambda folder: Path(data.root).name not in folder.parts))]
