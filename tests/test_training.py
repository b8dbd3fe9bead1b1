"""Networks and training, shrunk: real architecture, tiny images."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from devices_child import plain_network
from sklearn.metrics import roc_auc_score

from conftest import REPO
from pneumolib.data.pixels import ImageSet
from pneumolib.learning import callbacks, fitting, predicting
from pneumolib.learning.callbacks import HISTORY_COLUMNS, ValidationWatch, current_rate, weights_hash
from pneumolib.learning.devices import start
from pneumolib.learning.fitting import make_optimizer, rate_callbacks
from pneumolib.learning.networks import build_model
from pneumolib.learning.transfer import summary_table, unfreeze
from pneumolib.params import EvaluationParams, ImageParams, ModelParams, RunParams, check

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


def small_network() -> keras.Model:
    """A convolution, normalisation and dropout: what a training has to cope with, built in a moment."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 1), dtype="uint8"), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, strides=4),
            layers.BatchNormalization(), layers.GlobalAveragePooling2D(), layers.Dropout(0.3),
            layers.Dense(1, dtype="float32", name="logit"),
        ]
    )  # fmt: skip


def fitted(params: RunParams, build=small_network):
    start(params)
    network = build()
    history = fitting.fit(network, image_set(48, 0), image_set(25, 1, "val"), params)
    return network, history


@pytest.mark.parametrize(
    ("name", "size_px", "channels", "parameters"),
    [("separable_cnn", 180, 3, 3_496_801), ("gray_cnn", 500, 1, 1_467_137), ("coursework_cnn", 90, 3, 6_616_417)],
)
def test_parameter_counts_are_the_published_ones(name, size_px, channels, parameters):
    network = build_model(ModelParams(name=name), ImageParams(size_px=size_px, channels=channels))
    assert network.count_params() == summary_table(network).parameters.sum() == parameters
    assert network.output.shape == (None, 1)


def test_class_weights_and_initial_logit():
    labels = np.array([0] * 10 + [1] * 30)
    weights = fitting.class_weights(labels)
    assert weights == {0: 2.0, 1: 2 / 3}
    assert fitting.initial_logit(labels, weights) == pytest.approx(0)
    assert fitting.initial_logit(labels, fitting.class_weights(labels, "none")) == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match="received 0 normal and 3 pneumonia"):
        fitting.class_weights(np.ones(3))


def test_two_identical_runs_give_identical_weights_also_of_several_steps_at_once():
    """Five steps are asked for, of six in an epoch."""
    (one, first), (two, second) = (fitted(run_params(steps_per_execution=steps)) for steps in (1, 5))
    assert (one.steps_per_execution, two.steps_per_execution) == (1, 3)
    assert weights_hash(one) == weights_hash(two)
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"))


def test_pixels_labels_and_code_are_in_the_key():
    images = image_set(16, 0)
    tables = (images.table.assign(label=1 - images.table.label), images.table[::-1])
    others = [ImageSet(images.table, images.pixels + 1), *(ImageSet(table, images.pixels) for table in tables)]
    key, *keys = (callbacks.images_key(one) for one in (images, image_set(16, 0), *others))
    assert [key == other for other in keys] == [True, False, False, False]
    # All modules of `learning`, apart from what only reads a trained network; and what makes batches.
    reading = {"__init__", "explain", "files"}
    learning = {f"learning/{file.stem}" for file in (REPO / "pneumolib/learning").glob("*.py")}
    learning -= {f"learning/{name}" for name in reading}
    assert {*callbacks.DECIDING_MODULES} == learning | {"data/augment", "data/batches"}


def test_cells_that_a_training_depends_on_are_in_its_key(monkeypatch):
    """The study's parameters and images are not: what they hold is in the key apart."""
    network = small_network()
    cells = {
        "training = {'epochs': 9}": False, "params = check(training)": False, "rate = 0.1": True, "def broken(:": False,
        "get_ipython().run_cell_magic('time', '', 'loss = 1')": True, "rate.x[0] = 1": True, "network.fit(rate)": True,
        "def build():\n    training = params.training\n    return training, rate": True, "network = build()": True,
        "show(network)": False, "network.trainable = True": True, "def helper(): ...": False, "history = fit(network, params)": True,
    }  # fmt: skip
    names = {"network": network, "params": run_params(), "show": np.save, "np": np, "In": ["", *cells]}
    shell = SimpleNamespace(user_ns=names)
    monkeypatch.setattr(callbacks, "get_ipython", lambda: shell)
    before = callbacks.network_cells()
    for number, counted in enumerate(cells.values(), 1):
        names["In"] = ["", *cells]
        names["In"][number] += "; x = 1"
        assert (callbacks.network_cells() != before) == counted, names["In"][number]
    key = callbacks.network_key(network)
    assert key == callbacks.network_key(keras.models.clone_model(network))[:1] + key[1:]
    network.layers[-2].rate = 0.1
    assert key[0] != callbacks.network_key(network)[0]


