"""Where is this? What the platforms set, and what only looks like it; packages that the real pip adds, from wheels made here;
what a session reached, taken up by the next one.
"""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import REPO
from pneumolib import hosts
from pneumolib.data import synthetic
from pneumolib.errors import PneumolibError
from pneumolib.hosts import HOST_ROOT, MARKER, PAGES, add_missing, add_pages, missing, take_up, tpu_hint

COLAB = {"COLAB_RELEASE_TAG": "release-colab_20261101", "COLAB_TPU_1VM": ""}
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}


def prepare(root: Path, variables: dict) -> hosts.Prepared | None:
    return hosts.prepare(variables | {HOST_ROOT: str(root)})


@pytest.mark.parametrize(
    ("variables", "host", "hint"),
    [
        ({}, "local", None),
        (COLAB, "colab", None),
        (KAGGLE | COLAB, "kaggle", None),  # Kaggle's image exports Colab's variables
        ({"KAGGLE_KERNEL_RUN_TYPE": ""} | COLAB | {"COLAB_TPU_1VM": "1"}, "colab", "COLAB_TPU_1VM=1"),
        (KAGGLE | {"TPU_ACCELERATOR_TYPE": "v5e-8"}, "kaggle", "TPU_ACCELERATOR_TYPE=v5e-8"),
        # What importing TensorFlow leaves behind on any machine.
        ({"TPU_ML_PLATFORM": "Tensorflow", "TPU_ML_PLATFORM_VERSION": "2.21.0"}, "local", None),
    ],
)
def test_whose_machine_this_is_and_whether_it_has_a_tpu(variables, host, hint, tmp_path):
    assert (hosts.host(variables), tpu_hint(variables, tmp_path)) == (host, hint)
    for number in (1, 0):
        (tmp_path / f"accel{number}").touch()
    assert tpu_hint(variables, tmp_path) == (hint or str(tmp_path / "accel0"))


def archive_at(folder: Path, names=("NORMAL", "PNEUMONIA")) -> Path:
    """Empty folders laid out as the archive is."""
    for part in ("train", "val", "test"):
        for name in names:
            (folder / part / name).mkdir(parents=True)
    return folder


def test_kaggle_finds_the_archive_and_not_its_second_copy(tmp_path, capsys):
    """Once more with a split by other names beside it, and with a link of an earlier session to what is gone."""
    found = archive_at(tmp_path / "kaggle/input/datasets/paultimothymooney/chest-xray-pneumonia/chest_xray")
    archive_at(found / "chest_xray")
    (found / "__MACOSX/chest_xray/train").mkdir(parents=True)
    variables = KAGGLE | {HOST_ROOT: str(tmp_path)}
    here = hosts.prepare(variables)
    project = tmp_path / "kaggle/working/pneumolib"
    assert (here.host, here.project, here.radiographs[0]) == ("kaggle", project, found)
    assert (project / "data/chest_xray").resolve() == found.resolve()
    assert variables["PNEUMOLIB_ROOT"] == str(project)
    assert capsys.readouterr().out == f"Kaggle: results go to {project}; radiographs: {found}.\n"
    assert hosts.prepare(variables) == here  # the cell run once more
    revised = archive_at(tmp_path / "kaggle/input/pneumonia-xray-images", ("normal", "opacity"))
    link = project / "data/chest_xray"
    link.unlink()
    link.symlink_to(tmp_path / "kaggle/input/gone")
    assert hosts.prepare(variables).radiographs[0] == revised
    assert link.resolve() == revised.resolve()
    # The process that runs a study has prepared all but the backend for the kernels of its notebooks; at home nothing is done.
    capsys.readouterr()
    assert hosts.prepare(variables | {"PNEUMOLIB_RUN": "03_baseline_cnn"}) is prepare(tmp_path, {}) is None
    assert capsys.readouterr().out == ""


def test_drawn_images_are_never_taken_for_radiographs(tmp_path, capsys):
    drawn = synthetic.draw_dataset(tmp_path / "kaggle/input/last-session/pneumolib/data/demo", n_images=24, seed=1)
    here = prepare(tmp_path, KAGGLE)
    assert here.radiographs == []
    assert not (here.project / "data/chest_xray").is_symlink()
    assert "no radiographs found" in capsys.readouterr().out
    (drawn / MARKER).write_text("not JSON", encoding="utf-8")  # of another program, then
    assert prepare(tmp_path, KAGGLE).radiographs == [drawn]


