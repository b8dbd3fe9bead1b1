"""Transfer learning: a backbone put flat on raw pixels, which of its layers are trained, and where a network is cut.

A backbone is a family of `keras.applications`, an EfficientNet-Lite, or a `.keras` file. Flat means that the backbone's layers are layers of the
network itself and no model within it, so that Grad-CAM and fine-tuning reach them by name. Preparation is part of the
network; its layers are named `to_...`.
"""

import math
import warnings
from collections.abc import Iterator

import keras
import numpy as np
import pandas as pd
from keras import layers

from pneumolib.errors import ModelError
from pneumolib.learning.files import load_model
from pneumolib.learning.lite import efficientnet_lite, load_package_weights
from pneumolib.params import FAMILIES, FineTuningParams, ModelParams
from pneumolib.project import in_root

# Red, green, blue on the scale of 0 to 1, as the ImageNet weights of Keras were trained with.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_SD = np.array([0.229, 0.224, 0.225])
CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68])  # on the scale of 0 to 255

# value * scale + offset, per channel
_SCALES = {
    "caffe": (1.0, -CAFFE_MEAN_BGR),
    "torch": (1 / (255 * IMAGENET_SD), -IMAGENET_MEAN / IMAGENET_SD),
    "tf": (1 / 127.5, -1.0),
    "lite": (1 / 128, -127 / 128),
    "unit": (1 / 255, 0.0),
    "none": (1.0, 0.0),
}


def layer_parts(network: keras.Model) -> list[str]:
    """The part that each of `network.layers` belongs to: `input`, `backbone` or `head`; `network` without a backbone.

    Names alone decide, so that it holds for a model read from a file.
    """
    names = [layer.name for layer in network.layers]
    if "to_backbone" not in names:
        return ["network"] * len(names)
    return ["input" if n == "pixels" or n.startswith("to_") else "head" if _is_head(n) else "backbone" for n in names]


def _layers_of(network: keras.Model, *parts: str) -> list[keras.Layer]:
    return [layer for layer, part in zip(network.layers, layer_parts(network), strict=True) if part in parts]


def _is_head(name: str) -> bool:
    return name == "logit" or name.startswith("head_")


def leaves(layer: keras.Layer) -> Iterator[keras.Layer]:
    """The layer itself, or all layers of a network or of a block: ConvNeXt holds some in `Sequential`."""
    if isinstance(layer, keras.Model):
        for inner in layer.layers:
            yield from leaves(inner)
    else:
        yield layer


def backbone_layers(network: keras.Model) -> list[keras.Layer]:
    """The backbone's layers, first to last, known by names: also of a model read from a file.

    A CNN from scratch has no backbone: all its layers but the input.
    """
    found = _layers_of(network, "backbone", "network")
    return [layer for layer in found if not isinstance(layer, layers.InputLayer)]


def trainable_parameters(layer: keras.Layer) -> int:
    """How many numbers of a layer, or of a whole network, are trained."""
    return sum(math.prod(weight.shape) for weight in layer.trainable_weights)


def output_shape(layer: keras.Layer) -> tuple[int, ...]:
    """Without the batch; of several outputs the first, of several calls the first."""
    return keras.tree.flatten(layer.output)[0].shape[1:]


def summary_table(model: keras.Model) -> pd.DataFrame:
    """One row a layer: name, type, part, output shape, parameters, trainable parameters.

    `part` is `input`, `backbone` or `head` of a transfer network, and `network` for the CNNs from scratch.
    """
    table = pd.DataFrame({"layer": [layer.name for layer in model.layers], "part": layer_parts(model)})
    table.insert(1, "type", [type(layer).__name__ for layer in model.layers])
    table["output"] = [" x ".join(map(str, output_shape(layer))) for layer in model.layers]
    table["parameters"] = [layer.count_params() for layer in model.layers]
    return table.assign(trainable=[trainable_parameters(layer) for layer in model.layers])


def put_backbone(model: ModelParams, pixels: keras.KerasTensor) -> keras.KerasTensor:
    """The backbone's feature map, float (batch, height, width, channels).

    Args:
        model: `backbone`, `weights` and `preprocess`.
        pixels: raw pixels, uint8 (batch, size_px, size_px, 1 or 3). A grey image becomes three equal channels.
    Raises:
        ValueError: a file that holds no backbone for these images.
        ModelError: weights that cannot be downloaded, found, read or fitted. Random weights never take their place.
    """
    preprocess = model.preprocess if model.from_file else FAMILIES[model.backbone][0]
    with warnings.catch_warnings():
        # Keras only warns when it finds no weights for some layers and leaves them random; here that is an error.
        warnings.filterwarnings("error", "Skipping", UserWarning)
        # MobileNets have weights for some sizes, all of one shape; Keras takes those of 224 px for other sizes.
        warnings.filterwarnings("ignore", "`input_shape` is undefined")
        return (_from_file if model.from_file else _family)(model, prepare(pixels, preprocess))


