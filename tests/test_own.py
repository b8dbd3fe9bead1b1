"""What a researcher writes in place of the study's network, loss or augmentation is used as it is, or refused before training."""

import ast
import json
import re
import textwrap

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy.special import expit
from test_training import IMAGE, image_set, run_params

from conftest import REPO, TINY_STUDY, Project, draw_archive
from pneumolib.errors import InputError
from pneumolib.learning import files, fitting
from pneumolib.learning.devices import start
from pneumolib.learning.networks import checked
from pneumolib.learning.predicting import predict

layers, ops = keras.layers, keras.ops


def functional(*end, shape=(32, 32, 1)) -> keras.Model:
    """With what a person adds: preprocessing by operations, and image layers."""
    pixels = keras.Input(shape)
    x = layers.RandomFlip("horizontal")(ops.sqrt(ops.cast(pixels, "float32") / 255))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=4)(x))
    for layer in end:
        x = layer(x)
    return keras.Model(pixels, x)


class Subclassed(keras.Model):
    def __init__(self, *end, in_training=None):
        super().__init__()
        self.in_training = in_training
        self.end = end or [layers.Dense(1, activation="sigmoid")]
        self.convolution, self.drop = layers.Conv2D(4, 3, strides=4), layers.Dropout(0.5)

    def call(self, pixels, training=None):
        x = self.drop(layers.Flatten()(self.convolution(pixels / 255)), training=training)
        x = self.in_training(x) if self.in_training and training else x
        for layer in self.end:
            x = layer(x)
        return x


OWN = {
    "functional, logit": lambda: functional(layers.Dense(1)),
    "functional, sigmoid": lambda: functional(layers.Dense(1, activation="sigmoid")),
    "functional, sigmoid of its own": lambda: functional(layers.Dense(1), layers.Activation("sigmoid")),
    "functional, operation": lambda: functional(layers.Dense(1), ops.sigmoid),
    "sequential": lambda: keras.Sequential([layers.Flatten(), layers.Rescaling(1 / 255), layers.Dense(1, "sigmoid")]),
    "subclassed": Subclassed,
}


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_any_making_gives_its_own_probabilities_and_is_loaded_again(name, tmp_path):
    network, images = OWN[name](), image_set(20, 3, "test")
    made = checked(network, IMAGE)
    own = keras.ops.convert_to_numpy(network(images.pixels, training=False))[:, 0]
    expected = own if name != "functional, logit" else 1 / (1 + np.exp(-own))
    np.testing.assert_allclose(expit(predict(made, images).logit), expected, atol=1e-6)
    fitting.save_model(made, tmp_path / "model.keras")
    loaded = files.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(expit(predict(loaded, images).logit), expected, atol=1e-6)
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
    if name == "subclassed":
        assert np.ptp([loaded(images.pixels[:1], training=True) for _ in range(9)]) > 0  # dropout is still there


class OfMyOwn(layers.Dense):
    pass


