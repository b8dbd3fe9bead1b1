"""Which layers of a network are trained: the last ones of a backbone, all, or the head alone on kept features."""

import difflib

import keras
import numpy as np
import pandas as pd
from keras import layers

from pneumolib.learning.backbones import layer_parts, leaves
from pneumolib.params import FineTuningParams


def backbone_layers(network: keras.Model) -> list[keras.Layer]:
    """The backbone's layers, first to last, told from names: also of a model read from a file.

    A CNN from scratch has no backbone: all its layers but the input.
    """
    parts = layer_parts(network)
    return [
        layer
        for layer, part in zip(network.layers, parts, strict=True)
        if part in ("backbone", "network") and not isinstance(layer, layers.InputLayer)
    ]


def unfreeze(network: keras.Model, params: FineTuningParams) -> pd.DataFrame:
    """Set in place which layers are trained; compile afterwards, Keras takes no notice before.

    Args:
        network: from `build_model`, or read from a file.
        params: `unfreeze` is `all`, the number of the backbone's last layers, or the name of the layer to start from,
            in the order of `backbone_layers`. With `freeze_batchnorm` every BatchNormalization of the backbone keeps
            its weights and statistics: `training=False` does not do that under `fit` (keras#20285).
    Returns:
        one row a part, columns `part, layers, trained` (how many of them have weights that move), `first_trained` (the
        name of the first, or empty), `parameters, trainable` and `batchnorm_frozen` (layers). The head always moves.
    Raises:
        ValueError: more layers than there are, or an unknown layer; with the number or the nearest names.
    """
    backbone = backbone_layers(network)
    first = _first_trained([layer.name for layer in backbone], params.unfreeze)
    for number, layer in enumerate(backbone):
        layer.trainable = number >= first
        for leaf in leaves(layer):
            if params.freeze_batchnorm and isinstance(leaf, layers.BatchNormalization):
                leaf.trainable = False
    parts = pd.Series(layer_parts(network))
    for layer, part in zip(network.layers, parts, strict=True):
        if part == "head":
            layer.trainable = True
    by_part = parts[parts != "input"].groupby(parts, sort=False)
    return pd.DataFrame([_row(part, [network.layers[n] for n in rows.index]) for part, rows in by_part])


def _first_trained(names: list[str], asked: int | str) -> int:
    """Index of the first backbone layer to train."""
    if asked == "all":
        return 0
    if isinstance(asked, int):
        if asked > len(names):
            raise ValueError(
                f"fine_tuning.unfreeze {asked}: the backbone has {len(names)} layers. Allowed: 1 to {len(names)}, all, "
                f"or a layer's name"
            )
        return len(names) - asked
    if asked not in names:
        near = difflib.get_close_matches(asked, names, n=3, cutoff=0.4)
        hint = f"Nearest: {', '.join(near)}" if near else f"Its last ones: {', '.join(names[-3:])}"
        raise ValueError(
            f"fine_tuning.unfreeze {asked!r}: the backbone has no layer of that name among its {len(names)}. {hint}"
        )
    return names.index(asked)


def _row(part: str, members: list[keras.Layer]) -> dict:
    trained = [layer.name for layer in members if layer.trainable_weights]
    norms = [leaf for layer in members for leaf in leaves(layer) if isinstance(leaf, layers.BatchNormalization)]
    return {
        "part": part,
        "layers": len(members),
        "trained": len(trained),
        "first_trained": trained[0] if trained else "",
        "parameters": sum(layer.count_params() for layer in members),
        "trainable": sum(int(np.prod(w.shape)) for layer in members for w in layer.trainable_weights),
        "batchnorm_frozen": sum(not norm.trainable for norm in norms),
    }


def split_at_head(network: keras.Model) -> tuple[keras.Model, keras.Model]:
    """A transfer network in two that share its layers: what is the same for an image at every epoch, and what learns.

    Args:
        network: from `build_model` with `transfer`, the backbone frozen.
    Returns:
        features, uint8 (batch, size_px, size_px, channels) to what `head_pool` gives, or without one to the backbone's
        feature map; and head, from there to the logit. Training the head trains the network.
    Raises:
        ValueError: no backbone, or something before the cut that trains or is random in training.
    """
    head_layers = [layer for layer, part in zip(network.layers, layer_parts(network), strict=True) if part == "head"]
    if not head_layers:
        raise ValueError(f"{network.name} has no backbone to keep features of; write model.name: transfer")
    pool = next((layer for layer in head_layers if layer.name == "head_pool"), None)
    cut = pool.output if pool else head_layers[0].input
    features = keras.Model(network.input, cut, name="features")
    changing = [leaf for layer in features.layers for leaf in leaves(layer) if leaf.trainable_weights or _random(leaf)]
    if changing:
        raise ValueError(
            f"features cannot be kept: {len(changing)} layers before the head train or are random in training, first "
            f"{changing[0].name} ({type(changing[0]).__name__}). Freeze the backbone, or write features.views: 0"
        )
    return features, keras.Model(cut, network.output, name="head")


def _random(layer: keras.Layer) -> bool:
    """Whether two calls in training differ: Dropout above 0, noise, random augmentation."""
    return getattr(layer, "seed_generator", None) is not None and getattr(layer, "rate", 1) != 0
