"""Where is this? Kaggle, Colab or a person's own machine, and what must be ready there before a notebook's first line.

Imports nothing but Python's own, because here missing packages are added. What the platforms' images set was read in their
sources: Kaggle's exports Colab's variables too, so Kaggle is asked for first; importing TensorFlow sets variables that
begin with `TPU_`, so no prefix is matched.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pneumolib.host_packages import add_missing
from pneumolib.kept_runs import take_up

Host = Literal["kaggle", "colab", "local"]

# Stands in for `/` in tests, and in the processes that they start.
HOST_ROOT = "PNEUMOLIB_HOST_ROOT"
PROJECT = "PNEUMOLIB_ROOT"
RUN = "PNEUMOLIB_RUN"  # set for the notebooks of a study that is run as a whole
DATASET = "paultimothymooney/chest-xray-pneumonia"
CLASSES = {"normal", "pneumonia", "opacity"}
# Where thousands of images lie, or none of ours: not looked into.
NOT_ENTERED = {"train", "val", "test", "runs", "reports", "__macosx"}
MARKER = "pneumolib-data.json"  # of `data.layout`, which imports packages
DEEPEST = 6  # kaggle/input/datasets/<owner>/<name>/chest_xray/chest_xray


class HostError(ValueError):
    """What a machine says of itself makes no sense."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found and made.

    Attributes:
        host: whose machine it is.
        project: the folder that `data/`, `runs/` and `reports/` lie in.
        radiographs: every folder found that holds `train/` and `test/`, the nearest to the top first.
        taken_up: runs of an earlier session that were brought here, `<study>/<run>`.
        notes: what else a person should know, a sentence each.
    """

    host: Host
    project: Path
    radiographs: list[Path] = field(default_factory=list)
    taken_up: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        name = {"kaggle": "Kaggle", "colab": "Colab", "local": "This machine"}[self.host]
        found = (
            f"radiographs: {self.radiographs[0]}" if self.radiographs else "no radiographs found, drawn ones will do"
        )
        earlier = [f"{len(self.taken_up)} earlier run(s) taken up"] if self.taken_up else []
        return "; ".join([f"{name}: results go to {self.project}", found, *earlier, *self.notes]) + "."


def host(environment: Mapping[str, str] | None = None) -> Host:
    """Whose machine this is, by the variables that the platforms set.

    Args:
        environment: `os.environ` by default.
    """
    variables = os.environ if environment is None else environment
    if variables.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if variables.get("COLAB_RELEASE_TAG") else "local"


def tpu_hint(environment: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> str | None:
    """What says that this machine has a TPU, such as `TPU_ACCELERATOR_TYPE=v5e-8`; None where nothing does.

    Nothing is started: a hint is enough to choose the backend, which must be done before Keras is imported.
    """
    variables = os.environ if environment is None else environment
    if variables.get("COLAB_TPU_1VM") == "1":  # an empty string on Colab's other machines
        return "COLAB_TPU_1VM=1"
    named = (f"{name}={variables[name]}" for name in ("TPU_ACCELERATOR_TYPE", "ISTPUVM") if variables.get(name))
    chips = (str(chip) for chip in sorted(devices.glob("accel*")))
    return next(named, None) or next(chips, None)


def processes(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """This process's number, from 0, and how many there are that train one network together: 0 and 1 without others.

    Keras's own variables are read, which a launcher sets for each host: `KERAS_DISTRIBUTION_PROCESS_ID`,
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and, for the address of the first, `KERAS_DISTRIBUTION_JOB_ADDRESSES`.

    Raises:
        HostError: numbers that make no sense, or no address.
    """
    variables = os.environ if environment is None else environment
    names = ("KERAS_DISTRIBUTION_PROCESS_ID", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_JOB_ADDRESSES")
    number, total, address = (variables.get(name, "") for name in names)
    if not any((number, total, address)) or total == "1":
        return 0, 1
    if not (number.isdigit() and total.isdigit() and int(number) < int(total) and address):
        received = ", ".join(f"{name}={variables.get(name, '')!r}" for name in names)
        raise HostError(
            f"{received}: the first must be a number below the second, and the third the address of process 0, such as "
            f"10.0.0.1:1234; for one process leave all three unset"
        )
    return int(number), int(total)


def prepare(
    root: Path | None = None, environment: MutableMapping[str, str] | None = None, local_project: Path | None = None
) -> Prepared | None:
    """The first cell of every notebook: make Colab or Kaggle ready, and say in one line what was done.

    Missing packages are added and none is replaced; `KERAS_BACKEND` is set where a TPU is; `PNEUMOLIB_ROOT` becomes a
    folder that lasts, in which `data/chest_xray` leads to the radiographs and earlier runs lie. What is set already
    stays. On a machine of one's own nothing is done.

    Args:
        root: `/`, or the folder that stands in for it; `PNEUMOLIB_HOST_ROOT` by default.
        environment: `os.environ` by default; changed in place.
        local_project: do it on a machine of one's own too, with this folder (a bundle wants that).
    Returns:
        what was found; None where nothing was done.
    Raises:
        PackagesError: packages are missing and cannot be added without replacing others.
    """
    variables = os.environ if environment is None else environment
    place = host(variables)
    if place == "local" and local_project is None:
        return None
    top = Path(variables.get(HOST_ROOT, "/")) if root is None else root
    notes = choose_backend(variables, top / "dev")
    if variables.get(RUN):
        return None  # the process that runs the study has prepared all else
    if added := add_missing():
        notes.append(f"packages added, none replaced: {', '.join(added)}")
    project, more = _project(place, top, variables, local_project)
    project.mkdir(parents=True, exist_ok=True)
    variables[PROJECT] = str(project)
    radiographs = [*find_radiographs(_data_places(place, top, project))]
    notes += [*more, *_lead(project / "data/chest_xray", radiographs)]
    earlier = take_up(folders_under(top / "kaggle/input"), project) if place == "kaggle" else []
    prepared = Prepared(place, project, radiographs, earlier, notes)
    print(prepared, flush=True)
    return prepared


def choose_backend(variables: MutableMapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Set `KERAS_BACKEND=jax` where a TPU is, unless it is set already; returns what is to be said about it."""
    hint = tpu_hint(variables, devices)
    if hint is None or find_spec("jax") is None:
        return []
    if chosen := variables.get("KERAS_BACKEND"):
        return (
            [] if chosen == "jax" else [f"a TPU is here ({hint}), but KERAS_BACKEND={chosen} was set: it is not used"]
        )
    loaded = sys.modules.get("keras")
    if loaded is not None and loaded.config.backend() != "jax":
        return [
            f"a TPU is here ({hint}), but Keras was imported with {loaded.config.backend()} before: restart the kernel "
            f"and run this cell first"
        ]
    variables["KERAS_BACKEND"] = "jax"
    return [f"TPU ({hint}), so Keras computes with JAX"]


