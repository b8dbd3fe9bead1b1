"""Pixels to batches. Training and evaluation input are two functions; they share nothing but the pixels.

Contract: images uint8 (batch, height, width, channels); labels float32 (batch, 1), 1 = pneumonia; weights float32
(batch, 1). Training batches are all full: with several devices a smaller last batch turns BatchNormalization into
NaN, silently. Evaluation keeps every image once, in the table's order.

Images are read from the mapped file a batch at a time, so memory does not grow with their number.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pneumolib.data.augment import N_DRAWS, augment_batch
from pneumolib.data.pixels import ImageSet
from pneumolib.errors import InputError
from pneumolib.params import AugmentParams

# Set the draws of augmentation and of views apart from those of the shuffle under the same (seed, epoch).
_AUGMENT_STREAM = tf.constant([0, 1 << 32], tf.int64)
_VIEW_STREAM = tf.constant([0, 2 << 32], tf.int64)
_CHANGE_STREAM = tf.constant([0, 3 << 32], tf.int64)
_BATCHES_AHEAD = 8  # a fixed number: AUTOTUNE takes what memory there is


def train_dataset(
    images: ImageSet,
    augment: AugmentParams | None,
    batch_size: int,
    seed: int,
    epochs: int,
    weights: dict[int, float] | None = None,
    start_epoch: int = 0,
    process: tuple[int, int] = (0, 1),
    change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Full batches of `(pixels, label, weight)` for epochs `start_epoch` to `epochs - 1`, one after the other.

    The order of an epoch is a function of (seed, epoch), and what augmentation does to an image one of (seed, epoch,
    the image's place in the table): no hidden state, so that a training taken up at epoch k sees what an
    uninterrupted one sees. Images that do not fill a batch are left out, other ones each epoch.

    Args:
        augment: None for what a frozen backbone made of the images, `learning.predicting.frozen_features`: float32 (n, views, ...)
            in place of pixels, of which each epoch takes one view of each image.
        batch_size: of all processes together.
        weights: label to sample weight, from `learning.class_weights`; 1 for all when None.
        process: p of P; it gets the p-th of P equal slices of each batch, so that the batches are those of one process.
        change: a further change of images, after `augment`: takes pixels, uint8 (batch, height, width, channels), and seeds
            for TensorFlow's stateless functions, int32 (batch, 2), which (seed, epoch, the image's place) decide.
    Raises:
        ValueError: fewer images than one batch holds, or a batch that the processes do not divide.
        InputError: a `change` that gives other types or shapes, or two results for the same seeds.
    """
    if change is not None:
        _check_change(change, images.pixels[:4])
    (number, processes), n = process, len(images)
    if batch_size > n:
        raise ValueError(f"training.batch_size {batch_size} is larger than the training split ({n} images); lower it")
    if batch_size % processes:
        raise ValueError(f"training.batch_size {batch_size} is no multiple of the {processes} processes; make it one")
    mine = slice(number * batch_size // processes, (number + 1) * batch_size // processes)
    labels, per_label = images.table.label.to_numpy(), weights or {0: 1.0, 1: 1.0}
    with tf.device("CPU"):  # batches go to the accelerator one by one
        targets = tf.constant(labels[:, None], tf.float32)
        sample_weights = tf.constant(np.where(labels == 1, per_label[1], per_label[0])[:, None], tf.float32)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        inputs = _views(images.pixels, key) if augment is None else _augmented(images.pixels, key, augment, change)

        def batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            rows = rows[mine]
            return inputs(rows), tf.gather(targets, rows), tf.gather(sample_weights, rows)

        order = tf.random.experimental.stateless_shuffle(tf.range(n), seed=key)
        rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
        return rows.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    return tf.data.Dataset.range(start_epoch, epochs).flat_map(one_epoch).prefetch(_BATCHES_AHEAD)


def _check_change(change: Callable, pixels: np.ndarray) -> None:
    """Refuse a function that gives other images than it takes, or another result for the same seeds."""
    seeds = tf.constant(np.arange(2 * len(pixels)).reshape(-1, 2), tf.int32)
    one, two = (tf.convert_to_tensor(change(tf.constant(pixels), seeds)) for _ in range(2))
    if one.dtype != tf.uint8 or one.shape != pixels.shape or tf.reduce_any(one != two):
        raise InputError(
            f"change: received {one.dtype.name} {tuple(one.shape)}, needed uint8 {pixels.shape}, as tf.cast(..., tf.uint8) "
            f"gives, and the same for the same seeds, as tf.image.stateless_... and tf.random.stateless_... give"
        )


def _augmented(
    pixels: np.ndarray, key: tf.Tensor, augment: AugmentParams, change: Callable | None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """From rows of the table to their images, changed as the epoch's key decides."""
    # Whole batches are read and changed at once: per-image ops would cost more than the network's input.
    draws = tf.random.stateless_uniform([len(pixels), N_DRAWS], seed=key + _AUGMENT_STREAM)
    seeds = tf.random.stateless_uniform([len(pixels), 2], key + _CHANGE_STREAM, None, None, tf.int32)

    def read(rows: tf.Tensor) -> tf.Tensor:
        changed = augment_batch(_read(pixels, rows), tf.gather(draws, rows), augment)
        return changed if change is None else change(changed, tf.gather(seeds, rows))

    return read


def _views(features: np.ndarray, key: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """From rows of the table to a view of each, which the epoch's key chooses."""
    n, views = features.shape[:2]
    views_in_a_row = features.reshape(n * views, *features.shape[2:])
    chosen = tf.random.stateless_uniform([n], seed=key + _VIEW_STREAM, maxval=views, dtype=tf.int32)
    return lambda rows: _read(views_in_a_row, rows * views + tf.gather(chosen, rows))


def _read(values: np.ndarray, rows: tf.Tensor) -> tf.Tensor:
    """`values[rows]`, of an array that may be mapped from disk.

    Not `tf.gather`: tf.data's optimizer fills as much memory as a tensor takes for each iterator over it.
    """
    values = np.asarray(values)  # indexing a `memmap` costs more
    found = tf.numpy_function(lambda rows: np.take(values, rows, axis=0), [rows], values.dtype)
    return tf.ensure_shape(found, (rows.shape[0], *values.shape[1:]))


def steps_per_epoch(images: ImageSet, batch_size: int) -> int:
    """Full batches in one epoch of `train_dataset`."""
    return len(images) // batch_size


def eval_dataset(values: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Batches of pixels (or features) in their order, the last one padded with zeros to full size.

    Padding keeps every batch divisible by the number of devices; predict, then cut:
    `model.predict(eval_dataset(images.pixels, 64))[: len(images)]`.

    Args:
        values: (n, ...), of any type; may be mapped from disk, or `ChangedPixels`.
    """
    shape = (batch_size, *values.shape[1:])

    def batch(number: np.ndarray) -> np.ndarray:
        padded = np.zeros(shape, values.dtype)
        rows = values[number * batch_size : (number + 1) * batch_size]
        padded[: len(rows)] = rows
        return padded

    def load(number: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(batch, [number], values.dtype), shape)

    # Not `from_generator`: TensorFlow's kernel of it makes malloc give memory back at each free, for all of the process
    # (generator_dataset_op.cc sets M_TRIM_THRESHOLD), and what NumPy does afterwards takes two to four times as long.
    return tf.data.Dataset.range(-(-len(values) // batch_size)).map(load).prefetch(_BATCHES_AHEAD)


def view_dataset(images: ImageSet, augment: AugmentParams, batch_size: int, seed: int, view: int) -> tf.data.Dataset:
    """As `eval_dataset`, each image changed at random: a function of (seed, view, the image's place in the table)."""
    pixels = eval_dataset(images.pixels, batch_size)
    with tf.device("CPU"):
        key = tf.constant([seed, view], tf.int64) + _AUGMENT_STREAM
        draws = tf.random.stateless_uniform([len(pixels), batch_size, N_DRAWS], seed=key)

    def changed(number: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        return augment_batch(images, draws[number], augment)

    return pixels.enumerate().map(changed).prefetch(_BATCHES_AHEAD)
