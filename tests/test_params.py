"""Parameter files: what is wrong is said once, with file, key, what was received and what is near."""

import pytest
from pydantic import ValidationError

from pneumolib.errors import ParamsError
from pneumolib.params import check
from pneumolib.project import load_run, notebook_of, project_root


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


def test_study_and_run_become_one_frozen_object(study):
    params, own = load_run(study("seed: 3\ntraining: {learning_rate: 1.0e-4}\n"))
    assert (params.image.size_px, params.seed, params.training.learning_rate) == (64, 3, 1e-4)
    assert own == {"seed", "training"}
    with pytest.raises(ValidationError):
        params.seed = 4


def test_unknown_key_names_file_key_value_and_nearest(study):
    message = fault(study("training: {learning_rat: 0.01}\n"))
    assert "03_baseline_cnn.yaml: training.learning_rat: unknown key (received 0.01)" in message
    assert "Did you mean training.learning_rate?" in message
    assert "batch_size" in message  # all that is allowed there


def test_unknown_section_and_key_in_the_wrong_section(study):
    assert "Did you mean augment?" in fault(study("augmant: {flip: true}\n"))
    assert "Did you mean training.learning_rate?" in fault(study("model: {learning_rate: 0.1}\n"))
    assert "Did you mean image.size_px?" in fault(study("size_px: 10\n", shared=""))


def test_fault_in_study_yaml_names_study_yaml(study):
    assert "study.yaml: image.size_px" in fault(study("", shared="image: {size_px: big}\n"))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.e-4", 1e-4),
        (".5", 0.5),
        ("+2e0", 2.0),
        ("1.0e-4", 1e-4),
        ("2", 2.0),
        ("5_0e-1", 5.0),
    ],
)
def test_a_number_is_read_as_written(study, text, read):
    assert load_run(study(f"training: {{learning_rate: {text}}}\n"))[0].training.learning_rate == read


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", '"5"', "1e"])
def test_text_that_is_no_decimal_number_is_shown_as_written(study, text):
    """YAML 1.1 makes 8 of 010 and 90 of 1:30, and says nothing."""
    message = fault(study(f"training: {{epochs: {text}}}\n"))
    assert f"training.epochs: Input should be a valid integer (received {text.strip(chr(34))!r}). It is text" in message


def test_parameters_of_earlier_versions_say_what_became_of_them(study):
    message = fault(study("image: {memory_gb: 2.0}\naudit: {cure_images: 30}\n", shared=""))
    assert "image.memory_gb: this parameter no longer exists" in message
    assert "delete the line" in message
    assert "audit.cure_images: this parameter is now called audit.mitigation_images; rename it (received 30)" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("training: {epochs: 0}", "training.epochs"),
        ("training: {epochs: 2.5}", "training.epochs"),
        ("training: {epochs: true}", "training.epochs"),
        ("training: {learning_rate: .nan}", "training.learning_rate"),
        ("training: {learning_rate: .inf}", "training.learning_rate"),
        ("training: {optimizer: adma}", "training.optimizer"),
        ("augment: {gamma_factor: 0.5}", "augment.gamma_factor"),
        ("augment: {flip: 'yes'}", "augment.flip"),
        ("training: 5", "training"),
        ("image: {fit: squash}", "image.fit"),
        ("image: {reencode_quality: 100}", "image.reencode_quality"),
        ("image: {crop_border: 0.5}", "image.crop_border"),
        ("image: {equalize: yes}", "image.equalize"),
        ("data: {source: zip}", "data.source"),
        ("split: {validation: keep}", "split.validation"),
        ("equalisation: {tiles: []}", "equalisation.tiles"),
        ("audit: {folds: 1}", "audit.folds"),
        ("seed: -1", "seed"),
        ("image: {size_px: 20}", "image.size_px"),
    ],
)
def test_impossible_values_are_refused(study, text, key):
    message = fault(study(text + "\n"))
    assert f"03_baseline_cnn.yaml: {key}:" in message
    assert "received" in message


