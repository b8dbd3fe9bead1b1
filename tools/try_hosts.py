"""Does the library fit to what Colab and Kaggle bring? `make test-hosts`; about five minutes where Python 3.12 is at hand.

For each list in tests/hosts: can our packages be added without replacing one of it? For `kaggle-tpu`, where a Python 3.12 can
be found, it is done in an environment of its own (build/hosts, made once): the list is installed as the host's own, the library
beside it under constraints, nothing may have changed, and the core of the tests runs on those versions. HOST=colab takes that
list instead.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("kaggle-tpu", "colab", "colab-tpu")
# What decides numbers and pages, without what takes minutes or a browser.
CORE = ("params", "inputs", "manifest", "split", "images", "pipeline", "models", "training", "evaluation", "calibration",
        "reporting")  # fmt: skip
# Of a tiny study, start to end: what it leaves.
STUDY = (
    "test_notebooks.py::test_what_a_training_leaves",
    "test_study.py::test_a_run_leaves_its_files_its_page_and_a_log_without_control_codes",
    "test_study.py::test_pages_say_synthetic_and_show_no_progress_bar",
)
# Packages of a host warn about each other; what they warn of in our modules is ours to mend.
WARNINGS = "filterwarnings=error:::pneumolib"
# Another Keras says or draws another thing; none of these is about numbers or pages of a study. Parts of names, and the slowest
# trainings, which the suite runs with the locked versions.
NOT_THERE = {
    "squeezenet_of_the_shared_data": "its file was saved by Keras 3.15 with settings that older versions do not know",
    "full_memory": "its own network needs a shape that Keras 3.11 does not infer",
    "holds_no_backbone_says_what_is_wrong and small": "Keras 3.11 infers a feature map of 0 x 0, and our other message comes",
    "sequential_file_and_one_with_operations": "bare operations in a backbone's file: Keras 3.10 clones them without telling us",
    "efficientnet_of_a_file_is_the_downloaded_one": "Keras 3.11 cannot build EfficientNet with ImageNet weights at all",
    "families_become_flat": "slow",
    "a_trial_starts": "slow",
    "plateau_lowers": "slow",
    "moving_average_is": "slow",
    "other_seeds_repeat": "slow",
    "the_backbones_rate": "slow",
}


def main() -> int:
    """Returns 0 when everything that could be tried fits."""
    beside = Path(sys.executable).parent
    uv = shutil.which("uv", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    for name in LISTS:
        resolve(uv, name)
    host = os.environ.get("HOST", LISTS[0])
    python = python_312(uv)
    if python is None:
        print(f"{host}: not tried out, there is no Python 3.12 here; that its packages fit together was resolved above")
        return 0
    folder = ROOT / f"build/hosts/{host}"
    began = time.monotonic()
    environment(uv, python, host, folder)
    add_library(uv, folder)
    print(f"{host}: installed, nothing replaced ({time.monotonic() - began:.0f} s)", flush=True)
    return core(folder)


def resolve(uv: str, name: str) -> None:
    """Stop unless our packages can be chosen with every package of the list at its version."""
    listed = ROOT / f"tests/hosts/{name}.txt"
    command = [uv, "pip", "compile", "-q", "--python-version", "3.12", "-c", listed, ROOT / "pyproject.toml"]
    if "\ntensorflow" not in listed.read_text(encoding="utf-8"):
        command += ["--extra", "cpu"]  # added there, see host_packages.TENSORFLOW
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: our packages do not fit to what that host brings:\n{done.stderr}")
    print(f"{name}: {done.stdout.count('==')} packages fit to what it brings", flush=True)


def python_312(uv: str) -> str | None:
    """A Python 3.12 of this machine; none is downloaded."""
    command = [uv, "python", "find", "--no-python-downloads", "3.12"]
    places = [subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()]
    places += map(str, Path.home().glob(".pyenv/versions/3.12.*/bin/python"))
    return next((place for place in places if place), None)


def environment(uv: str, python: str, host: str, folder: Path) -> None:
    """The host's own packages; made anew where the list has changed."""
    listed, stamp = ROOT / f"tests/hosts/{host}.txt", folder / "list.txt"
    # TensorFlow for CPUs is the same library without gigabytes for GPUs.
    text = listed.read_text(encoding="utf-8").replace("\ntensorflow==", "\ntensorflow-cpu==")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([uv, "venv", "-q", "--seed", "--python", python, folder], check=True)
    wanted = folder / "wanted.txt"
    wanted.write_text(text, encoding="utf-8")
    subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin/python", "-r", wanted], check=True)
    wanted.rename(stamp)


def add_library(uv: str, folder: Path) -> None:
    """As the first cell of a notebook does it, by `host_packages`; stops where a package was replaced."""
    before = freeze(folder)
    code = "from pneumolib.host_packages import add_missing; print('added:', ', '.join(add_missing()) or 'nothing')"
    # The package's own __init__ wants lazy-loader, which the cell installs beside the library.
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "lazy-loader"], check=True)
    subprocess.run([folder / "bin/python", "-c", code], cwd=ROOT, env=_clean(), check=True)
    after = freeze(folder)
    replaced = [
        f"{name} {before[name]} -> {after.get(name, 'gone')}" for name in before if before[name] != after.get(name)
    ]
    if replaced:
        sys.exit(f"replaced, which must never be: {', '.join(replaced)}")
    tests = ["pytest", "pytest-xdist", "packaging", "jsonschema", "psutil"]
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in after.items()), encoding="utf-8")
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", folder / "bin/python", "-c", constraints, *tests], check=True
    )


def freeze(folder: Path) -> dict[str, str]:
    """Name to version, as pip lists them."""
    command = [folder / "bin/python", "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return dict(line.split("==", 1) for line in lines)


def core(folder: Path) -> int:
    """The core of the tests, and a tiny study start to end; returns pytest's code."""
    files = [*(f"tests/{name}" for name in STUDY), *(f"tests/test_{name}.py" for name in CORE)]
    left_out = " or ".join(f"({words})" for words in NOT_THERE)
    command = [
        folder / "bin/python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        WARNINGS,
        "-k",
        f"not ({left_out})",
    ]
    return subprocess.run([*command, *files], cwd=ROOT, env=_clean(), check=False).returncode


def _clean() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    sys.exit(main())
