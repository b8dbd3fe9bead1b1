"""Where does a network look? Grad-CAM, and two checks of what to make of its maps.

Contract: pixels uint8 (n, height, width, channels), as the network takes them; label 1 = pneumonia.
"""

import random
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from keras import layers
from PIL import Image
from scipy.special import expit
from scipy.stats import rankdata

from pneumolib.data.pixels import ChangedPixels, ImageSet
from pneumolib.learning.networks import members, narrows
from pneumolib.learning.predicting import predict_logits
from pneumolib.learning.transfer import layer_parts, leaves, output_shape

MAP_BATCH = 32  # images at once
SMALLEST_MAP = 9  # places: 3 x 3 has a middle and a rim, 2 x 2 cannot tell a lung from a border
BORDER = 0.125  # width of the border that is covered, of each side: 44% of the image
SETTLING = 64  # images that give the averages of BatchNormalization in a network of random weights
SCALE = 256.0  # of gradients: those of 16-bit layers would drop below their smallest number; maps do not depend on it
# Layers that make a feature map coarser, or nothing at all in prediction: the map before them says as much and more.
_COARSER = (
    layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D,
    layers.Dropout, layers.SpatialDropout2D, layers.ZeroPadding2D, layers.Cropping2D,
)  # fmt: skip


def grad_cam(model: keras.Model, pixels: np.ndarray, towards: int | np.ndarray = 1) -> np.ndarray:
    """Where the evidence for a class comes from, float32 (n, height, width), 0 to 1 for each image.

    Grad-CAM (Selvaraju et al., ICCV 2017): the feature maps of `map_layer`, each weighted by the mean gradient of the
    logit over it, are summed; what is below zero counts as nothing; enlarged (bilinear) and divided by the image's own
    maximum. Of a network that averages others, the sums of all members are averaged first. An image without any evidence in that
    direction has a map of zeros, and so has one whose 16-bit features overflow, and every image for a network without a feature map. Maps of two images cannot be compared in strength.

    Args:
        model: a network of `build_model`, in training or from a file; weights and state stay as they are.
        pixels: as the network takes them; may be mapped from disk.
        towards: 1, evidence for pneumonia (what raises the logit), or 0, evidence for normal (what lowers it); one for
            all images, or one for each, such as the predicted classes.
    Raises:
        ValueError: pixels that are not the network's.
    """
    wanted = tuple(model.inputs[0].shape[1:])
    if pixels.dtype != np.uint8 or pixels.shape[1:] != wanted:
        raise ValueError(f"pixels: {model.name} takes uint8 (n, {', '.join(map(str, wanted))}), received {pixels.dtype} "
                         f"{tuple(pixels.shape)}")  # fmt: skip
    towards = np.broadcast_to(towards, len(pixels))
    if map_layer(model) is None:
        return np.zeros(pixels.shape[:3], np.float32)
    return _enlarged(np.where(towards == 1, 1, -1)[:, None, None] * _mean_evidence(model, pixels), pixels.shape[1:3])


def map_layer(model: keras.Model) -> keras.Layer | None:
    """The layer whose output Grad-CAM reads: the last feature map of 3 x 3 places or more that all later layers see.

    Where images are so small that none has as many, the last one of more than one place. Pooling, Dropout and padding after
    a convolution are passed over, so that the map is not coarser than it need be. BatchNormalization is not: features
    count from their average then, and without it separable_cnn, whose pneumonias lack what normal lungs have, showed no
    evidence for pneumonia anywhere. So the layer is the last convolution of the CNNs from scratch (with its
    BatchNormalization), the backbone's output under a pooled head, and the last layer of the recall_vgg19 head that is
    large enough. None for a network that has no feature map, such as one of Dense layers.
    """
    model = members(model)[0]  # all are alike
    seen = zip(model.layers, layer_parts(model), narrows(model), strict=True)
    own = [layer for layer, part, narrow in seen if narrow and part != "input" and not isinstance(layer, _COARSER)]
    places = {layer: _places(layer) for layer in own if _places(layer) > 1}
    return next((layer for layer in reversed(places) if places[layer] >= SMALLEST_MAP), next(reversed(places), None))


def _places(layer: keras.Layer) -> int:
    """Of a feature map; 0 for anything else. Pixels and scaled pixels are none."""
    shape = output_shape(layer)
    return 0 if isinstance(layer, layers.InputLayer | layers.Rescaling) or len(shape) != 3 else shape[0] * shape[1]


