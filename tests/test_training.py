"""Networks and training, shrunk: real architecture, tiny images."""

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pneumolib.data.images import ImageSet
from pneumolib.data.manifest import read_manifest
from pneumolib.data.split import split_manifest
from pneumolib.learning import training
from pneumolib.learning.devices import start
from pneumolib.learning.models import SMALLEST_PX, build_model, summary_table
from pneumolib.learning.trials import train_and_predict
from pneumolib.params import ImageParams, ModelParams, RunParams, check

IMAGE = ImageParams(size_px=32, channels=1)


def image_set(n: int, seed: int, split: str = "train") -> ImageSet:
    """Noise with a bright left half where the label is 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4 > 0
    pixels = rng.integers(0, 120, (n, 32, 32, 1), np.uint8)
    pixels[labels, :, :16] += 60
    ids = [f"{split}{i:03d}" for i in range(n)]
    table = pd.DataFrame({"image_id": ids, "split": split, "label": labels.astype(int), "kind": "x", "group_id": ids})
    return ImageSet(table, pixels)


def run_params(**training_values) -> RunParams:
    values = {"epochs": 2, "batch_size": 8} | training_values
    return check({"training": values, "augment": {"flip": True, "gamma_factor": 1.2}, "image": IMAGE.model_dump()})


def fitted(params: RunParams):
    start(params.seed)
    network = build_model(ModelParams(), IMAGE)
    history = training.fit(network, image_set(48, 0), image_set(25, 1, "val"), params)
    return network, history


def test_raw_pixels_in_logit_out():
    network = build_model(ModelParams(), IMAGE, initial_logit=1.5)
    assert network.input.dtype == "uint8"
    network.get_layer("logit").kernel.assign(np.zeros((64, 1)))
    logits = network.predict(np.zeros((3, 32, 32, 1), np.uint8), verbose=0)
    np.testing.assert_allclose(logits, 1.5)


def test_parameter_count_of_the_published_network():
    """At 180 px in colour, as published: the same layers as keras.io's example."""
    network = build_model(ModelParams(), ImageParams(size_px=180, channels=3))
    assert summary_table(network).parameters.sum() == network.count_params()
    first = network.get_layer(index=2)
    assert first.count_params() == 3 * 3 * 3 * 16 + 16
    flat = next(layer for layer in network.layers if isinstance(layer, keras.layers.Flatten))
    assert flat.output.shape[1] == 5 * 5 * 256


@pytest.mark.parametrize(
    ("name", "size_px", "channels", "parameters"),
    [("gray_cnn", 500, 1, 1_467_137), ("coursework_cnn", 90, 3, 6_616_417)],
)
def test_parameter_counts_are_the_published_ones(name, size_px, channels, parameters):
    network = build_model(ModelParams(name=name), ImageParams(size_px=size_px, channels=channels))
    assert network.count_params() == parameters
    assert network.output.shape == (None, 1)


@pytest.mark.parametrize("name", list(SMALLEST_PX))
def test_the_smallest_image_of_each_network(name):
    side = max(SMALLEST_PX[name], 32)  # `image` allows no less
    network = build_model(ModelParams(name=name), ImageParams(size_px=side))
    assert network.predict(np.zeros((1, side, side, 1), np.uint8), verbose=0).shape == (1, 1)
    if side > 32:
        with pytest.raises(ValueError, match=rf"size_px {side - 1} is too small for {name}: it needs at least {side}"):
            build_model(ModelParams(name=name), ImageParams(size_px=side - 1))


def test_batchnorm_momentum_is_the_parameter():
    network = build_model(ModelParams(batchnorm_momentum=0.7), IMAGE)
    found = {layer.momentum for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert found == {0.7}


def test_class_weights_and_initial_logit():
    labels = np.array([0] * 10 + [1] * 30)
    weights = training.class_weights(labels)
    assert weights == {0: 2.0, 1: 2 / 3}
    assert training.initial_logit(labels, weights) == pytest.approx(0)
    assert training.initial_logit(labels, training.class_weights(labels, "none")) == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match="received 0 normal and 3 pneumonia"):
        training.class_weights(np.ones(3))


