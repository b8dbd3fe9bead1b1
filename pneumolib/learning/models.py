"""The networks: raw uint8 pixels in, one logit out. Scaling lives inside, so that no caller can scale otherwise."""

from collections import Counter

import keras
import numpy as np
import pandas as pd
from keras import layers

from pneumolib.learning.backbones import layer_parts, leaves, put_backbone
from pneumolib.learning.heads import logit, put_head
from pneumolib.params import ImageParams, ModelParams

# Below this side nothing is left after the last pooling.
SMALLEST_PX = {"separable_cnn": 32, "gray_cnn": 94, "coursework_cnn": 8}


def build_model(model: ModelParams, image: ImageParams, initial_logit: float = 0.0) -> keras.Model:
    """The network that `model.name` asks for.

    Args:
        model: which network, and its settings.
        image: size and channels of its input, uint8 (batch, size_px, size_px, channels).
        initial_logit: starting bias of the output, so that the first epoch does not go into learning the class
            ratio; see `learning.training.initial_logit`.
    Returns:
        a model whose output is a logit, float32 (batch, 1); the sigmoid belongs to loss and `predict`.
    Raises:
        ValueError: images too small for the network's poolings, or a file that holds no backbone for them.
        WeightsError: a backbone's weights that cannot be had; see `learning.backbones`.
    """
    if model.name == "transfer":
        return transfer(model, image, initial_logit)
    networks = {"separable_cnn": separable_cnn, "gray_cnn": gray_cnn, "coursework_cnn": coursework_cnn}
    if image.size_px < SMALLEST_PX[model.name]:
        raise ValueError(
            f"image.size_px {image.size_px} is too small for {model.name}: it needs at least {SMALLEST_PX[model.name]}"
        )
    return networks[model.name](model, image, initial_logit)


def separable_cnn(model: ModelParams, image: ImageParams, initial_logit: float) -> keras.Model:
    """The separable-convolution CNN of the keras.io example "Pneumonia classification on TPU" (A. M. Jang, 2020).

    Differences: logit instead of sigmoid, an output bias that is used, and BatchNormalization's momentum as a
    parameter. With Keras's 0.99 the moving averages need hundreds of steps to follow the weights: at 139 steps an
    epoch, validation AUROC read 0.50 for four epochs while training went well. With 0.9 it shows at once, and
    early stopping on validation has something to look at.
    """
    inputs, x = _scaled_input(image)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    for filters, dropout in ((32, 0), (64, 0), (128, 0.2), (256, 0.2)):
        x = _separable_block(x, filters, model.batchnorm_momentum)
        x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.Flatten()(x)
    for units, dropout in ((512, 0.7), (128, 0.5), (64, 0.3)):
        x = layers.Dense(units, activation="relu")(x)
        x = layers.BatchNormalization(momentum=model.batchnorm_momentum)(x)
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, logit(x, initial_logit), name="separable_cnn")


def _separable_block(x, filters: int, momentum: float):
    x = layers.SeparableConv2D(filters, 3, padding="same", activation="relu")(x)
    x = layers.SeparableConv2D(filters, 3, padding="same", activation="relu")(x)
    x = layers.BatchNormalization(momentum=momentum)(x)
    return layers.MaxPooling2D()(x)


def gray_cnn(model: ModelParams, image: ImageParams, initial_logit: float) -> keras.Model:
    """The five-convolution CNN of H. Deshmukh's article, published for 500 x 500 grey images: 1,467,137 parameters."""
    inputs, x = _scaled_input(image)
    for filters in (32, 32, 32, 64, 64):
        x = layers.Conv2D(filters, 3, activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    for units in (128, 64):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, logit(x, initial_logit), name="gray_cnn")


