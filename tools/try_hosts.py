"""Does the library fit to what Colab and Kaggle bring? `make test-hosts`; two minutes for each Python that is at hand.

For each list in tests/hosts: can our packages be added without replacing one of it? `kaggle-tpu` (Python 3.12) and `colab` (3.13)
are also tried out, where such a Python can be found, each in an environment of its own (build/hosts, made once). What the library
needs of the list is installed as the host's own, then the library beside it under constraints. Nothing may have changed, and the
core of the tests runs on those versions. HOST=kaggle takes that list instead.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from packaging.utils import canonicalize_name

from pneumolib import hosts

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("kaggle-tpu", "kaggle", "colab", "colab-tpu")
TRIED_OUT = "kaggle-tpu colab"  # one for each version of Python
# What decides numbers and pages, without what takes minutes or a browser.
CORE = [
    "params",
    "manifest",
    "split",
    "pixels",
    "batches",
    "files",
    "ood",
    "models",
    "training",
    "evaluation",
    "reporting",
]
# Of a tiny study, start to end.
STUDY = "tests/test_study.py::test_a_run_leaves_its_files_its_page_and_a_log_without_control_codes"
# Packages of a host warn about each other; what they warn of in our modules is ours to mend.
WARNINGS = "filterwarnings=error:::pneumolib"
# Another Keras says or draws another thing; none of these is about numbers or pages of a study. Parts of names.
NOT_THERE = {
    "full_memory": "its own network needs a shape that Keras 3.11 does not infer",
    "holds_no_backbone_says_what_is_wrong and small": "Keras 3.11 infers a feature map of 0 x 0, and our other message comes",
    "sequential_file_and_one_with_operations": "bare operations in a backbone's file: Keras 3.10 clones them without telling us",
    "efficientnet_of_a_file_is_the_downloaded_one": "Keras 3.11 cannot build EfficientNet with ImageNet weights at all",
}
# Trainings, networks and processes that take longest, which the suite runs with the locked versions.
SLOW = ["killed_build", "evaluation_needs_no_tensorflow", "families_become_flat", "inception_resnet_of_the_coursework", "divergence_says_where", "floors_that_no_epoch",
        "kept_features_and_states", "plateau_lowers", "other_seeds_repeat", "the_backbones_rate"]  # fmt: skip


def main() -> int:
    """Returns 0 when everything that could be tried fits."""
    beside = Path(sys.executable).parent
    uv = shutil.which("uv", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    chosen = {name: resolve(uv, name) for name in LISTS}
    return max(try_out(uv, host, chosen[host]) for host in os.environ.get("HOST", TRIED_OUT).split())


def try_out(uv: str, host: str, chosen: set[str]) -> int:
    """Install as the host has it, add the library, run the core; returns pytest's code, and 0 without such a Python."""
    version = python_version(host)
    python = python_of(uv, version)
    if python is None:
        print(f"{host}: not tried out, no Python {version} is here; that its packages fit together was resolved above")
        return 0
    folder = ROOT / f"build/hosts/{host}"
    began = time.monotonic()
    environment(uv, python, folder, listed(host, chosen))
    add_library(uv, folder)
    print(f"{host}: installed, nothing replaced ({time.monotonic() - began:.0f} s)", flush=True)
    return core(folder)


def resolve(uv: str, name: str) -> set[str]:
    """What our packages need, chosen with every package of the list at its version; stops where that cannot be."""
    file = ROOT / f"tests/hosts/{name}.txt"
    wanted = [*hosts.requirements(), "nbconvert"]  # an old one does, see hosts.PAGES
    if "\ntensorflow" not in file.read_text(encoding="utf-8"):
        wanted.append(hosts.TENSORFLOW)
    options = ["-q", "--no-annotate", "--no-header", "--python-version", python_version(name), "-c", file]
    command = [uv, "pip", "compile", *options, "-"]
    done = subprocess.run(command, input="\n".join(wanted), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: our packages do not fit to what that host brings:\n{done.stderr}")
    chosen = set(re.findall(r"^[\w.-]+", done.stdout, re.MULTILINE))
    print(f"{name}: {len(chosen)} packages fit to what it brings", flush=True)
    return chosen


def listed(host: str, chosen: set[str]) -> str:
    """The lines of the host's list that our packages reach, with TensorFlow and JAX."""
    text = (ROOT / f"tests/hosts/{host}.txt").read_text(encoding="utf-8")
    text = text.replace("\ntensorflow==", "\ntensorflow-cpu==")  # the same library without gigabytes for GPUs
    wanted = chosen | {"tensorflow-cpu", "jax", "jaxlib", "setuptools", "wheel"}
    return "".join(f"{line}\n" for line in text.splitlines() if canonicalize_name(line.split("==")[0]) in wanted)


def python_version(host: str) -> str:
    """Of the host, as the head of its list says it."""
    return re.search(r"Python (3\.\d+)", (ROOT / f"tests/hosts/{host}.txt").read_text(encoding="utf-8"))[1]


def python_of(uv: str, version: str) -> str | None:
    """A Python of this version on this machine; none is downloaded."""
    command = [uv, "python", "find", "--no-python-downloads", version]
    places = [subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()]
    places += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return next(filter(None, places), None)


def environment(uv: str, python: str, folder: Path, packages: str) -> None:
    """The host's own packages; made anew where they have changed."""
    stamp = folder / "list.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == packages:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([uv, "venv", "-q", "--seed", "--python", python, folder], check=True)
    wanted = folder / "wanted.txt"
    wanted.write_text(packages, encoding="utf-8")
    # lazy-loader, which the package's own __init__ wants, is installed by a notebook's first cell, beside the library.
    install(uv, folder, "-r", wanted, "lazy-loader")
    wanted.rename(stamp)


def install(uv: str, folder: Path, *words) -> None:
    """Into the environment, by uv."""
    subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin/python", *words], check=True)


def add_library(uv: str, folder: Path) -> None:
    """As the first cell of a notebook does it, by `hosts.add_missing` and pip; stops where a package was replaced."""
    before = freeze(uv, folder)
    code = "from pneumolib.hosts import add_missing; print('added:', ', '.join(add_missing()) or 'nothing')"
    subprocess.run([folder / "bin/python", "-c", code], cwd=ROOT, env=_clean(), check=True)
    after = freeze(uv, folder)
    if replaced := [f"{name} -> {after.get(name, 'gone')}" for name in before if before[name] != after.get(name)]:
        sys.exit(f"replaced, which must never be: {', '.join(replaced)}")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in after.items()), encoding="utf-8")
    install(uv, folder, "-c", constraints, "pytest", "pytest-xdist", "hypothesis", "packaging", "jsonschema", "psutil")


def freeze(uv: str, folder: Path) -> dict[str, str]:
    """Name to version."""
    command = [uv, "pip", "freeze", "-q", "--python", folder / "bin/python"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return dict(line.split("==", 1) for line in lines)


def core(folder: Path) -> int:
    """The core of the tests, and a tiny study start to end; returns pytest's code."""
    files = [STUDY, *(f"tests/test_{name}.py" for name in CORE)]
    left_out = " or ".join(f"({words})" for words in [*NOT_THERE, *SLOW])
    options = ["-p", "no:cacheprovider", "-o", WARNINGS, "-k", f"not ({left_out})"]
    command = [folder / "bin/python", "-m", "pytest", *options, *files]
    return subprocess.run(command, cwd=ROOT, env=_clean(), check=False).returncode


def _clean() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    sys.exit(main())
