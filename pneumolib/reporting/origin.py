"""Where a result comes from: the project's commit, the versions of the packages that decide numbers, and the hash of a file."""

import hashlib
import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from pneumolib.params import project_root

# Set by a bundle, which is no checkout: the commit, with `CHANGED` behind it where there were uncommitted changes.
COMMIT_VARIABLE, CHANGED = "PNEUMOLIB_COMMIT", "+changes"
PACKAGES = [
    "tensorflow-cpu", "tensorflow", "keras", "jax", "numpy", "pandas", "pillow", "scikit-learn", "scikit-image",
    "scipy", "papermill", "nbconvert",
]  # fmt: skip


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers; read from metadata, nothing is imported."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # TensorFlow has several names, of which a machine has one
    return found


def origin() -> tuple[str | None, bool | None]:
    """Commit of the project, and whether there are uncommitted changes; None each where nothing says so.

    By git in a checkout; else by `COMMIT_VARIABLE`, which a bundle sets; else by what pip wrote down when it installed the
    library from a repository.
    """
    if commit := _git("rev-parse", "HEAD"):
        return commit, bool(_git("status", "--porcelain"))
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit.removesuffix(CHANGED), commit.endswith(CHANGED)
    try:
        origin = json.loads(distribution("pneumolib").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None, None
    commit = origin.get("vcs_info", {}).get("commit_id")
    return commit, None if commit is None else False


def _git(*words: str) -> str | None:
    """What git says in the project's root, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=project_root(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def file_sha256(file: Path) -> str:
    """64 hex digits of a file's bytes, which need not fit into memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
