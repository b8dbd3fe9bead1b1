"""Backbones of transfer learning, put flat on raw pixels: a family of `keras.applications`, or a `.keras` file.

Flat means that the backbone's layers are layers of the network itself and no model within it, so that Grad-CAM and
fine-tuning reach them by name. Preparation is part of the network; its layers are named `to_...`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
from keras import layers

from pneumolib.errors import ModelError
from pneumolib.learning.files import load_network
from pneumolib.model_params import FAMILIES
from pneumolib.params import ModelParams, in_root

# Red, green, blue on the scale of 0 to 1, as the ImageNet weights of Keras were trained with.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_SD = np.array([0.229, 0.224, 0.225])
CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68])  # on the scale of 0 to 255

# value * scale + offset, per channel
_SCALES = {
    "caffe": (1.0, -CAFFE_MEAN_BGR),
    "torch": (1 / (255 * IMAGENET_SD), -IMAGENET_MEAN / IMAGENET_SD),
    "tf": (1 / 127.5, -1.0),
    "unit": (1 / 255, 0.0),
    "none": (1.0, 0.0),
}


class WeightsError(RuntimeError):
    """Weights that cannot be had; the message says which, why, and what to do."""


def layer_parts(network: keras.Model) -> list[str]:
    """The part that each of `network.layers` belongs to: `input`, `backbone` or `head`; `network` without a backbone.

    Told from names alone, so that it holds for a model read from a file.
    """
    names = [layer.name for layer in network.layers]
    if "to_backbone" not in names:
        return ["network"] * len(names)
    return ["input" if n == "pixels" or n.startswith("to_") else "head" if _is_head(n) else "backbone" for n in names]


def _is_head(name: str) -> bool:
    return name == "logit" or name.startswith("head_")


def leaves(layer: keras.Layer) -> Iterator[keras.Layer]:
    """The layer itself, or the layers of a block: ConvNeXt holds some in `Sequential`."""
    if isinstance(layer, keras.Model):
        for inner in layer.layers:
            yield from leaves(inner)
    else:
        yield layer


def put_backbone(model: ModelParams, pixels: keras.KerasTensor) -> keras.KerasTensor:
    """The backbone's feature map, float (batch, height, width, channels).

    Args:
        model: `backbone`, `weights` and `preprocess`.
        pixels: raw pixels, uint8 (batch, size_px, size_px, 1 or 3). A grey image becomes three equal channels.
    Raises:
        ValueError: images too small, or a file that holds no backbone for them.
        WeightsError: weights that cannot be downloaded, found, read or fitted. Random ones never take their place.
    """
    if model.from_file:
        return _from_file(model.backbone, prepare(pixels, model.preprocess))
    preprocess, smallest = FAMILIES[model.backbone]
    if pixels.shape[1] < smallest:
        raise ValueError(
            f"image.size_px {pixels.shape[1]} is too small for {model.backbone}: it needs at least {smallest}"
        )
    return _family(model, prepare(pixels, preprocess))


def prepare(pixels: keras.KerasTensor, preprocess: str) -> keras.KerasTensor:
    """Pixels as a backbone wants them, float32 (batch, size_px, size_px, 3).

    Args:
        pixels: uint8 (batch, size_px, size_px, 1 or 3), RGB.
        preprocess: `caffe` BGR less the ImageNet mean; `torch` 0 to 1, then ImageNet mean and SD; `tf` -1 to 1;
            `unit` 0 to 1; `none` 0 to 255.
    """
    grey = pixels.shape[-1] == 1
    x = layers.Concatenate(name="to_three_channels")([pixels] * 3) if grey else pixels
    if preprocess == "caffe" and not grey:  # equal channels are BGR as they are
        x = keras.ops.flip(x, axis=-1)
    # Both lists or both numbers: of a list beside a number, Keras 3.11 makes a single channel.
    scale, offset = (values.tolist() for values in np.broadcast_arrays(*_SCALES[preprocess]))
    # float32 also under mixed precision: rounded once, where the backbone begins, and not twice.
    return layers.Rescaling(scale, offset, dtype="float32", name="to_backbone")(x)


def _family(model: ModelParams, prepared: keras.KerasTensor) -> keras.KerasTensor:
    build = getattr(keras.applications, model.backbone)
    if model.weights == "imagenet":
        return _with_downloaded(model.backbone, build, prepared)
    features = build(include_top=False, weights=None, input_tensor=prepared).output
    if model.weights != "none":
        # Without our own layers: files count the layers of a kind.
        _read_weights(keras.Model(prepared, features), model)
    return features


def _with_downloaded(family: str, build, prepared: keras.KerasTensor) -> keras.KerasTensor:
    try:
        with warnings.catch_warnings():
            # MobileNets have weights for some sizes, all of one shape; Keras takes those of 224 px for other sizes.
            warnings.filterwarnings("ignore", "`input_shape` is undefined")
            return build(include_top=False, weights="imagenet", input_tensor=prepared).output
    # Broad, because Keras itself raises a plain Exception when a download fails.
    except Exception as cause:
        raise WeightsError(
            f"the ImageNet weights of {family} cannot be had: {cause}. Fetch that file on a machine with network and "
            f"give its path as model.weights, or write weights: none for random ones"
        ) from cause


def _read_weights(base: keras.Model, model: ModelParams) -> None:
    path = in_root(model.weights)
    where = f"model.weights {path}"
    if not path.is_file():
        raise WeightsError(f"{where}: no such file. Allowed: imagenet, none, or the path of a .weights.h5 file")
    if path.suffix != ".h5":
        raise WeightsError(
            f"{where}: received a file that ends in {path.suffix!r}; weights of {model.backbone} end in .h5. A whole "
            f"model that ends in .keras can be given as model.backbone"
        )
    try:
        with _nothing_skipped():
            base.load_weights(path)
    except (ValueError, KeyError, OSError, UserWarning) as cause:
        raise WeightsError(
            f"{where} does not fit {model.backbone} without its top: {cause}. Give the weights of that very family, "
            f"saved without the top (notop)"
        ) from cause
    if model.backbone.startswith("EfficientNetB"):
        _mend_normalization(base)


@contextmanager
def _nothing_skipped():
    """Keras only warns when it finds no weights for some layers and leaves them random; here that is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Skipping", UserWarning)
        yield


