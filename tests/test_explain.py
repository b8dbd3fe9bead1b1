"""Where networks look: Grad-CAM where the answer is known, on every kind of network, and the checks of its maps."""

import random

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from pneumolib.data.corruptions import corrupt
from pneumolib.data.pixels import ImageSet
from pneumolib.learning import explain
from pneumolib.learning.explain import grad_cam, map_layer, occlusion_check, randomisation_check
from pneumolib.learning.files import load_model
from pneumolib.learning.fitting import save_model
from pneumolib.learning.networks import averaged, build_model
from pneumolib.learning.predicting import CORRUPTED_COLUMNS, predict, predict_corrupted, predict_logits
from pneumolib.params import ImageParams, ModelParams, check
from pneumolib.reporting.gallery import explanation_words

RNG = np.random.default_rng(0)


def noise(n: int, side: int, channels: int = 1) -> np.ndarray:
    return RNG.integers(0, 256, (n, side, side, channels), np.uint8)


def image_set(pixels: np.ndarray, images_a_group: int = 1) -> ImageSet:
    """Every third group is normal."""
    group = np.arange(len(pixels)) // images_a_group
    table = pd.DataFrame({"image_id": [f"i{i:03d}" for i in range(len(pixels))], "split": "test"})
    label = (group % 3 > 0).astype(int)
    return ImageSet(table.assign(label=label, kind="virus", group_id=[f"g{g}" for g in group]), pixels)


def state(network: keras.Model) -> list:
    """All that a network holds: settings, weights, statistics, seeds of Dropout."""
    return [network.to_json(), *(keras.ops.convert_to_numpy(variable).tobytes() for variable in network.variables)]


def network_of(x, inputs, **weights) -> keras.Model:
    """A network with one logit of features `x`; weights by the layer's name."""
    network = keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x))
    for name, values in weights.items():
        network.get_layer(name).set_weights([np.asarray(value, np.float32) for value in values])
    return network


def square_finder() -> keras.Model:
    """Two features, bright places and dark ones; bright ones speak for pneumonia, dark ones for normal."""
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(2, 4, strides=4, activation="relu", name="find")(x)
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(layers.MaxPooling2D()(x)))
    kernel = np.ones((4, 4, 1, 2)) / 16 * [1, -1]
    return network_of(x, inputs, find=[kernel, [-0.6, 0.4]], logit=[[[5.0], [-5.0]], [0.0]])


def squares() -> np.ndarray:
    """Grey images with a bright square at one corner and a dark one at another; the third is grey alone."""
    pixels = np.full((3, 32, 32, 1), 128, np.uint8)
    pixels[0, 4:12, 20:28] = 255
    pixels[0, 20:28, 4:12] = 0
    pixels[1, 20:28, 20:28] = 255
    return pixels


def test_the_map_is_where_the_evidence_is_whatever_direction_and_batch(monkeypatch):
    network, pixels = square_finder(), squares()
    bright, dark = grad_cam(network, pixels), grad_cam(network, pixels, towards=0)
    assert (bright.dtype, bright.shape) == (np.float32, (3, 32, 32))
    assert bright[0, 4:12, 20:28].max() == bright[1].max() == dark[0, 20:28, 4:12].max() == 1
    assert bright[0][20:28, 4:12].max() == 0
    assert not dark[1].any()  # nothing in it speaks for normal
    assert not bright[2].any()  # nor for anything in a grey image
    monkeypatch.setattr(explain, "MAP_BATCH", 2)  # the batch decides nothing
    np.testing.assert_allclose(grad_cam(network, pixels), bright, atol=1e-5)
    mixed = grad_cam(network, pixels, towards=np.array([0, 1, 1]))
    np.testing.assert_array_equal(mixed, np.stack([dark[0], bright[1], bright[2]]))


def test_sixteen_bits_make_no_difference():
    expected = grad_cam(square_finder(), squares())
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = square_finder()
    finally:
        keras.config.set_dtype_policy(before)
    assert network.get_layer("find").compute_dtype == "float16"
    np.testing.assert_allclose(grad_cam(network, squares()), expected, atol=0.02)