def coursework_cnn(model: ModelParams, image: ImageParams, initial_logit: float) -> keras.Model:
    """The baseline of the CNN-and-transfer coursework, published for 90 x 90 colour images: 6,616,417 parameters."""
    inputs, x = _scaled_input(image)
    for _ in range(2):
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2, strides=3)(x)
    x = layers.Dropout(0.2)(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(128, 2, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.5)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    x = layers.Dense(512)(x)
    x = layers.Dropout(0.5)(x)  # before the activation, as published
    x = layers.Activation("relu")(x)
    return keras.Model(inputs, logit(x, initial_logit), name="coursework_cnn")


def transfer(model: ModelParams, image: ImageParams, initial_logit: float) -> keras.Model:
    """A head on a frozen backbone, both flat in one network.

    Frozen in fact: no weight of the backbone is trainable, which also keeps the statistics of its BatchNormalization
    still, and its Dropout (EfficientNet has some) drops nothing. So a training sees the very features that `predict`
    gives, and they can be computed once. `fine_tuning.unfreeze` lets weights move again; Dropout stays at 0.
    """
    pixels = _pixels(image)
    network = keras.Model(pixels, put_head(model, put_backbone(model, pixels), initial_logit), name="transfer")
    for layer, part in zip(network.layers, layer_parts(network), strict=True):
        if part == "backbone":
            layer.trainable = False
            for leaf in leaves(layer):
                if isinstance(leaf, layers.Dropout):
                    leaf.rate = 0.0
    return network


def _pixels(image: ImageParams):
    return keras.Input((image.size_px, image.size_px, image.channels), dtype="uint8", name="pixels")


def _scaled_input(image: ImageParams):
    """The input, uint8, and its values from 0 to 1."""
    inputs = _pixels(image)
    return inputs, layers.Rescaling(1 / 255)(inputs)


def summary_table(model: keras.Model) -> pd.DataFrame:
    """One row a layer: name, type, part, output shape, parameters, trainable ones.

    `part` is `input`, `backbone` or `head` of a transfer network, and `network` for the CNNs from scratch.
    """
    rows = [
        {
            "layer": layer.name,
            "type": type(layer).__name__,
            "part": part,
            "output": " x ".join(str(n) for n in _output_shape(layer)),
            "parameters": layer.count_params(),
            "trainable": _trainable(layer),
        }
        for layer, part in zip(model.layers, layer_parts(model), strict=True)
    ]
    return pd.DataFrame(rows)


def network_blocks(network: keras.Model) -> pd.DataFrame:
    """The network in few rows, for a diagram: consecutive layers of one part and one spatial size are one block.

    Side branches belong to the block around them: the squeezed 1 x 1 maps of EfficientNet, and the padding before a
    strided convolution.

    Returns:
        one row a block, columns `part, layers` (how many), `kinds` ("5 Conv2D, 2 MaxPooling2D", at most three, the most
        frequent first), `output` ("height x width x channels"), `height, width, channels` (a vector has height and
        width 1), `parameters, trainable`.
    """
    table = pd.DataFrame(
        {
            "layer": network.layers,
            "part": layer_parts(network),
            "size": [_size(layer) for layer in network.layers],
            "narrow": narrows(network),
        }
    )
    table["block"] = [size for _, part in table.groupby("part", sort=False) for size in _block_sizes(part)]
    starts = (table[["part", "block"]] != table[["part", "block"]].shift()).any(axis=1)
    return pd.DataFrame([_block(rows) for _, rows in table.groupby(starts.cumsum())])


def _block_sizes(part: pd.DataFrame) -> list[tuple[int, int]]:
    """For each layer of a part the (height, width) of its block: the largest still to come.

    A branch that goes down and comes up again is thereby part of the block it comes up to. Paddings stand with the
    layer after them.
    """
    sizes, largest = [], (0, 0)
    for layer, (height, width, _) in zip(part.layer[::-1], part["size"][::-1], strict=True):
        if largest == (0, 0) or not isinstance(layer, layers.ZeroPadding2D | layers.Cropping2D):
            largest = max(largest, (height, width))
        sizes.append(largest)
    return sizes[::-1]


def _block(rows: pd.DataFrame) -> dict:
    """One row of `network_blocks`; its channels are those that leave it, where one layer alone hands them on."""
    height, width = rows.block.iloc[0]
    sized = rows[[size[:2] == (height, width) for size in rows["size"]]]
    channels = [size[2] for size in sized["size"][sized.narrow]]
    channels = channels[-1] if channels else max(size[2] for size in sized["size"])
    kinds = Counter(type(layer).__name__ for layer in rows.layer)
    return {
        "part": rows.part.iloc[0],
        "layers": len(rows),
        "kinds": ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3)),
        "output": f"{height} x {width} x {channels}",
        "height": height,
        "width": width,
        "channels": channels,
        "parameters": sum(layer.count_params() for layer in rows.layer),
        "trainable": sum(_trainable(layer) for layer in rows.layer),
    }


def narrows(network: keras.Model) -> list[bool]:
    """For each layer whether all that comes later sees what came earlier through this layer alone."""
    tensors = {id(t): n for n, op in enumerate(network.operations) for t in keras.tree.flatten(op.output)}
    last_use = [0] * len(network.operations)
    for n, op in enumerate(network.operations[1:], start=1):
        for t in keras.tree.flatten(op.input):
            if id(t) in tensors:  # of a layer called twice only the first call is known
                last_use[tensors[id(t)]] = n
    reached = np.maximum.accumulate([0, *last_use[:-1]])  # of all earlier ones
    return [bool(reached[n] <= n) for n, op in enumerate(network.operations) if isinstance(op, keras.Layer)]


def _output_shape(layer: keras.Layer) -> tuple[int, ...]:
    """Without the batch; of several outputs the first, of several calls the first."""
    return keras.tree.flatten(layer.output)[0].shape[1:]


def _size(layer: keras.Layer) -> tuple[int, int, int]:
    """Height, width, channels."""
    shape = _output_shape(layer)
    return shape if len(shape) == 3 else (1, 1, shape[-1])


def _trainable(layer: keras.Layer) -> int:
    return sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
