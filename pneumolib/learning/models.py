"""The networks: raw uint8 pixels in, one logit out. Scaling lives inside, so that no caller can scale otherwise."""

import keras
import numpy as np
import pandas as pd
from keras import layers

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
        ValueError: images too small for the network's poolings.
    """
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
    return keras.Model(inputs, _logit(x, initial_logit), name="separable_cnn")


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
    return keras.Model(inputs, _logit(x, initial_logit), name="gray_cnn")


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
    return keras.Model(inputs, _logit(x, initial_logit), name="coursework_cnn")


def _scaled_input(image: ImageParams):
    """The input, uint8, and its values from 0 to 1."""
    inputs = keras.Input((image.size_px, image.size_px, image.channels), dtype="uint8", name="pixels")
    return inputs, layers.Rescaling(1 / 255)(inputs)


def _logit(x, initial_logit: float):
    bias = keras.initializers.Constant(initial_logit)
    # float32 also under mixed precision: a 16-bit logit loses the tail of the probabilities.
    return layers.Dense(1, bias_initializer=bias, dtype="float32", name="logit")(x)


def summary_table(model: keras.Model) -> pd.DataFrame:
    """One row a layer: name, type, output shape, parameters, trainable ones."""
    rows = [
        {
            "layer": layer.name,
            "type": type(layer).__name__,
            "output": " x ".join(str(n) for n in layer.output.shape[1:]),
            "parameters": layer.count_params(),
            "trainable": sum(int(np.prod(w.shape)) for w in layer.trainable_weights),
        }
        for layer in model.layers
    ]
    return pd.DataFrame(rows)