@pytest.mark.parametrize("average", [{}, {"ema_momentum": 0.5}])
def test_best_weights_are_kept_and_figures_are_exact(capsys, average):
    """With a moving average, that is what validation sees and what is kept."""
    val = image_set(25, 1, "val")
    # Labels that have nothing to do with the pixels: validation goes up and down, and the best epoch is not the last.
    val.table["label"] = np.random.default_rng(3).permutation(val.table.label)
    params, network = run_params(epochs=40, patience_epochs=2, learning_rate=0.01, **average), small_network()
    history = fitting.fit(network, image_set(48, 0), val, params)
    predictions = predicting.predict(network, val)
    reached = roc_auc_score(val.table.label, predictions.logit)
    assert reached == pytest.approx(history.val_auroc.max())
    assert list(history.columns) == HISTORY_COLUMNS
    assert fitting.training_facts(network, history)["best_epoch"] == history.val_auroc.idxmax() + 1
    assert len(history) <= history.val_auroc.idxmax() + 1 + 2  # stopped after the patience
    assert history.val_auroc.iloc[-1] < history.val_auroc.max()  # else keeping the last weights would pass too
    assert capsys.readouterr().out.count(" s left\n") == len(history)


def watch_of(**training_values) -> ValidationWatch:
    """A watch over a model that does not matter."""
    watch = ValidationWatch(lambda: np.zeros(4), np.array([0, 1, 0, 1]), run_params(**training_values).training)
    watch.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    watch.model.compile("adam", "mse")
    return watch


# As recall-vgg19 wanted it: both above their floors, both better than in the kept epoch.
TWO = {"keep_best": ["accuracy", "sensitivity"], "floors": {"accuracy": 0.94, "sensitivity": 0.95}}
TWO_EPOCHS = "0.90 0.99, 0.94 0.96, 0.93 0.93, 0.95 0.96, 0.99 0.96, 0.96 0.97, 0.90 0.90, 0.97 0.90, 0.98 0.90"


@pytest.mark.parametrize(
    ("values", "metrics", "epochs", "expected"),
    [
        # 0.94 is no more than the floor; (0.99, 0.96) is better in one only; two epochs after the sixth it ends.
        (TWO | {"patience_epochs": 2}, ["accuracy", "sensitivity"], TWO_EPOCHS, [0, 0, 0, 1, 0, 1, 0, 0]),
        ({"patience_epochs": 1, "floors": {"accuracy": 0.9}}, ["accuracy"], "0.8, 0.8, 0.8", [0, 0, 0]),
        ({"patience_epochs": None, "keep_best": ["loss"]}, ["loss"], "0.5, 0.6, 0.4, 0.4, 0.3", [1, 0, 1, 0, 1]),
    ],
    ids=["two metrics and floors", "without a hit nothing stops", "lowest loss"],
)
def test_which_epoch_is_kept_and_when_it_ends(monkeypatch, values, metrics, epochs, expected):
    watch, usual = watch_of(epochs=20, **values), {"auroc": 0.5, "accuracy": 0.5, "loss": 1.0, "sensitivity": 0.5}
    for epoch, values_of_epoch in enumerate(epochs.split(",")):
        row = usual | dict(zip(metrics, map(float, values_of_epoch.split()), strict=True))
        figures = {f"val_{name}": value for name, value in row.items()}
        monkeypatch.setattr(callbacks, "validation_figures", lambda *_, found=figures: found)
        watch.on_epoch_begin(epoch)
        watch.on_epoch_end(epoch, {"loss": 1.0, "auroc": 0.5})
        if watch.model.stop_training:
            break
    assert [row["kept"] for row in watch.rows] == [bool(kept) for kept in expected]
    assert (watch.best_weights is None) == (not any(expected))


def test_floors_that_no_epoch_exceeds(capsys):
    network, history = fitted(run_params(epochs=1, floors={"accuracy": 1.0}))
    assert "no epoch above all floors yet" in capsys.readouterr().out
    facts = fitting.training_facts(network, history)
    assert (facts["floors_exceeded"], facts["best_epoch"]) == (False, 1)


