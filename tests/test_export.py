"""A trained model for other programs: one tiny network, all formats, read by those programs themselves."""

import functools
import hashlib
import json
import logging
import os
import re
import runpy
import sys
from importlib.util import find_spec

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
from pneumolib.evaluation.calibration import Calibration
from pneumolib.learning import exporting
from pneumolib.params import ImageParams
from pneumolib.reporting.results import CalibrationResult, write_result
from pneumolib.serving import export
from pneumolib.serving.handover import Checked, calibration_facts, preparation_steps
from pneumolib.serving.quiet import aside
from pneumolib.serving.trained import ModelError
from test_reporting import result

IMAGE = ImageParams(size_px=32, channels=1)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
PLATT = CalibrationResult(
    method="platt", slope=0.8, intercept=-0.1, logits=[], probabilities=[], chosen_on="validation"
)


def sha256(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tiny_network(policy: str = "float32") -> keras.Model:
    """Of the kinds of layers that exporters treat in ways of their own."""
    keras.utils.set_random_seed(1)
    pixels = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    x = layers.Concatenate(dtype=policy)([pixels] * 3)
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
def _drawn_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "check_pixels", functools.cache(export.check_pixels))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's two files."""
    folder = tmp_path_factory.mktemp("runs") / "x" / "03_baseline_cnn"
    folder.mkdir(parents=True)
    tiny_network().save(folder / "model.keras")
    values = {"parameters": {"image": IMAGE.model_dump()}, "calibration": PLATT, "facts": {"weights_sha256": "ab"}}
    write_result(result(model_sha256=sha256(folder / "model.keras"), **values), folder)
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """The run in all formats."""
    return {kind: export.export_run(run, kind) for kind in export.FORMATS}


@pytest.fixture(scope="module")
def expected(run) -> np.ndarray:
    network = keras.saving.load_model(run / "model.keras")
    return expit(np.asarray(network(PIXELS)).astype(float))


def onnx_probabilities(folder) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("pixels", "tensor(uint8)", [32, 32, 1])]
    return session.run(["probability"], {"pixels": PIXELS})[0]


def litert_probabilities(folder) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(folder / "model.tflite")).get_signature_runner()(pixels=PIXELS)["probability"]


def served_probabilities(folder) -> np.ndarray:
    import tensorflow as tf

    served = tf.saved_model.load(folder / "saved_model").signatures["serving_default"]
    return served(pixels=tf.constant(PIXELS))["probability"].numpy()


def rebuilt_probabilities(folder) -> np.ndarray:
    network = keras.models.model_from_json((folder / "architecture.json").read_text())
    network.load_weights(folder / "weights.weights.h5")
    return np.asarray(network(PIXELS))


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("onnx", onnx_probabilities),
        ("litert", litert_probabilities),
        ("savedmodel", served_probabilities),
        ("json", rebuilt_probabilities),
    ],
)
def test_other_programs_give_the_sigmoid_of_the_logit(kind, ask, exported, expected):
    """In a batch of another size than those of the check."""
    found = ask(exported[kind])
    assert found.dtype == np.float32
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found) > 0.05  # a network that tells these images apart


def test_what_is_beside_the_model_says_what_a_program_needs(run, exported):
    for kind, folder in exported.items():
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        files = [f for f in folder.rglob("*") if f.is_file() and f.name != "model.json"]
        digests = {f.relative_to(folder).as_posix(): sha256(f) for f in files}
        assert {name: entry["sha256"] for name, entry in facts["files"].items()} == digests
        assert facts["format"] == kind
        assert facts["check"]["images"] == 20
        assert facts["check"]["largest_difference"] <= facts["check"]["tolerance"] == 1e-4
        assert facts["check"]["warnings"] == []
        assert set(export.FORMATS[kind].packages.values()) <= facts["versions"].keys()
    assert facts["input"] | {"order": 0, "values": 0} == {
        "name": "pixels", "dtype": "uint8", "shape": [None, 32, 32, 1], "order": 0, "values": 0
    }  # fmt: skip
    assert ImageParams(**facts["preparation"]["image"]) == IMAGE
    assert facts["output"]["labels"] == {"0": "normal", "1": "pneumonia"}
    assert facts["threshold"]["value"] == 0.4
    assert (facts["calibration"]["slope"], facts["calibration"]["intercept"]) == (0.8, -0.1)
    assert facts["origin"]["model_file_sha256"] == sha256(run / "model.keras")
    assert "not a medical device" in facts["notice"]


