"""One parameter file through papermill. A run succeeds whole or leaves nothing that looks done.

The notebook is executed in `runs/<study>/.work-<run>`; on success the folder is renamed to `runs/<study>/<run>`, on
failure to `.failed/<run>`. An older result is set aside first and deleted when the new one is in place. The page of a
run at work says so, so that a killed run never leaves the page of a finished one.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from filelock import Timeout
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from pneumolib import project
from pneumolib.errors import PneumolibError, ResultError, disk_words
from pneumolib.hosts import processes
from pneumolib.params import RunParams
from pneumolib.reporting.results import RESULT_FILE, complete, read_result, write_result
from pneumolib.reporting.session import FOLDER_VARIABLE, RUN_VARIABLE
from pneumolib.study import pages
from pneumolib.study.inputs import declared_parameters, gather, notebook_path
from pneumolib.study.plan import Step, of_run, upstream_digests
from pneumolib.text import printable

# What a notebook can fail with: a cell's exception, a kernel that never came, one that died, no usable result, a full disk.
_FAULTS = (PapermillExecutionError, NoSuchKernel, RuntimeError, ResultError, OSError)
# Of glibc on Linux: the memory of tensors stays with the process, in large pages. Else each step of a training gives it back to
# the system and gets it again page by page, which costs time (benchmarks/README.md).
KEPT_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1"
# Escape sequences (colours, cursor, window titles) and what else is not text; carriage returns are dealt with apart.
_CONTROL = re.compile(r"\x1b\[[\d;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|(?![\t\n\r])[\x00-\x1f\x7f]")
# Lines that say how far a cell is: an epoch of `ValidationWatch`, with the time left, or of Keras, or a progress bar.
_STATE = re.compile(r"epoch \d+/\d+|.+: +\d+%\|", re.IGNORECASE)


# Of what a run keeps in memory, the largest parts.
LESS_MEMORY = "Lower training.batch_size, image.size_px, features.views, evaluation.threshold_views or robustness.images, or end other programs"


class Progress:
    """A run as it goes: everything in `run.log`, without control codes, and one line in the terminal. Cells write to it as to a file.

    The terminal's line is rewritten in place: the cell with the time left by how long the run took the last time, or the epoch or
    progress bar that the cell shows. Where standard output is no terminal, the line of the start is printed instead.
    `verbose` prints the log's lines, too.
    """

    def __init__(self, position: str, run: str, log: Path, verbose: bool = False):
        # For appending: the kernel's own process writes to the same file.
        self.head, self.file = f"{position} {run}".strip(), log.open("a", encoding="utf-8")
        self.pending, self.began, self.number, self.place = "", time.monotonic(), 0, ""
        self.verbose, self.live, self.flush = verbose, sys.stdout.isatty(), self.file.flush
        self.seconds = 0.0  # that the run took the last time

    def close(self) -> None:
        with suppress(OSError):  # on a full disk; the run's own error says so
            self.write("\n")
            self.file.close()
        self._rewrite("")

    def begin(self, notebook: Any) -> None:
        """Take the cells that are going to be executed."""
        self.cells = notebook.cells

    def cell(self, cell: Any, cell_index: int) -> None:
        """Announce a code cell by its number, as the notebook's author counts, and the heading above it."""
        if cell.cell_type == "code":
            self.write("\n")
            own = ["injected-parameters" not in one.metadata.get("tags", []) for one in self.cells]
            self.number = sum(own[: cell_index + 1])
            self.place = f"{self.head}  cell {self.number}/{sum(own)}"
            above = [one.source for one in self.cells[:cell_index] if one.cell_type == "markdown"]
            heading = "".join(re.findall(r"^#+ *(.*)", "\n".join(above), re.MULTILINE)[-1:])
            self.line(f"  {heading}", self.place)
            left = self.seconds - (time.monotonic() - self.began)
            self._rewrite(f"{self.place}{f', about {pages.duration(left)} left' if left > 0 else ''}  {heading}")

    def write(self, text: str) -> None:
        """Text that a cell printed, in pieces of any size."""
        *lines, self.pending = (self.pending + text).split("\n")
        for line in lines:
            self.line(line)
        self._follow(self.pending)

    def line(self, text: str, head: str = "    ", always: bool = False) -> None:
        """Log a line, and show it where that was asked for."""
        text = _last_state(text)
        if text.strip() and not pages.is_noise(text):
            self.file.write(f"{time.monotonic() - self.began:7.1f} s  {head}{text}\n")
            self.flush()
            if self.verbose or always:
                print(("\r\x1b[K" if self.live else "") + head + text, flush=True)
            self._follow(text)

    def _follow(self, text: str) -> None:
        if _STATE.match(text := _last_state(text)):
            self._rewrite(f"{self.place}, {text}")

    def _rewrite(self, text: str) -> None:
        if self.live:
            print("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)


def _last_state(text: str) -> str:
    """What a terminal shows of a line that carriage returns rewrote, without control codes."""
    return printable(_CONTROL.sub("", text).rstrip("\r").rsplit("\r", 1)[-1], "\t")


def execute(step: Step, position: str = "", waiting: Sequence[str] = (), verbose: bool = False) -> None:
    """Execute one run, put its folder and page in place, and write the index pages.

    Where several processes train together, that is the first one's work; the others execute the same notebook beside it.

    Args:
        step: from `plan`.
        position: such as `[2/3]`, shown in front of each line.
        waiting: runs of the study that are due after this one; the index shows them as out of date.
        verbose: show each cell and what it prints.
    Raises:
        PneumolibError: the notebook failed, wrote no result, or another process is at this run. The message says which
            cell, what it said, and where page and log are.
    """
    if processes()[0]:
        return _execute_beside(step, verbose)
    try:
        with step.lock().acquire(timeout=0):
            _execute_locked(step, position, waiting, verbose)
    except Timeout:
        said = "another process is at work on it; wait for it, or end it"
        raise PneumolibError(f"{step.study}/{step.run}: {said}") from None


def _execute_beside(step: Step, verbose: bool) -> None:
    """The part of a process other than the first: it trains along, and what it finds is what the first one writes."""
    me = f"process {processes()[0]}"
    work = _emptied(step.folder.parent / f".{me.replace(' ', '-')}-{step.run}")
    work.mkdir()
    with closing(Progress(me, step.run, work / "run.log", verbose)) as progress:
        try:
            _run_notebook(step, work, progress)
        except _FAULTS as fault:
            words = _describe_failure(fault, progress)
            raise PneumolibError(f"{step.study}/{step.run} failed in {me}: {words}\n  log: {work}") from fault
    shutil.rmtree(work)


def _execute_locked(step: Step, position: str, waiting: Sequence[str], verbose: bool) -> None:
    work, failed = (step.folder.parent / name for name in (f".work-{step.run}", f".failed/{step.run}"))
    trained = replace(step, run=project.evaluated(step.run))
    pages.write_unfinished_page(step, datetime.now(UTC))  # first: from here on no page may look finished
    set_aside(step)
    if project.notebook_of(step.run) == project.EVALUATION:  # until the new findings are there, the training shows none
        complete(trained.folder)
        pages.write_run_page(trained)
    if step.forced:  # otherwise a training goes on from what is kept of it, or is not repeated
        _emptied(step.training)
    _emptied(failed)
    _emptied(work).mkdir()
    pages.write_index(step.study, waiting)
    # Taken now, not when the plan was made: earlier runs may have taken hours, and a person may have edited since.
    inputs = gather(step.run, step.params, step.inputs["data"], upstream_digests(step.study, step.upstream))
    with closing(Progress(position, step.run, work / "run.log", verbose)) as progress:
        with suppress(ResultError):
            progress.seconds = read_result(step.previous).provenance.seconds
        reasons = "; ".join(step.reasons) or "asked for"
        progress.line(f"started: {reasons}", f"{progress.head}  ", always=not progress.live)
        try:
            _run_notebook(step, work, progress)
            _seal(inputs, work)
            # Before the evaluation looks done: if this is interrupted, it is due again.
            if project.notebook_of(step.run) == project.EVALUATION:
                complete(trained.folder, work)
        except _FAULTS as fault:
            (work / RESULT_FILE).unlink(missing_ok=True)
            os.replace(work, failed)
            words = _describe_failure(fault, progress)
            with suppress(OSError, ValueError):  # on a full disk; the notebook may have been cut short there
                pages.write_failed_page(step, failed, words)
                pages.write_index(step.study, waiting)
            page, log = (os.path.relpath(p, project.project_root()) for p in (step.page, failed / "run.log"))
            raise PneumolibError(f"{step.study}/{step.run} failed: {words}\n  page: {page}\n  log:  {log}") from fault
    os.replace(work, step.folder)
    shutil.rmtree(step.previous, ignore_errors=True)
    for run in dict.fromkeys([step.run, trained.run]):  # the page of a training shows what its evaluation found
        pages.write_run_page(replace(step, run=run))
    pages.write_index(step.study, waiting)


def set_aside(step: Step) -> None:
    """Put an older result where `plan` finds it again. It must not look like the one asked for, nor be lost before that is there."""
    if step.folder.exists():
        os.replace(step.folder, _emptied(step.previous))


def _emptied(folder: Path) -> Path:
    """`folder`, which is gone now, while its parent is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _run_notebook(step: Step, work: Path, progress: Progress) -> None:
    class Manager(AsyncKernelManager):
        """What comes past the cells' outputs, from a library or a dying kernel, goes to the log and not to the terminal."""

        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**options, stdout=progress.file, stderr=progress.file)

    notebook = notebook_path(step.run)
    os.environ |= {RUN_VARIABLE: step.run, FOLDER_VARIABLE: str(work)}  # the kernel inherits it
    os.environ.setdefault("GLIBC_TUNABLES", KEPT_MEMORY)
    with tempfile.TemporaryDirectory(prefix="pneumolib-") as sockets:
        papermill.execute_notebook(
            notebook,
            work / "executed.ipynb",
            parameters=injected_parameters(notebook, step.params),
            kernel_name="python3",
            cwd=project.project_root(),
            progress_bar=False,
            stdout_file=progress,
            stderr_file=progress,
            start_timeout=120,
            kernel_manager_class=Manager,
            on_notebook_start=progress.begin,
            on_cell_start=progress.cell,
            # Sockets in a folder of this run's own: ports race between kernels, and any user of the machine can listen.
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )


