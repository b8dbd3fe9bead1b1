"""One parameter file through papermill. A run succeeds whole or leaves nothing that looks done.

The notebook is executed in `runs/<study>/.work-<run>`; on success the folder is renamed to `runs/<study>/<run>`, on
failure to `.failed/<run>`. An older result is set aside first and deleted when the new one is in place. The page of a
run at work says so, so that a killed run never leaves the page of a finished one.
"""

import contextlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
import traitlets
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from pneumolib.params import project_root
from pneumolib.reporting import pages
from pneumolib.reporting.inputs import declared_parameters, notebook_path
from pneumolib.reporting.progress import Progress, cell_number
from pneumolib.reporting.results import RESULT_FILE, ResultError, read_result, write_result
from pneumolib.reporting.session import FOLDER_VARIABLE, RUN_VARIABLE
from pneumolib.reporting.study import Step, set_aside_folder, upstream_digests

KERNEL = "python3"


class RunError(RuntimeError):
    """A run that did not finish; the message says which cell, what it said, and where page and log are."""


def execute(step: Step, position: str = "") -> None:
    """Execute one run, put its folder and page in place, and write the index pages.

    Args:
        step: from `study.plan`.
        position: such as `[2/3]`, shown in front of each line.
    Raises:
        RunError: the notebook failed, wrote no result, or another process is at this run.
    """
    lock = FileLock(step.folder.parent / f".{step.run}.lock")
    lock_folder = step.folder.parent
    lock_folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock.acquire(timeout=0):
            _execute_locked(step, position)
    except Timeout:
        raise RunError(f"{step.study}/{step.run}: another process is at work on it; wait for it, or end it") from None


def _execute_locked(step: Step, position: str) -> None:
    work = step.folder.parent / f".work-{step.run}"
    _set_aside(step)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    pages.write_unfinished_page(step, datetime.now(UTC))
    pages.write_index(step.study)
    with Progress(position, step.run, work / "run.log") as progress:
        progress.say(f"because: {'; '.join(step.reasons) or 'asked for'}")
        try:
            _run_notebook(step, work, progress)
            _seal(step, work)
        # What a notebook can fail with: a cell's exception, a kernel that died or never came, no usable result.
        except (PapermillExecutionError, DeadKernelError, NoSuchKernel, RuntimeError, ResultError) as fault:
            _fail(step, work, fault, progress)
    os.replace(work, step.folder)
    shutil.rmtree(set_aside_folder(step.study, step.run), ignore_errors=True)
    shutil.rmtree(_failed_folder(step), ignore_errors=True)
    pages.write_run_page(step)
    pages.write_index(step.study)


def _set_aside(step: Step) -> None:
    """An out-of-date result must not look like the one asked for, and must not be lost before that one is there."""
    if step.folder.exists():
        aside = set_aside_folder(step.study, step.run)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(step.folder, aside)


def _run_notebook(step: Step, work: Path, progress: Progress) -> None:
    notebook = notebook_path(step.run)
    os.environ |= {RUN_VARIABLE: step.run, FOLDER_VARIABLE: str(work)}
    papermill_engines.register("pneumolib", _engine(progress))
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


def injected_parameters(step: Step) -> dict:
    """What papermill puts in place of the parameters cell: every name it declares, defaults filled in."""
    return step.params.model_dump(include=set(declared_parameters(notebook_path(step.run))))


def _engine(progress: Progress) -> type[NBClientEngine]:
    """papermill's own engine, which also tells `progress` about each cell."""

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            cell_start = nb_man.cell_start

            def report_and_start(cell, cell_index=None, **more):
                progress.cell(nb_man.nb.cells, cell_index)
                return cell_start(cell, cell_index, **more)

            nb_man.cell_start = report_and_start
            return super().execute_managed_notebook(nb_man, kernel_name, kernel_manager_class=_IpcManager, **options)

    return Engine


class _IpcManager(AsyncKernelManager):
    """Talks to the kernel over sockets in the file system: ports race between kernels, and any user can listen."""

    transport = traitlets.CaselessStrEnum(["tcp", "ipc"], default_value="ipc", config=True)


def _seal(step: Step, work: Path) -> None:
    """Add what the run was made from to the result that the notebook wrote."""
    result = read_result(work)
    upstream = upstream_digests(step.study, step.upstream)
    inputs = step.inputs | {"data": result.data.fingerprint, "upstream": upstream}
    write_result(result.model_copy(update={"inputs": inputs}), work)


def _fail(step: Step, work: Path, fault: Exception, progress: Progress) -> None:
    """Keep what there is under `.failed`, write the page with the error on top, and raise `RunError`."""
    progress.flush()
    (work / RESULT_FILE).unlink(missing_ok=True)
    failed = _failed_folder(step)
    shutil.rmtree(failed, ignore_errors=True)
    failed.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work, failed)
    headline = describe_failure(failed / "executed.ipynb", fault)
    pages.write_failed_page(step, failed, headline)
    pages.write_index(step.study)
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
