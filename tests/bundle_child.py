"""Executes a notebook as Kaggle does, from top to bottom in the working folder, in a process of its own.

    python bundle_child.py <notebook.ipynb> <executed.ipynb>

The kernel is talked to through files, so that it also works where the network is switched off, loopback included. What cells
print goes to standard output; the executed notebook is written whatever happens.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
import traitlets
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient


def show(cell, cell_index, execute_reply=None) -> None:
    """Print what a finished cell printed."""
    for output in cell.get("outputs", []):
        print(output.get("text", output.get("evalue", "")), end="", flush=True)


def main(notebook: str, executed: str) -> None:
    """Execute; exceptions of cells come through."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as sockets:

        class IpcManager(AsyncKernelManager):
            transport = traitlets.CaselessStrEnum(["tcp", "ipc"], default_value="ipc", config=True)
            ip = traitlets.Unicode(f"{sockets}/kernel", config=True)

        cells = nbformat.read(notebook, as_version=4)
        client = NotebookClient(
            cells, kernel_name="python3", kernel_manager_class=IpcManager, timeout=280, on_cell_executed=show,
            resources={"metadata": {"path": str(Path.cwd())}},
        )  # fmt: skip
        try:
            client.execute()
        finally:
            nbformat.write(cells, executed)


if __name__ == "__main__":
    main(*sys.argv[1:])
