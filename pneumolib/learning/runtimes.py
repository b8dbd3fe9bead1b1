"""TensorFlow and JAX made ready, each in its own way. Called by `devices` alone, which says what the words mean."""

import contextlib
import logging
import os

from pneumolib.hosts import processes
from pneumolib.params import DeviceParams


class DeviceError(RuntimeError):
    """A device or backend that cannot be had; the message says what was asked for, what was found, what to do."""


def start_tensorflow(asked: DeviceParams, batch_size: int) -> int:
    """Visible devices, deterministic operations, and a strategy of replicas where there are several; returns how many were found."""
    import tensorflow as tf

    if processes()[1] > 1:
        raise DeviceError("several processes need devices.backend: jax; TensorFlow's fit fails with two (keras#20585)")
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel(logging.WARNING)  # replicas tell of each variable that they share
    if asked.require == "cpu":
        _hide_from_tensorflow("GPU")
    if asked.virtual_cpus:
        _split_tensorflow_cpu(asked.virtual_cpus)
    gpus = tf.config.get_visible_devices("GPU")
    found = len(gpus) or asked.virtual_cpus or 1
    count = _count(asked, found, batch_size)
    if count < len(gpus):
        with contextlib.suppress(RuntimeError):  # at work already; then it holds memory on the others, too
            tf.config.set_visible_devices(gpus[:count], "GPU")
    names = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")][:count]
    # Made anew at every start: networks of the run before must not share its replicas.
    strategy = tf.distribute.MirroredStrategy(names) if len(names) > 1 else None
    tf.distribute.experimental_set_strategy(strategy)
    return found


def _split_tensorflow_cpu(parts: int) -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * parts)
    except RuntimeError:  # TensorFlow is at work already: right if it was split the same way
        found = len(tf.config.list_logical_devices("CPU"))
        if found != parts:
            raise DeviceError(_too_late(parts, found)) from None


def _hide_from_tensorflow(kind: str) -> None:
    """Where TensorFlow reads the input only, or the CPU was asked for."""
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], kind)
    except RuntimeError:
        if tf.config.list_logical_devices(kind):
            raise DeviceError(f"TensorFlow holds {kind}s in this process already: restart the kernel") from None


def start_jax(asked: DeviceParams, batch_size: int) -> int:
    """As `start_tensorflow`; also meets the other processes."""
    # Before JAX starts; known to it on every device, of effect on GPUs only.
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    import jax
    import keras

    for kind in ("GPU", "TPU"):
        _hide_from_tensorflow(kind)
    if asked.require == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if asked.virtual_cpus:
        _split_jax_cpu(asked.virtual_cpus)
    if processes()[1] > 1 and not jax.distributed.is_initialized():
        keras.distribution.initialize()  # reads KERAS_DISTRIBUTION_*, as `processes` does
    try:
        names = keras.distribution.list_devices()
    except RuntimeError as fault:  # what JAX raises for a platform that is named and does not start
        raise DeviceError(f"JAX finds no device: {fault}") from fault
    found = len(names)
    names = names[: _count(asked, found, batch_size)]
    # Each process makes its own part of a batch: `data.pipeline.train_dataset`.
    several = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False) if len(names) > 1 else None
    keras.distribution.set_distribution(several)
    return found


def _split_jax_cpu(parts: int) -> None:
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", parts)
    except RuntimeError:
        if jax.local_device_count("cpu") != parts:
            raise DeviceError(_too_late(parts, jax.local_device_count("cpu"))) from None


def _too_late(parts: int, found: int) -> str:
    return f"devices.virtual_cpus: received {parts}, but this process runs with {found} already: restart the kernel"


def _count(asked: DeviceParams, found: int, batch_size: int) -> int:
    """How many of the devices are used; where nobody says, as many as can share a batch evenly."""
    if asked.count is None:
        together = processes()[1] > 1  # then all must take part, and `devices` refuses a batch that does not fit
        return found if together else max(n for n in range(1, found + 1) if batch_size % n == 0)
    if asked.count > found:
        raise DeviceError(f"devices.count: received {asked.count}, found {found}; lower it, or leave it out to use all")
    if processes()[1] > 1 and asked.count < found:
        raise DeviceError(
            f"devices.count: received {asked.count}; with several processes all {found} devices take part"
        )
    return asked.count


def see_tensorflow() -> dict:
    """`backend, kind, device, devices` as `devices.describe` returns them."""
    import keras
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return {
        "backend": f"tensorflow {tf.__version__}, keras {keras.__version__}",
        "kind": "gpu" if gpus else "cpu",
        "device": name if gpus or replicas == 1 else "virtual CPU",
        "devices": replicas,
    }


def see_jax() -> dict:
    """As `see_tensorflow`."""
    import jax
    import keras

    several, first = keras.distribution.distribution(), jax.devices()[0]
    count = several.device_mesh.devices.size if several else 1
    cpu = "CPU" if count == processes()[1] else "virtual CPU"
    return {
        "backend": f"jax {jax.__version__}, keras {keras.__version__}",
        "kind": first.platform,
        "device": cpu if first.platform == "cpu" else first.device_kind,
        "devices": count,
    }
