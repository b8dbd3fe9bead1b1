"""Files to batches. Training and evaluation input are two functions; they share nothing but the pixels.

Contract: images uint8 (batch, height, width, channels); labels float32 (batch, 1), 1 = pneumonia; weights float32
(batch, 1). Training batches are all full: with several devices a smaller last batch turns BatchNormalization into
NaN, silently. Evaluation keeps every image once, in the table's order.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pneumolib.data.augment import N_DRAWS, augment_batch
from pneumolib.data.images import ImageSet
from pneumolib.params import AugmentParams

# Set the draws of augmentation and of views apart from those of the shuffle under the same (seed, epoch).
_AUGMENT_STREAM = tf.constant([0, 1 << 32], tf.int64)
_VIEW_STREAM = tf.constant([0, 2 << 32], tf.int64)


def train_dataset(
    images: ImageSet,
    augment: AugmentParams,
    batch_size: int,
    seed: int,
    epochs: int,
    weights: dict[int, float] | None = None,
    start_epoch: int = 0,
) -> tf.data.Dataset:
    """Batches of `(pixels, label, weight)` for epochs `start_epoch` to `epochs - 1`, one after the other.

    The order of an epoch is a function of (seed, epoch), and what augmentation does to an image one of (seed, epoch,
    the image's place in the table): no hidden state, so that a training taken up at epoch k sees what an
    uninterrupted one sees. Images that do not fill a batch are left out, other ones each epoch.

    Args:
        weights: label to sample weight, from `learning.class_weights`; 1 for all when None.
    Raises:
        ValueError: fewer images than one batch holds.
    """
    _check_batch(batch_size, len(images))
    with tf.device("CPU"):  # the pixels stay in the host's memory; batches go to the accelerator one by one
        pixels = tf.constant(images.pixels)
        targets, sample_weights = _targets(images.table.label.to_numpy(), weights)

    def epoch_batches(key: tf.Tensor) -> Callable[[tf.Tensor], tuple]:
        draws = tf.random.stateless_uniform([len(images), N_DRAWS], seed=key + _AUGMENT_STREAM)

        def batch(rows: tf.Tensor):
            # Whole batches are gathered and changed at once: per-image ops would cost more than the network's input.
            changed = augment_batch(tf.gather(pixels, rows), tf.gather(draws, rows), augment)
            return changed, tf.gather(targets, rows), tf.gather(sample_weights, rows)

        return batch

    return _shuffled_epochs(len(images), batch_size, seed, range(start_epoch, epochs), epoch_batches)


def feature_dataset(
    features: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    epochs: int,
    weights: dict[int, float] | None = None,
    start_epoch: int = 0,
) -> tf.data.Dataset:
    """As `train_dataset`, for what a frozen backbone made of the images: each epoch takes one view of each image.

    Args:
        features: float32 (n, views, ...), from `learning.features`.
        labels: 0 and 1, (n,).
    """
    n, views = features.shape[:2]
    _check_batch(batch_size, n)
    with tf.device("CPU"):
        kept = tf.constant(features)
        targets, sample_weights = _targets(labels, weights)

    def epoch_batches(key: tf.Tensor) -> Callable[[tf.Tensor], tuple]:
        chosen = tf.random.stateless_uniform([n], seed=key + _VIEW_STREAM, maxval=views, dtype=tf.int32)

        def batch(rows: tf.Tensor):
            places = tf.stack([rows, tf.gather(chosen, rows)], axis=1)
            return tf.gather_nd(kept, places), tf.gather(targets, rows), tf.gather(sample_weights, rows)

        return batch

    return _shuffled_epochs(n, batch_size, seed, range(start_epoch, epochs), epoch_batches)


def _targets(labels: np.ndarray, weights: dict[int, float] | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels and sample weights, float32 (n, 1) each."""
    per_label = weights or {0: 1.0, 1: 1.0}
    of_each = np.vectorize(per_label.__getitem__, otypes=[float])(labels)
    return tf.constant(labels[:, None], tf.float32), tf.constant(of_each[:, None], tf.float32)


def _check_batch(batch_size: int, n: int) -> None:
    if batch_size > n:
        raise ValueError(f"training.batch_size {batch_size} is larger than the training split ({n} images); lower it")


def _shuffled_epochs(n: int, batch_size: int, seed: int, epochs: range, epoch_batches: Callable) -> tf.data.Dataset:
    """Full batches of rows, in an order that (seed, epoch) decides, turned into what `epoch_batches` makes of them."""

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(n), seed=key)
        rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
        return rows.map(epoch_batches(key), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    return tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(one_epoch).prefetch(tf.data.AUTOTUNE)


def steps_per_epoch(images: ImageSet, batch_size: int) -> int:
    """Full batches in one epoch of `train_dataset`."""
    return len(images) // batch_size


def eval_dataset(values: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Batches of pixels (or features) in their order, the last one padded with zeros to full size.

    Padding keeps every batch divisible by the number of devices; predict, then cut:
    `model.predict(eval_dataset(images.pixels, 64))[: len(images)]`.

    Args:
        values: (n, ...), of any type; may be mapped from disk.
    """
    n_batches = -(-len(values) // batch_size)
    shape = (batch_size, *values.shape[1:])

    def batches():
        for start in range(0, n_batches * batch_size, batch_size):
            batch = np.zeros(shape, values.dtype)
            rows = values[start : start + batch_size]
            batch[: len(rows)] = rows
            yield batch

    signature = tf.TensorSpec(shape, values.dtype)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(n_batches)).prefetch(tf.data.AUTOTUNE)


def view_dataset(images: ImageSet, augment: AugmentParams, batch_size: int, seed: int, view: int) -> tf.data.Dataset:
    """As `eval_dataset`, each image changed at random: a function of (seed, view, the image's place in the table)."""
    n_batches = -(-len(images) // batch_size)
    key = tf.constant([seed, view], tf.int64)
    draws = tf.random.stateless_uniform([n_batches, batch_size, N_DRAWS], seed=key + _AUGMENT_STREAM)
    pairs = tf.data.Dataset.zip(eval_dataset(images.pixels, batch_size), tf.data.Dataset.from_tensor_slices(draws))
    return pairs.map(lambda pixels, numbers: augment_batch(pixels, numbers, augment)).prefetch(tf.data.AUTOTUNE)
