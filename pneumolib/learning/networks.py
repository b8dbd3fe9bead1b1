"""The networks: raw uint8 pixels in, one logit out. Scaling happens inside, so that no caller can scale otherwise.

Layers of a head on a backbone are named `head_...`, the last layer `logit`; `transfer.layer_parts` knows a head by these names.
"""

import inspect
import json
from collections import Counter
from collections.abc import Iterator

import keras
import numpy as np
import pandas as pd
from keras import layers

from pneumolib.errors import InputError
from pneumolib.learning.files import class_reasons
from pneumolib.learning.transfer import freeze, output_shape, put_backbone, summary_table
from pneumolib.params import FAMILIES, ImageParams, ModelParams

# Below this side nothing is left after the last pooling.
SMALLEST_PX = {"separable_cnn": 32, "gray_cnn": 94, "coursework_cnn": 8}


def build_model(model: ModelParams, image: ImageParams, initial_logit: float = 0.0) -> keras.Model:
    """The network that `model.name` asks for.

    Args:
        model: which network, and its settings.
        image: size and channels of its input, uint8 (batch, size_px, size_px, channels).
        initial_logit: starting bias of the output, so that the first epoch does not go into learning the class
            ratio; see `learning.fitting.initial_logit`.
    Returns:
        a model whose output is a logit, float32 (batch, 1); the sigmoid belongs to loss and `predict`.
    Raises:
        ValueError: images too small for the network's poolings, or a file that holds no backbone for them.
        ModelError: a backbone's weights that are not available; see `learning.transfer`.
    """
    name = model.backbone or model.name
    smallest = SMALLEST_PX.get(name) or FAMILIES.get(name, ("", 0))[1]
    if image.size_px < smallest:
        raise ValueError(f"image.size_px {image.size_px} is too small for {name}: it needs at least {smallest}")
    pixels = keras.Input((image.size_px, image.size_px, image.channels), dtype="uint8", name="pixels")
    if model.name == "transfer":
        x = put_head(model, put_backbone(model, pixels))
    else:
        x = _NETWORKS[model.name](model, layers.Rescaling(1 / 255)(pixels))
    # float32 also under mixed precision: a 16-bit logit loses the tail of the probabilities.
    logit = layers.Dense(1, bias_initializer=keras.initializers.Constant(initial_logit), dtype="float32", name="logit")
    network = keras.Model(pixels, logit(x), name=model.name)
    if model.name == "transfer":
        freeze(network)
    return network


def checked(network: keras.Model, image: ImageParams) -> keras.Model:
    """A network of any making as a functional one that the study can train, save and load again.

    A `Sequential` or subclassed network becomes the graph of its `call`, of the same layers: a file then holds Keras's own
    layers only. What `call` decides in Python, such as `if training:`, is decided here, once.

    Args:
        network: takes pixels 0 to 255, (batch, size_px, size_px, channels), and gives one logit, or one probability by a
            sigmoid.
        image: size and channels of the pixels.
    Raises:
        InputError: with what was received, what is needed and the line to write.
    """
    shape = (image.size_px, image.size_px, image.channels)
    if type(network) is keras.Sequential:
        if not network.built:
            network.build((None, *shape))
        network = keras.Model(network.inputs, network.outputs, name=network.name)
    try:
        if type(network) is not keras.Model and type(network).__name__ != "Functional":
            network = _traced(network, shape)
        if fault := next(_faults(network, shape), None):
            raise InputError(fault)
    except InputError as fault:
        raise InputError(f"{network.name}: {fault}") from fault.__cause__
    return network


def _faults(network: keras.Model, shape: tuple[int, int, int]) -> Iterator[str]:
    """Why a functional network cannot be trained, saved or loaded again here. Each is looked for after those before it."""
    received, given = ([tuple(t.shape) for t in tensors] for tensors in (network.inputs, network.outputs))
    fits = (n in (None, needed) for n, needed in zip(received[0], (None, *shape), strict=True))
    if len(received) != 1 or not all(fits):
        yield f"received inputs {received}, needed one of {(None, *shape)}: write keras.Input({shape})"
    if given != [(None, 1)]:
        yield f"received outputs {given}, needed one of (None, 1): end in keras.layers.Dense(1)(x)"
    if (activation := output_activation(network)) not in ("linear", "sigmoid"):
        yield f"its output comes from {activation}, needed a layer with weights or its sigmoid: end in keras.layers.Dense(1)(x)"
    if (kind := network.outputs[0].dtype) != "float32":
        yield f'its output is {kind}, needed float32 for exact probabilities: end in keras.layers.Dense(1, dtype="float32")(x)'
    if refused := [*dict.fromkeys(class_reasons(json.loads(network.to_json())))]:
        yield f"once saved it could not be loaded again: {'; '.join(refused)}. Write layers of Keras or keras.ops there"


def network_source(model: ModelParams) -> str:
    """Python source of the function that builds `model.name`; of a transfer network, of its head."""
    return inspect.getsource(put_head if model.name == "transfer" else _NETWORKS[model.name])


