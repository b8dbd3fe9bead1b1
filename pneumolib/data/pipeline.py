"""Files to batches. Training and evaluation input are two functions; they share nothing but the pixels.

Contract: images uint8 (batch, height, width, channels); labels float32 (batch, 1), 1 = pneumonia; weights float32
(batch, 1). Training batches are all full: with several devices a smaller last batch turns BatchNormalization into
NaN, silently. Evaluation keeps every image once, in the table's order.
"""

import numpy as np
import tensorflow as tf

from pneumolib.data.augment import N_DRAWS, augment_batch
from pneumolib.data.images import ImageSet
from pneumolib.params import AugmentParams

# Sets the draws of augmentation apart from those of the shuffle under the same (seed, epoch).
_AUGMENT_STREAM = tf.constant([0, 1 << 32], tf.int64)


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
    if batch_size > len(images):
        raise ValueError(
            f"training.batch_size {batch_size} is larger than the training split ({len(images)} images); lower it"
        )
    per_label = weights or {0: 1.0, 1: 1.0}
    labels = images.table.label.to_numpy()
    with tf.device("CPU"):  # the pixels stay in the host's memory; batches go to the accelerator one by one
        pixels = tf.constant(images.pixels)
        targets = tf.constant(labels[:, None], tf.float32)
        sample_weights = tf.constant(np.vectorize(per_label.__getitem__, otypes=[float])(labels)[:, None], tf.float32)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed=key)
        draws = tf.random.stateless_uniform([len(images), N_DRAWS], seed=key + _AUGMENT_STREAM)

        def batch(rows: tf.Tensor):
            # Whole batches are gathered and changed at once: per-image ops would cost more than the network's input.
            changed = augment_batch(tf.gather(pixels, rows), tf.gather(draws, rows), augment)
            return changed, tf.gather(targets, rows), tf.gather(sample_weights, rows)

        rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
        return rows.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    return tf.data.Dataset.range(start_epoch, epochs).flat_map(one_epoch).prefetch(tf.data.AUTOTUNE)


def steps_per_epoch(images: ImageSet, batch_size: int) -> int:
    """Full batches in one epoch of `train_dataset`."""
    return len(images) // batch_size


def eval_dataset(images: ImageSet, batch_size: int) -> tf.data.Dataset:
    """Batches of pixels in the table's order, the last one padded with black images to full size.

    Padding keeps every batch divisible by the number of devices; predict, then cut to `len(images)`:
    `model.predict(eval_dataset(images, 64))[: len(images)]`.
    """
    n_batches = -(-len(images) // batch_size)
    shape = (batch_size, *images.pixels.shape[1:])

    def batches():
        for start in range(0, n_batches * batch_size, batch_size):
            batch = np.zeros(shape, np.uint8)
            rows = images.pixels[start : start + batch_size]
            batch[: len(rows)] = rows
            yield batch

    signature = tf.TensorSpec(shape, tf.uint8)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(n_batches)).prefetch(tf.data.AUTOTUNE)
