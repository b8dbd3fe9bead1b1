"""Where is this? Kaggle, Colab or a person's own machine, and what must be ready there before a notebook's first line.

Imports nothing but Python's own, `packaging`, which the hosts bring, and our errors, because missing packages are added here. What the platforms' images set was
read in their sources: Kaggle's exports Colab's variables too, so Kaggle is asked for first; importing TensorFlow sets
variables that begin with `TPU_`, so no prefix is matched.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pneumolib.errors import InputError, PneumolibError

# Stands in for `/` in tests, and in the processes that they start.
HOST_ROOT = "PNEUMOLIB_HOST_ROOT"
PROJECT = "PNEUMOLIB_ROOT"
RUN = "PNEUMOLIB_RUN"  # set for the notebooks of a study that is run as a whole
DATASET = "paultimothymooney/chest-xray-pneumonia"
CLASSES = {"normal", "pneumonia", "opacity"}
# Folders of thousands of images, or of none of ours: not looked into.
NOT_ENTERED = CLASSES | {"train", "val", "test", "runs", "reports", "__macosx"}
MARKER = "pneumolib-data.json"  # of the module that unpacks and draws data; that module imports packages
DEEPEST = 6  # kaggle/input/datasets/<owner>/<name>/chest_xray/chest_xray
# Colab's TPU machines come without TensorFlow, which reads the images everywhere.
TENSORFLOW = "tensorflow-cpu"
# Of all that the library needs, pages alone need it. Kaggle's images without a TPU pin version 6.
PAGES = "nbconvert>=7"
WEIGHTS = "-pytorch-model"  # how packages of pretrained weights end, which one kind of backbone needs
# A version that pip can read as a constraint; Debian's own packages have others.
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[A-Za-z0-9.]+)?")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found and made.

    Attributes:
        host: whose machine it is: `kaggle`, `colab` or `local`.
        project: the folder of `data/`, `runs/` and `reports/`.
        radiographs: every folder found that holds `train/` and `test/`, the nearest to the top first.
    """

    host: str
    project: Path
    radiographs: list[Path]


def host(environment: Mapping[str, str] = os.environ) -> str:
    """`kaggle`, `colab` or `local`, by the variables that the platforms set."""
    if environment.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if environment.get("COLAB_RELEASE_TAG") else "local"