def _project(place: Host, top: Path, variables: Mapping[str, str], local: Path | None) -> tuple[Path, list[str]]:
    """The folder for results, and what is to be said about it."""
    if place == "local":
        return local, []
    if named := variables.get(PROJECT):
        return Path(named), []
    if place == "kaggle":
        return top / "kaggle/working/pneumolib", []
    drive, notes = _drive(top)
    return (drive or top / "content") / "pneumolib", notes


def _drive(top: Path) -> tuple[Path | None, list[str]]:
    """Google Drive on Colab, mounted now if it is not; a person may refuse, and schedules have none."""
    mounted = top / "content/drive/MyDrive"
    if mounted.is_dir():
        return mounted, []
    lost = "results are lost when this machine is given back"
    try:
        drive = importlib.import_module("google.colab.drive")
    except ImportError:
        return None, [f"there is no Google Drive here, so {lost}"]
    # A refusal is a MessageError, a module's own kind that exists on Colab alone.
    refusal = getattr(sys.modules.get("google.colab._message"), "MessageError", ValueError)
    try:
        drive.mount(str(mounted.parent))
    except (ValueError, OSError, RuntimeError, refusal) as fault:
        return None, [f"Google Drive was not mounted ({type(fault).__name__}: {fault}), so {lost}"]
    return (mounted, []) if mounted.is_dir() else (None, [f"Google Drive was not mounted, so {lost}"])


def _data_places(place: Host, top: Path, project: Path) -> list[Path]:
    if place == "kaggle":
        return [top / "kaggle/input", project / "data"]
    return [
        project / "data",
        top / "content/drive/MyDrive/chest_xray",
        top / "content/chest_xray",
        top / "content/data",
    ]


def find_radiographs(places: list[Path]) -> Iterator[Path]:
    """Folders with `train/` and `test/` of classes, each once, the archive's nested second copy last."""
    seen = set()
    for folder in (inner for place in places for inner in folders_under(place)):
        whole = all(_holds_classes(folder / part) for part in ("train", "test"))
        if whole and folder.resolve() not in seen and not _is_drawn(folder):
            seen.add(folder.resolve())
            yield folder


def folders_under(place: Path) -> Iterator[Path]:
    """`place` and the folders in it, level by level; those of images and results are not entered."""
    level = [place] if place.is_dir() else []
    for _ in range(DEEPEST + 1):
        yield from level
        level = [
            inner for folder in level for inner in sorted(folder.iterdir())
            if inner.name.lower() not in NOT_ENTERED | CLASSES and not inner.name.startswith(".") and inner.is_dir()
        ]  # fmt: skip


def _holds_classes(folder: Path) -> bool:
    return folder.is_dir() and len({inner.name.lower() for inner in folder.iterdir()} & CLASSES) == 2


def _is_drawn(folder: Path) -> bool:
    """The library's own drawings look like the archive, and must never be taken for it; see `data.layout`."""
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8"))["recipe"].get("drawn"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _lead(link: Path, radiographs: list[Path]) -> list[str]:
    """Make `data/chest_xray` lead to the first folder found; a folder that is there stays."""
    if link.is_symlink() and not link.exists():
        link.unlink()  # of a session whose input is no longer attached
    if not radiographs or link.exists():
        return []
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(radiographs[0], target_is_directory=True)
    except OSError:  # Drive knows no links
        return [f'data/chest_xray cannot lead there: write data["root"] = "{radiographs[0]}"']
    return []
