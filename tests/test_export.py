"""A trained model for other programs: one tiny network, all formats, read by those programs themselves."""

import functools
import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image
from scipy.special import expit

from conftest import REPO
from pneumolib.__main__ import main
from pneumolib.data.drawing import draw_radiograph
from pneumolib.data.pixels import load_image
from pneumolib.errors import ModelError, PneumolibError
from pneumolib.evaluation.calibration import Calibration
from pneumolib.learning.networks import averaged
from pneumolib.params import ImageParams
from pneumolib.provenance import file_sha256
from pneumolib.reporting.results import CalibrationResult, write_result
from pneumolib.serve import export, export_network
from pneumolib.serve.export import capture_output, compare
from test_reporting import result

IMAGE = ImageParams(size_px=32, channels=1)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
PLATT = CalibrationResult(
    method="platt", slope=0.8, intercept=-0.1, logits=(), probabilities=(), chosen_on="validation"
)


def tiny_network(policy: str = "float32", own: bool = False) -> keras.Model:
    """Of the kinds of layers that exporters treat in ways of their own; `own` begins as a person may write one."""
    keras.utils.set_random_seed(1)
    pixels = x = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    if own:
        pixels = keras.Input((32, 32, 1))
        x = layers.RandomRotation(0.2)(keras.ops.sqrt(keras.ops.cast(pixels, "float32") / 255) * 255)
    x = layers.Concatenate(dtype=policy)([x] * 3)
    x = keras.ops.flip(x, axis=-1)
    x = layers.Rescaling(1 / 255, dtype=policy)(x)
    x = layers.Normalization(mean=[0.2, 0.5, 0.4], variance=[0.1, 0.2, 0.3], dtype=policy)(x)
    x = layers.SeparableConv2D(4, 3, strides=4, activation="relu", dtype=policy)(x)
    x = layers.Conv2D(4, (1, 3), groups=4, padding="same", dtype=policy)(x)
    x = layers.Activation("gelu", dtype=policy)(x)
    x = layers.BatchNormalization(dtype=policy)(x)
    x = layers.Flatten(dtype=policy)(x)
    wide = keras.initializers.RandomNormal(stddev=0.5)
    return keras.Model(pixels, layers.Dense(1, kernel_initializer=wide, dtype="float32", name="logit")(x), name="tiny")


@pytest.fixture(scope="module", autouse=True)
def _in_this_process():
    """What runs in a process of its own is called here, where TensorFlow is imported already, and draws its images once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_network, "check_pixels", functools.cache(export_network.check_pixels))
        patch.setattr(export, "capture_output", lambda module, *words: export_network.write_and_read(*words))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's two files."""
    folder = tmp_path_factory.mktemp("runs") / "x" / "03_baseline_cnn"
    folder.mkdir(parents=True)
    tiny_network(own=True).save(folder / "model.keras")
    values = {"parameters": {"image": IMAGE.model_dump()}, "calibration": PLATT, "facts": {"weights_sha256": "ab"}}
    write_result(result(model_sha256=file_sha256(folder / "model.keras"), **values), folder)
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """The run in all formats; `onnx` by the command, as a person starts it, with all that it said."""
    command = [sys.executable, "-m", "pneumolib", "export", str(run), "--format", "onnx"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folders = {kind: export.export_run(run, kind) for kind in export.READERS if kind != "onnx"}
    return folders | {"onnx": run / "export/onnx", "code": done.returncode, "said": done.stdout}


@pytest.mark.parametrize("kind", export.READERS)
def test_other_programs_give_the_calibrated_probability(kind, exported, run):
    """In a batch of another size than those of the check."""
    logits = np.asarray(keras.saving.load_model(run / "model.keras")(PIXELS, training=False)).astype(float)
    expected = expit(PLATT.slope * logits + PLATT.intercept)
    found = export_network.reader(kind, exported[kind])(PIXELS)
    assert found.dtype == np.float32
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found) > 0.05  # a network that tells these images apart


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # of tf2onnx
@pytest.mark.parametrize("kind", export.READERS)
def test_a_mean_of_networks_is_written_as_one(kind, tmp_path):
    one, other = tiny_network(), tiny_network()
    other.set_weights([1.5 * weight for weight in one.get_weights()])
    network, same = averaged([one, other]), Calibration("platt", 1.0, 0.0, (), ())
    export_network.write_network(network, same, kind, tmp_path)
    expected = expit((export_network.logits(one, PIXELS) + export_network.logits(other, PIXELS)) / 2)
    np.testing.assert_allclose(export_network.reader(kind, tmp_path)(PIXELS)[:, 0], expected, atol=1e-6)


