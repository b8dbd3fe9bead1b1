"""A server on this machine alone for the page of `app_page`; what is uploaded stays in memory, and nothing is sent anywhere."""

import importlib.util
import logging
import warnings
from pathlib import Path

from PIL import Image

from pneumolib.project import in_root
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serving.trained import find_run, trained_runs
from pneumolib.serving.uploads import MOST_PIXELS

SCRIPT = Path(__file__).with_name("app.py")
ADDRESS = "localhost"
PORT = 8501
MOST_UPLOAD_MB = 200  # refused by the browser; below it, files above `MOST_BYTES` are refused by us, who can say more


class AppError(ValueError):
    """The page cannot be shown; the message says what is missing and what to do."""


def serve(run: str | None = None, port: int = PORT, browse: bool = False) -> None:
    """Show the page until interrupted.

    Args:
        run: chosen to begin with, a folder or `study/run`; by default the one that was finished last.
        port: where it listens, on localhost only.
        browse: open a browser.
    Raises:
        AppError: Streamlit is not installed, or there is no trained run.
        ModelError: no such run.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise AppError('The page needs Streamlit, which is not installed: pip install "pneumolib[app]"')
    if not trained_runs() and run is None:
        raise AppError(f"No run with {MODEL_FILE} in {in_root('runs')}: `make report` trains one, on drawn images")
    first = [_as_chosen(run)] if run is not None else []
    keep_quiet()
    keep_in_memory()
    from streamlit.web import cli

    cli.main(["run", str(SCRIPT), *settings(port, browse), "--", *first], standalone_mode=False)


def _as_chosen(run: str) -> str:
    """`study/run` where it is one of the project's, else its folder."""
    folder = find_run(run)
    name = f"{folder.parent.name}/{folder.name}"
    return name if name in trained_runs() and folder == find_run(name) else str(folder)


def settings(port: int, browse: bool) -> list[str]:
    """Streamlit's options as on its command line; they go before what a user's own configuration says."""
    options = {
        "server.address": ADDRESS,
        "server.port": port,
        "server.headless": "false" if browse else "true",
        "server.showEmailPrompt": "false",
        "server.maxUploadSize": MOST_UPLOAD_MB,
        "server.fileWatcherType": "none",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "server.allowedHosts": ADDRESS,  # a page elsewhere whose name is made to point here is not answered
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",  # an error's text could quote a file
        "client.showErrorLinks": "false",
        "runner.magicEnabled": "false",
        "logger.level": "error",
        "theme.light.primaryColor": "#0072B2",
        "theme.dark.primaryColor": "#56B4E9",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def keep_quiet() -> None:
    """Nothing of a file reaches the log: pydicom's warnings quote the values that they complain about.

    For the whole process, because `warnings.catch_warnings` is not safe where several visitors have a thread each.
    """
    logging.getLogger("pydicom").propagate = False  # its own level is set anew when it is imported
    warnings.simplefilter("ignore")


def keep_in_memory() -> None:
    """Uploads are not written to disk, and pictures within DICOM files are held to the same number of pixels as others."""
    from starlette.formparsers import MultiPartParser

    # Streamlit parses what a browser sends by this class, which puts all above a megabyte into a temporary file.
    MultiPartParser.spool_max_size = (MOST_UPLOAD_MB + 1) * 2**20
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
