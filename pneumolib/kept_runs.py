"""Runs that outlive a borrowed machine: packed while a study is at work, taken up where the next session begins.

`runs/` has folders whose names begin with a dot, among them `.training`, which an exact resume needs. Whether Kaggle keeps
such folders in a notebook's output is not documented, so they are packed into one file beside `runs/`.
"""

import contextlib
import os
import shutil
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

PACKED = "trainings.tar"
# Of a run at work, or of the machine that it was at work on.
_NOT_KEPT = (".tmp", ".lock")
_WORK = ".work-"


class Keeper:
    """Packs what is hidden in `runs/` into `trainings.tar` whenever it has changed.

    Args:
        project: the folder that `runs/` lies in.
        pause_s: at least so long between two packings, in seconds.
    """

    def __init__(self, project: Path, pause_s: float = 60.0):
        self.project, self.pause_s = project, pause_s
        self.state: set[tuple] | None = None
        self.packed_at = -float("inf")

    def pack(self, now: bool = False) -> bool:
        """Write the file anew where something has changed; returns whether it did.

        Args:
            now: do not wait for the pause to be over.
        """
        if not now and time.monotonic() - self.packed_at < self.pause_s:
            return False
        files = _hidden_files(self.project / "runs")
        state = {(file, *stamp) for file, stamp in files.items()}
        if not files or state == self.state:
            return False
        self.packed_at = time.monotonic()  # also where it fails: not to be tried again at once
        whole = self.project / PACKED
        temporary = whole.with_suffix(".tmp")
        with tarfile.open(temporary, "w") as archive:  # not compressed: weights hardly shrink
            for file in files:
                with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:  # replaced in this moment
                    # Of the open file, so that size and contents are of one and the same.
                    archive.addfile(
                        archive.gettarinfo(arcname=str(file.relative_to(self.project)), fileobj=opened), opened
                    )
        os.replace(temporary, whole)
        self.state = state
        return True


def _hidden_files(runs: Path) -> dict[Path, tuple[int, int]]:
    """Files below a folder whose name begins with a dot, with time and size; those that need not be kept left out."""
    found = {}
    for file in runs.glob("*/.*/**/*"):
        kept = not any(part.startswith(_WORK) for part in file.parts) and file.suffix not in _NOT_KEPT
        with contextlib.suppress(FileNotFoundError):
            if kept and file.is_file():
                stat = file.stat()
                found[file] = (stat.st_mtime_ns, stat.st_size)
    return found


def take_up(folders: Iterable[Path], project: Path) -> list[str]:
    """Bring the runs of earlier sessions into `project`; what is there already stays.

    Args:
        folders: where to look for `runs/` and `trainings.tar`, such as every folder of `/kaggle/input`.
    Returns:
        `<study>/<run>` of finished runs and of trainings begun, each once.
    """
    found: set[str] = set()
    for folder in folders:
        if (folder / PACKED).is_file():
            found |= _unpack(folder / PACKED, project)
        if (folder / "runs").is_dir():
            found |= _copy(folder / "runs", project / "runs")
    return sorted(found)


def _unpack(packed: Path, project: Path) -> set[str]:
    """A file that a cut transfer left incomplete, or that is none of ours, is passed over from where it cannot be used."""
    found = set()
    with contextlib.suppress(tarfile.TarError), tarfile.open(packed) as archive:
        for member in archive:
            place = Path(member.name)
            if place.parts[:1] == ("runs",) and len(place.parts) > 3 and not (project / place).exists():
                archive.extract(member, project, filter="data")
                found.add(f"{place.parts[1]}/{place.parts[3]}")
    return found


def _copy(runs: Path, ours: Path) -> set[str]:
    """Whole runs only, so that two sessions never mix in one folder. An input is read-only: contents, not permissions."""
    found = set()
    for run in (folder for study in sorted(runs.iterdir()) if study.is_dir() for folder in sorted(study.iterdir())):
        target = ours / run.relative_to(runs)
        if not run.is_dir() or run.name.startswith(_WORK) or (target.exists() and not run.name.startswith(".")):
            continue
        for file in (f for f in sorted(run.rglob("*")) if f.is_file() and f.suffix not in _NOT_KEPT):
            place = target / file.relative_to(run)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
                found.add(
                    f"{run.parent.name}/{place.relative_to(target).parts[0] if run.name.startswith('.') else run.name}"
                )
    return found
