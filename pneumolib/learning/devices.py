"""Where does it run? One call at the top of a notebook decides backend, devices, precision and how batches are shared.

TensorFlow runs the CPU, one GPU and several GPUs (MirroredStrategy). JAX runs TPU chips, several devices (DataParallel) and
several hosts, one process each. In `learning`, this module and `explain` alone know the backend.
"""

import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pneumolib.errors import InputError
from pneumolib.hosts import processes, tpu_hint
from pneumolib.params import DeviceParams, RunParams
from pneumolib.provenance import device_words

# `training.precision: auto`: what each kind of device is built for. float16 comes with loss scaling, which Keras adds.
PRECISION_OF = {"cpu": "float32", "gpu": "float16", "tpu": "bfloat16"}


def import_keras() -> None:
    """Import Keras quickly, so that whatever imports it later has it at once. `benchmarks/prediction.py` measures the gain.

    Keras and TensorFlow import JAX, scikit-learn, matplotlib and IPython where these are installed, for features that are
    not used here. All of them can be imported afterwards. Garbage collection during the import, and of its half a million
    objects when Python ends, would take a second. Where `KERAS_BACKEND` is not set, the backend is TensorFlow: a settings
    file in a person's home, which Keras would read, must not change results.
    """
    if "keras" in sys.modules:
        return
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # messages about the CPU would be printed between the results
    hidden = {"IPython", "jax", "matplotlib", "sklearn"} - {os.environ["KERAS_BACKEND"], *sys.modules}
    sys.modules.update(dict.fromkeys(hidden))  # None: Python's own sign for a module that must not be imported
    gc.disable()
    import keras  # noqa: F401

    gc.freeze()
    gc.enable()
    for name in hidden:
        del sys.modules[name]