def test_divergence_says_where_and_what_to_do():
    network = small_network()
    network.get_layer("logit").bias.assign([np.nan])
    said = r"epoch 1, batch 1: the loss is nan at a learning rate of 0\.001\. Lower training\.learning_rate"
    with pytest.raises(FloatingPointError, match=said):
        fitted(run_params(schedule="constant"), lambda: network)
    watch = watch_of(epochs=3)
    watch.score = lambda: np.array([0.0, np.nan, 1.0, 2.0])
    watch.on_epoch_begin(0)
    with pytest.raises(FloatingPointError, match="diverged in epoch 1: 1 of 4 validation logits are not finite"):
        watch.on_epoch_end(0, {"loss": 0.5})


@pytest.mark.slow
def test_a_full_memory_names_what_to_lower():
    """A real one: a layer that asks for more than any machine has."""
    pixels = keras.Input((32, 32, 1), dtype="uint8")
    wide = keras.layers.Lambda(lambda x: keras.ops.tile(keras.ops.cast(x, "float32"), (1, 9000, 9000, 400)))(pixels)
    network = keras.Model(pixels, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(wide)))
    with pytest.raises(MemoryError, match=r"training\.batch_size 8 and image\.size_px 32: lower them in this order"):
        fitted(run_params(epochs=1), lambda: network)


def rates(**values) -> list[float]:
    """The rate at the end of each of four epochs of ten steps."""
    params, found = run_params(epochs=4, learning_rate=0.01, **values), []
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    network.compile(make_optimizer(network, params, 10), "mse")
    for epoch in range(4):
        for callback in rate_callbacks(params.training):
            callback.set_model(network)
            callback.on_epoch_begin(epoch, {})
        network.optimizer.iterations.assign(10 * (epoch + 1))
        found.append(current_rate(network))
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "constant"}, [0.01] * 4),
        ({"schedule": "cosine"}, [0.005 * (1 + np.cos(np.pi * n / 4)) for n in (1, 2, 3, 4)]),
        ({"schedule": "cosine", "warmup_epochs": 2.0, "lowest_rate": 0.001}, [0.005, 0.01, 0.0055, 0.001]),
        ({"schedule": "exponential_steps", "decay_rate": 0.5, "decay_every": 20}, [0.01, 0.005, 0.005, 0.0025]),
        ({"schedule": "exponential_epochs", "decay_rate": 0.1, "decay_every": 20}, [0.01 * 0.1 ** (n / 20) for n in range(4)]),
        ({"schedule": "step_epochs", "decay_rate": 0.5, "decay_every": 2}, [0.01, 0.01, 0.005, 0.005]),
        ({"schedule": "step_epochs", "decay_rate": 0.1, "decay_every": 1, "lowest_rate": 0.002}, [0.01, 0.002, 0.002, 0.002]),
    ],
    ids=lambda x: x["schedule"] if isinstance(x, dict) else "",
)  # fmt: skip
def test_schedules(values, expected):
    np.testing.assert_allclose(rates(**values), expected, rtol=1e-5, atol=1e-9)


def test_mixed_precision_stays_near_float32_and_its_logit_is_one():
    full_precision, _ = fitted(run_params(learning_rate=1e-2), plain_network)
    try:
        network, history = fitted(run_params(learning_rate=1e-2, precision="float16"), plain_network)
        assert isinstance(network.optimizer, keras.optimizers.LossScaleOptimizer)  # else small gradients would vanish
    finally:
        keras.config.set_dtype_policy("float32")
    assert "float16" in {layer.compute_dtype for layer in network.layers}
    assert network.outputs[0].dtype == "float32"
    assert np.isfinite(history.loss).all()
    logits, near = (predicting.predict_logits(n, image_set(64, 2, "test")) for n in (full_precision, network))
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(near, logits, atol=2e-3 * np.abs(logits).max())


@pytest.mark.slow
def test_other_seeds_repeat_the_whole_training(tmp_path, monkeypatch):
    """A seed gives what a run of that seed gives, keeps its own state, and another seed gives something else."""

    def train(network, params, folder):
        return fitting.fit(network, image_set(48, 0), val, params, folder)

    def repeated(params):
        fitting.repeat_seeds(small_network, train, params, tmp_path, tmp_path / "kept")
        return fitting.predict_seeds(network, tmp_path, val, test, params)

    val, test = image_set(25, 1, "val"), image_set(20, 2, "test")
    params = run_params()
    asked = params.model_copy(update={"evaluation": EvaluationParams(seeds=[5, 6], threshold_views=1)})
    start(params)
    network = small_network()
    found = repeated(asked)
    assert list(found) == [5, 6]
    assert found[5].split.value_counts().to_dict() == {"views": 25, "val": 25, "test": 20}
    assert (found[5].logit != found[6].logit).all()
    network, _ = fitted(params.model_copy(update={"seed": 5}))
    own = predicting.predict(network, test)
    np.testing.assert_array_equal(own.logit, found[5].logit[found[5].split == "test"])
    assert fitting.average_seeds(network, asked, tmp_path) is network
    mean = asked.model_copy(update={"evaluation": EvaluationParams(seeds=[5, 6], average_seeds=True)})
    fitting.save_model(fitting.average_seeds(network, mean, tmp_path), tmp_path / "model.keras")
    whole = fitting.load_model(tmp_path / "model.keras")
    tests = [one[one.split == "test"].logit.to_numpy() for one in (*found.values(), own)]
    np.testing.assert_allclose(predicting.predict(whole, test).logit, np.mean(tests, axis=0), rtol=1e-4)
    assert fitting.predict_seeds(whole, tmp_path, val, test, mean) == {}
    monkeypatch.setattr(keras.Model, "train_step", None)  # kept states: nothing is trained again
    last = asked.model_copy(update={"evaluation": EvaluationParams(seeds=[6], threshold_views=1)})
    pd.testing.assert_frame_equal(repeated(last)[6], found[6])


