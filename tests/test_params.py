"""Parameter files: what is wrong is said once, with file, key, what was received and what is near."""

import contextlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pneumolib.errors import InputError, ParamsError
from pneumolib.params import DataParams, check
from pneumolib.project import in_root, load_run, study_runs


@pytest.fixture
def study(tmp_path):
    """Writes `study.yaml` and one run file; returns the run file's path."""

    def write(run: str, shared: str | None = None):
        shared = ("" if run.startswith("image:") else "image: {size_px: 64}\n") if shared is None else shared
        (tmp_path / "study.yaml").write_text(shared, encoding="utf-8")
        path = tmp_path / "03_baseline_cnn.yaml"
        path.write_text(run, encoding="utf-8")
        return path

    return write


def fault(path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_run(path)
    return str(caught.value)


def test_study_and_run_become_one_object(study):
    params, own = load_run(study("seed: 3\ntraining: {learning_rate: 1.0e-4}\n"))
    assert (params.image.size_px, params.seed, params.training.learning_rate) == (64, 3, 1e-4)
    assert own == {"seed", "training"}


@pytest.mark.parametrize(
    ("run", "shared", "said"),
    [
        ("training: {learning_rat: 0.01}", None, "03_baseline_cnn.yaml: training.learning_rat: unknown key (received 0.01). "
         "Did you mean training.learning_rate? Allowed here: epochs, batch_size, "),
        ("augmant: {flip: true}", None, "Did you mean augment?"),
        ("", "image: {size_px: big}", "study.yaml: image.size_px"),
        ("image: {equalize: clahe, clahe_tiles: 32}", "", "image: clahe_clip_limit 0.02 is less than one pixel of a tile: 32 tiles "
         "along 180 px have 25 pixels each. Use fewer tiles, or at least 0.040"),
        ("training: {optimizer: adam, weight_decay: 0.1}", None, "03_baseline_cnn.yaml: training: weight_decay 0.1 needs optimizer: adamw"),
        ("image: {size_px: 32}", "image: {size_px: 64}", "image: set in study.yaml already"),
        ("seed: 1\nseed: 2", None, "line 2: seed: set twice"),
        *((f"training: {{epochs: {value}}}", None, "03_baseline_cnn.yaml: training.epochs: ") for value in ("0", "2.5", "true")),
        *((f"training: {{learning_rate: {value}}}", None, "yaml: training.learning_rate: ") for value in (".nan", ".inf")),
        ("augment: {flip: 'yes'}", None, "03_baseline_cnn.yaml: augment.flip: Input should be a valid boolean (received 'yes')"),
        ("a: [1", None, "03_baseline_cnn.yaml: "),
        ("[1]: 2", None, "03_baseline_cnn.yaml: while constructing a mapping"),
    ],
)  # fmt: skip
def test_a_fault_names_file_key_value_and_what_is_near(study, run, shared, said):
    assert said in fault(study(f"{run}\n", shared))


READ = {"1e-4": 1e-4, "1E-4": 1e-4, "1.e-4": 1e-4, ".5": 0.5, "+2e0": 2.0, "2": 2.0, "5_0e-1": 5.0}


@pytest.mark.parametrize(("text", "read"), READ.items())
def test_a_number_is_read_as_written(study, text, read):
    assert load_run(study(f"training: {{learning_rate: {text}}}\n"))[0].training.learning_rate == read


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", '"5"', "1e"])
def test_text_that_is_no_decimal_number_is_shown_as_written(study, text):
    """YAML 1.1 makes 8 of 010 and 90 of 1:30, and says nothing."""
    message = fault(study(f"training: {{epochs: {text}}}\n"))
    assert f"training.epochs: Input should be a valid integer (received {text.strip(chr(34))!r}). It is text" in message


def test_a_parameters_cell_is_checked_like_a_file():
    with pytest.raises(ParamsError) as caught:
        check({"seed": "x", "training": {"epochs": 0, "batch_size": 0}})
    assert len(str(caught.value).splitlines()) == 3
    assert str(caught.value).startswith("parameters cell: seed: ")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"head_units": 8}}, "head_units is for name: transfer"),
        ({"model": {"name": "transfer", "backbone": "VGG19", "weights": "none", "head": "recall_vgg19", "head_units": 8}},
         "head_units and head_dropout are for head: pooled"),
        ({"model": {"name": "transfer", "backbone": "VGG91", "weights": "none"}}, "nor one of: ConvNeXtTiny, "),
        ({"model": {"name": "transfer", "backbone": "x.keras"}}, "needs preprocess: caffe, torch, tf, lite, unit, none"),
        ({"model": {"name": "transfer", "backbone": "VGG19", "weights": "none", "preprocess": "tf"}}, "wants 'caffe'"),
        ({"training": {"schedule": "constant", "lowest_rate": 1e-5}}, "has no effect with schedule: constant"),
        ({"training": {"schedule": "plateau", "decay_rate": 0.5, "decay_every": 2}}, "plateau_metric and schedule"),
        ({"training": {"epochs": 2, "warmup_epochs": 2.0}}, "must be fewer than epochs (2)"),
        ({"augment": {"crop_area": [1.0, 0.5]}}, "crop_area [1.0, 0.5] must rise"),
        ({"augment": {"crop_area": [0.5, 1], "crop_aspect": [1.2, 2]}}, "crop_aspect [1.2, 2.0] hold 1 between"),
        ({"augment": {"crop_area": [0.5, 1], "zoom_fraction": 0.1}}, "crop_area takes the place of zoom_fraction"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(values, said):
    with pytest.raises(ParamsError) as caught:
        check(values)
    assert said in str(caught.value)


BOMB = "a: &a [1, 2, 3]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)
)
PIECES = [
    "seed: 3",
    "image: {size_px: 64}",
    "&a",
    "*a",
    "<<: *a",
    "!!int",
    "!!timestamp",
    "!!map",
    "? ",
    "- ",
    ": ",
    "{",
    "]",
    "'",
    "\t",
    "\n",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(lambda parts: " ".join(parts).encode())
)
@example(BOMB.encode())
@example(b"a: &a {b: *a}")
@example(b"seed: !!int ''")
@example(b"seed: !!timestamp x")
@example(b"seed: 2020-13-45")
@example(b"seed: " + b"9" * 5000)
@example(b"seed: " + b"[" * 5000)
@example(b"\xff")
@example(b"seed: \0")
@example(b"1: 2")
@example(b"[]")
@example(b"\tseed: 1")
@example(b"x" * 2_000_000)
@example(b"a: &a [" + b"1," * 9_000 + b"]\naudit: [*a, *a]")
def test_any_bytes_are_parameters_or_a_fault_that_names_the_file(study, raw):
    path = study("", "")
    path.write_bytes(raw)
    with contextlib.suppress(ParamsError):
        load_run(path)
        return
    said = fault(path)
    assert str(path) in said
    assert len(said) < 5000