def start(params: RunParams) -> dict:
    """Make the runtime ready: backend, devices, precision, seed, deterministic operations. Call it before all else of `learning`.

    Runs are identical to the bit on the same machine with the same number of threads. The number of threads changes
    the order of sums, so it is returned and written to `result.json`.

    Args:
        params: `devices`, `training.precision`, `training.batch_size` and `seed` are used.
    Returns:
        for `result.json`: what `describe` returns, `batch` and `batch_per_device` (images), `warnings`.
    Raises:
        InputError: what `devices` asks for is not there, or the process already runs with other settings.
    """
    asked, size = params.devices, params.training.batch_size
    if asked.virtual_cpus:
        asked = asked.model_copy(update={"require": "cpu"})
    backend, loaded = choose_backend(asked), sys.modules.get("keras")
    if loaded and loaded.config.backend() != backend:
        raise InputError(
            f"Keras was imported with the {loaded.config.backend()} backend before, and {backend} is asked for: restart the kernel"
        )
    os.environ["KERAS_BACKEND"] = backend
    import_keras()
    import keras

    try:
        (_start_tensorflow if backend == "tensorflow" else _start_jax)(asked, size)
    except RuntimeError as fault:  # of both: no such device, or already at work with other devices
        raise InputError(f"devices: {backend} says: {fault}. If it was at work before, restart the kernel") from fault
    keras.utils.set_random_seed(params.seed)
    facts = describe()
    if asked.require not in ("auto", facts["kind"]):
        sign = f"{hint} says that a TPU is here" if (hint := tpu_hint()) else "no sign of a TPU"
        raise InputError(
            f"devices.require: received {asked.require}, found {facts['device']} ({facts['backend']}; {sign}). Run it on such "
            f"a machine, or write devices.require: auto, which takes what there is"
        )
    precision = resolved_precision(params.training.precision, facts)
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    facts["precision"] = keras.config.dtype_policy().name
    facts |= {"batch": size, "batch_per_device": size // facts["devices"]}
    hint = tpu_hint() or next(Path("/dev").glob("nvidia0"), None)
    idle = f"{hint} says that a TPU or GPU is here. It is not used: a TPU needs 'jax[tpu]', see docs/platforms.md"
    facts["warnings"] = [idle] if hint and asked.require == "auto" and facts["kind"] == "cpu" else []
    print("\nWarning: ".join([f"Running on {device_words(facts)}, seed {params.seed}", *facts["warnings"]]))
    return facts


def choose_backend(asked: DeviceParams) -> str:
    """`tensorflow` or `jax`; nothing is imported.

    `devices.backend` decides. With `auto`, `KERAS_BACKEND` decides. Where that is not set, the backend is JAX for a TPU and
    for several processes, and TensorFlow otherwise.
    """
    named = asked.backend if asked.backend != "auto" else os.environ.get("KERAS_BACKEND")
    if named and named not in ("tensorflow", "jax"):
        raise InputError(f"KERAS_BACKEND: received {named!r}, allowed: tensorflow, jax, or leave it unset")
    if named == "tensorflow":
        return named
    needed, installed = named or asked.require == "tpu" or processes()[1] > 1, find_spec("jax")
    if needed and not installed:
        raise InputError("JAX is not installed, which TPUs and several processes need: pip install 'jax[tpu]'")
    return "jax" if needed or (installed and asked.require == "auto" and tpu_hint()) else "tensorflow"


def resolved_precision(asked: str, facts: dict) -> str:
    """`training.precision`, `auto` replaced by what suits the devices.

    Raises:
        InputError: float16 on several replicas of TensorFlow. Keras's loss scaling looks for overflow in the first replica
            alone (3.15, `_tf_apply` of its LossScaleOptimizer), so an overflow in another replica turns the weights into NaN.
    """
    if asked == "auto":
        return "float32" if replicated(facts) else PRECISION_OF[facts["kind"]]
    if asked == "float16" and replicated(facts):
        raise InputError(
            "training.precision: received float16; allowed on several devices of TensorFlow: float32, bfloat16"
        )
    return asked


def _count(asked: DeviceParams, found: int, batch_size: int) -> int:
    """How many of the devices are used; where nobody says, as many as can share a batch evenly.

    Raises:
        InputError: devices that are not there, or a batch that they cannot share.
    """
    together = processes()[1] > 1  # then all devices must take part
    count = asked.count or (found if together else max(n for n in range(1, found + 1) if batch_size % n == 0))
    if count > found or (together and count < found):
        every = ", and with several processes all devices take part" if together else ""
        raise InputError(f"devices.count: received {count}, found {found}{every}; leave it out to use all")
    if rest := batch_size % count:
        near = " and ".join(str(n) for n in (batch_size - rest, batch_size - rest + count) if n)
        raise InputError(
            f"training.batch_size: received {batch_size}, which {count} devices cannot share evenly; the nearest are {near}. "
            f"Or use fewer devices: devices.count"
        )
    return count


def _start_tensorflow(asked: DeviceParams, batch_size: int) -> None:
    """Visible devices, deterministic operations, and a strategy of replicas for several devices."""
    import tensorflow as tf

    if processes()[1] > 1:
        raise InputError("several processes need devices.backend: jax; TensorFlow's fit fails with two (keras#20585)")
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel(logging.WARNING)  # replicas print a line for each variable that they share
    gpus = [] if asked.require == "cpu" else tf.config.list_physical_devices("GPU")
    if asked.virtual_cpus:
        parts = [tf.config.LogicalDeviceConfiguration()] * asked.virtual_cpus
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    count = _count(asked, len(gpus) or asked.virtual_cpus or 1, batch_size)
    tf.config.set_visible_devices(gpus[:count], "GPU")
    names = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")][:count]
    # Made anew at every start: networks of the run before must not share its replicas.
    strategy = tf.distribute.MirroredStrategy(names) if len(names) > 1 else None
    tf.distribute.experimental_set_strategy(strategy)


def _start_jax(asked: DeviceParams, batch_size: int) -> None:
    """As `_start_tensorflow`; also connects to the other processes."""
    # Before JAX starts; known to it on every device, of effect on GPUs only.
    os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true " + os.environ.get("XLA_FLAGS", "")
    import jax
    import keras
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)  # it reads the input only
    if asked.require == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if asked.virtual_cpus:
        jax.config.update("jax_num_cpu_devices", asked.virtual_cpus)
    if processes()[1] > 1 and not jax.distributed.is_initialized():
        keras.distribution.initialize()  # reads KERAS_DISTRIBUTION_*, as `processes` does
    names = keras.distribution.list_devices()
    used = names[: _count(asked, len(names), batch_size)]
    # Each process makes its own part of a batch: `train_dataset`.
    several = keras.distribution.DataParallel(devices=used, auto_shard_dataset=False) if len(used) > 1 else None
    keras.distribution.set_distribution(several)


