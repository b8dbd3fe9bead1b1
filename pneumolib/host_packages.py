"""Packages that a host lacks are added; none that it brings is replaced. Imports nothing but Python's own.

Colab and Kaggle bring TensorFlow, JAX, Keras and NumPy built for their machines. pip is told, by a file of constraints made
from what is installed, that each package there stays at its version: it adds what is missing, or it fails.
"""

import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# Colab's TPU machines come without TensorFlow, which reads the images everywhere.
TENSORFLOW = "tensorflow-cpu"
# A version that pip can read as a constraint; Debian's own packages have others.
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[A-Za-z0-9.]+)?")


class PackagesError(RuntimeError):
    """Packages that are missing and could not be added; the message holds what pip said and what to do."""


def add_missing() -> list[str]:
    """Install what the library needs and the machine lacks; returns the names of it. Nothing is called where all is there.

    Raises PackagesError; nothing has been replaced then either.
    """
    lacking = missing()
    if not lacking:
        return []
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "installed.txt"
        there.write_text("\n".join(constraints()) + "\n", encoding="utf-8")
        # All requirements, not only the missing: pip then also sees where an installed version is too old for us.
        wanted = [*requirements(), *([TENSORFLOW] if TENSORFLOW in lacking else [])]
        command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", "-c", str(there), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackagesError(
            f"{', '.join(lacking)}: missing or too old here, and cannot be added without replacing what this machine brings; nothing "
            f"was changed. Is the internet switched on for this notebook? pip said:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    importlib.invalidate_caches()
    return lacking


def missing() -> list[str]:
    """Names of required packages that are not installed, or are older than we can use."""
    there = {_plain(name): version for name, version in installed().items()}
    names = []
    for line in requirements():
        name, bound = re.match(r"([\w.-]+)(?:>=([\d.]+))?", line).groups()
        version = there.get(_plain(name))
        if version is None or (bound and _numbers(version) < _numbers(bound)):
            names.append(_plain(name))
    return names + ([TENSORFLOW] if find_spec("tensorflow") is None else [])


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.match(r"\d+(?:\.\d+)*", version)[0].split(".")]


def requirements() -> list[str]:
    """What the library needs without its extras: by the `pyproject.toml` beside it, else as it was installed."""
    beside = PACKAGE.parent / "pyproject.toml"
    if beside.is_file():
        return tomllib.loads(beside.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in metadata.requires("pneumolib") or [] if "extra ==" not in line]


def constraints() -> list[str]:
    """`name==version` of everything installed whose version pip can read."""
    return [f"{name}=={version}" for name, version in sorted(installed().items()) if _VERSION.fullmatch(version)]


def installed() -> dict[str, str]:
    """Name to version of every installed package but this one; the first on the path counts, as it does for an import."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name and _plain(name) != "pneumolib":
            found.setdefault(_plain(name), package.version)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
