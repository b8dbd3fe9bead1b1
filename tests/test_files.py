"""What may be loaded: networks of Keras's own layers and numbers; everything else is refused before any of it is built."""

import inspect
import json
import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from pneumolib.errors import ModelError
from pneumolib.learning import files
from pneumolib.learning.files import REFUSED_LAYERS, check_model_file, load_model

CONFIG = {
    "module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional",
    "config": {"name": "network", "trainable": True, "layers": [
        {"module": "keras.layers", "class_name": "InputLayer", "registered_name": None, "name": "pixels", "inbound_nodes": [],
         "config": {"batch_shape": [None, 8, 8, 1], "dtype": "uint8", "sparse": False, "ragged": False, "name": "pixels"}},
        {"module": "keras.layers", "class_name": "Flatten", "registered_name": None, "name": "flat",
         "config": {"name": "flat", "trainable": True, "dtype": "float32", "data_format": "channels_last"},
         "inbound_nodes": [{"args": [{"class_name": "__keras_tensor__", "config": {
             "shape": [None, 8, 8, 1], "dtype": "uint8", "keras_history": ["pixels", 0, 0]}}], "kwargs": {}}]},
    ], "input_layers": [["pixels", 0, 0]], "output_layers": [["flat", 0, 0]]},
}  # fmt: skip


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return sys.exit, ("ran",)


def write(path, config=CONFIG, weights=lambda file: None, more=()):
    """A `.keras` file of these parts."""
    h5 = path.with_suffix(".h5")
    with h5py.File(h5, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((2, 2), np.float32))
        weights(file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-11-21@10:00:00"}))
        archive.writestr("config.json", json.dumps(config))
        archive.write(h5, "model.weights.h5")
        for name, content in more:
            archive.writestr(name, content)
    return path


def with_layer(**layer):
    """The network with another layer in place of Flatten."""
    config = json.loads(json.dumps(CONFIG))
    config["config"]["layers"][1] |= layer
    return config


def test_a_network_is_read_as_it_was_saved(tmp_path):
    """With image layers, random ones and one of layers within it, a compiled network within it, and a loss of its own, which is not read."""
    import keras
    from keras import layers

    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 8, kernel_regularizer="l2")], name="inner")
    inner.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 5)), "mse", metrics=["mae"])
    inner.optimizer.build(inner.trainable_variables)
    head = layers.Dense(1, kernel_initializer="ones", kernel_constraint="non_neg")
    flips = layers.Pipeline(
        [layers.RandomFlip(seed=1), layers.RandomZoom(0.1), layers.RandAugment(), layers.Equalization()]
    )
    network = keras.Sequential([keras.Input((8, 8, 3)), flips, inner, layers.Flatten(), head])
    network.compile(loss=with_layer)
    network.save(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(pixels, training=False), network(pixels, training=False))


def all_layers() -> list[type]:
    import keras

    found = {value for value in vars(keras.layers).values() if isinstance(value, type)}
    return sorted(found, key=lambda cls: cls.__name__)


