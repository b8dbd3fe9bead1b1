"""A trained network as files that other programs read: raw uint8 pixels in, the probability of pneumonia out.

`export` runs this in a process of its own. Keras's exporters work on the TensorFlow backend on the CPU, and they want a
network that computes in float32.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from pneumolib.data.drawing import KINDS, draw_radiograph
from pneumolib.data.pixels import network_pixels
from pneumolib.errors import ModelError
from pneumolib.evaluation.calibration import Calibration
from pneumolib.learning.transfer import leaves
from pneumolib.params import ImageParams
from pneumolib.serve.trained import load_trained

IMAGES = 20
_DRAWING_SEED = 20
PROBABILITY = "probability"
# The names of Keras's own exporters, and of what each writes; `json` is no exporter of Keras.
EXPORTERS = {
    "savedmodel": ("tf_saved_model", "saved_model"),
    "litert": ("litert", "model.tflite"),
    "onnx": ("onnx", "model.onnx"),
}
ARCHITECTURE_FILE, WEIGHTS_FILE = "architecture.json", "weights.weights.h5"


def write_and_read(run: str, kind: str, folder: str, probabilities: str) -> None:
    """Write a run's network, and what the network and the other program then say of drawn radiographs.

    Args:
        run: the run's folder, whose model file was found to be the right one.
        kind: see `write_network`.
        folder: an empty one.
        probabilities: the `.npz` file to write. `saved` and `expected`, float64 (20,): the network as it was saved, and in
            float32. `found`, float32 (2, 20, 1): the other program, one by one and together. `precisions`: what the saved
            network computes in.
    """
    model = load_trained(run, force=True)
    network, pixels = in_float32(model.network), check_pixels(model.image)
    write_network(network, model.calibration, kind, Path(folder))
    predict = reader(kind, Path(folder))
    np.savez(
        probabilities,
        saved=model.calibration.apply(logits(model.network, pixels)),
        expected=model.calibration.apply(logits(network, pixels)),
        found=np.stack([np.concatenate([predict(one[None]) for one in pixels]), predict(pixels)]),
        precisions=computes_in(model.network),
    )


def check_pixels(image: ImageParams) -> np.ndarray:
    """Twenty drawn radiographs of all kinds, from as exposed as in training to as in another hospital, prepared as any file.

    Returns:
        uint8 (20, size_px, size_px, channels).
    """
    shifts = [n / (IMAGES - 1) for n in range(IMAGES)]
    drawn = [draw_radiograph(KINDS[n % len(KINDS)], n, seed=_DRAWING_SEED, shift=shifts[n]) for n in range(IMAGES)]
    return np.stack([network_pixels(Image.fromarray(one), image) for one in drawn])


def logits(network: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """What the network says of pixels, uint8 (n, size_px, size_px, channels), in one batch: float64 (n,)."""
    return np.asarray(network.predict_on_batch(pixels))[:, 0].astype(np.float64)


def computes_in(network: keras.Model) -> list[str]:
    """The precisions that layers compute in, such as `["bfloat16", "float32"]`; the input's uint8 is none."""
    return sorted({leaf.compute_dtype for leaf in leaves(network) if "float" in str(leaf.compute_dtype)})


def in_float32(network: keras.Model) -> keras.Model:
    """The network itself, or a copy of it with the same weights that computes in float32 where it did not.

    Weights are kept in float32 whatever a network computes in, so that none is rounded here.
    """
    return network if computes_in(network) == ["float32"] else _rebuilt(network, _layer_in_float32)


def _rebuilt(network: keras.Model, rebuild: Callable[[keras.Layer], keras.Layer]) -> keras.Model:
    def again(one: keras.Operation) -> keras.Operation:  # of `keras.ops` there is nothing to change
        return rebuild(one) if isinstance(one, keras.Layer) else one

    copy = keras.models.clone_model(network, clone_function=again, recursive=True)
    for old, new in zip(leaves(network), leaves(copy), strict=True):
        if new.weights:  # a Rescaling has none; of a depthwise convolution only the shape is another one
            new.set_weights([w.reshape(v.shape) for w, v in zip(old.get_weights(), new.weights, strict=True)])
    return copy


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
    config = layer.get_config()
    if getattr(layer, "activation", None) is keras.activations.gelu and isinstance(layer, keras.layers.Activation):
        return keras.layers.Activation(_gelu, dtype="float32", name=layer.name)
    if isinstance(layer, keras.layers.Normalization):
        # As given or adapted: `layer.mean` is rounded to what the layer computes in.
        known = layer.get_weights()[:2] if config["mean"] is None else (config["mean"], config["variance"])
        mean, variance = (np.ravel(values).astype(np.float64) for values in known)
        scale = 1 / np.sqrt(variance)
        return keras.layers.Rescaling(scale.tolist(), (-mean * scale).tolist(), dtype="float32", name=layer.name)
    if type(layer) is keras.layers.Conv2D and 1 < layer.groups == layer.filters and layer.kernel.shape[2] == 1:
        kept = ("kernel_size", "strides", "padding", "dilation_rate", "activation", "use_bias", "name")
        return keras.layers.DepthwiseConv2D(**{name: config[name] for name in kept}, dtype="float32")
    return _layer_in_float32(layer)


