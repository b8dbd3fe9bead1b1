"""Fixtures that several test files share. TensorFlow is imported by the tests that need it, never here."""

import contextlib
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

# Before NumPy is imported, and for kernels and children too: two test processes share the cores already, and OpenBLAS's threads
# wait for each other by spinning (one test took 413 s on a busy machine, and 2.6 s with one thread).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[1]


# Files that take longer than ten seconds each, the longest first: whole notebooks, trainings, large networks.
LONG = ("test_notebooks", "test_snakefile", "test_bundle", "test_own", "test_devices_study", "test_devices", "test_study", "test_export", "test_training",
        "test_models", "test_by_hand", "test_resume", "test_explain", "test_evaluation_pages", "test_synthetic", "test_app",
        "test_browser")  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    """Long files first: the two processes take whole files, and a long one taken last leaves the other process idle."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """Half a million objects of imported packages, which no collection of garbage need look through again: a tenth of the time."""
    gc.freeze()


@pytest.fixture
def archive(tmp_path):
    """A small folder in the archive's layout; its images encode the label: normal is dark, pneumonia bright."""
    return draw_archive(tmp_path / "archive")


def draw_archive(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, patients in (("train", range(1, 25)), ("val", range(25, 27)), ("test", range(27, 33))):
        for n in patients:
            for name, level in (
                (f"NORMAL/IM-{n:04d}-0001", 40),
                (f"PNEUMONIA/person{n}_bacteria_{2 * n}", 200),
                (f"PNEUMONIA/person{n}_bacteria_{2 * n + 1}", 200),
                (f"PNEUMONIA/person{n}_virus_{n}", 200),
            ):
                save_image(root / split / f"{name}.jpeg", level + rng.integers(-20, 20, (40, 48)))
    return root


def save_image(path: Path, pixels, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


TINY_STUDY = """\
data: {source: synthetic, root: data/tiny, n_images: 24}
split: {validation_fraction: 0.3, ratio_tolerance_points: 25.0}
image: {size_px: 32, channels: 1}
"""
TINY_TRAINING = """\
training: {epochs: 1, batch_size: 4}
evaluation: {resamples: 50}
"""
# Traced in a third of separable_cnn's time.
TINY_BASELINE = TINY_TRAINING + "model: {name: coursework_cnn}\nrobustness: {images: 4, corruptions: [gamma]}\n"

TINY_AUDIT = """\
audit: {folds: 2, score_test: true}
evaluation: {resamples: 50}
"""


def _cells(*sources: str) -> list[dict]:
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    return [code | {"id": str(number), "source": source} for number, source in enumerate(sources)]


# A notebook of seconds, for tests of how runs are executed: they need one that trains nothing and takes part in all else.
QUICK = {
    "nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "cells": [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A quick page"},
        {"cell_type": "code", "id": "values", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None,
         "source": 'study = "demo"\ndata = {"root": "data/tiny"}\nsplit = {"seed": 1}\nimage = {"size_px": 32}'},
        *_cells(
            'import pneumolib as pn\nrun = pn.start("01_quick", study=study, data=data, split=split, image=image)',
            "manifest = pn.data.read_manifest(run.params.data)",
            "split_table = pn.data.split_manifest(manifest.table, run.params.split)",
            'result = run.finish(manifest, split_table)',
        ),
    ],
}  # fmt: skip


def drawn_parts(root: Path, image, n_images: int, tolerance: float):
    """Drawn radiographs in `root`: their manifest, and the pixels of train, val and test."""
    from pneumolib.data import read_images, read_manifest, split_manifest
    from pneumolib.params import DataParams, SplitParams

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOLIB_ROOT", str(root))
        manifest = read_manifest(DataParams(source="synthetic", root="data", n_images=n_images))
        split = split_manifest(manifest.table, SplitParams(validation_fraction=0.3, ratio_tolerance_points=tolerance))
        return manifest, {part: read_images(manifest, split, part, image) for part in ("train", "val", "test")}


class Project:
    """A project of its own in a temporary folder: the repository's notebooks and one tiny study."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(REPO / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
        self.write("params/tiny/study.yaml", TINY_STUDY)
        self.write("notebooks/01_quick.ipynb", json.dumps(QUICK))
        self.write("params/tiny/01_quick.yaml", "")
        self.write("params/tiny/03_baseline_cnn.yaml", TINY_BASELINE)
        self.write("params/tiny/07_comparison.yaml", "")

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def result(self, run: str) -> dict:
        return json.loads((self.root / f"runs/tiny/{run}/result.json").read_text(encoding="utf-8"))

    def edit_notebook(self, name: str, change) -> None:
        """Apply `change` to a notebook's JSON and save it."""
        file = self.root / f"notebooks/{name}.ipynb"
        notebook = json.loads(file.read_text(encoding="utf-8"))
        change(notebook)
        file.write_text(json.dumps(notebook), encoding="utf-8")

    def commit(self) -> str:
        """Put the project under git; returns the commit."""
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "tiny"]):
            subprocess.run([*git, *words], cwd=self.root, check=True)
        return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=self.root, text=True).strip()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pneumolib", *words]

    def environment(self) -> dict[str, str]:
        """As a person has it: where pytest's mark is set, kernels do not pass on what libraries write to a file descriptor."""
        return {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} | {"PNEUMOLIB_ROOT": str(self.root)}

    def run(self, *words: str, code: int = 0) -> str:
        """The command line, in this process, which has imported what it needs once; kernels are processes as ever.

        Returns what it printed and checks the exit code.
        """
        from pneumolib.__main__ import main

        said = io.StringIO()
        with (
            mock.patch.dict(os.environ, PNEUMOLIB_ROOT=str(self.root)),  # puts all of it back, whatever happens
            contextlib.chdir(self.root),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            for noisy in ("papermill", "nbclient", "nbconvert", "nbformat", "jupyter_client", "zmq"):
                warnings.filterwarnings("ignore", module=noisy)
            found = main(list(words))
        assert found == code, said.getvalue()
        return said.getvalue()

    def run_apart(self, *words: str, code: int = 0) -> str:
        """As `run`, in a process of its own, as a person starts it."""
        done = subprocess.run(
            self.command(*words), cwd=self.root, env=self.environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)
