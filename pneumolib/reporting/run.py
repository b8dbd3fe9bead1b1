"""One parameter file through papermill. A run succeeds whole or leaves nothing that looks done.

The notebook is executed in `runs/<study>/.work-<run>`; on success the folder is renamed to `runs/<study>/<run>`, on
failure to `.failed/<run>`. An older result is set aside first and deleted when the new one is in place. The page of a
run at work says so, so that a killed run never leaves the page of a finished one.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
import traitlets
from filelock import Timeout
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from pneumolib.errors import ResultError
from pneumolib.hosts import processes
from pneumolib.project import project_root
from pneumolib.reporting import indexes, pages
from pneumolib.reporting.inputs import declared_parameters, gather, notebook_path
from pneumolib.reporting.progress import Progress, cell_number
from pneumolib.reporting.results import RESULT_FILE, read_result, write_result
from pneumolib.reporting.session import FOLDER_VARIABLE, RUN_VARIABLE
from pneumolib.reporting.study import Step, set_aside_folder, training_folder, upstream_digests

KERNEL = "python3"
# What a notebook can fail with: a cell's exception, a kernel that died or never came, no usable result.
_FAULTS = (PapermillExecutionError, DeadKernelError, NoSuchKernel, RuntimeError, ResultError)


class RunError(RuntimeError):
    """A run that did not finish; the message says which cell, what it said, and where page and log are."""


def execute(step: Step, position: str = "", waiting: Sequence[str] = ()) -> None:
    """Execute one run, put its folder and page in place, and write the index pages.

    Where several processes train together, that is the first one's work; the others execute the same notebook beside it.

    Args:
        step: from `study.plan`.
        position: such as `[2/3]`, shown in front of each line.
        waiting: runs of the study that are due after this one; the index shows them as out of date.
    Raises:
        RunError: the notebook failed, wrote no result, or another process is at this run.
    """
    if processes()[0]:
        return _execute_beside(step)
    try:
        with step.lock().acquire(timeout=0):
            _execute_locked(step, position, waiting)
    except Timeout:
        raise RunError(f"{step.study}/{step.run}: another process is at work on it; wait for it, or end it") from None


def _execute_beside(step: Step) -> None:
    """The part of a process other than the first: it trains along, and what it finds is what the first one writes."""
    work = step.folder.parent / f".process-{processes()[0]}-{step.run}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with Progress(f"process {processes()[0]}", step.run, work / "run.log") as progress:
        try:
            _run_notebook(step, work, progress)
        except _FAULTS as fault:
            words = describe_failure(work / "executed.ipynb", fault)
            raise RunError(
                f"{step.study}/{step.run} failed in process {processes()[0]}: {words}\n  log: {work}"
            ) from fault
    shutil.rmtree(work)


def _execute_locked(step: Step, position: str, waiting: Sequence[str]) -> None:
    work = step.folder.parent / f".work-{step.run}"
    pages.write_unfinished_page(step, datetime.now(UTC))  # first: from here on no page may look finished
    _set_aside(step)
    # Otherwise a training goes on from what is kept of it, or is not repeated.
    kept = [training_folder(step.study, step.run)] if step.forced else []
    for old in (work, _failed_folder(step), *kept):
        shutil.rmtree(old, ignore_errors=True)
    work.mkdir(parents=True)
    indexes.write_index(step.study, waiting)
    # Taken now, not when the plan was made: earlier runs may have taken hours, and a person may have edited since.
    inputs = gather(step.run, step.params, step.inputs["data"], upstream_digests(step.study, step.upstream))
    with Progress(position, step.run, work / "run.log") as progress:
        progress.say(f"because: {'; '.join(step.reasons) or 'asked for'}")
        try:
            _run_notebook(step, work, progress)
            _seal(inputs, work)
        except _FAULTS as fault:
            _fail(step, work, fault, progress, waiting)
    os.replace(work, step.folder)
    shutil.rmtree(set_aside_folder(step.study, step.run), ignore_errors=True)
    pages.write_run_page(step)
    indexes.write_index(step.study, waiting)


def _set_aside(step: Step) -> None:
    """An out-of-date result must not look like the one asked for, and must not be lost before that one is there."""
    if step.folder.exists():
        aside = set_aside_folder(step.study, step.run)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(step.folder, aside)


def _run_notebook(step: Step, work: Path, progress: Progress) -> None:
    notebook = notebook_path(step.run)
    told = {RUN_VARIABLE: step.run, FOLDER_VARIABLE: str(work)}
    os.environ |= told  # the kernel inherits it
    try:
        with tempfile.TemporaryDirectory(prefix="pneumolib-") as sockets:
            papermill_engines.register("pneumolib", _engine(progress, sockets))
            papermill.execute_notebook(
                notebook,
                work / "executed.ipynb",
                parameters=injected_parameters(step),
                engine_name="pneumolib",
                kernel_name=KERNEL,
                cwd=project_root(),
                progress_bar=False,
                stdout_file=progress,
                stderr_file=progress,
                start_timeout=120,
            )
    finally:
        for name in told:
            del os.environ[name]


def injected_parameters(step: Step) -> dict:
    """What papermill puts in place of the parameters cell: every name it declares, defaults filled in."""
    return step.params.model_dump(include=set(declared_parameters(notebook_path(step.run))))


def _engine(progress: Progress, sockets: str) -> type[NBClientEngine]:
    """papermill's own engine, which also tells `progress` about each cell and talks to the kernel in `sockets`."""

    class IpcManager(AsyncKernelManager):
        """Sockets in a folder of this run's own: ports race between kernels, and any user of the machine can listen."""

        transport = traitlets.CaselessStrEnum(["tcp", "ipc"], default_value="ipc", config=True)
        ip = traitlets.Unicode(f"{sockets}/kernel", config=True)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            cell_start = nb_man.cell_start

            def report_and_start(cell, cell_index=None, **more):
                progress.cell(nb_man.nb.cells, cell_index)
                return cell_start(cell, cell_index, **more)

            nb_man.cell_start = report_and_start
            return super().execute_managed_notebook(nb_man, kernel_name, kernel_manager_class=IpcManager, **options)

    return Engine


