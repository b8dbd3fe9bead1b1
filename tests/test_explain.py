"""Where networks look: Grad-CAM where the answer is known, on every kind of network, and the checks of its maps."""

import hashlib
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from pneumolib.data.corruptions import corrupt
from pneumolib.data.pixels import ImageSet
from pneumolib.learning.explain import grad_cam, map_layer, occlusion_check, randomisation_check
from pneumolib.learning.fitting import load_model, save_model
from pneumolib.learning.gradients import SCALE, feature_gradients, features_of
from pneumolib.learning.networks import build_model
from pneumolib.learning.predicting import predict
from pneumolib.learning.robustness import choose_images, predict_corrupted
from pneumolib.params import ImageParams, ModelParams, check

RNG = np.random.default_rng(0)


def noise(n: int, side: int, channels: int = 1) -> np.ndarray:
    return RNG.integers(0, 256, (n, side, side, channels), np.uint8)


def image_set(pixels: np.ndarray, images_a_group: int = 1) -> ImageSet:
    """Every third image is normal."""
    n = len(pixels)
    group = np.arange(n) // images_a_group
    label = (group % 3 > 0).astype(int)
    table = pd.DataFrame(
        {"image_id": [f"i{i:03d}" for i in range(n)], "split": "test", "label": label,
         "kind": np.where(label == 1, "virus", "normal"), "group_id": [f"g{g}" for g in group]}
    )  # fmt: skip
    return ImageSet(table, pixels)


def state(network: keras.Model) -> str:
    """All that a network holds: weights, statistics, seeds of Dropout, settings."""
    found = hashlib.sha256(network.to_json().encode())
    for variable in network.variables:
        found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).tobytes())
    return found.hexdigest()


def square_finder(channels: int = 1, offset: float = 0.0) -> keras.Model:
    """Two features, bright places and dark ones; bright ones speak for pneumonia, dark ones for normal."""
    inputs = keras.Input((32, 32, channels), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(2, 4, strides=4, activation="relu", name="find")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.5)(x)
    x = layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x))
    kernel = np.ones((4, 4, channels, 2), np.float32) / (16 * channels) * [1, -1]
    network.get_layer("find").set_weights([kernel, np.array([-0.6, 0.4])])
    network.get_layer("logit").set_weights([np.array([[5.0], [-5.0]]), np.array([offset])])
    return network


def squares(channels: int = 1) -> np.ndarray:
    """Grey images with a bright square at one corner and a dark one at another; the third is grey alone."""
    pixels = np.full((3, 32, 32, channels), 128, np.uint8)
    pixels[0, 4:12, 20:28] = 255
    pixels[0, 20:28, 4:12] = 0
    pixels[1, 20:28, 20:28] = 255
    return pixels