def tpu_hint(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> str | None:
    """What says that this machine has a TPU, such as `TPU_ACCELERATOR_TYPE=v5e-8`; None where nothing does.

    Nothing is started: a hint is enough to choose the backend, which must be done before Keras is imported.
    """
    if environment.get("COLAB_TPU_1VM") == "1":  # an empty string on Colab's other machines
        return "COLAB_TPU_1VM=1"
    named = [f"{name}={environment[name]}" for name in ("TPU_ACCELERATOR_TYPE", "ISTPUVM") if environment.get(name)]
    return next(iter([*named, *map(str, sorted(devices.glob("accel*")))]), None)


def processes(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number, from 0, and how many there are that train one network together: 0 and 1 without others.

    Keras's own variables are read, which a launcher sets for each host: `KERAS_DISTRIBUTION_PROCESS_ID`,
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and, for the address of the first, `KERAS_DISTRIBUTION_JOB_ADDRESSES`.

    Raises:
        InputError: numbers that make no sense, or no address.
    """
    names = ("KERAS_DISTRIBUTION_PROCESS_ID", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_JOB_ADDRESSES")
    number, total, address = (environment.get(name, "") for name in names)
    if not any((number, total, address)) or total == "1":
        return 0, 1
    if not (number.isdigit() and total.isdigit() and int(number) < int(total) and address):
        received = ", ".join(f"{name}={environment.get(name, '')!r}" for name in names)
        raise InputError(
            f"{received}: the first must be a number below the second, and the third the address of process 0, such as "
            f"10.0.0.1:1234; for one process leave all three unset"
        )
    return int(number), int(total)


def prepare(environment: MutableMapping[str, str] = os.environ, local_project: Path | None = None) -> Prepared | None:
    """The first cell of every notebook: make Colab or Kaggle ready, and say in one line what was done.

    Missing packages are added and none is replaced; `KERAS_BACKEND` is set where a TPU is; `PNEUMOLIB_ROOT` becomes a
    folder that lasts, with earlier runs, and with `data/chest_xray` leading to the radiographs. What is set already
    stays. On a machine of one's own nothing is done.

    Args:
        environment: changed in place; its `PNEUMOLIB_HOST_ROOT` stands in for `/`.
        local_project: do it on a machine of one's own too, with this folder (a bundle wants that).
    Returns:
        what was found; None where nothing was done.
    Raises:
        PneumolibError: packages are missing and cannot be added without replacing others.
    """
    place = host(environment)
    if place == "local" and local_project is None:
        return None
    top = Path(environment.get(HOST_ROOT, "/"))
    if tpu_hint(environment, top / "dev") and find_spec("jax"):  # before a cell of one's own imports Keras
        environment.setdefault("KERAS_BACKEND", "jax")
    if environment.get(RUN):
        return None  # the process that runs the study has prepared all else
    added = add_missing()
    notes = [f"packages added, none replaced: {', '.join(added)}"] if added else []
    project, lost = (local_project, []) if place == "local" else _lasting_folder(place, top, environment)
    project.mkdir(parents=True, exist_ok=True)
    environment[PROJECT] = str(project)
    colab = [top / "content" / name for name in ("drive/MyDrive/chest_xray", "chest_xray", "data")]
    radiographs = [*find_radiographs([top / "kaggle/input", project / "data", *colab])]
    notes += [*lost, *_lead(project / "data/chest_xray", radiographs)]
    if earlier := take_up(folders_under(top / "kaggle/input"), project):
        notes.insert(0, f"{len(earlier)} earlier run(s) taken up")
    found = f"radiographs: {radiographs[0]}" if radiographs else "no radiographs found, drawn ones will do"
    name = {"kaggle": "Kaggle", "colab": "Colab", "local": "This machine"}[place]
    print("; ".join([f"{name}: results go to {project}", found, *notes]) + ".", flush=True)
    return Prepared(place, project, radiographs)


def _lasting_folder(place: str, top: Path, variables: Mapping[str, str]) -> tuple[Path, list[str]]:
    """The folder for results, and what is to be said where it does not last."""
    if place == "kaggle" or variables.get(PROJECT):
        return Path(variables.get(PROJECT) or top / "kaggle/working/pneumolib"), []
    drive, fault = top / "content/drive/MyDrive", ""
    if not drive.is_dir():
        try:
            importlib.import_module("google.colab.drive").mount(str(drive.parent))
        except Exception as refusal:  # noqa: BLE001 - a person's refusal is an exception of Colab's own
            fault = f" ({type(refusal).__name__}: {refusal})"
    if drive.is_dir():
        return drive / "pneumolib", []
    return top / "content/pneumolib", [f"no Google Drive{fault}, so results are lost when this machine is given back"]


def find_radiographs(places: list[Path]) -> Iterator[Path]:
    """Folders with `train/` and `test/` of classes, each once, the archive's nested second copy last."""
    seen = set()
    for folder in (inner for place in places for inner in folders_under(place)):
        classes = [CLASSES & {path.name.lower() for path in folder.glob(f"{part}/*")} for part in ("train", "test")]
        if min(map(len, classes)) == 2 and folder.resolve() not in seen and not _is_drawn(folder):
            seen.add(folder.resolve())
            yield folder


def folders_under(place: Path) -> Iterator[Path]:
    """`place` and the folders in it, level by level; those of images and results are not entered."""
    level = [place] if place.is_dir() else []
    for _ in range(DEEPEST + 1):
        yield from level
        inner = [path for folder in level for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        level = [path for path in inner if path.name.lower() not in NOT_ENTERED and path.is_dir()]


def _is_drawn(folder: Path) -> bool:
    """The library's own drawings look like the archive, and must never be taken for it."""
    marker = folder / MARKER
    return marker.is_file() and '"drawn":' in marker.read_text(encoding="utf-8", errors="replace")


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


def add_missing() -> list[str]:
    """Install what the library needs and the machine lacks; returns the names. Nothing is called where all is there.

    Colab and Kaggle bring TensorFlow, JAX, Keras and NumPy built for their machines. pip is told, by constraints made from what
    is installed, that each package there stays at its version: it adds what is missing, or it fails.

    Raises:
        PneumolibError: not all could be added; nothing has been replaced then either.
    """
    lacking = missing()
    if not lacking:
        return []
    fault = f"{', '.join(lacking)}: missing or too old here, and cannot be added without replacing what this machine brings; nothing was changed"
    try:
        # All requirements, not only the missing: pip then also sees where an installed version is too old for us.
        _pip(*requirements(), *({TENSORFLOW} & set(lacking)), fixed=installed(), fault=fault)
    except PneumolibError:
        if not all(name.endswith(WEIGHTS) for name in lacking):
            raise
        print(f"{', '.join(lacking)}: cannot be added, and `weights: package` needs them; all else works", flush=True)
        return []
    importlib.invalidate_caches()
    return lacking


def _pip(*words: str, fixed: Mapping[str, str], fault: str) -> None:
    """`pip install` of `words`, by which no package of `fixed` gets another version. Raises PneumolibError with `fault`."""
    there = "".join(f"{name}=={version}\n" for name, version in fixed.items() if _VERSION.fullmatch(version))
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", "-c", "/dev/stdin", *words]
    done = subprocess.run(command, input=there, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise PneumolibError(f"{fault}. Is the internet switched on for this notebook? pip said:\n{said}")


def add_pages(project: Path) -> None:
    """Make sure of an nbconvert that can write our pages. Call it before nbconvert is imported.

    Where the machine's is too old, ours goes with all it needs to `.cache/pages` of the project, in front of this process's path
    alone: nothing of the machine is replaced, and the kernels of notebooks see none of it.

    Raises:
        PneumolibError: it cannot be had.
    """
    wanted, folder = Requirement(PAGES), project / ".cache/pages"
    there = next((package.version for package in metadata.distributions(name=wanted.name)), "none")
    if there != "none" and wanted.specifier.contains(there):
        return
    if not folder.is_dir():
        fresh = folder.with_name("pages.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        # What it shares with the library stays at the machine's version, but for the parser of version 6.
        fixed = {name: version for name, version in installed().items() if name not in (wanted.name, "mistune")}
        fault = f"{PAGES} writes the pages, here is {there}, and ours cannot be put beside it"
        _pip("--target", str(fresh), PAGES, fixed=fixed, fault=fault)
        fresh.rename(folder)
    sys.path.insert(0, str(folder))
    more = os.environ.get("JUPYTER_PATH")  # where nbconvert looks for its templates, on which ours are built
    os.environ["JUPYTER_PATH"] = f"{folder}/share/jupyter" + (os.pathsep + more if more else "")


def missing() -> list[str]:
    """Names of required packages that are not installed, or are older than we can use."""
    there = installed()
    needed = {canonicalize_name(one.name): one.specifier for one in map(Requirement, requirements())}
    names = [name for name, bound in needed.items() if name not in there or not bound.contains(there[name], True)]
    return names + ([TENSORFLOW] if find_spec("tensorflow") is None else [])


def requirements() -> list[str]:
    """What the library needs without its extras and without `PAGES`: by the `pyproject.toml` beside it, else as it was installed."""
    beside = Path(__file__).resolve().parents[1] / "pyproject.toml"
    project = tomllib.loads(beside.read_text(encoding="utf-8"))["project"] if beside.is_file() else {}
    lines = project.get("dependencies") or metadata.requires("pneumolib") or []
    return [line for line in lines if line != PAGES and "extra ==" not in line]


def installed() -> dict[str, str]:
    """Name to version of every installed package but this one; the first on the path counts, as it does for an import."""
    packages = reversed([package for package in metadata.distributions() if package.name not in (None, "pneumolib")])
    return {canonicalize_name(package.name): package.version for package in packages}


def take_up(folders: Iterable[Path], project: Path) -> list[str]:
    """Bring the runs and trainings of earlier sessions into `project`; what is there already stays.

    Whole folders only, so that two sessions never mix in one.

    Args:
        folders: where to look for `runs/`, such as every folder of `/kaggle/input`.
    Returns:
        `<study>/<run>` of finished runs and of trainings begun, each once.
    """
    found = set()
    for folder in folders:
        for run in sorted([*folder.glob("runs/*/[0-9]*"), *folder.glob("runs/*/trainings/*")]):
            place = run.relative_to(folder)
            if not (project / place).exists():
                for file in (path for path in run.rglob("*") if path.is_file()):
                    copy = project / place / file.relative_to(run)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)  # an input is read-only: contents, not permissions
                found.add(f"{place.parts[1]}/{run.name}")
    return sorted(found)