def _mend_normalization(base: keras.Model) -> None:
    """Make EfficientNet B0 to B7 read from a file equal to `weights="imagenet"`.

    Keras's files hold a wrong variance (tensorflow#49930), and Keras divides by the square root of the SD once more
    when it downloads them, but not when it reads the same file from a path. Here the variance itself is mended. Random
    or own weights have another mean and stay as they are.
    """
    layer = next(layer for layer in base.layers if isinstance(layer, layers.Normalization))
    mean, variance, *count = layer.get_weights()
    if np.allclose(mean, IMAGENET_MEAN, atol=1e-3):
        layer.set_weights([mean, variance * IMAGENET_SD.astype(variance.dtype), *count])
        layer.finalize_state()


def _from_file(name: str, prepared: keras.KerasTensor) -> keras.KerasTensor:
    path = in_root(name)
    base = _checked(_read_model(path), path, prepared.shape[1])
    tensors = {}

    def call(layer, *args, **kwargs):
        tensors[layer.name] = layer(*args, **kwargs)
        return tensors[layer.name]

    try:
        # The clone's layers stand on our tensor; the clone itself begins at an input of its own.
        clone = keras.models.clone_model(
            base, input_tensors=prepared, clone_function=_rebuilt, call_function=call, recursive=True
        )
    except ValueError as cause:
        raise ValueError(f"model.backbone {path} takes no image.size_px {prepared.shape[1]}: {cause}") from cause
    clone.set_weights(base.get_weights())
    return tensors[base.output_names[0]]


def _rebuilt(layer):
    """A new layer of the same settings that computes in the precision of this run, whatever it was saved with."""
    config = layer.get_config()
    if "dtype" in config and "float" in str(layer.compute_dtype):
        config["dtype"] = keras.config.dtype_policy()
    return type(layer).from_config(config)


def _read_model(path: Path) -> keras.Model:
    if not path.is_file():
        raise WeightsError(f"model.backbone {path}: no such file. Give the path of a .keras file, or a family's name")
    try:
        with _nothing_skipped():
            return load_network(path)
    except (ModelError, UserWarning) as cause:
        raise WeightsError(
            f"model.backbone {path} cannot be read as a .keras file: {cause}. Save it with Keras 3, model.save(...), "
            f"from layers that Keras itself has"
        ) from cause


def _checked(base: keras.Model, path: Path, size_px: int) -> keras.Model:
    """The file's model as a plain functional one, once it is known to be a backbone for these images."""
    where = f"model.backbone {path}"
    ends = [getattr(base, end, None) or [] for end in ("inputs", "outputs")]
    if [len(end) for end in ends] != [1, 1]:
        raise ValueError(
            f"{where}: received {len(ends[0])} inputs and {len(ends[1])} outputs; needed is a functional or sequential "
            f"model that makes one feature map of one image"
        )
    base = keras.Model(ends[0][0], ends[1][0])
    shape = tuple(base.input.shape)
    if len(shape) != 4 or shape[3] not in (3, None):
        raise ValueError(f"{where}: its input is {shape}; needed is (batch, height, width, 3)")
    if not {*shape[1:3]} <= {size_px, None}:
        raise ValueError(
            f"{where}: it was saved for images of {shape[1]} x {shape[2]}, received image.size_px {size_px}. Set "
            f"image.size_px to that, or save it for an input of (None, None, 3)"
        )
    if len(base.output.shape) != 4:
        raise ValueError(
            f"{where}: its output is {tuple(base.output.shape)}, no feature map (batch, height, width, channels). Save "
            f"it without its top: " + _without_top(base)
        )
    _check_layers(base, where)
    return base


def _without_top(base: keras.Model) -> str:
    last = [layer.name for layer in base.layers[1:] if len(getattr(layer.output, "shape", ())) == 4]
    if not last:
        return "none of its layers gives a feature map"
    return f'keras.Model(model.input, model.get_layer("{last[-1]}").output).save("backbone.keras")'


def _check_layers(base: keras.Model, where: str) -> None:
    """Names that are ours would make parts untellable, and models within the model its layers unreachable."""
    own = [layer for layer in base.operations if not isinstance(layer, layers.InputLayer)]
    taken = [op.name for op in own if op.name in ("pixels",) or op.name.startswith("to_") or _is_head(op.name)]
    if taken:
        raise ValueError(
            f"{where}: layers named {', '.join(taken)}; pixels, logit, to_... and head_... are names of the network "
            f"around it. Save it under other layer names"
        )
    within = [op.name for op in own if isinstance(op, keras.Model) and not isinstance(op, keras.Sequential)]
    if within:
        raise ValueError(
            f"{where}: it holds a model as a layer, {within[0]}, whose layers cannot be reached. Save that one: "
            f'model.get_layer("{within[0]}").save("backbone.keras")'
        )