@pytest.mark.parametrize("fault", [None, ImportError(), ValueError("mount failed")])
def test_drive_is_mounted_or_said_why_not(tmp_path, monkeypatch, capsys, fault):
    def mount(place):
        if fault:
            raise fault
        (Path(place) / "MyDrive").mkdir(parents=True)

    def refuse(*_, **__):
        raise OSError(95, "Drive knows no links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    found = archive_at(tmp_path / "content/chest_xray")
    monkeypatch.setitem(sys.modules, "google.colab.drive", SimpleNamespace(mount=mount))
    project = prepare(tmp_path, COLAB).project
    said = capsys.readouterr().out
    assert f'write data["root"] = "{found}"' in said
    assert project == tmp_path / ("content/pneumolib" if fault else "content/drive/MyDrive/pneumolib")
    assert ("results are lost" in said) == bool(fault)
    assert not fault or f"no Google Drive ({type(fault).__name__}: {fault})" in said


@pytest.mark.parametrize(("own", "backend"), [({}, "jax"), ({"KERAS_BACKEND": "tensorflow"}, "tensorflow")])
def test_a_tpu_chooses_the_backend_before_a_cell_imports_keras(own, backend, tmp_path):
    variables = KAGGLE | own | {HOST_ROOT: str(tmp_path), "PNEUMOLIB_RUN": "03_baseline_cnn"}
    hosts.prepare(variables)
    assert variables.get("KERAS_BACKEND") == own.get("KERAS_BACKEND")
    hosts.prepare(variables := variables | {"ISTPUVM": "1"})
    assert variables["KERAS_BACKEND"] == backend


def wheel(folder: Path, name: str, *needs: str, version: str = "1.0") -> None:
    """A package of one empty module."""
    needed = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in {
            f"{name}.py": "",
            f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}",
            f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}-{version}.dist-info/RECORD": "",
        }.items():
            archive.writestr(file, text)


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """The real pip without any index, installing into a folder of the test."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": tmp_path}.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setenv("PIP_PREFIX", str(tmp_path / "prefix"))
    return tmp_path


@pytest.mark.hosts
def test_what_is_missing_is_added_and_nothing_else(pip, monkeypatch):
    wheel(pip, "probe_lacking", "numpy", "probe_under")
    wheel(pip, "probe_under")
    monkeypatch.setattr(hosts, "requirements", lambda: ["numpy>=1", "Probe.Lacking", "pandas"])
    assert add_missing() == ["probe-lacking"]
    added = {found.name for found in (pip / "prefix").rglob("*.dist-info")}
    assert added == {"probe_lacking-1.0.dist-info", "probe_under-1.0.dist-info"}


@pytest.mark.hosts
@pytest.mark.parametrize("own", [True, False], ids=["our own bound", "a bound of what is added"])
def test_what_is_there_is_never_replaced(pip, monkeypatch, own):
    wheel(pip, "numpy")  # another version could be had
    wheel(pip, "probe_lacking", *([] if own else ["numpy<2"]))
    monkeypatch.setattr(hosts, "requirements", lambda: ["numpy<2" if own else "numpy", "probe-lacking"])
    said = r"(?s)probe-lacking: missing or too old here.*nothing was changed.*numpy=="
    with pytest.raises(PneumolibError, match=said + metadata.version("numpy")):
        add_missing()
    assert not (pip / "prefix").exists()


@pytest.mark.hosts
def test_a_machine_without_network_works_without_pretrained_weights(pip, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "requirements", lambda: ["numpy", "probe-pytorch-model==0.1.0"])
    assert add_missing() == []
    assert "probe-pytorch-model: cannot be added" in capsys.readouterr().out


def test_what_is_too_old_counts_as_missing(monkeypatch):
    # Colab and Kaggle bring TensorFlow, each its own. Kaggle's image without a TPU has an nbconvert that is too old for pages.
    assert not [line for line in hosts.requirements() if line.startswith(("tensorflow", "jax", "jupyter", "nbconvert"))]
    assert PAGES in tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    there = {"pillow": "9.4", "pydicom": "3.0.2rc1", "keras": "3.10.0", "tqdm": "4"}
    monkeypatch.setattr(hosts, "installed", lambda: there)
    monkeypatch.setattr(hosts, "requirements", lambda: ["pillow>=10", "pydicom>=3", "keras>=3.9", "tqdm"])
    assert missing() == ["pillow"]
    monkeypatch.setattr(hosts, "find_spec", lambda name: None)  # a host without TensorFlow gets the one for CPUs
    assert missing() == ["pillow", "tensorflow-cpu"]


@pytest.mark.hosts
def test_pages_get_an_nbconvert_of_their_own_beside_the_one_of_kaggles_gpu_image(pip, monkeypatch, tmp_path):
    """A stand-in of that image: it pins nbconvert 6.4.5, whose parser is too old for ours. A notebook by hand needs neither."""
    monkeypatch.delenv("PIP_PREFIX")
    image, project = tmp_path / "image", tmp_path / "project"
    shared = f"traitlets=={metadata.version('traitlets')}"
    for name, *needs, version in (("nbconvert", "mistune<2", "6.4.5"), ("mistune", "0.8.4")):
        wheel(pip, name, *needs, version=version)
        with zipfile.ZipFile(pip / f"{name}-{version}-py3-none-any.whl") as archive:
            archive.extractall(image)
    monkeypatch.setattr(sys, "path", [str(image), *sys.path])
    monkeypatch.setenv("JUPYTER_PATH", "/a/persons/own")
    assert "nbconvert" not in missing()
    with pytest.raises(PneumolibError, match=r"(?s)nbconvert>=7 writes the pages, here is 6\.4\.5.*internet.*pip said"):
        add_pages(project)
    assert not (project / ".cache/pages").exists()
    wheel(pip, "nbconvert", "mistune>=2", "traitlets>=5", version="7.17")
    wheel(pip, "mistune", version="3.1")
    for version in (shared.split("==")[1], "99.0"):  # what both need keeps the machine's version
        wheel(pip, "traitlets", version=version)
    before = {file: file.read_bytes() for file in image.rglob("*") if file.is_file()}
    for _ in range(2):  # made once
        add_pages(project)
        versions = [metadata.version(name) for name in ("nbconvert", "mistune", "traitlets")]
        assert versions == ["7.17", "3.1", shared.split("==")[1]]
    assert sys.path.count(str(project / ".cache/pages")) == 1
    assert os.environ["JUPYTER_PATH"] == f"{project}/.cache/pages/share/jupyter{os.pathsep}/a/persons/own"
    assert before == {file: file.read_bytes() for file in image.rglob("*") if file.is_file()}
    seen = subprocess.run([sys.executable, "-c", "from importlib.metadata import version; print(version('nbconvert'))"],
                          env=os.environ | {"PYTHONPATH": str(image)}, capture_output=True, text=True, check=True)  # fmt: skip
    assert seen.stdout == "6.4.5\n"  # as a kernel sees it


def files(root: Path) -> dict[str, str]:
    return {str(f.relative_to(root)): f.read_text(encoding="utf-8") for f in sorted(root.rglob("*")) if f.is_file()}


TAKEN = {"runs/demo/01_exploration/result.json": "{}", "runs/demo/trainings/03_baseline_cnn/checkpoint.npz": "epoch 3"}


def test_the_next_session_takes_up_whole_runs_and_trainings(tmp_path):
    session, project = tmp_path / "session", tmp_path / "next"
    at_work = dict.fromkeys(("runs/demo/.work-03_baseline_cnn/run.log", "runs/demo/.03_baseline_cnn.lock"), "at work")
    for name, text in (TAKEN | at_work).items():
        (session / name).parent.mkdir(parents=True, exist_ok=True)
        (session / name).write_text(text, encoding="utf-8")
    for file in session.rglob("*"):  # an input is read-only
        file.chmod(0o555 if file.is_dir() else 0o444)
    assert take_up([tmp_path / "none", session], project) == ["demo/01_exploration", "demo/03_baseline_cnn"]
    assert files(project) == TAKEN
    assert all((project / name).parent.stat().st_mode & 0o200 for name in TAKEN)
    for name in TAKEN:
        (project / name).write_text("newer", encoding="utf-8")
    (session / "runs/demo/01_exploration/more.csv").write_text("of another session", encoding="utf-8")
    assert take_up([session], project) == []
    assert set(files(project).values()) == {"newer"}