def test_aliases_are_read_as_long_as_they_are_few(study):
    params, _ = load_run(
        study("augment: &a {flip: true}\nevaluation: {seeds: &s [2, 3]}\naudit: {folds: &f 3}\nfeatures: {views: *f}\n")
    )
    assert (params.audit.folds, params.features.views) == (3, 3)


def test_a_folder_in_place_of_a_file_is_said(study):
    path = study("")
    path.unlink()
    path.mkdir()
    assert fault(path).startswith(f"{path}: a folder, no file")


@pytest.mark.parametrize(
    ("folder", "file", "better"),
    [
        ("my study", "03_baseline_cnn.yaml", "folder to my-study"),
        ("Größe", "03_baseline_cnn.yaml", "folder to Groe"),
        ("-x", "03_baseline_cnn.yaml", "folder to x"),
        ("日本", "03_baseline_cnn.yaml", "folder to study-1"),
        ("a\nb", "03_baseline_cnn.yaml", "folder to a-b"),
        ("v1.2_ok", "03_baseline_cnn-größer <b>.yaml", "file to 03_baseline_cnn-groer-b-.yaml"),
    ],
)
def test_a_name_that_links_and_hosts_do_not_take_is_refused_with_a_better_one(tmp_path, folder, file, better):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).touch()
    with pytest.raises(ParamsError, match=f"rename the {better}"):
        study_runs(tmp_path / folder)


def test_a_root_that_is_no_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"PNEUMOLIB_ROOT: received .*none"):
        in_root("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PNEUMOLIB_ROOT", "~")
    assert (in_root("x"), in_root("~/y")) == (tmp_path / "x", tmp_path / "y")


def test_a_folder_of_images_stands_in_for_tfrecord_files(study, tmp_path):
    path = study("")
    (path.parent / "study.yaml").write_text("data: {source: tfrecord, root: gs://bucket/folder}\n")
    for made, source in (("records/train", "tfrecord"), ("images/train/NORMAL", "kaggle_folder")):
        (tmp_path / made).mkdir(parents=True)
        root = str(tmp_path / made.split("/")[0])
        assert load_run(path, root)[0].data == DataParams(source=source, root=root)
    assert load_run(path)[0].data.root == "gs://bucket/folder"