def test_an_isotonic_map_is_written_as_layers():
    corners = Calibration("isotonic", 1.0, 0.0, (-2.0, -1.0, -0.999, 0.5, 3.0), (0.0, 0.1, 0.4, 0.4, 1.0))
    logits = np.append(np.linspace(-4, 5, 200), corners.logits).astype(np.float32)[:, None]
    tensor = keras.Input((1,))
    found = keras.Model(tensor, export_network.calibrated(tensor, corners)).predict(logits, verbose=0)
    np.testing.assert_allclose(found, corners.apply(logits), atol=1e-4)


def test_what_is_beside_the_model_says_what_a_program_needs(run, exported):
    for kind in export.READERS:
        folder = exported[kind]
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        files = [f for f in folder.rglob("*") if f.is_file() and f.name != "model.json"]
        digests = {f.relative_to(folder).as_posix(): file_sha256(f) for f in files}
        assert {name: entry["sha256"] for name, entry in facts["files"].items()} == digests
        assert facts["format"] == kind
        assert facts["check"]["images"] == 20
        assert facts["check"]["largest_difference"] <= facts["check"]["tolerance"] == 1e-4
        assert facts["check"]["warnings"] == []
        assert set(export.PACKAGES.get(kind, ())) <= facts["versions"].keys()
    assert facts["input"]["shape"] == [None, 32, 32, 1]
    assert ImageParams(**facts["preparation"]["image"]) == IMAGE
    assert facts["output"]["labels"] == {"0": "normal", "1": "pneumonia"}
    assert facts["threshold"]["value"] == 0.4
    assert facts["origin"]["model_file_sha256"] == file_sha256(run / "model.keras")
    assert "not a medical device" in facts["notice"]
    first, second = exported["said"].splitlines()
    assert exported["code"] == 0
    assert first.startswith("x/03_baseline_cnn as onnx, to ")
    assert re.search(r"ONNX Runtime: 20 drawn radiographs.* Keras \d\.\de-\d\d, allowed 1e-04$", second)
    assert left_in(exported["onnx"]) == ["model.json", "model.onnx"]


def left_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def command(run, tmp_path, capfd):
    """`pneumolib export` of the run to a folder of the test's own; gives the exit code and all that a terminal shows."""

    def export_to(*words: str, kind: str = "json") -> tuple[int, str]:
        capfd.readouterr()
        code = main(["export", str(run), "--format", kind, "--to", str(tmp_path / "out"), *words])
        return code, "".join(capfd.readouterr())

    return export_to


def test_only_an_earlier_export_is_replaced_and_only_when_asked(command, tmp_path, monkeypatch):
    out, mine = tmp_path / "out", tmp_path / "out/thesis.txt"
    out.mkdir()

    def refused(*words: str) -> str:
        before = left_in(out)
        code, said = command(*words)
        assert (code, left_in(out)) == (2, before)
        return said

    mine.write_text("mine")
    assert "holds thesis.txt, which no export wrote" in refused()
    refused("--overwrite")
    mine.unlink()
    assert command("--overwrite")[0] == 0
    mine.write_text("mine again")
    refused("--overwrite")
    mine.unlink()
    assert "--overwrite" in refused()
    (out / "architecture.json").unlink()

    def broken(module, run, kind, fresh, file):
        Path(fresh, "half").write_text("x")
        return "converting operation 7\nValueError: no such operation"

    with monkeypatch.context() as patch:
        patch.setattr(export, "capture_output", broken)
        code, said = command("--overwrite")
    assert code == 1
    assert said.endswith("Last words of the exporter:\nconverting operation 7\nValueError: no such operation\n")
    assert left_in(out) == ["model.json", "weights.weights.h5"]  # what was there before is as it was
    assert command("--overwrite")[0] == 0
    assert left_in(out) == ["architecture.json", "model.json", "weights.weights.h5"]
    assert left_in(tmp_path) == ["out"]