def prepare(pixels: keras.KerasTensor, preprocess: str) -> keras.KerasTensor:
    """Pixels as a backbone wants them, float32 (batch, size_px, size_px, 3).

    Args:
        pixels: uint8 (batch, size_px, size_px, 1 or 3), RGB.
        preprocess: `caffe` BGR less the ImageNet mean; `torch` 0 to 1, then ImageNet mean and SD; `tf` -1 to 1;
            `lite` nearly so; `unit` 0 to 1; `none` 0 to 255.
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
    build = getattr(keras.applications, model.backbone, None)
    if model.weights != "imagenet":
        if FAMILIES[model.backbone][0] == "lite":
            features = efficientnet_lite(model.backbone, prepared)
        else:
            features = build(include_top=False, weights=None, input_tensor=prepared).output
        if model.weights == "package":
            load_package_weights(keras.Model(prepared, features), model.backbone)
        elif model.weights != "none":
            # Without our own layers: files count the layers of a kind.
            _read_weights(keras.Model(prepared, features), model)
        return features
    try:
        return build(include_top=False, weights="imagenet", input_tensor=prepared).output
    # Broad, because Keras itself raises a plain Exception when a download fails.
    except Exception as cause:
        raise ModelError(
            f"the ImageNet weights of {model.backbone} are not available: {cause}. Fetch that file on a machine with "
            f"network and give its path as model.weights, or write weights: none for random weights"
        ) from cause


def _read_weights(base: keras.Model, model: ModelParams) -> None:
    path = in_root(model.weights)
    where = f"model.weights {path}"
    if not path.is_file():
        raise ModelError(f"{where}: no such file. Allowed: imagenet, package, none, or the path of a .weights.h5 file")
    try:
        base.load_weights(path)
    except (ValueError, KeyError, OSError, UserWarning) as cause:
        raise ModelError(
            f"{where} does not fit {model.backbone} without its top: {cause}. Give an .h5 file of this family, saved without the top"
        ) from cause
    if model.backbone.startswith("EfficientNetB"):
        _mend_normalization(base)


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


def _from_file(model: ModelParams, prepared: keras.KerasTensor) -> keras.KerasTensor:
    path, tensors = in_root(model.backbone), {}
    where = f"model.backbone {path}"
    try:
        base = load_model(path)
    except ModelError as cause:
        raise ModelError(
            f"{where} cannot be read as a .keras file: {cause}. Save it with Keras 3, of Keras's own layers, or give a family's name"
        ) from cause
    if fault := next(_faults(base, prepared.shape[1]), None):
        raise ValueError(f"{where}: {fault}")
    base = keras.Model(base.inputs[0], base.outputs[0])

    def call(layer, *args, **kwargs):
        tensors[layer.name] = layer(*args, **kwargs)
        return tensors[layer.name]

    try:
        # The clone's layers start from our tensor; the clone itself begins at an input of its own.
        clone = keras.models.clone_model(base, prepared, _rebuilt, call, recursive=True)
    except ValueError as cause:
        raise ValueError(f"{where} takes no image.size_px {prepared.shape[1]}: {cause}") from cause
    clone.set_weights(base.get_weights())
    return tensors[base.output_names[0]]


def _rebuilt(layer):
    """A new layer of the same settings that computes in the precision of this run, whatever it was saved with."""
    config = layer.get_config()
    if "dtype" in config and "float" in str(layer.compute_dtype):
        config["dtype"] = keras.config.dtype_policy()
    return type(layer).from_config(config)


def _faults(base: keras.Model, size_px: int) -> Iterator[str]:
    """Why a file's model is no backbone for these images. Each is looked for after those before it."""
    ends = [[tuple(end.shape) for end in getattr(base, side, None) or []] for side in ("inputs", "outputs")]
    fits = [[len(shape) for shape in shapes] for shapes in ends] == [[4], [4]] and ends[0][0][3] in (3, None)
    if not fits:
        maps = [layer.name for layer in base.layers if len(getattr(layer.output, "shape", ())) == 4] or ["..."]
        yield (
            f"it takes {ends[0]} and gives {ends[1]}; needed is a functional or sequential model that takes one image, "
            f"(batch, height, width, 3), and gives one feature map, (batch, height, width, channels). Save it without its top: "
            f'keras.Model(model.input, model.get_layer("{maps[-1]}").output).save("backbone.keras")'
        )
    height, width = base.inputs[0].shape[1:3]
    if not {height, width} <= {size_px, None}:
        yield f"saved for images of {height} x {width}, received image.size_px {size_px}. Set image.size_px, or save it for any size"
    operations = keras.Model(base.inputs, base.outputs).operations
    own = [operation for operation in operations if not isinstance(operation, layers.InputLayer)]
    # Names that are ours would hide the parts of the network, and a model within the model hides its layers.
    if taken := [op.name for op in own if op.name == "pixels" or op.name.startswith("to_") or _is_head(op.name)]:
        yield f"layers named {', '.join(taken)}; pixels, logit, to_... and head_... have another meaning. Save it with other names"
    if within := [op.name for op in own if isinstance(op, keras.Model) and not isinstance(op, keras.Sequential)]:
        yield f'it holds a model as a layer, {within[0]}, which must be flat: model.get_layer("{within[0]}").save("backbone.keras")'