def _seal(inputs: dict, work: Path) -> None:
    """Add to the notebook's result what the run was made from and which files belong to it."""
    result = read_result(work)
    update = {
        "inputs": inputs | {"data": result.data.fingerprints},
        "artefacts": sorted(f.name for f in work.iterdir()),
    }
    write_result(result.model_copy(update=update), work)


def _fail(step: Step, work: Path, fault: Exception, progress: Progress, waiting: Sequence[str]) -> None:
    """Keep what there is under `.failed`, write the page with the error on top, and raise `RunError`."""
    progress.flush()
    (work / RESULT_FILE).unlink(missing_ok=True)
    failed = _failed_folder(step)
    shutil.rmtree(failed, ignore_errors=True)
    failed.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work, failed)
    headline = describe_failure(failed / "executed.ipynb", fault)
    pages.write_failed_page(step, failed, headline)
    indexes.write_index(step.study, waiting)
    shown = [os.path.relpath(p, project_root()) for p in (step.page, failed / "run.log")]
    raise RunError(f"{step.study}/{step.run} failed: {headline}\n  page: {shown[0]}\n  log:  {shown[1]}") from fault


def _failed_folder(step: Step) -> Path:
    return step.folder.parent / ".failed" / step.run


def describe_failure(executed: Path, fault: Exception) -> str:
    """One line: which cell failed with what; the fault itself where no cell shows an error (a dead kernel, say)."""
    with contextlib.suppress(FileNotFoundError):
        cells = nbformat.read(executed, as_version=4).cells
        for index, cell in enumerate(cells):
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    return f"cell {cell_number(cells, index)}: {output.ename}: {output.evalue}"
    return f"{type(fault).__name__}: {fault}"
