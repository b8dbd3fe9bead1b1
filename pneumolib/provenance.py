"""What a result is made from: commit, versions of the packages that decide numbers, devices, digests of code and files."""

import ast
import contextlib
import functools
import hashlib
import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from pneumolib.project import project_root

# Set by a bundle, which is no checkout: the commit, with `CHANGED` behind it where there were uncommitted changes.
COMMIT_VARIABLE, CHANGED = "PNEUMOLIB_COMMIT", "+changes"
PACKAGES = [
    "tensorflow-cpu", "tensorflow", "keras", "jax", "numpy", "pandas", "pillow", "scikit-learn", "scikit-image",
    "scipy", "papermill",
]  # fmt: skip


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers; read from metadata, nothing is imported."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # TensorFlow has several names, of which a machine has one
            found[name] = version(name)
    return found


def provenance_of_checkout() -> tuple[str | None, bool | None]:
    """Commit of the project, and whether there are uncommitted changes; None each where nothing says so.

    By git in a checkout; else by `COMMIT_VARIABLE`, which a bundle sets; else by what pip wrote down when it installed the
    library from a repository.
    """
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit, changes = (
            subprocess.run(["git", *words], cwd=project_root(), capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
        return commit.strip(), bool(changes.strip())
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit.removesuffix(CHANGED), commit.endswith(CHANGED)
    with contextlib.suppress(PackageNotFoundError, KeyError):
        installed = json.loads(distribution("pneumolib").read_text("direct_url.json") or "{}")
        return installed["vcs_info"]["commit_id"], False
    return None, None


def device_words(facts: dict) -> str:
    """Where a run took place, in one line, from what `start` returns; results of runs without a network have less to say."""
    if not facts:
        return "not recorded"
    several = several_words(facts)
    hosts = f" in {facts['processes']} processes" if facts.get("processes", 1) > 1 else ""
    parts = [f"{several}{facts['device']}{hosts} ({facts['cores']} cores)"]
    parts += [facts[name] for name in ("backend", "precision") if name in facts]
    if "batch" in facts:
        shared = f" ({facts['batch_per_device']} on each device)" if several else ""
        parts.append(f"batches of {facts['batch']} images{shared}")
    return ", ".join(parts)


def several_words(facts: dict) -> str:
    """`8 x ` of eight devices, nothing of one."""
    return f"{facts['devices']} x " if facts.get("devices", 1) > 1 else ""


def file_sha256(file: Path) -> str:
    """64 hex digits of a file's bytes, which need not fit into memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """16 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_docstrings(source: str) -> ast.Module:
    """The syntax tree of `source`, docstrings taken out. Raises SyntaxError for what is no Python."""
    tree = ast.parse(source)
    documented = [tree]
    for node in documented:  # which grows: methods, and functions in functions
        documented += [inner for inner in node.body if isinstance(inner, ast.ClassDef | ast.FunctionDef)]
        if ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