def test_layers_that_take_code_or_files_are_the_refused_ones(tmp_path):
    """Of all that Keras has, by what their constructors ask for; a new one in another version fails here."""
    words = "function call_fn init_fn module filepath vocabulary path filename callable url"
    taking = {cls.__name__ for cls in all_layers() if {*words.split()} & set(inspect.signature(cls).parameters)}
    assert taking == set(REFUSED_LAYERS)
    for name, reason in REFUSED_LAYERS.items():
        with pytest.raises(ModelError, match=rf"refused: config\.json names keras\.layers\.{name}, {reason}"):
            check_model_file(write(tmp_path / "model.keras", with_layer(class_name=name)))
    allowed = [with_layer(class_name=cls.__name__) for cls in all_layers() if cls.__name__ not in REFUSED_LAYERS]
    check_model_file(write(tmp_path / "model.keras", {"all": allowed}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (with_layer(config={"activation": {"class_name": "__lambda__", "config": {"code": "4wEA"}}}), "Python code inside"),
        (with_layer(class_name={"Lambda": 1}), "Python code inside"),
        (with_layer(class_name="TimeDistributed", config={"layer": CONFIG | {"class_name": "Lambda"}}), "Python code inside"),
        (with_layer(module="os", class_name="system", config={"command": "true"}), r"config\.json names os\.system"),
        (with_layer(module="keras.utils", class_name="get_file"), r"names keras\.utils\.get_file"),
        (with_layer(module="keras", class_name="layers.Lambda"), r"names keras\.layers\.Lambda"),
        (with_layer(module="keras.layers:Dense|keras.layers", class_name="Dense"), "names keras"),
        (with_layer(module="keras.src.saving.serialization_lib", class_name="enable_unsafe_deserialization"), "names keras"),
        (with_layer(config={"activation": {"module": "builtins", "class_name": "function", "config": "exec"}}), "function"),
        (with_layer(module="keras.initializers", class_name="deserialize"), r"keras\.initializers\.deserialize"),
        (with_layer(module="keras.src.ops.numpy", class_name="__typespec__"), "__typespec__"),
        (with_layer(module=["keras.layers"]), r"names \['keras\.layers'\]\.Flatten"),
        (with_layer(registered_name="their>Flatten"), r"names keras\.layers\.Flatten"),
        (with_layer(config={"class_name": None, "registered_name": "their>Flatten"}), r"names None\.None"),
        (with_layer(module=None, class_name="Own"), r"names None\.Own, which is not part of Keras"),
        ([CONFIG], "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_architecture_that_names_anything_else_is_refused(tmp_path, config, said):
    with pytest.raises(ModelError, match=said):
        load_model(write(tmp_path / "model.keras", config))


@pytest.mark.parametrize(
    ("name", "item", "said"),
    [
        ("away", h5py.ExternalLink("/etc/passwd", "/"), "hold a link, //away, to another place"),
        ("soft", h5py.SoftLink("/layers"), "hold a link"),
        ("kind", np.dtype("f4"), "no array of numbers"),
        ("words", ["a"], "no array of numbers"),
    ],
)
def test_weights_must_be_numbers_within_the_file(tmp_path, name, item, said):
    with pytest.raises(ModelError, match=said):
        check_model_file(write(tmp_path / "model.keras", weights=lambda file: file.update({name: item})))
    outside = write(tmp_path / "m.keras", weights=lambda f: f.create_dataset("x", (4,), "f4", external="other.bin"))
    with pytest.raises(ModelError, match="no array of numbers"):
        check_model_file(outside)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_pickle_and_other_members_are_refused_and_never_run(tmp_path):
    bomb = pickle.dumps(Bomb())
    with pytest.raises(SystemExit):
        pickle.loads(bomb)
    for name, content, said in (
        ("model.pkl", bomb, r"holds model\.pkl, a pickle, which runs code when it is loaded"),
        ("assets/data", bomb, "holds assets/data, a pickle"),
        ("../../outside", b"text", r"holds \.\./\.\./outside, which no \.keras file needs"),
        ("config.json", json.dumps(CONFIG), r"holds config\.json 2 times"),
    ):
        with pytest.raises(ModelError, match=said):
            check_model_file(write(tmp_path / "model.keras", more=[(name, content)]))


def test_other_kinds_of_file_are_named(tmp_path):
    file = tmp_path / "model.keras"
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        check_model_file(file)
    whole = write(tmp_path / "whole.keras").read_bytes()
    for content, said in (
        (pickle.dumps(Bomb()), "refused: a pickle"),
        (b"", "begins with b''"),
        ((tmp_path / "whole.h5").read_bytes(), "HDF5, the format before Keras 3"),
        (whole[: len(whole) // 2], "cannot be read: File is not a zip file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=said):
            check_model_file(file)


def test_what_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SPARE", 10_000)
    file = tmp_path / "model.keras"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", b"{}")
        archive.writestr("config.json", b" " * 100_000)
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ModelError, match="would unpack to"):
        check_model_file(file)


def dense(units: int, inputs: int) -> dict:
    """A layer that asks for weights of (inputs, units)."""
    return with_layer(
        class_name="Dense", config={"name": "large", "units": units}, build_config={"input_shape": [None, inputs]}
    )


def twice(file: h5py.File) -> None:
    file["again"] = file["layers/dense/vars/0"]


def around(file: h5py.File) -> None:
    file["layers/all"] = file["layers"]


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ({"layers": [CONFIG["config"]["layers"][1]] * 6000}, None, r"config\.json names 6,000 layers, allowed are 5,000"),
        ({"layers": "x" * 2**23}, None, r"holds config\.json of 8,388,622 bytes, allowed are 8,388,608"),
        (CONFIG, lambda file: file.create_dataset("x", (10**7, 10**7), "f4"), "/x .* claims 400,000,000,000,000 bytes and holds 0"),
        (CONFIG, lambda file: file.create_dataset("x", (10**9,), "f4", chunks=(100,)), "/x in its weights claims 4,000,000,000 bytes"),
        (CONFIG, twice, "under several names"),
        (CONFIG, around, "under several names"),
    ],
)  # fmt: skip
def test_small_files_that_claim_much_are_refused_before_anything_is_built(tmp_path, config, weights, said):
    with pytest.raises(ModelError, match=said):
        check_model_file(write(tmp_path / "model.keras", config, weights or (lambda file: None)))


CHILD = """
import resource, sys
from pathlib import Path
import keras
from pneumolib.errors import ModelError
from pneumolib.learning.files import load_model

keras.layers.Dense(1).build((None, 1))
usual, before = keras.Layer.add_weight, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        load_model(Path(file))
    except ModelError as fault:
        print(fault)
    assert keras.Layer.add_weight is usual
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_weights_are_compared_with_the_file_before_room_is_made_for_them(tmp_path):
    files = [write(tmp_path / f"{n}.keras", dense(n, n)) for n in (10_000_000, 20_000)]
    nested = dense(20_000, 20_000)
    inner = nested["config"]["layers"][1]
    nested["config"]["layers"][1] = inner | {"class_name": "TimeDistributed", "config": {"name": "all", "layer": inner}}
    files.append(write(tmp_path / "nested.keras", nested))
    # Two layers of one shape ask for more than one array.
    twin = dense(2, 2)
    twin["config"]["layers"] += [twin["config"]["layers"][1]]
    files.append(write(tmp_path / "twin.keras", twin, lambda file: file.create_dataset("bias", data=np.ones(2, "f4"))))
    found = subprocess.run([sys.executable, "-c", CHILD, *map(str, files)], capture_output=True, text=True, check=True)
    *said, grown_mb = found.stdout.splitlines()
    for line, file, shape in zip(
        said, files, [(10**7, 10**7), (20_000, 20_000), (20_000, 20_000), (2, 2)], strict=True
    ):
        assert (
            line
            == f"{file}: refused: its layer 'large' asks for weights of shape {shape}, which the file does not hold"
        )
    assert int(grown_mb) < 100  # the second one alone would take 1,600
