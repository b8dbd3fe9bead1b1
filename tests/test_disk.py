"""A disk that is full, read-only or limited: one sentence, exit code 1, nothing half written, and what was whole stays."""

import contextlib
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from conftest import QUICK, Project
from pneumolib.__main__ import main
from pneumolib.errors import InputError, disk_words
from pneumolib.learning.callbacks import read_arrays, write_atomically
from pneumolib.project import write_whole
from pneumolib.provenance import file_sha256
from pneumolib.reporting.results import CalibrationResult, write_result
from pneumolib.serve.predict import _destination
from test_reporting import result

FULL, READ_ONLY = "No space left on device", "Read-only file system"


@pytest.fixture
def mounted(tmp_path):
    """A disk in memory of 256 kB, and what mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> subprocess.CompletedProcess:
        words = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    if os.geteuid() or mount("size=256k").returncode:
        pytest.skip("a disk in memory can be mounted by root alone")
    yield place, mount
    subprocess.run(["umount", str(place)], check=True)


def test_what_hdf5_says_of_a_full_disk_is_one_sentence():
    said = "unable to write, filename = '/d/model.keras', errno = 28, error message = 'No space left on device', buf = 0x56, size = 2048"
    assert disk_words(said).startswith("No space left on device: '/d/model.keras'; make room")


def fill(place) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def writers(place):
    """Each way in which files are written, with the file; each once with room and once without."""
    return {
        place / "page.html": lambda text: write_whole(place / "page.html", text),
        place / "state.npz": lambda text: write_atomically(place / "state.npz", text=np.array(text)),
        place / "table.csv": lambda text: write_table(place / "table.csv", text),
    }


def write_table(file, text) -> None:
    with _destination(str(file)) as opened:
        opened.write(text)


@pytest.mark.parametrize("fault", [FULL, READ_ONLY])
def test_what_cannot_be_written_leaves_what_was_there_and_nothing_else(mounted, fault):
    place, mount = mounted
    for write in writers(place).values():
        write("whole")
    if fault == FULL:
        fill(place)
    else:
        assert mount("remount,ro").returncode == 0
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    for file, write in writers(place).items():
        with pytest.raises((OSError, InputError), match=fault) as caught:
            write("new" * 100_000)
        assert disk_words(caught.value), file
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert str(read_arrays(place / "state.npz", "")["text"]) == "whole"


LIMITED = """
import sys, numpy as np
from pathlib import Path
from pneumolib import __main__ as command
from pneumolib.project import write_whole
command.cli.command("write")(lambda: write_whole(Path("page.html"), "new" * 100_000))
sys.exit(command.main(["write"]))
"""


def test_a_limit_on_the_size_of_files_is_a_sentence_too(tmp_path):
    (tmp_path / "page.html").write_text("whole", encoding="utf-8")
    words = ["bash", "-c", 'ulimit -f 8; exec "$0" -c "$1"', sys.executable, LIMITED]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "File too large: 'page.html'; raise the limit" in done.stderr
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["whole"]


@pytest.fixture
def quick(tmp_path):
    """A project whose study has one run, which takes seconds."""
    project = Project(tmp_path / "project")
    for name in ("03_baseline_cnn", "07_comparison"):
        (project.root / f"params/tiny/{name}.yaml").unlink()
    return project


@pytest.mark.slow
def test_a_cell_that_fills_the_disk_says_so_in_terminal_and_page_and_costs_no_earlier_result(mounted, quick):
    place, mount = mounted
    assert mount("remount,size=20m").returncode == 0
    (quick.root / "runs").symlink_to(place)
    quick.run("report", "tiny")
    earlier = quick.result("01_quick")

    def change(notebook):
        text = "with (run.folder / 'big').open('wb', 0) as f:\n    while True: f.write(bytes(65536))"
        notebook["cells"].insert(-1, QUICK["cells"][-1] | {"id": "big", "source": [text]})

    whole = (quick.root / "notebooks/01_quick.ipynb").read_text(encoding="utf-8")
    quick.edit_notebook("01_quick", change)
    said = quick.run("report", "tiny", code=1)
    assert f"{FULL}; make room on that disk" in said
    assert "Traceback" not in said
    assert "make room on that disk" in (quick.root / "reports/tiny/01_quick.html").read_text(encoding="utf-8")
    for file in (place / "tiny/.failed").rglob("big"):
        file.unlink()
    quick.write("notebooks/01_quick.ipynb", whole)
    assert "Nothing to run" in quick.run("report", "tiny")
    assert quick.result("01_quick") == earlier


def test_a_project_that_cannot_be_written_to_is_a_sentence(mounted, quick):
    place, mount = mounted
    assert mount("remount,size=20m").returncode == 0
    subprocess.run(["cp", "-r", f"{quick.root}/.", str(place)], check=True)
    assert mount("remount,ro").returncode == 0
    read_only = Project.__new__(Project)
    read_only.root = place
    for words in (["report", "tiny"], ["open", "tiny/01_quick", "--no-browser"]):
        said = read_only.run(*words, code=1)
        assert READ_ONLY in said
        assert len(said.splitlines()) == 1, said
    assert main(["report", str(place / "nowhere/x")]) == 2


def network(units: int):
    import keras

    pixels = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, keras.layers.Dense(1, name="logit")(keras.layers.Dense(units)(flat)))


def test_a_network_that_does_not_fit_is_a_sentence_and_the_earlier_one_stays(mounted):
    from pneumolib.learning.fitting import save_model

    file = mounted[0] / "model.keras"
    save_model(network(2), file)
    whole = file.read_bytes()
    with pytest.raises((OSError, RuntimeError)) as caught:
        save_model(network(200), file)
    assert FULL in disk_words(caught.value)
    assert {found.name: found.read_bytes() for found in file.parent.iterdir()} == {"model.keras": whole}


@pytest.mark.slow
def test_an_export_that_does_not_fit_is_a_sentence_and_the_earlier_one_stays(mounted, tmp_path):
    from pneumolib.learning.fitting import save_model

    place, folder = mounted[0], tmp_path / "x/03_baseline_cnn"
    folder.mkdir(parents=True)

    def export(units: int, *words: str) -> subprocess.CompletedProcess:
        save_model(network(units), folder / "model.keras")
        values = {"parameters": {"image": {"size_px": 32}}, "facts": {"weights_sha256": "ab"}}
        own = {"slope": 1.0, "intercept": 0.0, "logits": (), "probabilities": ()}
        values["calibration"] = CalibrationResult(method="none", **own, chosen_on="validation")
        write_result(result(model_sha256=file_sha256(folder / "model.keras"), **values), folder)
        command = [
            sys.executable,
            "-m",
            "pneumolib",
            "export",
            str(folder),
            "--format",
            "json",
            "--to",
            str(place / "to"),
        ]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    assert export(2).returncode == 0
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    done = export(200, "--overwrite")
    assert done.returncode == 1
    assert f"{FULL}" in done.stderr
    assert "make room on that disk" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


def test_what_is_no_file_in_a_class_folder_is_named_and_nobody_waits_for_it(archive):
    folder = archive / "train/NORMAL"
    os.mkfifo(folder / "IM-0900-0001.jpeg")
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(folder):
        bound.bind("IM-0901-0001.jpeg")
    (folder / "IM-0902-0001.jpeg").symlink_to("/dev/zero")
    os.mkfifo(folder / "notes.txt")
    os.mkfifo(archive / "train/pipe")
    code = "import sys; from pneumolib.data import read_manifest; from pneumolib.params import DataParams\n"
    code += "print(*read_manifest(DataParams(root=sys.argv[1])).problems.path)"
    words = [sys.executable, "-c", code, str(archive)]
    done = subprocess.run(words, cwd=archive.parent, capture_output=True, text=True, timeout=100, check=True)
    names = [*(f"train/NORMAL/IM-090{n}-0001.jpeg" for n in range(3)), "train/NORMAL/notes.txt", "train/pipe"]
    assert done.stdout.split() == names
    assert "3 file(s), " in done.stderr
    assert "a pipe, a device or a socket" in done.stderr
