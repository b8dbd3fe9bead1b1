"""Files to batches. Training and evaluation input are two functions; they share nothing but the pixels.

Contract: images uint8 (batch, height, width, channels); labels float32 (batch, 1), 1 = pneumonia; weights float32
(batch, 1). Training batches are all full: with several devices a smaller last batch turns BatchNormalization into
NaN, silently. Evaluation keeps every image once, in the table's order.

Pixels lie in memory, or in shards where they are more than `image.memory_gb` (`data.images.read_images` decides). The order
of an epoch is then another one, of the same kind; what augmentation does to an image is the same.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pneumolib.data.augment import N_DRAWS, augment_batch, draws_of
from pneumolib.data.images import ImageSet
from pneumolib.data.shards import ShardedPixels
from pneumolib.params import AugmentParams

# Set the draws of augmentation, of views and of the order within shards apart from those of the shuffle under the same
# (seed, epoch).
_AUGMENT_STREAM = tf.constant([0, 1 << 32], tf.int64)
_VIEW_STREAM = tf.constant([0, 2 << 32], tf.int64)
_WINDOW_STREAM = tf.constant([0, 3 << 32], tf.int64)
WINDOW_BYTES = 64 * 2**20  # of records that are shuffled at a time; about four times as much is in memory
_AT_ONCE = 8  # shards read side by side
_READ_BYTES = 2**20  # of a shard at a time
_BATCHES_AHEAD = 8  # a fixed number: AUTOTUNE takes what memory there is


def train_dataset(
    images: ImageSet,
    augment: AugmentParams,
    batch_size: int,
    seed: int,
    epochs: int,
    weights: dict[int, float] | None = None,
    start_epoch: int = 0,
    process: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches of `(pixels, label, weight)` for epochs `start_epoch` to `epochs - 1`, one after the other.

    The order of an epoch is a function of (seed, epoch), and what augmentation does to an image one of (seed, epoch,
    the image's place in the table): no hidden state, so that a training taken up at epoch k sees what an
    uninterrupted one sees. Images that do not fill a batch are left out, other ones each epoch.

    Args:
        batch_size: of all processes together.
        weights: label to sample weight, from `learning.class_weights`; 1 for all when None.
        process: p of P; it gets the p-th of P equal slices of each batch, so that the batches are those of one process.
    Raises:
        ValueError: fewer images than one batch holds, or a batch that the processes do not divide.
        ShardError: a shard that was cut short or deleted.
    """
    _check_batch(batch_size, len(images))
    with tf.device("CPU"):
        targets, sample_weights = _targets(images.table.label.to_numpy(), weights)

    def finished(pixels: tf.Tensor, draws: tf.Tensor, rows: tf.Tensor) -> tuple:
        # Whole batches are gathered and changed at once: per-image ops would cost more than the network's input.
        return augment_batch(pixels, draws, augment), tf.gather(targets, rows), tf.gather(sample_weights, rows)

    read = _from_shards if isinstance(images.pixels, ShardedPixels) else _from_memory
    mine = _slice_of(batch_size, *process)
    return read(images.pixels, batch_size, seed, range(start_epoch, epochs), mine, finished)


def _from_memory(
    pixels: np.ndarray, batch_size: int, seed: int, epochs: range, mine: slice, finished: Callable
) -> tf.data.Dataset:
    """Batches of images that lie in memory as a whole."""
    kept = _kept(pixels)

    def epoch_batches(key: tf.Tensor) -> Callable[[tf.Tensor], tuple]:
        draws = tf.random.stateless_uniform([len(pixels), N_DRAWS], seed=key + _AUGMENT_STREAM)

        def batch(rows: tf.Tensor) -> tuple:
            rows = rows[mine]
            return finished(tf.gather(kept, rows), tf.gather(draws, rows), rows)

        return batch

    return _shuffled_epochs(len(pixels), batch_size, seed, epochs, epoch_batches)