def _traced(network: keras.Model, shape: tuple[int, int, int]) -> keras.Model:
    """A subclassed network as the graph of its `call`; InputError where that would be another network."""
    own = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
    if replaced := [name for name in own if getattr(type(network), name) is not getattr(keras.Model, name)]:
        raise InputError(f"its own {replaced[0]} would be lost; write the loss in compile, and the network in call")
    modes = [{}]
    if "training" in inspect.signature(network.call).parameters:
        modes = [{"training": False}, {"training": True}, {}]
    try:
        graphs = []
        for mode in modes:
            pixels = keras.Input(shape, dtype="uint8", name="pixels")
            graphs.append(keras.Model(pixels, network.call(pixels, **mode), name=network.name))
    # Broad, because what is wrong within somebody's `call` has no common kind.
    except Exception as fault:
        raise InputError(
            f"its call cannot be traced with Keras tensors: {fault}. Use layers and keras.ops, no tf, jax or numpy"
        ) from fault
    if len({tuple(type(operation) for operation in graph.operations) for graph in graphs}) > 1:
        raise InputError("`if training:` in its call cannot be saved; hand `training` to the layers there")
    if lost := {v.path for v in network.variables} - {v.path for v in graphs[-1].variables}:
        raise InputError(f"{min(lost)} is a weight of no layer and could not be saved; put it into a Keras layer")
    return graphs[-1]


def output_activation(network: keras.Model) -> str:
    """What the output comes from: `linear` or `sigmoid` of a layer with weights, or the name of another operation."""
    last, _ = _last(network)
    name = getattr(getattr(last, "activation", None), "__name__", type(last).__name__)
    if name == "sigmoid" or type(last).__name__ == "Sigmoid":
        return "sigmoid"
    return name if (isinstance(last, layers.Layer) and last.weights) or name != "linear" else type(last).__name__


def _last(network: keras.Model) -> tuple[keras.Operation, keras.KerasTensor]:
    """The operation that gives the output, and what it was called on: an operation may be called more than once."""
    made = network.outputs[0]._keras_history
    return made.operation, made.operation._inbound_nodes[made.node_index].input_tensors[0]


def logit_network(network: keras.Model) -> keras.Model:
    """The network of the same layers whose output is the logit: where it ends in a sigmoid, without that."""
    last, before = _last(network)
    output = network.outputs[0]
    if output_activation(network) == "sigmoid":
        output = before
        if isinstance(last, layers.Layer) and last.weights:
            # Named apart: the layer itself may be used elsewhere in the network too.
            linear = type(last).from_config(last.get_config() | {"activation": "linear", "name": f"{last.name}_logit"})
            output = linear(before)
            linear.set_weights(last.get_weights())
    # Tensors, not lists of one: a network that is read back has them as it was built with.
    return keras.Model(network.inputs[0], output, name=network.name)


def averaged(networks: list[keras.Model]) -> keras.Model:
    """One network whose logit is the mean of the logits of several, which take the same pixels and share no layer."""
    first = networks[0].inputs[0]
    pixels = keras.Input(first.shape[1:], dtype=first.dtype, name="pixels")
    named = [keras.Model(one.inputs[0], one.outputs[0], name=f"member_{n}") for n, one in enumerate(networks)]
    # A layer with weights, by which `output_activation` knows a logit.
    options = {"use_bias": False, "trainable": False, "dtype": "float32", "name": "logit"}
    mean = layers.Dense(1, kernel_initializer=keras.initializers.Constant(1 / len(named)), **options)
    logits = layers.Concatenate(dtype="float32")([member(pixels) for member in named])
    return keras.Model(pixels, mean(logits), name="average")


def members(network: keras.Model) -> list[keras.Model]:
    """The networks that `averaged` averages, known by their names: also of a model read from a file. Of any other, itself."""
    inner = [layer for layer in network.layers if isinstance(layer, keras.Model) and layer.name.startswith("member_")]
    return inner or [network]


