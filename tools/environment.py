"""Writes environment.yml for conda users: every package of requirements.lock at the same version (`make lock`)."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKED = ("cpu", "lab", "app", "export", "dev")
HEAD = """\
# For conda users: conda env create -f environment.yml && conda activate pneumolib
# Written by `make lock` from pyproject.toml and requirements.lock; edit those.
name: pneumolib
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def locked(lock: str) -> list[Requirement]:
    """The pins of a lock file, markers kept, hashes left out."""
    lines = re.findall(r"^[\w.-]+==[^\\\n]+", lock, re.MULTILINE)
    return [Requirement(line.strip()) for line in lines]


def named_packages(pyproject: dict) -> set[str]:
    """The packages that the project names itself: its dependencies and the extras of `LOCKED`."""
    project = pyproject["project"]
    lines = project["dependencies"] + [r for extra in LOCKED for r in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def environment_yml(lock: str, pyproject: dict) -> str:
    """The text that environment.yml must hold."""
    named, pins = named_packages(pyproject), locked(lock)
    own = [pin for pin in pins if canonicalize_name(pin.name) in named]
    brought = [pin for pin in pins if canonicalize_name(pin.name) not in named]
    lines = ["# what the project names", *own, "# what those bring along", *brought, "# the project itself", "-e ."]
    return HEAD + "".join(f"      {'' if str(x).startswith('#') else '- '}{_quoted(x)}\n" for x in lines)


def _quoted(entry: object) -> str:
    """A pin as a YAML scalar; markers hold quotes of their own."""
    return f"'{entry}'" if ";" in str(entry) else str(entry)


if __name__ == "__main__":
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (ROOT / "environment.yml").write_text(environment_yml(lock, pyproject), encoding="utf-8")