def _from_shards(
    shards: ShardedPixels, batch_size: int, seed: int, epochs: range, mine: slice, finished: Callable
) -> tf.data.Dataset:
    """Batches of images from files: shards in a new order, some read side by side, their records mixed in windows.

    A window is shuffled whole, by a stateless key: `Dataset.shuffle` also depends on the process's global seed. Windows of
    an epoch are of one size, so that the images which do not fill the last batch are drawn from a full one.
    """
    files = tf.constant([str(file) for file in shards.files()])
    n, largest = len(shards), max(batch_size, WINDOW_BYTES // shards.record.itemsize)
    window = -(-n // -(-n // largest))

    def read(file: tf.Tensor) -> tf.data.Dataset:
        # Handed on some at a time: switching between files after each record would cost more than reading it.
        return tf.data.TFRecordDataset(file, buffer_size=_READ_BYTES).batch(16)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])

        def mixed(number: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            of_window = key + _WINDOW_STREAM + tf.stack([number * (1 << 32), 0])
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.size(records)), seed=of_window)
            return tf.gather(records, order)

        def batch(records: tf.Tensor) -> tuple:
            rows, pixels = _parsed(records[mine], (mine.stop - mine.start, *shards.shape[1:]))
            return finished(pixels, draws_of(rows, key + _AUGMENT_STREAM), rows)

        order = tf.random.experimental.stateless_shuffle(tf.range(len(files)), seed=key)
        records = tf.data.Dataset.from_tensor_slices(tf.gather(files, order)).interleave(
            read, cycle_length=_AT_ONCE, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        windows = records.rebatch(window).enumerate().map(mixed)
        batches = windows.rebatch(batch_size, drop_remainder=True)
        return batches.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    return tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(one_epoch).prefetch(_BATCHES_AHEAD)


def _parsed(records: tf.Tensor, shape: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows, int64 (k,), and pixels, uint8 `shape` = (k, height, width, channels), of records that `data.shards` wrote."""
    numbers = tf.io.decode_raw(records, tf.uint8)
    return tf.bitcast(numbers[:, :8], tf.int64), tf.reshape(numbers[:, 8:], shape)


def _slice_of(batch_size: int, process: int, processes: int) -> slice:
    """Which of a batch's images one process gets."""
    if batch_size % processes:
        raise ValueError(f"training.batch_size {batch_size} is no multiple of the {processes} processes; make it one")
    size = batch_size // processes
    return slice(process * size, (process + 1) * size)


def feature_dataset(
    features: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    epochs: int,
    weights: dict[int, float] | None = None,
    start_epoch: int = 0,
    process: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """As `train_dataset`, for what a frozen backbone made of the images: each epoch takes one view of each image.

    Args:
        features: float32 (n, views, ...), from `learning.features`.
        labels: 0 and 1, (n,).
    """
    n, views = features.shape[:2]
    _check_batch(batch_size, n)
    kept, mine = _kept(features), _slice_of(batch_size, *process)
    with tf.device("CPU"):
        targets, sample_weights = _targets(labels, weights)

    def epoch_batches(key: tf.Tensor) -> Callable[[tf.Tensor], tuple]:
        chosen = tf.random.stateless_uniform([n], seed=key + _VIEW_STREAM, maxval=views, dtype=tf.int32)

        def batch(rows: tf.Tensor) -> tuple:
            rows = rows[mine]
            places = tf.stack([rows, tf.gather(chosen, rows)], axis=1)
            return tf.gather_nd(kept, places), tf.gather(targets, rows), tf.gather(sample_weights, rows)

        return batch

    return _shuffled_epochs(n, batch_size, seed, range(start_epoch, epochs), epoch_batches)


def _kept(values: np.ndarray) -> tf.Tensor:
    """A copy in the host's memory; batches go to the accelerator one by one.

    Without the identity TensorFlow holds a second copy beside it until the first batch is made.
    """
    with tf.device("CPU"):
        return tf.identity(tf.constant(values))


def _targets(labels: np.ndarray, weights: dict[int, float] | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels and sample weights, float32 (n, 1) each."""
    per_label = weights or {0: 1.0, 1: 1.0}
    of_each = np.where(labels == 1, per_label[1], per_label[0])
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

    def batch(number: np.ndarray) -> np.ndarray:
        padded = np.zeros(shape, values.dtype)
        rows = values[number * batch_size : (number + 1) * batch_size]
        padded[: len(rows)] = rows
        return padded

    def load(number: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(batch, [number], values.dtype), shape)

    # Not `from_generator`: TensorFlow's kernel of it makes malloc give memory back at each free, for all of the process
    # (generator_dataset_op.cc sets M_TRIM_THRESHOLD), and what NumPy does afterwards takes two to four times as long.
    return tf.data.Dataset.range(n_batches).map(load).prefetch(tf.data.AUTOTUNE)


def view_dataset(images: ImageSet, augment: AugmentParams, batch_size: int, seed: int, view: int) -> tf.data.Dataset:
    """As `eval_dataset`, each image changed at random: a function of (seed, view, the image's place in the table)."""
    key = tf.constant([seed, view], tf.int64) + _AUGMENT_STREAM

    def changed(number: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        rows = number * batch_size + tf.range(batch_size, dtype=tf.int64)
        return augment_batch(pixels, draws_of(rows, key), augment)

    return eval_dataset(images.pixels, batch_size).enumerate().map(changed).prefetch(tf.data.AUTOTUNE)