class Device(dict):
    """What `describe` tells. A type of this library, so that a training's key does not depend on the cell that asked for it."""


def describe() -> Device:
    """What numbers depend on besides code and data.

    Returns:
        `backend`, `kind` (cpu, gpu, tpu), `device` (its name), `devices` and `processes` (how many share a batch), `cores`,
        `precision`.
    """
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.get_visible_devices("GPU")
        kind, devices = "gpu" if gpus else "cpu", tf.distribute.get_strategy().num_replicas_in_sync
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else None
    else:
        import jax

        several = keras.distribution.distribution()
        kind, devices = jax.devices()[0].platform, several.device_mesh.devices.size if several else 1
        name = jax.devices()[0].device_kind
    if kind == "cpu":
        name = "CPU" if devices == processes()[1] else "virtual CPU"
    return Device({
        "backend": f"{backend} {sys.modules[backend].__version__}, keras {keras.__version__}",
        "kind": kind,
        "device": name,
        "devices": devices,
        "processes": processes()[1],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "precision": keras.config.dtype_policy().name,
    })  # fmt: skip


def replicated(facts: dict) -> bool:
    """Whether several replicas of TensorFlow's MirroredStrategy share a batch."""
    return facts["devices"] > 1 and facts["backend"].startswith("tensorflow")


def unsharded(batches):
    """A data set for MirroredStrategy, which would else try to split its files over hosts, and warn that it cannot."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.with_options(options)


@contextmanager
def synchronised(model: Any) -> Iterator[None]:
    """BatchNormalization of a network takes mean and variance over the whole batch, not over each device's part.

    JAX sees a batch as one whatever devices hold it. Under TensorFlow's MirroredStrategy each replica would use its own
    rows, which are few. There the layers are told, and only while they train: the setting is TensorFlow's own, and would
    keep the saved network from being read under JAX.
    """
    from pneumolib.learning.transfer import leaves

    # Only BatchNormalization has it.
    layers = [layer for layer in leaves(model) if hasattr(layer, "synchronized") and replicated(describe())]
    for layer in layers:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = False


def predict_batches(model: Any, batches) -> np.ndarray:
    """`model.predict` for any number of processes: every one of them receives all of it.

    Args:
        model: a `keras.Model`.
        batches: of `eval_dataset`; their size a multiple of the devices.
    """
    if processes()[1] == 1:
        return model.predict(unsharded(batches), verbose=0)
    import jax

    run, spread = _call_on_all(model)
    weights = [[v.value for v in of] for of in (model.trainable_variables, model.non_trainable_variables)]
    # Every process holds the whole batch and gives its devices their rows.
    rows = (jax.make_array_from_callback(b.shape, spread, b.__getitem__) for b in batches.as_numpy_iterator())
    return np.concatenate([np.asarray(run(weights, of_batch)) for of_batch in rows])


@functools.lru_cache(maxsize=4)  # JAX would compile each new function anew
def _call_on_all(model: Any) -> tuple:
    """A compiled call whose output is whole on each process, and how its input is spread over all devices of all processes.

    Keras's own `predict` leaves each process with its devices' rows, and fails when it puts them together.
    """
    import jax
    import keras

    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    axis = jax.sharding.PartitionSpec(mesh.axis_names[0])
    spread, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (axis, jax.sharding.PartitionSpec()))
    return jax.jit(lambda w, x: model.stateless_call(*w, x, training=False)[0], out_shardings=whole), spread


def check_agreement(what: str, value: int) -> None:
    """All processes must have the same number, or they would wait for each other for ever.

    Raises:
        InputError: with the number of each process.
    """
    if processes()[1] == 1:
        return
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.int32(value))).ravel().tolist()
    if len(set(found)) > 1:
        raise InputError(
            f"{what} differ between processes: {found}. They need one runs/ on a shared disk, equal cores and packages; or --force"
        )