def _split_at_map(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The network up to the map and from there on; both share its layers."""
    features = map_layer(model).output
    # Of a network from a file `input` and `output` are lists of one, and so would be what it returns.
    return keras.Model(model.inputs[0], features, name="lower"), keras.Model(features, model.outputs[0], name="upper")


def _mean_evidence(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """`_evidence` of a network, or its mean over the members."""
    parts = map(_split_at_map, members(model))
    return np.mean([_evidence(lower, [upper], pixels)[0] for lower, upper in parts], axis=0)


def _evidence(lower: keras.Model, uppers: list[keras.Model], pixels: np.ndarray) -> np.ndarray:
    """Features weighted by their mean gradient and summed, float32 (uppers, n, h, w): above zero for pneumonia."""
    look, gradients_of = output_and_gradient(lower)[0], [output_and_gradient(upper)[1] for upper in uppers]
    maps = [np.zeros((len(uppers), 0, *lower.output.shape[1:3]), np.float32)]
    for start in range(0, len(pixels), MAP_BATCH):
        features = look(np.ascontiguousarray(pixels[start : start + MAP_BATCH]))
        weights = np.stack([gradient(features).mean(axis=(1, 2)) for gradient in gradients_of])
        maps.append(np.einsum("nhwc,unc->unhw", features, weights))
    return np.concatenate(maps, axis=1)


def output_and_gradient(network: keras.Model) -> tuple[Callable, Callable]:
    """Two functions of a batch: the network's output, and `SCALE` times the gradient of each row's sum of outputs.

    Keras 3 has no gradients of its own, so each backend computes them. The network runs as in prediction:
    BatchNormalization by its averages, Dropout off. No weight changes.

    Returns:
        from values (batch, ...) to the output, float32 (batch, ...); from float values to an array of the same shape.
    """
    if keras.backend.backend() == "tensorflow":
        # Operation by operation: tracing a deep network would take longer than the few images that are asked for.
        import tensorflow as tf

        def output(values):
            return tf.cast(network(values, training=False), tf.float32)

        def gradient(values: np.ndarray) -> np.ndarray:
            values = tf.constant(values)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                # Images do not meet in prediction, so that the gradient of the sum holds the gradient of each.
                total = SCALE * tf.reduce_sum(output(values))
            return tape.gradient(total, values).numpy()

        return lambda values: output(tf.constant(values)).numpy(), gradient
    import jax

    # Weights are arguments, because closed over they would be compiled in as constants. The new state is dropped.
    weights = [[v.value for v in of] for of in (network.trainable_variables, network.non_trainable_variables)]
    run = jax.jit(lambda x, weights: network.stateless_call(*weights, x, training=False)[0].astype("float32"))
    slope = jax.jit(jax.grad(lambda x, weights: SCALE * run(x, weights).sum()))
    return lambda values: np.asarray(run(values, weights)), lambda values: np.asarray(slope(values, weights))


def _enlarged(evidence: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What is above zero, at the image's (height, width), divided by its maximum."""
    whole = np.isfinite(evidence).all(axis=(1, 2), keepdims=True)
    rising = np.where(whole, np.maximum(evidence, 0), 0).astype(np.float32)
    large = [np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BILINEAR)) for one in rising]
    maps = np.array(large, np.float32).reshape(-1, *size)
    most = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, most, out=np.zeros_like(maps), where=most > 0)


def occlusion_check(model: keras.Model, images: ImageSet) -> pd.DataFrame:
    """What a prediction loses when the middle of the image is covered, and when a border of the same area is.

    Lungs lie in the middle, and a border tells how a child was framed: a network whose logits move more when the
    border is covered has learned the framing. Covered pixels get the image's mean, so that its brightness stays; the
    edge of the cover is itself a change, and grey in place of a lung can look like an opacity: the middle has the advantage.

    Returns:
        one row an image: `image_id, label, group_id, logit, logit_centre_covered, logit_border_covered`, and the
        probabilities under the same names: `probability, probability_centre_covered, probability_border_covered`.
    """
    covers = _covers(images.pixels.shape[1:3])
    table = images.table[["image_id", "label", "group_id"]].reset_index(drop=True)
    for name, cover in covers.items():
        hidden = ChangedPixels(images.pixels, lambda pixels, _, cover=cover: _cover(pixels, cover))
        table[f"logit{name}"] = predict_logits(model, ImageSet(images.table, hidden))
    return table.assign(**{f"probability{name}": expit(table[f"logit{name}"]) for name in covers})


