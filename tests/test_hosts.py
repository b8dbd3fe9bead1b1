"""Where is this? What the platforms set, and what only looks like it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pneumolib.data import synthetic
from pneumolib.data.layout import MARKER
from pneumolib.hosts import choose_backend, host, prepare, tpu_hint

COLAB = {"COLAB_RELEASE_TAG": "release-colab_20261101", "COLAB_TPU_1VM": ""}
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "local"),
        (COLAB, "colab"),
        (KAGGLE, "kaggle"),
        (KAGGLE | COLAB, "kaggle"),  # Kaggle's image exports Colab's variables
        ({"KAGGLE_KERNEL_RUN_TYPE": ""} | COLAB, "colab"),
    ],
)
def test_whose_machine_this_is(variables, expected):
    assert host(variables) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (COLAB, None),
        (COLAB | {"COLAB_TPU_1VM": "1"}, "COLAB_TPU_1VM=1"),
        (KAGGLE | {"TPU_ACCELERATOR_TYPE": "v5e-8"}, "TPU_ACCELERATOR_TYPE=v5e-8"),
        ({"ISTPUVM": "1"}, "ISTPUVM=1"),
        # What importing TensorFlow leaves behind on any machine.
        ({"TPU_ML_PLATFORM": "Tensorflow", "TPU_ML_PLATFORM_VERSION": "2.21.0"}, None),
    ],
)
def test_what_speaks_for_a_tpu(variables, expected, tmp_path):
    assert tpu_hint(variables, tmp_path) == expected


def test_a_chip_in_dev(tmp_path):
    (tmp_path / "accel1").touch()
    (tmp_path / "accel0").touch()
    assert tpu_hint({}, tmp_path) == str(tmp_path / "accel0")


def archive_at(folder):
    """Empty folders laid out as the archive is."""
    for part in ("train", "val", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            (folder / part / name).mkdir(parents=True)
    return folder


def test_a_checkout_is_left_alone(tmp_path, capsys):
    variables = {}
    assert prepare(tmp_path, variables) is None
    assert variables == {}
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("above", ["chest-xray-pneumonia", "datasets/paultimothymooney/chest-xray-pneumonia"])
def test_kaggle_finds_the_archive_and_not_its_second_copy(tmp_path, capsys, above):
    found = archive_at(tmp_path / "kaggle/input" / above / "chest_xray")
    archive_at(found / "chest_xray")
    (found / "__MACOSX/chest_xray/train").mkdir(parents=True)
    variables = dict(KAGGLE)
    here = prepare(tmp_path, variables)
    project = tmp_path / "kaggle/working/pneumolib"
    assert (here.host, here.project, here.radiographs[0]) == ("kaggle", project, found)
    assert (project / "data/chest_xray").resolve() == found.resolve()
    assert variables == KAGGLE | {"PNEUMOLIB_ROOT": str(project)}
    assert capsys.readouterr().out == f"Kaggle: results go to {project}; radiographs: {found}.\n"
    assert prepare(tmp_path, variables) == here  # the cell run once more


def test_the_revised_split_is_found_and_a_folder_of_the_projects_own_stays(tmp_path):
    revised = tmp_path / "kaggle/input/pneumonia-xray-images"
    for part in ("train", "test"):
        for name in ("normal", "opacity"):
            (revised / part / name).mkdir(parents=True)
    own = archive_at(tmp_path / "kaggle/working/pneumolib/data/chest_xray")
    assert prepare(tmp_path, dict(KAGGLE)).radiographs == [revised, own]
    assert not own.is_symlink()


def test_drawn_images_are_never_taken_for_radiographs(tmp_path):
    drawn = synthetic.draw_dataset(tmp_path / "kaggle/input/last-session/pneumolib/data/demo", n_images=24, seed=1)
    assert (drawn / MARKER).is_file()
    here = prepare(tmp_path, dict(KAGGLE))
    assert here.radiographs == []
    assert not (here.project / "data/chest_xray").is_symlink()
    assert "no radiographs found" in str(here)
    (drawn / MARKER).write_text("not JSON", encoding="utf-8")  # of another program, then
    assert prepare(tmp_path, dict(KAGGLE)).radiographs == [drawn]


def test_a_link_to_what_is_no_longer_attached_is_renewed(tmp_path):
    link = tmp_path / "kaggle/working/pneumolib/data/chest_xray"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "kaggle/input/gone")
    prepare(tmp_path, dict(KAGGLE))
    assert not link.is_symlink()
    found = archive_at(tmp_path / "kaggle/input/new")
    prepare(tmp_path, dict(KAGGLE))
    assert link.resolve() == found.resolve()


def test_a_drive_that_knows_no_links_gets_a_line_to_write(tmp_path, monkeypatch, capsys):
    found = archive_at(tmp_path / "content/chest_xray")
    (tmp_path / "content/drive/MyDrive").mkdir(parents=True)
    monkeypatch.setattr(Path, "symlink_to", lambda *_, **__: (_ for _ in ()).throw(OSError(95, "not supported")))
    here = prepare(tmp_path, dict(COLAB))
    assert here.project == tmp_path / "content/drive/MyDrive/pneumolib"
    assert f'write data["root"] = "{found}"' in capsys.readouterr().out


class RefusalError(Exception):
    """Stands in for Colab's MessageError."""