def conv_network() -> keras.Model:
    """Convolutions, BatchNormalization with statistics of its own, and Dropout."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (12, 24):
        x = layers.Conv2D(filters, 5, strides=2, padding="same")(x)
        x = layers.BatchNormalization(name=f"norm{filters}")(x)
        x = layers.Activation("relu")(x)
        x = layers.Dropout(0.3)(x)
    x = layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x))
    for filters in (12, 24):
        statistics = np.random.default_rng(filters).uniform(0.5, 1.5, (4, filters))
        network.get_layer(f"norm{filters}").set_weights(list(statistics.astype(np.float32)))
    return network


def test_the_map_is_where_the_evidence_is_whatever_the_direction():
    network, pixels = square_finder(), squares()
    bright, dark = grad_cam(network, pixels), grad_cam(network, pixels, towards=0)
    assert (bright.dtype, bright.shape) == (np.float32, (3, 32, 32))
    assert np.unravel_index(bright[0].argmax(), (32, 32)) in [(y, x) for y in range(4, 12) for x in range(20, 28)]
    assert np.unravel_index(dark[0].argmax(), (32, 32)) in [(y, x) for y in range(20, 28) for x in range(4, 12)]
    assert bright[0].max() == bright[1].max() == dark[0].max() == 1
    assert bright[0][20:28, 4:12].max() == 0
    assert not dark[1].any()  # nothing in it speaks for normal
    assert not bright[2].any()  # nor for anything in a grey image
    mixed = grad_cam(network, pixels, towards=np.array([0, 1, 1]))
    np.testing.assert_array_equal(mixed, np.stack([dark[0], bright[1], bright[2]]))


def test_gradients_are_those_of_the_logit():
    network = square_finder(offset=-3.0)
    find = network.get_layer("find")
    lower = keras.Model(network.input, find.output)
    tail = layers.Dense(1)
    upper = keras.Model(find.output, tail(layers.GlobalAveragePooling2D()(find.output)))
    tail.set_weights([np.array([[5.0], [-5.0]]), np.zeros(1)])
    features = features_of(lower)(squares())
    gradients = feature_gradients(upper)(features)
    np.testing.assert_allclose(gradients, np.broadcast_to(SCALE * np.array([5, -5]) / 64, (3, 8, 8, 2)), rtol=1e-6)
    np.testing.assert_allclose(features[0, 1, 5], [0.4, 0], atol=1e-6)


def test_colour_and_sixteen_bits_make_no_difference():
    expected = grad_cam(square_finder(), squares())
    np.testing.assert_allclose(grad_cam(square_finder(3), squares(3)), expected, atol=1e-5)
    for policy in ("mixed_float16", "mixed_bfloat16"):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            network = square_finder()
        finally:
            keras.config.set_dtype_policy(before)
        assert network.get_layer("find").compute_dtype == policy.removeprefix("mixed_")
        np.testing.assert_allclose(grad_cam(network, squares()), expected, atol=0.02)


NETWORKS = [
    ({"name": "separable_cnn"}, 64, 1, "batch_normalization_3"),
    ({"name": "gray_cnn"}, 94, 1, "conv2d_3"),  # the last one has 2 x 2 places at this size
    ({"name": "coursework_cnn"}, 32, 3, "conv2d_3"),
    ({"backbone": "MobileNetV3Small", "head_units": 8}, 64, 1, None),
    ({"backbone": "MobileNet", "head": "recall_vgg19"}, 128, 3, "head_batchnorm_1"),
]


@pytest.mark.parametrize(("values", "side", "channels", "layer"), NETWORKS, ids=lambda v: str(v)[:50])
def test_every_network_has_maps_and_stays_as_it_is(values, side, channels, layer):
    keras.utils.clear_session()  # so that layers are counted from the first
    transfer = {} if "name" in values else {"name": "transfer", "weights": "none"}
    network = build_model(ModelParams(**transfer, **values), ImageParams(size_px=side, channels=channels))
    before, pixels = state(network), noise(3, side, channels)
    maps = np.stack([grad_cam(network, pixels, towards) for towards in (0, 1)])
    assert maps.shape == (2, 3, side, side)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert set(maps.max(axis=(2, 3)).ravel()) <= {0.0, 1.0}
    assert maps.any()
    assert state(network) == before
    if layer:
        assert map_layer(network).name == layer


def test_a_backbone_from_a_file_and_a_network_read_back_have_the_same_maps(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(inputs)
    keras.Model(inputs, layers.Concatenate(name="joined")([x, layers.Conv2D(4, 1)(x)])).save(tmp_path / "b.keras")
    model = ModelParams(name="transfer", backbone="b.keras", preprocess="caffe")
    network = build_model(model, ImageParams(size_px=32, channels=3))
    assert map_layer(network).name == "joined"
    save_model(network, tmp_path / "model.keras")
    pixels = noise(2, 32, 3)
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(grad_cam(again, pixels), grad_cam(network, pixels), atol=1e-6)


def test_an_image_s_map_does_not_depend_on_its_batch():
    network, pixels = conv_network(), noise(7, 32)
    before = state(network)
    whole = grad_cam(network, pixels)
    np.testing.assert_allclose(grad_cam(network, pixels, batch=3), whole, atol=1e-5)
    np.testing.assert_allclose(grad_cam(network, pixels[4:5]), whole[4:5], atol=1e-5)
    assert grad_cam(network, pixels[:0]).shape == (0, 32, 32)
    assert state(network) == before


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(ValueError, match=r"takes uint8 \(n, 32, 32, 1\), received float64 \(3, 32, 32, 1\)"):
        grad_cam(square_finder(), squares() / 255)
    with pytest.raises(ValueError, match=r"received uint8 \(3, 32, 32, 3\)"):
        grad_cam(square_finder(), squares(3))
    with pytest.raises(ValueError, match=r"towards: received \[1, 2\], allowed 0 \(normal\), 1"):
        grad_cam(square_finder(), squares(), towards=np.array([1, 2, 1]))
    with pytest.raises(ValueError, match="has no feature map"):
        grad_cam(border_reader(), squares())


def border_reader() -> keras.Model:
    """The logit is the brightness of the outer 4 pixels and of nothing else."""
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    network = keras.Model(inputs, layers.Dense(1, name="logit")(x))
    weights = np.ones((32, 32), np.float32)
    weights[4:-4, 4:-4] = 0
    network.get_layer("logit").set_weights([weights.reshape(-1, 1), np.array([-200.0])])
    return network


def test_occlusion_finds_a_network_that_looks_at_the_border_alone():
    pixels = np.full((6, 32, 32, 1), 60, np.uint8)
    images = image_set(pixels)
    pixels[images.table.label == 1, :4] = 200
    table = occlusion_check(border_reader(), images)
    assert list(table) == [
        "image_id", "label", "group_id", "logit", "logit_centre_covered", "logit_border_covered",
        "probability", "probability_centre_covered", "probability_border_covered",
    ]  # fmt: skip
    sick = table[table.label == 1]
    np.testing.assert_allclose(sick.logit_centre_covered, sick.logit, atol=1e-3)
    assert (sick.logit_border_covered < sick.logit - 20).all()
    np.testing.assert_allclose(table.logit_border_covered[table.label == 0], table.logit[table.label == 0], atol=1e-3)
    assert table.probability.between(0, 1).all()
    for fraction in (0, 0.5):
        with pytest.raises(ValueError, match=f"border_fraction: received {fraction}, allowed"):
            occlusion_check(border_reader(), images, fraction)


def test_both_covers_hide_the_same_area():
    """Of noise, what is hidden is where the mean stands."""
    seen = []
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    network = keras.Model(inputs, layers.Dense(1, name="logit")(layers.Flatten()(layers.Rescaling(1.0)(inputs))))
    for y, x in [(0, 0), (16, 16), (4, 16), (5, 16)]:
        weights = np.zeros((32, 32), np.float32)
        weights[y, x] = 1
        network.get_layer("logit").set_weights([weights.reshape(-1, 1), np.zeros(1)])
        table = occlusion_check(network, image_set(np.dstack([np.arange(32, dtype=np.uint8)] * 32)[..., None] * 8))
        row = table.iloc[0]
        seen.append((row.logit != row.logit_centre_covered, row.logit != row.logit_border_covered))
    assert seen == [(False, True), (True, False), (False, False), (True, False)]


def test_maps_of_a_network_that_learned_them_do_not_outlive_its_weights():
    network, pixels = conv_network(), noise(12, 32)
    before, chance = state(network), random.getstate()
    found = randomisation_check(network, pixels, seed=3, draws=4)
    assert (found["images"], found["draws"], found["height"], found["width"]) == (12, 4, 8, 8)
    assert found["layer"].startswith("activation")
    assert abs(found["whole"]["mean"]) < 0.3
    assert found["whole"]["low"] <= found["whole"]["mean"] <= found["whole"]["high"]
    assert found["whole"]["constant"] == found["top"]["constant"] == 0
    assert state(network) == before
    assert random.getstate() == chance
    assert randomisation_check(network, pixels, seed=3, draws=4) == found
    assert randomisation_check(network, pixels, seed=4, draws=4) != found
    with pytest.raises(ValueError, match="received 0 images, 3 draws"):
        randomisation_check(network, pixels[:0], seed=1)


def test_maps_that_show_the_image_and_nothing_learned_are_told():
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    x = layers.Activation("relu")(layers.Rescaling(1 / 255)(inputs))
    network = keras.Model(inputs, layers.Dense(1, name="logit")(layers.GlobalAveragePooling2D()(x)))
    found = randomisation_check(network, noise(4, 32), seed=1, draws=5)
    for kind in ("whole", "top"):
        assert {abs(round(found[kind][end], 5)) for end in ("low", "high")} == {1.0}
    grey = randomisation_check(network, np.full((2, 32, 32, 1), 9, np.uint8), seed=1, draws=2)
    assert grey["whole"] == {"mean": None, "low": None, "high": None, "strength": None, "constant": 4}


def robustness(n: int, **values):
    return check({"robustness": {"images": n, "corruptions": ["gamma", "margins", "gamma"]} | values})


def test_corrupted_copies_of_some_images_are_predicted():
    network, images = square_finder(), image_set(noise(70, 32), images_a_group=2)
    table = predict_corrupted(network, images, robustness(66))
    assert list(table) == ["image_id", "split", "label", "kind", "group_id", "corruption", "severity", "logit",
                           "probability"]  # fmt: skip
    counts = table.groupby(["corruption", "severity"], sort=False).size()
    assert list(counts.index) == [("none", 0), *((name, s) for name in ("gamma", "margins") for s in range(1, 6))]
    assert set(counts) == {64}  # pairs, and the class's shares of 66 are odd
    clean = table[table.corruption == "none"].set_index("image_id")
    expected = predict(network, images).set_index("image_id").loc[clean.index]
    np.testing.assert_allclose(clean.logit, expected.logit, atol=1e-5)
    kept = images.table.image_id.isin(clean.index).to_numpy()
    changed = ImageSet(images.table[kept].reset_index(drop=True), corrupt(images.pixels[kept], "gamma", 4, 1))
    rows = table[(table.corruption == "gamma") & (table.severity == 4)]
    np.testing.assert_allclose(rows.logit, predict(network, changed).logit, atol=1e-5)
    assert table.equals(predict_corrupted(network, images, robustness(66)))


def test_no_robustness_is_an_empty_table():
    table = predict_corrupted(square_finder(), image_set(noise(4, 32)), robustness(0))
    assert len(table) == 0
    assert "severity" in table


def test_images_are_chosen_as_whole_groups_of_both_classes():
    table = image_set(noise(90, 8), images_a_group=3).table
    chosen = table[table.image_id.isin(choose_images(table, 40, seed=1))]
    assert len(chosen) in (38, 39, 40)
    assert (chosen.groupby("group_id").size() == 3).all()
    assert chosen.label.mean() == pytest.approx(2 / 3, abs=0.06)
    assert choose_images(table, 40, 1) == choose_images(table, 40, 1) != choose_images(table, 40, 2)
    assert choose_images(table, 90, 1) == choose_images(table, 1000, 1) == table.image_id.tolist()
    assert choose_images(table, 0, 1) == choose_images(table, 2, 1) == []


JAX = """
import keras, numpy as np
from pneumolib.learning.explain import grad_cam
assert keras.backend.backend() == "jax"
np.save("maps.npy", grad_cam(keras.saving.load_model("model.keras"), np.load("pixels.npy"), batch=2))
"""


@pytest.mark.hosts
def test_jax_gives_the_same_maps(tmp_path):
    network, pixels = conv_network(), noise(3, 32)
    network.save(tmp_path / "model.keras")
    np.save(tmp_path / "pixels.npy", pixels)
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", JAX], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "maps.npy"), grad_cam(network, pixels), atol=1e-4)