def test_a_clip_limit_of_less_than_a_pixel_is_refused(study):
    message = fault(study("image: {equalize: clahe, clahe_tiles: 32}\n", shared=""))
    assert "image: clahe_clip_limit 0.02 is less than one pixel of a tile: 32 tiles along 180 px" in message
    assert "at least 0.040" in message


def test_all_faults_at_once(study):
    message = fault(study("training: {epochs: 0, batch_size: 0}\naugment: {flip: 3}\n"))
    assert len(message.splitlines()) == 3


def test_values_that_exclude_each_other(study):
    message = fault(study("training: {optimizer: adam, weight_decay: 0.1}\n"))
    assert "weight_decay 0.1 needs optimizer: adamw" in message
    assert "03_baseline_cnn.yaml: training" in message


def test_a_key_in_both_files_or_twice_in_one_is_refused(study):
    assert "image: set in study.yaml already" in fault(study("image: {size_px: 32}\n", shared="image: {size_px: 64}\n"))
    assert "line 2: seed: set twice" in fault(study("seed: 1\nseed: 2\n"))


def test_files_that_are_missing_or_no_yaml(study, tmp_path):
    assert "no such file" in fault(tmp_path / "99_none.yaml")
    assert "03_baseline_cnn.yaml" in fault(study("a: [1\n"))
    assert "expected `key: value` lines, received list" in fault(study("- 1\n"))
    assert "a key must be a plain word" in fault(study("[1]: 2\n"))
    path = study("")
    path.write_bytes(b"seed: \xff")
    assert "03_baseline_cnn.yaml" in fault(path)


def test_data_root_is_replaced(study):
    assert load_run(study(""), data_root="elsewhere")[0].data.root == "elsewhere"


def test_a_parameters_cell_is_checked_like_a_file():
    with pytest.raises(ParamsError, match=r"parameters cell: seed: .*received 'x'"):
        check({"seed": "x"})


def test_run_names():
    assert notebook_of("05_fine_tuning-vgg19") == "05_fine_tuning"
    with pytest.raises(ParamsError, match="NN_<notebook>"):
        notebook_of("baseline")


def test_root_is_found_from_the_notebooks_folder(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.delenv("PNEUMOLIB_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project_root() == tmp_path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"head_units": 8}}, "head_units is for name: transfer"),
        ({"model": {"name": "transfer", "backbone": "VGG19", "weights": "none", "head": "recall_vgg19", "head_units": 8}},
         "head_units and head_dropout are for head: pooled"),
        ({"model": {"name": "transfer"}}, "needs a backbone"),
        ({"model": {"name": "transfer", "backbone": "VGG91", "weights": "none"}}, "Did you mean VGG19?"),
        ({"model": {"name": "transfer", "backbone": "VGG19"}}, "needs weights: imagenet, none, or the path"),
        ({"model": {"name": "transfer", "backbone": "x.keras"}}, "needs preprocess: caffe, torch, tf, unit or none"),
        ({"model": {"name": "transfer", "backbone": "x.keras", "preprocess": "tf", "weights": "none"}}, "brings its own"),
        ({"model": {"name": "transfer", "backbone": "VGG19", "weights": "none", "preprocess": "tf"}}, "wants 'caffe'"),
        ({"training": {"schedule": "constant", "lowest_rate": 1e-5}}, "has no effect with schedule: constant"),
        ({"training": {"schedule": "plateau", "decay_rate": 0.5, "decay_every": 2}}, "plateau_metric and schedule"),
        ({"training": {"schedule": "step_epochs", "decay_rate": 0.5}}, "schedule: step_epochs needs decay_every"),
        ({"training": {"decay_rate": 0.5}}, "schedule: cosine has no decay_rate"),
        ({"training": {"schedule": "constant", "warmup_epochs": 1.0}}, "needs schedule: cosine"),
        ({"training": {"epochs": 2, "warmup_epochs": 2.0}}, "must be fewer than epochs (2)"),
        ({"training": {"lowest_rate": 0.1}}, "must lie below learning_rate"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(values, said):
    with pytest.raises(ParamsError) as caught:
        check(values)
    assert said in str(caught.value)