def _covers(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Which pixels nothing, a centre and a border of the same area (to a row of pixels) cover; bool (height, width) each."""

    def framed(margins: list[int]) -> np.ndarray:
        inner = np.zeros([n - 2 * margin for n, margin in zip(size, margins, strict=True)], bool)
        return np.pad(inner, [(margin, margin) for margin in margins], constant_values=True)

    share = np.sqrt(1 - (1 - 2 * BORDER) ** 2)  # of height and width, for the centre
    centre = ~framed([round(n * (1 - share) / 2) for n in size])
    border = framed([max(1, round(n * BORDER)) for n in size])
    return {"": np.zeros(size, bool), "_centre_covered": centre, "_border_covered": border}


def _cover(pixels: np.ndarray, cover: np.ndarray) -> np.ndarray:
    mean = pixels.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    return np.where(cover[None, :, :, None], mean, pixels)


def randomisation_check(model: keras.Model, pixels: np.ndarray, seed: int, draws: int = 3) -> dict:
    """Do the maps depend on what was learned? Against the maps of the same network with weights drawn anew.

    Weight randomisation (Adebayo et al., NeurIPS 2018): the rank correlation (Spearman) of the two maps of an image,
    before the cut at zero, at the map's own size. Near 0, maps depend on the learned weights; near 1, they are a
    property of image and architecture. `whole` draws all weights anew, `top` the weights after the map. A random network's
    sign is chance, and all its maps may share it: the spread over draws belongs to the result.

    Args:
        model: weights and state stay as they are.
        seed: decides the draws; Python's own random state stays as it is.
        draws: networks drawn of each kind.
    Returns:
        plain values for `result.json`: `images, draws, layer, height, width` (of the map), and for `whole` and `top`
        each `mean` over images and draws, `low` and `high` (the lowest and highest mean of a draw), `strength`, the mean
        of their absolute values (all null when no correlation can be computed), and `constant`, the number of pairs left
        out because a map has one value only. Without a feature map `layer` is null and nothing is computed.
    """
    if (layer := map_layer(model)) is None:
        nothing = dict.fromkeys(("whole", "top"), _summary([np.array([])]))
        return {"images": len(pixels), "draws": 0, "layer": None, "height": 0, "width": 0} | nothing
    some, names, found = np.ascontiguousarray(pixels[:SETTLING]), [f"{seed} {draw}" for draw in range(draws)], []
    for lower, upper in map(_split_at_map, members(model)):
        features = output_and_gradient(lower)[0](some)
        found.append(_evidence(lower, [upper, *(_redrawn(upper, name, features) for name in names)], pixels))
    trained, *by_top = np.mean(found, axis=0)
    by_whole = [_mean_evidence(_redrawn(model, name, some), pixels) for name in names]
    height, width = trained.shape[1:]
    return {"images": len(pixels), "draws": draws, "layer": layer.name, "height": height, "width": width} | {
        kind: _summary([_rank_correlations(trained, one) for one in drawn])
        for kind, drawn in (("whole", by_whole), ("top", by_top))
    }


def _redrawn(network: keras.Model, seed: str, inputs: np.ndarray) -> keras.Model:
    """The same network as it was before any training, with averages of BatchNormalization, if it has any, that fit `inputs`.

    Without these the features of a deep network of random weights vanish, and with them what is to be compared.
    """
    state = random.getstate()
    random.seed(seed)  # where Keras takes the seeds of initialisers from that have none
    try:
        # Around the same layers, not compiled: a copy of an optimizer is built from its name, which only Keras's own have.
        fresh = keras.models.clone_model(keras.Model(network.inputs, network.outputs))
    finally:
        random.setstate(state)
    old, new = (list(leaves(of)) for of in (network, fresh))
    for one, other in zip(old, new, strict=True):
        if isinstance(other, layers.Normalization) and other.weights:  # how pixels are scaled was not learned here
            other.set_weights(one.get_weights())
            other.finalize_state()
    norms = [layer for layer in new if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.trainable, norm.momentum = True, 0.0
    if norms:
        fresh(keras.ops.convert_to_tensor(inputs), training=True)
    return fresh


def _rank_correlations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Spearman's of each pair of maps, float (n,); NaN where one is constant or not finite."""
    with np.errstate(invalid="ignore"):
        ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, two)]
        a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def _summary(correlations: list[np.ndarray]) -> dict[str, float | int | None]:
    """Of correlations of a draw with each image, float (images,) for each draw."""
    draws = [values[np.isfinite(values)] for values in correlations]
    known, means = np.concatenate(draws), [values.mean() for values in draws if len(values)]
    # Signs of a random network cancel in the mean, and not in `strength`.
    found = [float(v) for v in (known.mean(), min(means), max(means), np.abs(known).mean())] if means else [None] * 4
    named = dict(zip(("mean", "low", "high", "strength"), found, strict=True))
    return named | {"constant": np.size(correlations) - len(known)}