def injected_parameters(notebook: Path, params: RunParams) -> dict[str, Any]:
    """What papermill puts in place of the parameters cell: every name it declares, defaults filled in."""
    return params.model_dump(include=set(declared_parameters(notebook)))


def _seal(inputs: dict[str, Any], work: Path) -> None:
    """Add to the notebook's result what the run was made from and which files belong to it."""
    result = read_result(work)
    files = sorted(file.relative_to(work).as_posix() for file in work.rglob("*") if file.is_file())
    sealed = {"inputs": inputs | {"data": result.data.fingerprints}, "artefacts": files}
    write_result(result.model_copy(update=sealed), work)


def _describe_failure(fault: Exception, progress: Progress) -> str:
    """One line: which cell failed with what; the fault itself where no cell shows an error (a dead kernel, say)."""
    if isinstance(fault, PapermillExecutionError):
        return f"cell {progress.number}: {disk_words(fault.evalue) or f'{fault.ename}: {fault.evalue}'}"
    if isinstance(fault, DeadKernelError):
        return f"DeadKernelError in cell {progress.number}: the kernel was killed, often out of memory. {LESS_MEMORY}"
    return disk_words(fault) or f"{type(fault).__name__}: {fault}"


def open_copy(path: Path, data_root: str | None = None, browse: bool = True, smoke: bool = False) -> int:
    """Write a copy of a run's notebook for a person to work in, and open it in JupyterLab; returns JupyterLab's exit code.

    The copy `runs/interactive/<study>-<run>.ipynb` has that run's parameters in place of the demo's. A copy that a person
    has worked in is kept: the new one gets a number.
    """
    file, run = project.study_runs(path.parent).get(path.stem, path), project.evaluated(path.stem)
    params, _ = project.load_run(file, data_root, smoke, run)
    params, notebook = of_run(path.stem, params), notebook_path(path.stem)
    first = project.in_root(f"runs/interactive/{params.study}-{path.stem}.ipynb")
    more = (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2))
    copy = next(file for file in itertools.chain([first], more) if not file.exists())
    values = injected_parameters(notebook, params)
    prepared = papermill.execute_notebook(notebook, None, parameters=values, prepare_only=True, progress_bar=False)
    project.write_whole(copy, nbformat.writes(prepared) + "\n")
    print(f"Working copy: {os.path.relpath(copy, project.project_root())}. What it writes goes to runs/interactive/.")
    return subprocess.call([sys.executable, "-m", "jupyter", "lab", copy], cwd=project.project_root()) if browse else 0