@pytest.mark.parametrize("fault", [None, ValueError("mount failed"), RefusalError("refused"), NotImplementedError()])
def test_drive_is_mounted_or_its_refusal_is_said(tmp_path, monkeypatch, capsys, fault):
    def mount(place):
        if fault:
            raise fault
        (Path(place) / "MyDrive").mkdir(parents=True)

    monkeypatch.setitem(sys.modules, "google.colab.drive", SimpleNamespace(mount=mount))
    monkeypatch.setitem(sys.modules, "google.colab._message", SimpleNamespace(MessageError=RefusalError))
    here = prepare(tmp_path, dict(COLAB))
    assert here.project == tmp_path / ("content/pneumolib" if fault else "content/drive/MyDrive/pneumolib")
    assert ("results are lost" in capsys.readouterr().out) == bool(fault)


def test_colab_without_a_drive_to_mount(tmp_path, capsys):
    assert prepare(tmp_path, dict(COLAB)).project == tmp_path / "content/pneumolib"
    assert "there is no Google Drive here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "loaded", "backend", "said"),
    [
        ({}, None, None, ""),
        ({"ISTPUVM": "1"}, None, "jax", "Keras computes with JAX"),
        ({"ISTPUVM": "1", "KERAS_BACKEND": "jax"}, None, "jax", ""),
        ({"ISTPUVM": "1", "KERAS_BACKEND": "tensorflow"}, None, "tensorflow", "KERAS_BACKEND=tensorflow was set"),
        ({"ISTPUVM": "1"}, "tensorflow", None, "restart the kernel"),
        ({"ISTPUVM": "1"}, "jax", "jax", "Keras computes with JAX"),
    ],
)
def test_the_backend_is_chosen_before_keras(variables, loaded, backend, said, tmp_path, monkeypatch):
    keras = loaded and SimpleNamespace(config=SimpleNamespace(backend=lambda: loaded))
    monkeypatch.setitem(sys.modules, "keras", keras)
    words = choose_backend(variables, tmp_path)
    assert variables.get("KERAS_BACKEND") == backend
    assert said in " ".join(words)
    assert bool(words) == bool(said)


def test_a_notebook_of_a_study_finds_everything_prepared(tmp_path, capsys, monkeypatch):
    """The process that runs the study has done it; only the backend is the kernel's own."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)  # which the tests before this one imported
    variables = KAGGLE | {"PNEUMOLIB_RUN": "03_baseline_cnn", "ISTPUVM": "1"}
    assert prepare(tmp_path, variables) is None
    assert variables.get("KERAS_BACKEND") == "jax"
    assert "PNEUMOLIB_ROOT" not in variables
    assert list(tmp_path.iterdir()) == []