REFUSED = {
    r"received outputs \[\(None, 2\)\], needed one of \(None, 1\)": lambda: functional(layers.Dense(2)),
    "its output comes from softmax, needed a layer with weights": lambda: functional(
        layers.Dense(1, activation="softmax")
    ),
    r"inputs \[\(None, 64, 64, 1\)\], needed one of": lambda: functional(layers.Dense(1), shape=(64, 64, 1)),
    "not be loaded again: .*OfMyOwn, which is not part": lambda: functional(OfMyOwn(2), layers.Dense(1)),
    "not be loaded again: .*a Lambda": lambda: functional(layers.Lambda(lambda x: x), layers.Dense(1)),
    "its call cannot be traced with Keras tensors": lambda: Subclassed(tf.nn.relu, layers.Dense(1)),
    "its output comes from Identity": lambda: functional(layers.Dense(1, activation="sigmoid"), layers.Identity()),
    "`if training:` in its call cannot be saved": lambda: Subclassed(in_training=layers.GaussianNoise(1.0)),
    "its output is float16, needed float32": lambda: functional(layers.Dense(1, dtype="mixed_float16")),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_could_not_be_used_is_refused_before_training(said):
    with pytest.raises(InputError, match=said):
        checked(REFUSED[said](), IMAGE)


def train(network, params, folder=None, **options) -> pd.DataFrame:
    with fitting.training(network, image_set(48, 0), image_set(25, 1, "val"), params, folder, **options) as going:
        network.fit(going.batches, callbacks=going.callbacks, **going.options)
    return going.history


def test_a_loss_that_takes_the_output_for_what_it_is_not_is_refused(capsys):
    params = run_params(epochs=1)
    for build, loss, write in (
        (OWN["functional, sigmoid"], keras.losses.BinaryCrossentropy(from_logits=True), "from_logits=False"),
        (OWN["functional, logit"], "binary_crossentropy", "from_logits=True"),
        (OWN["functional, logit"], keras.losses.BinaryFocalCrossentropy(), "from_logits=True"),
        (OWN["functional, logit"], "mse", "which does not fit one logit; write .*from_logits=True"),
        (OWN["functional, sigmoid"], "categorical_crossentropy", "which does not fit one probability; write"),
    ):
        network = build()
        with pytest.raises(InputError, match="is not compiled: write"):
            train(network, params)
        network.compile("sgd", loss)
        with pytest.raises(InputError, match=write):
            train(network, params)
    dead = functional(layers.Dense(1, kernel_initializer="zeros"))
    dead.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    train(dead, params)
    assert "gives 0 for each of 16 validation images" in capsys.readouterr().out


def test_own_loss_optimizer_metric_and_callback_are_used(tmp_path, capsys):
    """And a training that ended early stays ended, when it is taken up."""
    start(run_params())

    def brier(labels, probabilities):
        return ops.mean((labels - probabilities) ** 2, axis=-1)

    def compiled():
        network = OWN["functional, sigmoid"]()
        own = keras.metrics.MeanAbsoluteError(name="distance")
        network.compile(keras.optimizers.SGD(0.5), brier, metrics=[own, *fitting.training_metrics(network)])
        return network

    params = run_params(epochs=9)
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=10.0, patience=2)
    history = train(compiled(), params, tmp_path, callbacks=[stop])
    assert "What EarlyStopping remembers is not kept" in capsys.readouterr().out
    assert history.distance.between(0, 1).all()
    assert history.sensitivity.min() < 1  # at a probability of 0.5, not at a logit of 0
    assert (history.learning_rate == 0.5).tolist() == [True] * 3
    assert history.loss.max() < 0.4  # a Brier score weighted by class, below the 0.69 at which cross-entropy starts
    keras.utils.set_random_seed(run_params().seed)
    again = train(compiled(), params, tmp_path, callbacks=[stop])
    assert "nothing left to train" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, history)


def brighten(images, seeds):
    return tf.stack([tf.image.stateless_random_brightness(images[n], 0.3, seeds[n]) for n in range(images.shape[0])])