def separable_cnn(model: ModelParams, x: keras.KerasTensor) -> keras.KerasTensor:
    """The separable-convolution CNN of the keras.io example "Pneumonia classification on TPU" (A. M. Jang, 2020).

    Differences: logit instead of sigmoid, an output bias that is used, and BatchNormalization's momentum as a
    parameter. With Keras's 0.99 the moving averages need hundreds of steps to follow the weights: at 139 steps an
    epoch, validation AUROC read 0.50 for four epochs while training went well. With 0.9 it shows at once, and
    early stopping on validation has something to look at.

    Args:
        x: pixels from 0 to 1, float (batch, size_px, size_px, channels), here and in the other networks.
    Returns:
        what the output is computed from, float (batch, units), here and in the other networks.
    """
    for _ in range(2):
        x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    for filters, dropout in ((32, 0), (64, 0), (128, 0.2), (256, 0.2)):
        for _ in range(2):
            x = layers.SeparableConv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization(momentum=model.batchnorm_momentum)(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.Flatten()(x)
    for units, dropout in ((512, 0.7), (128, 0.5), (64, 0.3)):
        x = layers.Dense(units, activation="relu")(x)
        x = layers.BatchNormalization(momentum=model.batchnorm_momentum)(x)
        x = layers.Dropout(dropout)(x)
    return x


def gray_cnn(model: ModelParams, x: keras.KerasTensor) -> keras.KerasTensor:
    """The five-convolution CNN of H. Deshmukh's article, published for 500 x 500 grey images: 1,467,137 parameters."""
    for filters in (32, 32, 32, 64, 64):
        x = layers.Conv2D(filters, 3, activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    for units in (128, 64):
        x = layers.Dense(units, activation="relu")(x)
    return x


def coursework_cnn(model: ModelParams, x: keras.KerasTensor) -> keras.KerasTensor:
    """The baseline of the CNN-and-transfer coursework, published for 90 x 90 colour images: 6,616,417 parameters."""
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
    return layers.Activation("relu")(x)


_NETWORKS = {function.__name__: function for function in (separable_cnn, gray_cnn, coursework_cnn)}


def put_head(model: ModelParams, features: keras.KerasTensor) -> keras.KerasTensor:
    """The head that `model.head` asks for, but for the logit.

    Args:
        model: `head`, and its settings.
        features: the backbone's output, float (batch, height, width, channels).
    Returns:
        what the output is computed from, float (batch, units).
    Raises:
        ValueError: a feature map too small for the head's poolings.
    """
    if model.head == "recall_vgg19":
        return _recall_vgg19(model, features)
    x = layers.GlobalAveragePooling2D(name="head_pool")(features)
    if model.head_units:
        x = layers.Dense(model.head_units, activation="relu", name="head_dense")(x)
    return layers.Dropout(model.head_dropout, name="head_dropout")(x) if model.head_dropout else x


def _recall_vgg19(model: ModelParams, x: keras.KerasTensor) -> keras.KerasTensor:
    """The deep head of T. Tanev's proof of concept; 3,070,217 parameters on 9 x 9 x 512.

    Difference: BatchNormalization's momentum is the parameter, for the reason given at `separable_cnn`.
    """
    height, width = x.shape[1:3]
    if min(height, width) < 4:  # it is halved twice, and something must be left
        raise ValueError(
            f"model.head recall_vgg19 needs a feature map of at least 4 x 4; {model.backbone} gives {height} x {width}. "
            f"Raise image.size_px (a backbone that halves five times needs 128), or write head: pooled"
        )
    for n in (1, 2):
        x = layers.Conv2D(124, 3, padding="same", activation="relu", name=f"head_conv_{n}")(x)
        x = layers.BatchNormalization(momentum=model.batchnorm_momentum, name=f"head_batchnorm_{n}")(x)
        x = layers.MaxPooling2D(name=f"head_maxpool_{n}")(x)
    for n, filters in ((3, 64), (4, 64), (5, 32)):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"head_conv_{n}")(x)
    x = layers.Flatten(name="head_flatten")(x)
    for n in (1, 2, 3):
        x = layers.Dense(1024, activation="relu", name=f"head_dense_{n}")(x)
    return layers.Dropout(0.5, name="head_dropout")(x)


def network_blocks(network: keras.Model) -> pd.DataFrame:
    """The network in few rows, for a diagram: consecutive layers of one part and one spatial size are one block.

    Side branches belong to the block around them: the squeezed 1 x 1 maps of EfficientNet, and the padding before a
    strided convolution.

    Returns:
        one row a block, columns `part, kinds` ("5 Conv2D, 2 MaxPooling2D", at most three, the most frequent first),
        `output` ("height x width x channels"), `width` (1 of a vector), `parameters, trainable`.
    """
    table = summary_table(network).assign(narrow=narrows(network))
    shapes = [shape if len(shape) == 3 else (1, 1, shape[-1]) for shape in map(output_shape, network.layers)]
    table[["height", "width", "channels"]] = shapes
    # A block has the largest size still to come in its part, so that a branch that goes down and comes up again is part of the
    # block it comes up to. A padding belongs to the layer after it.
    sides = table[["height", "width"]].mask(table.type.isin(["ZeroPadding2D", "Cropping2D"]))[::-1]
    to_come = sides.groupby(table.part).cummax().groupby(table.part).ffill()
    table[["tall", "wide"]] = to_come.fillna(table[["height", "width"]]).astype(int)
    block = table[["part", "tall", "wide"]]
    return pd.DataFrame([_block(rows) for _, rows in table.groupby((block != block.shift()).any(axis=1).cumsum())])


def _block(rows: pd.DataFrame) -> dict:
    """One row of `network_blocks`; its channels are those that leave it, where one layer alone hands them on."""
    height, width = rows.tall.iloc[0], rows.wide.iloc[0]
    sized = rows[(rows.height == height) & (rows.width == width)]
    channels = sized.channels[sized.narrow].tolist()[-1:] or [sized.channels.max()]
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(rows.type).most_common(3))
    size = {"output": f"{height} x {width} x {channels[0]}", "width": width}
    weights = rows[["parameters", "trainable"]].sum().to_dict()
    return {"part": rows.part.iloc[0], "kinds": kinds} | size | weights


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