def freeze(network: keras.Model) -> None:
    """Freeze the backbone in fact: no weight of it is trainable, and its Dropout (EfficientNet has some) drops nothing.

    That also keeps the statistics of its BatchNormalization. So a training sees the very features that `predict` gives,
    and they can be computed once. `unfreeze` makes weights trainable again; Dropout stays at 0.
    """
    for layer in backbone_layers(network):
        layer.trainable = False
        for leaf in leaves(layer):
            if isinstance(leaf, layers.Dropout):
                leaf.rate = 0.0


def unfreeze(network: keras.Model, params: FineTuningParams) -> None:
    """Set in place which layers are trained; compile afterwards, Keras takes no notice before. The head is always trained.

    Args:
        network: from `build_model`, or read from a file.
        params: `unfreeze` is `all`, the number of the backbone's last layers, or the name of the layer to start from,
            in the order of `backbone_layers`. With `freeze_batchnorm` every BatchNormalization of the backbone keeps
            its weights and statistics: `training=False` does not do that under `fit` (keras#20285).
    Raises:
        ValueError: more layers than there are, or an unknown layer; with the number and some names.
    """
    backbone = backbone_layers(network)
    first = _first_trained([layer.name for layer in backbone], params.unfreeze)
    for number, layer in enumerate(backbone):
        layer.trainable = number >= first
        for leaf in leaves(layer) if params.freeze_batchnorm else ():
            if isinstance(leaf, layers.BatchNormalization):
                leaf.trainable = False
    for layer in _layers_of(network, "head"):
        layer.trainable = True


def _first_trained(names: list[str], asked: int | str) -> int:
    """Index of the first backbone layer to train."""
    if asked == "all":
        return 0
    if asked in names:
        return names.index(asked)
    if isinstance(asked, int) and asked <= len(names):
        return len(names) - asked
    raise ValueError(
        f"fine_tuning.unfreeze {asked!r}: the backbone has {len(names)} layers, and none of that name or number. Allowed: "
        f"all, 1 to {len(names)}, or a layer's name, such as {', '.join(names[-3:])}"
    )


def split_at_head(network: keras.Model) -> tuple[keras.Model, keras.Model]:
    """A transfer network in two that share its layers: what is the same for an image at every epoch, and what learns.

    Args:
        network: from `build_model` with `transfer`, the backbone frozen.
    Returns:
        features, uint8 (batch, size_px, size_px, channels) to what `head_pool` gives, or without it to the backbone's
        feature map; and head, from there to the logit. Training the head trains the network.
    Raises:
        ValueError: no backbone, or something before the cut that trains or is random in training.
    """
    head_layers = _layers_of(network, "head")
    if not head_layers:
        raise ValueError(f"{network.name} has no backbone to keep features of; write model.name: transfer")
    pool = next((layer for layer in head_layers if layer.name == "head_pool"), None)
    cut = pool.output if pool else head_layers[0].input
    features = keras.Model(network.input, cut, name="features")
    # What draws in training has the state of a generator besides its weights; Dropout of 0 draws nothing.
    members = list(leaves(features))
    drawing = [leaf for leaf in members if len(leaf.variables) > len(leaf.weights) and getattr(leaf, "rate", 1)]
    if changing := [leaf for leaf in members if leaf.trainable_weights] + drawing:
        raise ValueError(
            f"features cannot be kept: {len(changing)} layers before the head train or are random in training, first "
            f"{changing[0].name} ({type(changing[0]).__name__}). Freeze the backbone, or write features.views: 0"
        )
    return features, keras.Model(cut, network.output, name="head")
