"""A notebook's own door: its checked parameters, the folder it writes to, and the result it leaves.

Run by `pneumolib`, a notebook writes to the folder it is given; opened by a person, to `runs/interactive/<notebook>`,
never over a study's results.
"""

import hashlib
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.thresholds import Threshold
from pneumolib.params import RunParams, check, in_root, project_root
from pneumolib.reporting.results import (
    DataResult,
    Provenance,
    Result,
    ThresholdResult,
    metrics_of,
    write_result,
)

# Set by `reporting.run` for the kernel it starts.
RUN_VARIABLE, FOLDER_VARIABLE = "PNEUMOLIB_RUN", "PNEUMOLIB_FOLDER"
PACKAGES = [
    "tensorflow-cpu", "tensorflow", "keras", "jax", "numpy", "pandas", "pillow", "scikit-learn", "scikit-image",
    "scipy", "papermill", "nbconvert",
]  # fmt: skip


@dataclass(frozen=True)
class Session:
    """One execution of a notebook.

    Attributes:
        notebook: its name without ending.
        run: the run's name; the notebook's when opened by a person.
        params: checked and frozen.
        folder: where this execution writes.
        interactive: opened by a person, not run by `pneumolib`.
        started: UTC.
        commit, dirty: of the project when it started; None where there is no checkout.
    """

    notebook: str
    run: str
    params: RunParams
    folder: Path
    interactive: bool
    started: datetime
    commit: str | None
    dirty: bool | None

    def save(self, table: pd.DataFrame, name: str) -> None:
        """Write a table as CSV into the folder; floats keep every digit."""
        table.to_csv(self.folder / name, index=False, lineterminator="\n")

    def finish(
        self,
        manifest: Manifest,
        split: pd.DataFrame | None = None,
        threshold: Threshold | None = None,
        validation: pd.DataFrame | None = None,
        test: pd.DataFrame | None = None,
        device: dict | None = None,
        facts: dict[str, Any] | None = None,
        checks: dict[str, Any] | None = None,
    ) -> Result:
        """Write `result.json`, the last act of every notebook.

        Args:
            manifest, split: the data used; their fingerprints are kept.
            threshold: frozen on validation.
            validation, test: tables of `evaluation.metric_table`.
            device: from `learning.start`.
            facts: figures of the run that are no metrics (epochs, parameters, ...).
            checks: findings about data and run, each a plain value.
        """
        tables = {"validation": validation, "test": test}
        result = Result(
            study=self.params.study,
            run=self.run,
            notebook=self.notebook,
            synthetic=manifest.synthetic,
            parameters=self.params.model_dump(),
            data=_describe_data(manifest, split),
            threshold=ThresholdResult(**asdict(threshold)) if threshold else None,
            metrics={part: metrics_of(table) for part, table in tables.items() if table is not None},
            facts=facts or {},
            checks=checks or {},
            provenance=_provenance(self, device or {"device": "CPU", "cores": os.cpu_count()}),
        )
        write_result(result, self.folder)
        if self.interactive:
            print(f"Results are in {os.path.relpath(self.folder, project_root())}")
        return result


def start(notebook: str, **values: Any) -> Session:
    """Check the parameters cell and open the folder this execution writes to.

    Args:
        notebook: the notebook's name, such as `03_baseline_cnn`.
        values: the names of the parameters cell: `study`, `seed`, `data`, `split`, `image`, ...
    Raises:
        ParamsError: before any data is touched; one line for each fault.
    """
    params = check(values)
    run = os.environ.get(RUN_VARIABLE)
    folder = Path(os.environ[FOLDER_VARIABLE]) if run else in_root(f"runs/interactive/{notebook}")
    folder.mkdir(parents=True, exist_ok=True)
    commit = _git("rev-parse", "HEAD")
    dirty = None if commit is None else bool(_git("status", "--porcelain"))
    session = Session(notebook, run or notebook, params, folder, run is None, datetime.now(UTC), commit, dirty)
    print(f"Study {params.study}, run {session.run}" + (" (opened by hand)" if session.interactive else ""))
    return session


def table_fingerprint(table: pd.DataFrame) -> str:
    """16 hex digits of a table written as CSV."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16]


def _describe_data(manifest: Manifest, split: pd.DataFrame | None) -> DataResult:
    return DataResult(
        fingerprint=manifest.fingerprint,
        images=len(manifest.table),
        groups=manifest.table.group_id.nunique(),
        left_out=len(manifest.problems),
        split_fingerprint=None if split is None else table_fingerprint(split),
    )


def _provenance(session: Session, device: dict) -> Provenance:
    finished = datetime.now(UTC)
    return Provenance(
        commit=session.commit,
        dirty=session.dirty,
        started=session.started,
        finished=finished,
        seconds=round((finished - session.started).total_seconds(), 1),
        python=sys.version.split()[0],
        platform=platform.platform(),
        versions=package_versions(),
        device=device,
    )


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers; read from metadata, nothing is imported."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # TensorFlow has several names, of which a machine has one
    return found


def _git(*words: str) -> str | None:
    """What git says in the project's root, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=project_root(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