NETWORKS = [
    ({"name": "separable_cnn"}, 48, 1, "batch_normalization_3"),
    ({"name": "gray_cnn"}, 94, 1, "conv2d_3"),  # the last one has 2 x 2 places at this size
    ({"name": "coursework_cnn"}, 32, 3, "conv2d_3"),
    ({"backbone": "b.keras", "head_units": 8}, 32, 1, "joined"),
    ({"backbone": "b.keras", "head": "recall_vgg19"}, 32, 3, "head_batchnorm_1"),
]


@pytest.mark.parametrize(("values", "side", "channels", "layer"), NETWORKS, ids=lambda v: str(v)[:50])
def test_every_network_has_maps_and_stays_as_it_is(tmp_path, monkeypatch, values, side, channels, layer):
    keras.utils.clear_session()  # so that layers are counted from the first
    if "backbone" in values:
        monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
        write_backbone(tmp_path / "b.keras")
        values = {"name": "transfer", "preprocess": "caffe", **values}
    network = build_model(ModelParams(**values), ImageParams(size_px=side, channels=channels))
    before, pixels = state(network), noise(2, side, channels)
    maps = np.stack([grad_cam(network, pixels, towards) for towards in (0, 1)])
    assert maps.shape == (2, 2, side, side)
    assert maps.min() >= 0
    assert 1.0 in set(maps.max(axis=(2, 3)).ravel()) <= {0.0, 1.0}
    assert state(network) == before
    assert map_layer(network).name == layer
    if layer == "joined":
        save_model(network, tmp_path / "model.keras")
        np.testing.assert_allclose(grad_cam(load_model(tmp_path / "model.keras"), pixels), maps[1], atol=1e-6)


def write_backbone(file) -> None:
    """A feature map of an eighth of the side, with a squeezed side branch, as families have it, and a shortcut."""
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=8, padding="same", activation="relu")(inputs)
    squeezed = layers.Conv2D(4, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, squeezed])
    keras.Model(inputs, layers.Concatenate(name="joined")([x, layers.Conv2D(4, 1)(x)])).save(file)


