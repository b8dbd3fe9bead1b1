"""What stands on a backbone: from its feature map, float (batch, height, width, channels), to one logit.

Layers are named `head_...`, the last one `logit`; `backbones.layer_parts` tells a head by these names.
"""

import keras
from keras import layers

from pneumolib.params import ModelParams

# The smallest height and width of a feature map: recall_vgg19 halves it twice and needs something left.
SMALLEST_MAP = {"pooled": 1, "recall_vgg19": 4}


def put_head(model: ModelParams, features: keras.KerasTensor, initial_logit: float) -> keras.KerasTensor:
    """The head that `model.head` asks for.

    Args:
        model: `head`, and its settings.
        features: the backbone's output, float (batch, height, width, channels).
        initial_logit: starting bias of the output.
    Returns:
        the logit, float32 (batch, 1).
    Raises:
        ValueError: a feature map too small for the head's poolings.
    """
    height, width = features.shape[1:3]
    smallest = SMALLEST_MAP[model.head]
    if min(height, width) < smallest:
        raise ValueError(
            f"model.head {model.head} needs a feature map of at least {smallest} x {smallest}; {model.backbone} gives "
            f"{height} x {width}. Raise image.size_px (a backbone that halves five times needs {32 * smallest}), or "
            f"write head: pooled"
        )
    heads = {"pooled": _pooled, "recall_vgg19": _recall_vgg19}
    return logit(heads[model.head](model, features), initial_logit)


def logit(x: keras.KerasTensor, initial_logit: float) -> keras.KerasTensor:
    """The output of every network here, float32 (batch, 1), from (batch, units)."""
    bias = keras.initializers.Constant(initial_logit)
    # float32 also under mixed precision: a 16-bit logit loses the tail of the probabilities.
    return layers.Dense(1, bias_initializer=bias, dtype="float32", name="logit")(x)


def _pooled(model: ModelParams, x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    if model.head_units:
        x = layers.Dense(model.head_units, activation="relu", name="head_dense")(x)
    return layers.Dropout(model.head_dropout, name="head_dropout")(x) if model.head_dropout else x


def _recall_vgg19(model: ModelParams, x: keras.KerasTensor) -> keras.KerasTensor:
    """The deep head of T. Tanev's proof of concept; 3,070,217 parameters on 9 x 9 x 512.

    Difference: BatchNormalization's momentum is the parameter, for the reason given at `models.separable_cnn`.
    """
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