def test_two_identical_runs_give_identical_weights():
    (one, first), (two, second) = fitted(run_params()), fitted(run_params())
    assert training.weights_hash(one) == training.weights_hash(two)
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"))
    assert first.learning_rate.is_monotonic_decreasing  # cosine
    assert first.learning_rate.iloc[-1] == pytest.approx(0, abs=1e-5)


def test_best_weights_are_kept_and_figures_are_exact(capsys):
    val = image_set(25, 1, "val")
    # Labels that have nothing to do with the pixels: validation goes up and down, and the best epoch is not the last.
    val.table["label"] = np.random.default_rng(3).permutation(val.table.label)
    params = run_params(epochs=40, patience_epochs=2, learning_rate=0.01)
    start(params.seed)
    network = build_model(ModelParams(), IMAGE)
    history = training.fit(network, image_set(48, 0), val, params)
    predictions = training.predict(network, val)
    reached = roc_auc_score(val.table.label, predictions.logit)
    assert reached == pytest.approx(history.val_auroc.max())
    assert list(history.columns) == training.HISTORY_COLUMNS
    assert len(history) <= history.val_auroc.idxmax() + 1 + 2  # stopped after the patience
    assert history.val_auroc.iloc[-1] < history.val_auroc.max()  # else keeping the last weights would pass too
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == len(history)
    assert "validation AUROC" in lines[0]
    assert "s left" in lines[0]


def test_predictions_follow_the_table_for_any_batch(monkeypatch):
    network, images = build_model(ModelParams(), IMAGE), image_set(25, 2)
    whole = training.predict(network, images)
    monkeypatch.setattr(training, "PREDICT_BATCH", 8)
    parts = training.predict(network, images)
    assert whole.image_id.tolist() == images.table.image_id.tolist() == parts.image_id.tolist()
    np.testing.assert_allclose(whole.logit, parts.logit, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole.probability, 1 / (1 + np.exp(-whole.logit)))


def test_saved_and_loaded_gives_the_same_output(tmp_path):
    network, images = build_model(ModelParams(), IMAGE), image_set(6, 3)
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(training.predict_logits(network, images), training.predict_logits(loaded, images))
    assert training.weights_hash(loaded) == training.weights_hash(network)


def test_optimizer_and_rate_are_those_asked_for():
    network = build_model(ModelParams(), IMAGE)
    training.compile_model(network, run_params(optimizer="adam", schedule="constant", learning_rate=0.003).training, 10)
    assert type(network.optimizer).__name__ == "Adam"
    assert float(network.optimizer.learning_rate.numpy()) == pytest.approx(0.003)
    training.compile_model(network, run_params(weight_decay=0.01).training, 10)
    assert type(network.optimizer).__name__ == "AdamW"
    assert network.optimizer.weight_decay == 0.01


def test_class_weights_reach_the_loss(monkeypatch):
    """`fit` hands the weights of `class_weights` to the input; the input's own test follows them to the batches."""
    handed = []
    monkeypatch.setattr(training, "train_dataset", lambda *arguments: handed.append(arguments))
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: None)
    training.fit(build_model(ModelParams(), IMAGE), image_set(48, 0), image_set(8, 1, "val"), run_params())
    assert handed[0][-1] == {0: 2.0, 1: 2 / 3}


def test_divergence_says_where_and_what_to_do():
    network = build_model(ModelParams(), IMAGE)
    network.get_layer("logit").bias.assign([np.nan])
    watch = training._ValidationWatch(image_set(8, 1, "val"), epochs=3)
    watch.set_model(network)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch 2: .*Lower training\.learning_rate"):
        watch.on_epoch_end(1, {"loss": 0.5})


def test_a_trial_starts_from_the_same_state_whatever_ran_before(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    params = check(
        {
            "data": {"root": str(archive)}, "split": {"validation_fraction": 0.25}, "image": {"size_px": 32},
            "augment": {"flip": True}, "training": {"epochs": 1, "batch_size": 16},
        }
    )  # fmt: skip
    manifest = read_manifest(params.data)
    split = split_manifest(manifest.table, params.split)
    (one, history), (two, _) = (train_and_predict(manifest, split, params) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert sorted(one.image_id) == sorted(split.image_id[split.split != "train"])
    assert len(history) == 1