def transfer_params(folder, **model_values) -> RunParams:
    """A head on a small backbone of a file, which is written on the first call."""
    file = folder / "backbone.keras"
    if not file.exists():
        pixels = keras.Input((None, None, 3))
        maps = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="convolution")(pixels)
        keras.Model(pixels, maps).save(file)
    model = {"name": "transfer", "backbone": str(file), "preprocess": "unit"} | model_values
    return check(run_params(tensorboard=True).model_dump() | {"model": model, "features": {"views": 2}})


def head_fitted(params: RunParams, folder) -> keras.Model:
    start(params)
    network = build_model(params.model, params.image)
    fitting.fit(network, image_set(48, 0), image_set(25, 1, "val"), params, folder)
    return network


@pytest.mark.slow
def test_kept_features_and_states_are_taken_up_or_made_anew(tmp_path, capsys, monkeypatch):
    kept = tmp_path / "kept"
    first = head_fitted(transfer_params(tmp_path), kept)
    assert list(kept.glob("tensorboard/train/*tfevents*"))
    assert {file.name for file in kept.glob("features-*")} == {"features-train.npz", "features-val.npz"}
    features = (kept / "features-train.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "train_step", None)
        again = head_fitted(transfer_params(tmp_path), kept)
    assert "nothing left to train" in capsys.readouterr().out
    for file in (*kept.glob("features-*"), kept / "checkpoint.npz"):
        file.write_bytes(b"what a full disk left")
    anew = head_fitted(transfer_params(tmp_path), kept)
    said = capsys.readouterr().out
    assert said.count("its features are made anew") == 2
    assert "checkpoint.npz cannot be read (ValueError" in said
    assert weights_hash(first) == weights_hash(again) == weights_hash(anew)
    head_fitted(transfer_params(tmp_path, preprocess="none"), kept)  # another network before the head
    assert (kept / "features-train.npz").read_bytes() != features
    assert "An earlier training is not taken up: parameters, network differ" in capsys.readouterr().out
    said = r"features\.views 4: the features of 10,000,000 images .* 1003\.5 GB.* or set it to 0"
    with pytest.raises(ValueError, match=said):
        predicting.check_memory((10_000_000, 4, 7, 7, 128))


def test_features_of_views_and_through_the_backbone_give_the_same_head_its_input(tmp_path):
    """One view without augmentation is what the backbone shows the head at every epoch."""
    params = transfer_params(tmp_path)
    plain = check(params.model_dump() | {"augment": {}, "features": {"views": 1}})
    through = check(params.model_dump() | {"augment": {}, "features": {"views": 0}})
    one, two = (head_fitted(p, None).get_layer("logit").get_weights() for p in (plain, through))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-3, atol=1e-5)


def test_the_backbones_rate_is_a_fraction_of_the_heads(tmp_path):
    """RMSprop's first steps have the size of the rate, so the factor shows in how far weights go."""

    def moved(factor):
        values = {
            "fine_tuning": {"backbone_rate_factor": factor},
            "features": {"views": 0},
            "training": {"epochs": 1, "batch_size": 16, "optimizer": "rmsprop", "schedule": "constant"},
        }
        params = check(transfer_params(tmp_path).model_dump() | values)
        start(params)
        network = build_model(params.model, params.image)
        unfreeze(network, params.fine_tuning)
        before = network.get_layer("convolution").get_weights()[0]
        fitting.fit(network, image_set(16, 0), image_set(8, 1, "val"), params)
        return np.abs(network.get_layer("convolution").get_weights()[0] - before).mean()

    assert moved(0.1) == pytest.approx(0.1 * moved(1.0), rel=0.1)
