"""Where does it run? With `gradients` the one place of `learning/` that knows the backend."""

import os

_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def start(seed: int, precision: str = "float32") -> dict:
    """Make the runtime ready: backend, seed, deterministic operations. Call it before anything else of `learning`.

    Runs are identical to the bit on the same machine with the same number of threads; the number of threads changes
    the order of sums, so it is part of what is returned and ends up in `result.json`.

    Args:
        seed: for Python, NumPy and Keras: weights and dropout.
        precision: `training.precision`: what layers compute in; weights, loss and logit stay float32.
    Returns:
        `backend, device, cores, precision`, for `result.json`.
    """
    # Information about CPU instruction sets would fill the page; warnings and errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"KERAS_BACKEND is {keras.backend.backend()!r}; this version runs on the TensorFlow backend only. Set "
            f"KERAS_BACKEND=tensorflow before Python starts"
        )
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(_POLICIES[precision])
    tf.config.experimental.enable_op_determinism()
    facts = describe()
    print(
        f"Running on {facts['device']} ({facts['cores']} cores), {facts['backend']}, {facts['precision']}, seed {seed}"
    )
    return facts


def describe() -> dict:
    """What numbers depend on besides code and data: `backend, device, cores, precision`."""
    import keras
    import tensorflow as tf

    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")]  # fmt: skip
    return {
        "backend": f"tensorflow {tf.__version__}, keras {keras.__version__}",
        "device": f"{len(gpus)} x {gpus[0]}" if gpus else "CPU",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "precision": keras.config.dtype_policy().name,
    }


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether a failure of any backend means that the device or the machine has no memory left."""
    return isinstance(fault, MemoryError) or any(
        word in f"{type(fault).__name__} {fault}" for word in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OOM when")
    )