def left_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def command(run, tmp_path, monkeypatch, capfd):
    """`pneumolib export` of the run to a folder of the test's own; gives the exit code and all that a terminal shows."""
    for name in ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES"):  # put back after the test
        monkeypatch.setenv(name, "")

    def export_to(*words: str, kind: str = "json") -> tuple[int, str]:
        capfd.readouterr()
        code = main(["export", str(run), "--format", kind, "--to", str(tmp_path / "out"), *words])
        return code, "".join(capfd.readouterr())

    return export_to


def test_the_command_says_what_it_did_and_nothing_else(command, tmp_path):
    code, said = command(kind="onnx")
    first, second = said.splitlines()
    assert code == 0
    assert first.startswith("x/03_baseline_cnn as onnx, to ")
    assert re.search(r"ONNX Runtime: 20 drawn radiographs.* Keras \d\.\de-\d\d, allowed 1e-04$", second)
    assert left_in(tmp_path) == ["out"]
    assert left_in(tmp_path / "out") == ["model.json", "model.onnx"]


def test_only_an_earlier_export_is_replaced_and_only_when_asked(command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for words in ((), ("--overwrite",)):
        code, said = command(*words)
        assert (code, left_in(out)) == (2, ["thesis.txt"])
        assert "holds thesis.txt, which no export wrote" in said
    (out / "thesis.txt").unlink()
    assert command("--overwrite")[0] == 0
    (out / "thesis.txt").write_text("mine again")
    assert command("--overwrite")[0] == 2
    (out / "thesis.txt").unlink()
    code, said = command()
    assert code == 2
    assert "--overwrite" in said
    (out / "architecture.json").unlink()
    assert command("--overwrite")[0] == 0
    assert left_in(out) == ["architecture.json", "model.json", "weights.weights.h5"]
    assert left_in(tmp_path) == ["out"]


def test_files_that_say_otherwise_than_keras_are_not_left(command, tmp_path, monkeypatch):
    write = exporting.write_network

    def wrong(network, kind, folder):
        other = keras.models.clone_model(network)
        other.set_weights([1.5 * w for w in network.get_weights()])
        write(other, kind, folder)

    monkeypatch.setattr(exporting, "write_network", wrong)
    code, said = command()
    assert code == 1
    assert re.search(r"gives drawn radiograph \d+ of 20 a probability of 0\.\d+ where Keras gives 0\.\d+", said)
    assert left_in(tmp_path) == []


def test_an_exporter_that_fails_is_quoted_and_leaves_nothing(command, tmp_path, monkeypatch):
    def broken(network, kind, folder):
        (folder / "half").write_text("x")
        print("converting operation 7")
        raise ValueError("no such operation\nand a long trace")

    monkeypatch.setattr(exporting, "write_network", broken)
    code, said = command()
    assert code == 1
    assert "ValueError: no such operation. Nothing was exported" in said
    assert said.endswith("converting operation 7\n")
    assert left_in(tmp_path) == []


def test_what_cannot_be_done_is_refused_before_a_network_is_loaded(command, tmp_path, monkeypatch):
    code, said = command(kind="pmml")
    assert (code, said) == (2, "--format: received 'pmml', allowed savedmodel, litert, onnx, json\n")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "tf2onnx" else find_spec(name))
    code, said = command(kind="onnx")
    assert code == 2
    assert 'needs tf2onnx, not installed here: pip install "pneumolib[export]"' in said
    with pytest.raises(ModelError, match="no run with"):
        export.export_run(tmp_path / "none", "json")
    assert left_in(tmp_path) == []


def test_what_is_said_aside_is_kept_and_streams_come_back(capfd):
    with aside() as said:
        handler = logging.StreamHandler()  # as TensorFlow makes one when it first has something to say
        os.write(2, b"from below\n")
        print("from above")
        handler.emit(logging.makeLogRecord({"msg": "from a logger"}))
        assert said() == "from below\nfrom above\nfrom a logger"
    handler.emit(logging.makeLogRecord({"msg": "afterwards"}))
    assert tuple(capfd.readouterr()) == ("", "afterwards\n")