def test_image_layers_and_a_function_on_batches_are_taken_up_to_the_bit(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def compiled():
        start(params)
        network = functional(layers.Dense(1))
        network.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
        return network

    params = run_params(epochs=2)
    with pytest.raises(InputError, match="the same for the same seeds"):
        train(compiled(), params, change=lambda images, seeds: tf.image.random_brightness(images, 0.3))
    network, cut, plain = compiled(), compiled(), compiled()
    train(network, params, change=brighten)
    train(plain, params)
    with pytest.raises(KeyboardInterrupt):
        train(cut, params, tmp_path, change=brighten, callbacks=[Stop()])
    train(cut := compiled(), params, tmp_path, change=brighten)
    for one, other in zip(network.get_weights(), cut.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (network.get_weights()[-2] != plain.get_weights()[-2]).any()


# --- docs/edit.md
_EDIT = re.compile(r"^### (.+?)\n.*?```\w+\n(.*?)```", re.MULTILINE | re.DOTALL)
EDITS = dict(_EDIT.findall((REPO / "docs/edit.md").read_text(encoding="utf-8")))


def replaced(cell: str, edit: str) -> str:
    """A cell with the functions and calls of `edit` in place of its own of the same name; the rest of `edit` goes before."""

    def name(node) -> str | None:
        if isinstance(node, ast.FunctionDef):
            return node.name
        if isinstance(node, ast.Assign):
            return ast.unparse(node.targets[0])
        if isinstance(node, ast.With):
            return ast.unparse(node.items[0].context_expr.func)
        return ast.unparse(node.value.func) if isinstance(node, ast.Expr) else None

    lines, first = cell.splitlines(), []
    for new in ast.parse(edit).body:
        text = ast.get_source_segment(edit, new)
        known = [n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.stmt) and name(n) == name(new)]
        if name(new) is None or not known:
            first.append(text)
        else:
            old = known[0]
            lines[old.lineno - 1 : old.end_lineno] = textwrap.indent(text, " " * old.col_offset).splitlines()
    return "\n".join([*first, *lines])


def table(root) -> str:
    """A table of the files of an archive."""
    lines = ["path,label,group_id,split"]
    for file in sorted(root.rglob("*.jpeg")):
        split, label = file.relative_to(root).parts[:2]
        lines.append(f"{file.relative_to(root)},{label.lower()},{file.stem.rpartition('_')[0] or file.stem},{split}")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "titles",
    [
        ("Network", "Loss, optimizer and metrics", "Callbacks", "Metrics on test"),
        ("Augmentation", "Preprocessing"),
        ("Backbone", "Data"),
    ],
)
def test_the_edits_of_the_guide_run_and_what_they_trained_scores_an_image(titles, tmp_path):
    project = Project(tmp_path)

    def change(notebook):
        for title in titles:
            edit = EDITS[title]
            known = (words for words in ("def build(", ".compile(", "fit(", "own = {") if words in edit)
            first = next(known, None)
            for cell in [c for c in notebook["cells"] if first and first in "".join(c["source"])][:1]:
                cell["source"] = replaced("".join(cell["source"]), edit)
                changed.append(title)

    changed = []
    if "Data" in titles:
        (project.root / "data/mine").mkdir(parents=True)
        draw_archive(project.root / "data/mine").joinpath("table.csv").write_text(table(project.root / "data/mine"))
        study = re.sub("data: .*", "", TINY_STUDY) + EDITS["Data"]
        project.write("params/tiny/study.yaml", study)
        changed.append("Data")
    for notebook in ("03_baseline_cnn", "06_evaluation"):
        project.edit_notebook(notebook, change)
    assert sorted(changed) == sorted(titles)
    project.run("run", "params/tiny/03_baseline_cnn.yaml")
    if "Metrics on test" in titles:
        found = project.result("03_baseline_cnn")
        confusion, f2 = found["checks"]["confusion"], found["own_metrics"]["F2"]
        hits, errors = 5 * confusion["tp"], 4 * confusion["fn"] + confusion["fp"]
        assert f2["value"] == pytest.approx(hits / (hits + errors) if hits else 0)
        assert f2["low"] is None or f2["low"] <= f2["value"] <= f2["high"]
        project.run("run", "params/tiny/07_comparison.yaml")
        assert "<th>F2</th>" in (project.root / "reports/tiny/07_comparison.html").read_text(encoding="utf-8")
    image = str(next((project.root / "data").rglob("*.jpeg")))
    project.run("predict", "runs/tiny/03_baseline_cnn", image, "--json", "scores.json")
    (score,) = json.loads((project.root / "scores.json").read_text(encoding="utf-8"))["images"]
    assert 0 < score["probability"] < 1