def test_a_mean_of_networks_has_the_mean_of_their_evidence(tmp_path):
    """Where the members disagree; read from a file, as everything after the training sees it."""
    one, other, third = square_finder(), square_finder(), square_finder()
    other.get_layer("logit").set_weights([np.array([[-1.0], [3.0]]), np.array([0.5])])
    save_model(averaged([one, other, third]), tmp_path / "model.keras")
    network, pixels = load_model(tmp_path / "model.keras"), squares()
    logits = [predict_logits(n, image_set(pixels)) for n in (one, other, network)]
    np.testing.assert_allclose(logits[2], (2 * logits[0] + logits[1]) / 3, rtol=1e-5)
    evidence = [explain._mean_evidence(n, pixels) for n in (one, other, network)]
    np.testing.assert_allclose(evidence[2], (2 * evidence[0] + evidence[1]) / 3, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(grad_cam(averaged([one, third]), pixels), grad_cam(one, pixels))
    assert (grad_cam(network, pixels) != grad_cam(one, pixels)).any()
    assert map_layer(network).name == "find"
    before = state(network)
    found = randomisation_check(network, pixels, seed=1)
    assert (found["layer"], found["height"], state(network)) == ("find", 8, before)
    assert found["whole"]["mean"] is not None


def test_a_network_without_a_feature_map_has_empty_maps_and_a_page_that_says_so():
    network, pixels = border_reader(), squares()
    assert not grad_cam(network, pixels).any()
    check = randomisation_check(network, pixels, seed=1)
    assert (check["layer"], check["whole"]["mean"]) == (None, None)
    occlusion = occlusion_check(network, image_set(pixels))
    assert "has no feature map" in explanation_words(check, occlusion).data


def border_reader() -> keras.Model:
    """The logit is the brightness of the outer 4 pixels and of nothing else."""
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    weights = np.pad(np.zeros((24, 24)), 4, constant_values=1).reshape(-1, 1)
    return network_of(layers.Flatten()(layers.Rescaling(1 / 255)(inputs)), inputs, logit=[weights, [-200.0]])


def test_occlusion_finds_a_network_that_looks_at_the_border_alone():
    pixels = np.full((6, 32, 32, 1), 60, np.uint8)
    images = image_set(pixels)
    pixels[images.table.label == 1, :4] = 200
    table = occlusion_check(border_reader(), images)
    ways = [f"{kind}{way}" for kind in ("logit", "probability") for way in ("", "_centre_covered", "_border_covered")]
    assert list(table) == ["image_id", "label", "group_id", *ways]
    sick, well = table[table.label == 1], table[table.label == 0]
    np.testing.assert_allclose(sick.logit_centre_covered, sick.logit, atol=1e-3)
    assert (sick.logit_border_covered < sick.logit - 20).all()
    np.testing.assert_allclose(well.logit_border_covered, well.logit, atol=1e-3)
    assert table.probability.between(0, 1).all()
    words = explanation_words(randomisation_check(border_reader(), pixels, seed=1), table).data
    assert "border changes it more in 4 of 6 images, a share of 0.667 (0." in words
    _, centre, border = explain._covers((45, 64)).values()
    np.testing.assert_array_equal(border, np.pad(np.zeros((33, 48), bool), [(6, 6), (8, 8)], constant_values=True))
    assert centre.sum() == pytest.approx(border.sum(), abs=2 * 64)
    np.testing.assert_array_equal(centre, centre[::-1, ::-1])


def test_maps_of_a_network_that_learned_them_do_not_outlive_its_weights():
    class OwnOptimizer(keras.optimizers.SGD):
        pass

    keras.utils.set_random_seed(5)
    network = build_model(ModelParams(name="separable_cnn"), ImageParams(size_px=48, channels=1))
    pixels = noise(8, 48)
    network.compile(OwnOptimizer(), "binary_crossentropy")
    before, chance = state(network), random.getstate()
    found = randomisation_check(network, pixels, seed=3, draws=2)
    assert (found["images"], found["draws"], found["height"], found["width"]) == (8, 2, 3, 3)
    assert abs(found["whole"]["mean"]) < 0.3
    assert found["whole"]["low"] <= found["whole"]["mean"] <= found["whole"]["high"]
    assert found["whole"]["constant"] == found["top"]["constant"] == 0
    assert state(network) == before
    assert random.getstate() == chance
    again, other = (randomisation_check(network, pixels[:2], seed=seed, draws=1) for seed in (3, 4))
    assert again == randomisation_check(network, pixels[:2], seed=3, draws=1) != other


def test_maps_that_show_the_image_and_nothing_learned_are_told():
    inputs = keras.Input((32, 32, 1), dtype="uint8", name="pixels")
    x = layers.Activation("relu")(layers.Rescaling(1 / 255)(inputs))
    network = network_of(layers.GlobalAveragePooling2D()(x), inputs)
    found = randomisation_check(network, noise(3, 32), seed=1, draws=3)
    for kind in ("whole", "top"):
        assert {abs(round(found[kind][end], 5)) for end in ("low", "high")} == {1.0}


def test_corrupted_copies_of_some_images_are_predicted():
    network, images = square_finder(), image_set(noise(22, 32), images_a_group=2)
    params = check({"robustness": {"images": 17, "corruptions": ["gamma", "margins", "gamma"]}})
    table = predict_corrupted(network, images, params)
    assert list(table) == CORRUPTED_COLUMNS
    counts = table.groupby(["corruption", "severity"], sort=False).size()
    ways = [("none", 0), *((name, s) for name in ("gamma", "margins") for s in range(1, 6))]
    assert counts.to_dict() == dict.fromkeys(ways, 16)  # pairs, and the class's shares of 17 are odd
    clean = table[table.corruption == "none"].set_index("image_id")
    expected = predict(network, images).set_index("image_id").loc[clean.index]
    np.testing.assert_allclose(clean.logit, expected.logit, atol=1e-5)
    kept = images.table.image_id.isin(clean.index)
    changed = ImageSet(images.table[kept], corrupt(images.pixels[kept], "gamma", 4, 1))
    rows = table.query("corruption == 'gamma' and severity == 4")
    np.testing.assert_allclose(rows.logit, predict(network, changed).logit, atol=1e-5)
    nothing = predict_corrupted(network, images, check({"robustness": {"images": 0}}))
    assert (nothing.empty, list(nothing)) == (True, CORRUPTED_COLUMNS)
