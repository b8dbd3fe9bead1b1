"""Batches over several devices and processes: who gets which rows, what is put together again, what must agree."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np

from pneumolib.hosts import processes
from pneumolib.learning.devices import describe
from pneumolib.learning.runtimes import DeviceError
from pneumolib.learning.transfer import leaves


def even(n: int) -> int:
    """`n` rounded up to a multiple of the devices that share a batch."""
    devices = describe()["devices"]
    return -(-n // devices) * devices


def unsharded(batches):
    """A data set for MirroredStrategy, which would else try to split its files over hosts, and warn that it cannot."""
    if keras.backend.backend() != "tensorflow" or describe()["devices"] == 1:
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.with_options(options)


@contextmanager
def synchronised(model: keras.Model) -> Iterator[None]:
    """BatchNormalization of a network takes mean and variance over the whole batch, not over each device's part.

    JAX sees a batch as one whatever devices hold it. Under TensorFlow's MirroredStrategy each replica would use its own
    rows, which are few; there the layers are told, and only while they train: the setting is TensorFlow's own, and would
    keep the saved network from being read under JAX.
    """
    apart = keras.backend.backend() == "tensorflow" and describe()["devices"] > 1
    every = [leaf for layer in model.layers for leaf in leaves(layer)] if apart else []
    layers = [layer for layer in every if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = False


def predict_batches(model: keras.Model, batches) -> np.ndarray:
    """`model.predict` for any number of processes: every one of them receives all of it.

    Args:
        batches: of `eval_dataset`; their size a multiple of the devices.
    """
    if processes()[1] == 1:
        return model.predict(unsharded(batches), verbose=0)
    call = _call_on_all(model)
    return np.concatenate([call(batch) for batch in batches.as_numpy_iterator()])


@functools.lru_cache(maxsize=4)  # JAX would compile each new function anew
def _call_on_all(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled call whose input is spread over all devices of all processes, and whose output is whole on each.

    Keras's own `predict` leaves each process with its devices' rows, and fails when it puts them together.
    """
    import jax

    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    axis = jax.sharding.PartitionSpec(mesh.axis_names[0])
    spread, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (axis, jax.sharding.PartitionSpec()))
    run = jax.jit(lambda w, x: model.stateless_call(*w, x, training=False)[0], out_shardings=whole)

    def call(batch: np.ndarray) -> np.ndarray:
        weights = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
        # Every process holds the whole batch and gives its devices their rows.
        rows = jax.make_array_from_callback(batch.shape, spread, lambda index: batch[index])
        return np.asarray(run(weights, rows))

    return call


def check_agreement(what: str, value: int) -> None:
    """All processes must have the same number, or they would wait for each other for ever.

    Raises:
        DeviceError: with the number of each process.
    """
    if processes()[1] == 1:
        return
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.int32(value))).ravel().tolist()
    if len(set(found)) > 1:
        raise DeviceError(
            f"{what} differ from process to process ({', '.join(map(str, found))}): they must see the same folder runs/, "
            f"on a disk that all hosts share, and have the same cores and package versions, without which what is kept of a training "
            f"is not taken up. Or train anew: --force"
        )