def test_keras_on_another_backend_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "backend", lambda: "jax")
    with pytest.raises(export.RefusedError, match="KERAS_BACKEND=tensorflow"):
        export.export_run(run, "json", tmp_path / "out")
    assert left_in(tmp_path) == []


def test_a_network_of_mixed_precision_is_written_in_float32(tmp_path):
    network = tiny_network("mixed_bfloat16")
    assert exporting.computes_in(network) == ["bfloat16", "float32"]
    plain = exporting.in_float32(network)
    assert exporting.computes_in(plain) == ["float32"]
    same = tiny_network()
    same.set_weights(network.get_weights())
    np.testing.assert_allclose(exporting.logits(plain, PIXELS), exporting.logits(same, PIXELS), atol=1e-7)
    moved = np.abs(exporting.logits(network, PIXELS) - exporting.logits(plain, PIXELS)).max()
    assert 1e-4 < moved < 0.1
    assert exporting.in_float32(same) is same


def checked(**changes) -> Checked:
    values = {"reader": "R", "images": 20, "batches": (1, 20), "tolerance": 1e-4, "difference": 2e-7, "lowest": 0.1,
              "highest": 0.9, "precisions": ("float32",), "moved": 0.0, "calls_moved": 0}  # fmt: skip
    return Checked(**(values | changes))


def test_what_a_check_cannot_say_is_said():
    assert checked().warnings() == []
    (precision,) = checked(precisions=("float16", "float32"), moved=0.002, calls_moved=1).warnings()
    assert "float16 and float32" in precision
    assert "up to 2.0e-03, and 1 call(s) changed" in precision
    (narrow,) = checked(lowest=0.999, highest=1.0).warnings()
    assert "between 0.999000 and 1.000000" in narrow


def test_preparation_is_told_in_the_order_it_happens():
    plain = preparation_steps(ImageParams(size_px=64))
    assert [step.split()[0] for step in plain] == ["Decode", "Make", "Resize", "Hand"]
    assert "no side below 128" in plain[2]
    every = {"reencode_quality": 75, "crop_border": 0.1, "fit": "crop", "equalize": "clahe"}
    steps = preparation_steps(ImageParams(size_px=64, channels=3, **every))
    assert [step.split()[0] for step in steps] == ["Decode", "Make", "Save", "Cut", "Cut", "Resize", "Equalise", "Hand"]
    assert "draft" not in " ".join(steps)
    assert "kernel_size 8, clip_limit 0.02" in steps[6]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_calibration_can_be_computed_from_what_is_written(method):
    map_ = Calibration("platt", 0.7, -0.2)
    if method == "isotonic":
        map_ = Calibration("isotonic", logits=(-2.0, 0.5, 3.0), probabilities=(0.1, 0.3, 0.9))
    facts, p = calibration_facts(map_), np.array([0.01, 0.4, 0.99])
    logit = np.log(p / (1 - p))
    if method == "isotonic":
        found = np.interp(logit, facts["logits"], facts["probabilities"])
    else:
        found = 1 / (1 + np.exp(-(facts["slope"] * logit + facts["intercept"])))
    np.testing.assert_allclose(found, map_.apply(logit))


def test_the_readmes_example_gives_the_librarys_answer(exported, tmp_path, monkeypatch, capsys):
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime" in block]
    assert len(example.splitlines()) <= 14
    (tmp_path / "read.py").write_text(example)
    file = tmp_path / "a b.jpeg"
    Image.fromarray(draw_radiograph("virus")).convert("RGB").save(file)
    monkeypatch.chdir(exported["onnx"])
    monkeypatch.setattr(sys, "argv", ["read.py", str(file)])
    runpy.run_path(str(tmp_path / "read.py"))
    probability, call = capsys.readouterr().out.split()
    network = keras.saving.load_model(exported["onnx"].parents[1] / "model.keras")
    expected = expit(exporting.logits(network, load_image(file, IMAGE)[np.newaxis]))[0]
    assert float(probability) == pytest.approx(expected, abs=1e-4)
    assert call == ("pneumonia" if expected >= 0.4 else "normal")