def _gelu(x):
    return 0.5 * x * (1 + keras.ops.erf(x / 2**0.5))


def write_network(network: keras.Model, calibration: Calibration, kind: str, folder: Path) -> None:
    """Write a network with its calibration on top, input `pixels` and output `probability`, for other programs.

    Args:
        network: pixels uint8 (n, size_px, size_px, channels) to logit (n, 1), all of it in float32.
        calibration: from logits to probabilities.
        kind: `savedmodel` (folder `saved_model`), `litert` (`model.tflite`), `onnx` (`model.onnx`), or `json`
            (`architecture.json` and `weights.weights.h5`).
        folder: an empty one.
    """
    if kind == "onnx":
        network = _rebuilt(network, _layer_for_onnx)
    # A network of one's own may name its input otherwise, or take floats; and its image layers must not change a pixel.
    pixels, takes = keras.Input(network.inputs[0].shape[1:], dtype="uint8", name="pixels"), network.inputs[0].dtype
    logit = network(pixels if takes == "uint8" else keras.ops.cast(pixels, takes), training=False)
    probability = calibrated(logit, calibration)
    if kind == "json":
        whole = keras.Model(pixels, probability, name=network.name)
        (folder / ARCHITECTURE_FILE).write_text(whole.to_json(indent=1) + "\n", encoding="utf-8")
        whole.save_weights(folder / WEIGHTS_FILE)
        return
    # The exporters name an output by its key; of a tensor alone each invents a name.
    whole = keras.Model(pixels, {PROBABILITY: probability}, name=network.name)
    whole(whole.inputs[0])  # that of ONNX refuses a network that was never called
    exporter, file = EXPORTERS[kind]
    whole.export(str(folder / file), format=exporter, verbose=False)


def calibrated(logit: keras.KerasTensor, calibration: Calibration) -> keras.KerasTensor:
    """The calibration as layers, from logit (n, 1) to probability (n, 1); float32 by name, the global policy may be another one."""
    own = {"dtype": "float32"}
    if calibration.method != "isotonic":
        moved = keras.layers.Rescaling(calibration.slope, calibration.intercept, **own)(logit)
        return keras.layers.Activation("sigmoid", name=PROBABILITY, **own)(moved)
    # Each stretch between two corners adds its rise, as far as the logit has gone through it.
    x, y = (np.array(corners, np.float64) for corners in (calibration.logits, calibration.probabilities))
    width, rise = np.maximum(np.diff(x), 1e-9), np.diff(y)
    stretches = keras.layers.Dense(len(width), **own)
    total = keras.layers.Dense(1, name=PROBABILITY, **own)
    found = total(keras.layers.ReLU(max_value=1.0, **own)(stretches(logit)))
    stretches.set_weights([1 / width[None], -x[:-1] / width])
    total.set_weights([rise[:, None], y[:1]])
    return found


def reader(kind: str, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The written files as another program reads them: uint8 (n, size_px, size_px, channels) to float32 (n, 1)."""
    if kind == "litert":
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(folder / "model.tflite")).get_signature_runner("serving_default")
        return lambda pixels: runner(pixels=pixels)[PROBABILITY]
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda pixels: session.run([PROBABILITY], {"pixels": pixels})[0]
    if kind == "savedmodel":
        layer = keras.layers.TFSMLayer(folder / "saved_model", call_endpoint="serving_default")
        return lambda pixels: np.asarray(layer(pixels)[PROBABILITY])
    network = keras.models.model_from_json((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))
    network.load_weights(folder / WEIGHTS_FILE)
    return lambda pixels: np.asarray(network.predict_on_batch(pixels))


if __name__ == "__main__":  # the process that `export_run` starts
    try:
        write_and_read(*sys.argv[1:])
    except ModelError as fault:
        print(fault)
        sys.exit(fault.exit_code)
