"""A trained network as files that other programs read: raw uint8 pixels in, the probability of pneumonia out.

Keras's exporters work on the TensorFlow backend on the CPU, and they want a network that computes in float32.
"""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from pneumolib.learning.transfer import leaves

PROBABILITY = "probability"
# The names of Keras's own exporters, and of what each writes; `json` is no exporter of Keras.
EXPORTERS = {
    "savedmodel": ("tf_saved_model", "saved_model"),
    "litert": ("litert", "model.tflite"),
    "onnx": ("onnx", "model.onnx"),
}
ARCHITECTURE_FILE, WEIGHTS_FILE = "architecture.json", "weights.weights.h5"


def backend() -> str:
    """What Keras runs on in this process, such as `tensorflow`."""
    return keras.backend.backend()


def computes_in(network: keras.Model) -> list[str]:
    """The precisions that layers compute in, such as `["bfloat16", "float32"]`; the input's uint8 is none."""
    kinds = {str(leaf.compute_dtype) for leaf in _leaves(network)}
    return sorted(kind for kind in kinds if "float" in kind)


def in_float32(network: keras.Model) -> keras.Model:
    """The network itself, or a copy of it with the same weights that computes in float32 where it did not.

    Weights are kept in float32 whatever a network computes in, so that none is rounded here.
    """
    return network if computes_in(network) == ["float32"] else _rebuilt(network, _layer_in_float32)


def _rebuilt(network: keras.Model, rebuild: Callable[[keras.Layer], keras.Layer]) -> keras.Model:
    copy = keras.models.clone_model(network, clone_function=rebuild, recursive=True)
    for old, new in zip(_leaves(network), _leaves(copy), strict=True):
        if new.weights:  # a Rescaling has none; of a depthwise convolution only the shape is another one
            new.set_weights([w.reshape(v.shape) for w, v in zip(old.get_weights(), new.weights, strict=True)])
    return copy


def _leaves(network: keras.Model) -> list[keras.Layer]:
    return [leaf for layer in network.layers for leaf in leaves(layer)]


def _layer_in_float32(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config()
    if "dtype" in config and "float" in str(layer.compute_dtype):
        config["dtype"] = "float32"
    return type(layer).from_config(config)


def _layer_for_onnx(layer: keras.Layer) -> keras.Layer:
    """What the exporter writes wrongly, as a layer that it writes and that computes the same.

    The numbers of a Normalization, which EfficientNet begins with, do not get into its file; those of a Rescaling do. A
    convolution of one group a channel, as in ConvNeXt, gets there as a call of what is not in the file; a
    DepthwiseConv2D as a convolution. GELU goes through erfc, which ONNX does not know; it knows erf.
    """
    if _is_gelu(layer):
        return _Gelu(dtype="float32", name=layer.name)
    if isinstance(layer, keras.layers.Normalization):
        return _as_rescaling(layer)
    if _is_depthwise(layer):
        kept = ("kernel_size", "strides", "padding", "dilation_rate", "activation", "use_bias", "name")
        config = layer.get_config()
        return keras.layers.DepthwiseConv2D(**{name: config[name] for name in kept}, dtype="float32")
    return _layer_in_float32(layer)


def _is_refused(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization) or _is_depthwise(layer) or _is_gelu(layer)


def _as_rescaling(layer: keras.layers.Normalization) -> keras.layers.Rescaling:
    # As given or adapted: `layer.mean` is rounded to what the layer computes in.
    given = layer.get_config()
    known = layer.get_weights()[:2] if given["mean"] is None else (given["mean"], given["variance"])
    mean, variance = (np.ravel(values).astype(np.float64) for values in known)
    scale = 1 / np.sqrt(variance)
    return keras.layers.Rescaling(scale.tolist(), (-mean * scale).tolist(), dtype="float32", name=layer.name)


def _is_depthwise(layer: keras.Layer) -> bool:
    return type(layer) is keras.layers.Conv2D and 1 < layer.groups == layer.filters and layer.kernel.shape[2] == 1


def _is_gelu(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.gelu


class _Gelu(keras.layers.Layer):
    def call(self, x):
        return 0.5 * x * (1 + keras.ops.erf(x / 2**0.5))


def logits(network: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """What the network says of pixels, uint8 (n, size_px, size_px, channels), in one batch: float64 (n,)."""
    return np.asarray(network.predict_on_batch(pixels))[:, 0].astype(np.float64)


def write_network(network: keras.Model, kind: str, folder: Path) -> None:
    """Write a network with its sigmoid on top, input `pixels` and output `probability`, for other programs.

    Args:
        network: pixels uint8 (n, size_px, size_px, channels) to logit (n, 1), all of it in float32.
        kind: `savedmodel` (folder `saved_model`), `litert` (`model.tflite`), `onnx` (`model.onnx`), or `json`
            (`architecture.json` and `weights.weights.h5`).
        folder: an empty one.
    """
    if kind == "onnx" and any(_is_refused(leaf) for leaf in _leaves(network)):
        network = _rebuilt(network, _layer_for_onnx)
    # Float32 by name: the global policy may be another one.
    probability = keras.layers.Activation("sigmoid", dtype="float32", name=PROBABILITY)(network.outputs[0])
    if kind == "json":
        whole = keras.Model(network.inputs[0], probability, name=network.name)
        (folder / ARCHITECTURE_FILE).write_text(whole.to_json(indent=1) + "\n", encoding="utf-8")
        whole.save_weights(folder / WEIGHTS_FILE)
        return
    # The exporters name an output by its key; of a tensor alone each invents a name.
    whole = keras.Model(network.inputs[0], {PROBABILITY: probability}, name=network.name)
    whole(whole.inputs[0])  # that of ONNX refuses a network that was never called
    exporter, file = EXPORTERS[kind]
    whole.export(str(folder / file), format=exporter, verbose=False)


def read_saved_model(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The written SavedModel as TensorFlow serves it: from pixels to probabilities, float32 (n, 1)."""
    layer = keras.layers.TFSMLayer(folder / EXPORTERS["savedmodel"][1], call_endpoint="serving_default")
    return lambda pixels: np.asarray(layer(pixels)[PROBABILITY])


def read_json(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The network built anew by Keras from the two written files: from pixels to probabilities, float32 (n, 1)."""
    network = keras.models.model_from_json((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))
    network.load_weights(folder / WEIGHTS_FILE)
    return lambda pixels: np.asarray(network.predict_on_batch(pixels))