def test_files_that_say_otherwise_than_keras_are_not_left(command, tmp_path, monkeypatch):
    write = export_network.write_network

    def wrong(network, calibration, kind, folder):
        other = keras.models.clone_model(network)
        other.set_weights([1.5 * w for w in network.get_weights()])
        write(other, calibration, kind, folder)

    monkeypatch.setattr(export_network, "write_network", wrong)
    code, said = command()
    assert code == 1
    assert re.search(r"gives \d+ of 20 drawn radiographs another probability than Keras: up to \d", said)
    assert left_in(tmp_path) == []


def test_what_cannot_be_done_is_refused_before_a_network_is_loaded(command, tmp_path, monkeypatch):
    code, said = command(kind="pmml")
    assert (code, said) == (2, "--format: received 'pmml', allowed savedmodel, litert, onnx, json\n")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "tf2onnx" else find_spec(name))
    code, said = command(kind="onnx")
    assert code == 2
    assert 'needs tf2onnx, not installed here: pip install "pneumolib[export]"' in said
    assert main(["export", str(tmp_path / "none"), "--format", "json"]) == 2
    assert left_in(tmp_path) == []


def test_what_another_process_says_is_shown_only_where_it_fails(tmp_path, monkeypatch, capfd):
    (tmp_path / "loud.py").write_text(
        "import os, sys\nprint('from above')\nsys.stdout.flush()\nos.write(2, b'from below')\n"
        "print(os.environ['KERAS_BACKEND'])\nsys.exit(int(sys.argv[1]))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert capture_output("loud", "0") is None
    assert capture_output("loud", "1") == "from above\nfrom belowtensorflow"
    with pytest.raises(ModelError, match="from below"):
        capture_output("loud", "2")
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_network_of_mixed_precision_is_written_in_float32(tmp_path):
    network = tiny_network("mixed_bfloat16")
    assert export_network.computes_in(network) == ["bfloat16", "float32"]
    plain = export_network.in_float32(network)
    assert export_network.computes_in(plain) == ["float32"]
    same = tiny_network()
    same.set_weights(network.get_weights())
    np.testing.assert_allclose(export_network.logits(plain, PIXELS), export_network.logits(same, PIXELS), atol=1e-7)
    moved = np.abs(export_network.logits(network, PIXELS) - export_network.logits(plain, PIXELS)).max()
    assert 1e-4 < moved < 0.1
    assert export_network.in_float32(same) is same


def compared(expected, found=None, moved=0.0, precisions=("float32",)) -> dict:
    """What is made of probabilities; the other program's are those of Keras by default."""
    expected = np.array(expected)
    found = np.float32([expected[:, None]] * 2) if found is None else found
    probabilities = {"saved": expected - moved, "expected": expected, "found": found}
    return compare("onnx", probabilities | {"precisions": np.array(precisions)}, 0.5)


def test_what_is_no_probability_is_found_and_what_a_check_cannot_say_is_said():
    for found in (np.full((2, 3, 1), np.nan, np.float32), np.zeros((2, 3, 1)), np.zeros((2, 3), np.float32)):
        with pytest.raises(PneumolibError, match="Nothing was exported"):
            compared(np.zeros(3), found)
    assert compared([0.1, 0.9])["warnings"] == []
    (precision,) = compared([0.1, 0.501], moved=0.002, precisions=("float16", "float32"))["warnings"]
    assert "float16 and float32" in precision
    assert "up to 2.0e-03, and 1 predicted class(es) changed" in precision
    (narrow,) = compared([0.999, 1.0])["warnings"]
    assert "between 0.999000 and 1.000000" in narrow


def test_the_guides_example_gives_the_librarys_answer(exported, tmp_path, monkeypatch, capsys):
    guide = (REPO / "docs/predict.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "onnxruntime" in block]
    assert len(example.splitlines()) <= 15
    (tmp_path / "read.py").write_text(example)
    file = tmp_path / "a b.jpeg"
    Image.fromarray(draw_radiograph("virus")).convert("RGB").save(file)
    monkeypatch.chdir(exported["onnx"])
    monkeypatch.setattr(sys, "argv", ["read.py", str(file)])
    runpy.run_path(str(tmp_path / "read.py"))
    probability, call = capsys.readouterr().out.split()
    network = keras.saving.load_model(exported["onnx"].parents[1] / "model.keras")
    logit = export_network.logits(network, load_image(file, IMAGE)[np.newaxis])[0]
    expected = expit(PLATT.slope * logit + PLATT.intercept)
    assert float(probability) == pytest.approx(expected, abs=1e-4)
    assert call == ("pneumonia" if expected >= 0.4 else "normal")
