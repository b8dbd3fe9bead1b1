"""A server on this machine alone for the page of `app`; what is uploaded stays in memory, and nothing is sent anywhere."""

import importlib.util
import logging
import tomllib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from pneumolib.errors import InputError
from pneumolib.project import in_root
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serve.trained import find_run, trained_runs
from pneumolib.serve.uploads import MOST_PIXELS
from pneumolib.study.inputs import flatten

MOST_UPLOAD_MB = 200  # refused by the browser; below it, files above `MOST_BYTES` are refused by us, who can say more


def serve(run: str | None, port: int, browse: bool) -> None:
    """Show the page until interrupted.

    Args:
        run: chosen to begin with, a folder or `study/run`; None for the one that was finished last.
        port: where it listens, on localhost only.
        browse: open a browser.
    Raises:
        InputError: Streamlit is not installed, or there is no trained run.
        ModelError: no such run.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise InputError('The page needs Streamlit, which is not installed: pip install "pneumolib[app]"')
    known = {find_run(name): name for name in trained_runs()}
    if not known and run is None:
        raise InputError(f"No run with {MODEL_FILE} in {in_root('runs')}: `make report` trains one, on drawn images")
    first = [] if run is None else [known.get(find_run(run), str(find_run(run)))]
    keep_private()
    from streamlit.web import cli

    script = str(Path(__file__).with_name("app.py"))
    cli.main(["run", script, *settings(port, browse), "--", *first], standalone_mode=False)


def settings(port: int, browse: bool) -> list[str]:
    """Streamlit's options as on its command line; they override a user's own configuration."""
    fixed = tomllib.loads(Path(__file__).with_name("app.toml").read_text("utf-8"))
    own = {"server.port": port, "server.headless": not browse, "server.maxUploadSize": MOST_UPLOAD_MB}
    pairs = [(name, value) for name, value in (flatten(fixed) | own).items() for value in np.atleast_1d(value)]
    return [word for name, value in pairs for word in (f"--{name}", str(value).lower())]


def keep_private() -> None:
    """Nothing of a file reaches the log or the disk, and pictures within DICOM files are held to `MOST_PIXELS`, too.

    For the whole process, because `warnings.catch_warnings` is not safe where several visitors have a thread each.
    """
    from starlette.formparsers import MultiPartParser

    # pydicom's messages quote the values that they complain about; its logger's level is set anew when it is imported.
    logging.getLogger("pydicom").propagate = False
    warnings.simplefilter("ignore")
    # Streamlit parses what a browser sends by this class, which puts all above a megabyte into a temporary file.
    MultiPartParser.spool_max_size = (MOST_UPLOAD_MB + 1) * 2**20
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
