"""What may be loaded: networks of known layers and numbers; everything else is refused before any of it is built."""

import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from pneumolib.learning.model_files import ModelFileError, check_model_file

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


class RanError(Exception):
    """What the code in a file would do."""


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return eval, ("(_ for _ in ()).throw(__import__('test_model_files').RanError())",)


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


def test_a_network_of_known_layers_passes(tmp_path):
    check_model_file(write(tmp_path / "model.keras"))
    # How it was compiled is not read, so an optimiser may stand there.
    check_model_file(
        write(tmp_path / "compiled.keras", CONFIG | {"compile_config": {"module": "mine", "class_name": "Loss"}})
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (with_layer(class_name="Lambda", config={"function": {"class_name": "__lambda__"}}), "a Lambda: Python code"),
        (with_layer(config={"activation": {"class_name": "__lambda__", "config": {"code": "4wEA"}}}), "a Lambda: Python code"),
        (with_layer(module="os", class_name="system", config={"command": "true"}), r"config\.json names os\.system"),
        (with_layer(module="keras.utils", class_name="get_file"), r"names keras\.utils\.get_file"),
        (with_layer(module="keras.src.saving.serialization_lib", class_name="enable_unsafe_deserialization"), "names keras"),
        (with_layer(class_name="TorchModuleWrapper"), r"names keras\.layers\.TorchModuleWrapper"),
        (with_layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}), "StringLookup"),
        (with_layer(config={"activation": {"module": "builtins", "class_name": "function", "config": "exec"}}), "function"),
        (with_layer(module="keras.initializers", class_name="function"), r"keras\.initializers\.function"),
        (with_layer(module="keras.initializers", class_name="deserialize"), r"keras\.initializers\.deserialize"),
        (with_layer(module="keras.src.ops.numpy", class_name="__typespec__"), "__typespec__"),
        (with_layer(module=["keras.layers"]), r"names \['keras\.layers'\]\.Flatten"),
        (with_layer(class_name={"Lambda": 1}), "a Lambda"),
        (with_layer(registered_name="their>Flatten"), r"names keras\.layers\.Flatten"),
        (with_layer(module=None, class_name="Own"), r"names None\.Own, which is none of the layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_architecture_that_names_anything_else_is_refused(tmp_path, config, said):
    with pytest.raises(ModelFileError, match=said):
        check_model_file(write(tmp_path / "model.keras", config))


def test_weights_must_be_numbers_within_the_file(tmp_path):
    def link_out(file):
        file["away"] = h5py.ExternalLink("/etc/passwd", "/")

    def soft_link(file):
        file["soft"] = h5py.SoftLink("/layers")

    def elsewhere(file):
        file.create_dataset("kept", (4,), "f4", external=[(str(tmp_path / "other.bin"), 0, 16)])

    def objects(file):
        file.create_dataset("words", data=["a"], dtype=h5py.string_dtype())

    def kind_of_number(file):
        file["kind"] = np.dtype("f4")

    with pytest.raises(ModelFileError, match="no array of numbers"):
        check_model_file(write(tmp_path / "model.keras", weights=kind_of_number))
    for weights, said in ((link_out, "hold a link"), (soft_link, "hold a link"), (elsewhere, "no array of numbers"),
                          (objects, "no array of numbers")):  # fmt: skip
        with pytest.raises(ModelFileError, match=said):
            check_model_file(write(tmp_path / "model.keras", weights=weights))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_pickle_and_other_members_are_refused_and_never_run(tmp_path):
    bomb = pickle.dumps(Bomb())
    with pytest.raises(RanError):
        pickle.loads(bomb)
    for name, content, said in (
        ("model.pkl", bomb, r"holds model\.pkl, a pickle, which runs code when it is loaded"),
        ("assets/data", bomb, "holds assets/data, a pickle"),
        ("../../outside", b"text", r"holds \.\./\.\./outside"),
        ("config.json", json.dumps(CONFIG), r"holds config\.json twice"),
    ):
        with pytest.raises(ModelFileError, match=said):
            check_model_file(write(tmp_path / "model.keras", more=[(name, content)]))


def test_other_kinds_of_file_are_named(tmp_path):
    file = tmp_path / "model.keras"
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        check_model_file(file)
    for content, said in (
        (pickle.dumps(Bomb()), "refused: a pickle"),
        (b"", "begins with b''"),
        (b"hello", "no .keras file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelFileError, match=said):
            check_model_file(file)
    with h5py.File(file, "w"):
        pass
    with pytest.raises(ModelFileError, match="HDF5, the format of models before Keras 3"):
        check_model_file(file)
    whole = write(file).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="broken"):
        check_model_file(file)


def test_what_would_fill_the_memory_is_refused(tmp_path):
    file = write(tmp_path / "model.keras", more=())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", b"{}")
        archive.writestr("config.json", b" " * (80 * 2**20))
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ModelFileError, match="would unpack to"):
        check_model_file(file)
