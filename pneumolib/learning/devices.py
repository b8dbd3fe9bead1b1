"""Where does it run? One call at the top of a notebook decides backend, devices, precision and how batches are shared.

TensorFlow runs CPU, one GPU and several (MirroredStrategy); JAX runs TPU chips, several devices (DataParallel) and several
hosts, one process each. With `runtimes`, `distribution` and `gradients` the one place of `learning/` that knows the backend.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pneumolib.hosts import processes, tpu_hint
from pneumolib.learning.quick_import import import_keras
from pneumolib.learning.runtimes import DeviceError, see_jax, see_tensorflow, start_jax, start_tensorflow
from pneumolib.params import DeviceParams, RunParams

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
# `training.precision: auto`: what each kind of device is built for. float16 comes with loss scaling, which Keras adds.
PRECISION_OF = {"cpu": "float32", "gpu": "float16", "tpu": "bfloat16"}
BACKENDS = ("tensorflow", "jax")


def start(params: RunParams) -> dict:
    """Make the runtime ready: backend, devices, precision, seed, deterministic operations. Call it before all else of `learning`.

    Runs are identical to the bit on the same machine with the same number of threads; the number of threads changes
    the order of sums, so it is part of what is returned and ends up in `result.json`.

    Args:
        params: `devices`, `training.precision`, `training.batch_size` and `seed` are used.
    Returns:
        for `result.json`: what `describe` does, `batch` and `batch_per_device` (images), `warnings`.
    Raises:
        DeviceError: what `devices` asks for is not there, or the process runs otherwise already.
    """
    # Information about CPU instruction sets would fill the page; warnings and errors still show.
    asked = params.devices
    if asked.virtual_cpus:
        asked = asked.model_copy(update={"require": "cpu"})
    # Several replicas would add a warning for every data set, that a generator's graph cannot be rewritten.
    several = asked.virtual_cpus or len(list(Path("/dev").glob("nvidia[0-9]*"))) > 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if several else "1")
    backend, warnings = choose_backend(asked)
    _use_backend(backend)
    import_keras()
    import keras

    found = (start_tensorflow if backend == "tensorflow" else start_jax)(asked, params.training.batch_size)
    keras.utils.set_random_seed(params.seed)
    facts = describe()
    _check_kind(asked, facts)
    keras.config.set_dtype_policy(POLICIES[resolved_precision(params.training.precision, facts)])
    facts |= {"precision": keras.config.dtype_policy().name}
    facts |= _batches(params.training.batch_size, facts["devices"])
    facts["warnings"] = [*warnings, *_unused(asked, found, facts)]
    print(f"Running on {device_words(facts)}, seed {params.seed}")
    for text in facts["warnings"]:
        print(f"Warning: {text}")
    return facts


def choose_backend(asked: DeviceParams) -> tuple[str, list[str]]:
    """`tensorflow` or `jax`, and warnings; nothing is imported.

    `devices.backend` decides; left to `auto`, `KERAS_BACKEND` does; where that is not set, JAX for a TPU and for several
    processes, TensorFlow for all else.
    """
    hint, named = tpu_hint(), asked.backend if asked.backend != "auto" else os.environ.get("KERAS_BACKEND")
    if named and named not in BACKENDS:
        raise DeviceError(f"KERAS_BACKEND: received {named!r}, allowed: {', '.join(BACKENDS)}, or leave it unset")
    needed = named == "jax" or asked.require == "tpu" or processes()[1] > 1
    if named == "tensorflow" or not (needed or (hint and asked.require == "auto")):
        return "tensorflow", []
    if find_spec("jax") is None:
        lacking = f"JAX is not installed, which TPUs and several processes need: pip install 'jax[tpu]'{_sign(hint)}"
        if needed:
            raise DeviceError(lacking)
        return "tensorflow", [lacking]
    return "jax", []


def resolved_precision(asked: str, facts: dict) -> str:
    """`training.precision`, `auto` replaced by what suits the devices.

    Raises:
        DeviceError: float16 on several replicas of TensorFlow. Keras's loss scaling looks for overflow in the first replica
            alone (3.15, `_tf_apply` of its LossScaleOptimizer), so that one in another turns the weights into NaN.
    """
    replicas = facts["devices"] > 1 and facts["backend"].startswith("tensorflow")
    if asked == "auto":
        return "float32" if replicas else PRECISION_OF[facts["kind"]]
    if asked == "float16" and replicas:
        raise DeviceError(
            f"training.precision: received float16, which several devices under TensorFlow do not train safely (found "
            f"{facts['devices']}); allowed: float32, bfloat16. Or devices.count: 1"
        )
    return asked


def _use_backend(backend: str) -> None:
    """Keras reads the variable once, when it is imported."""
    if "keras" in sys.modules:
        import keras

        if keras.backend.backend() != backend:
            raise DeviceError(
                f"Keras was imported with the {keras.backend.backend()} backend before, and {backend} is asked for: restart "
                f"the kernel, and let pneumolib's `start` come before any import of Keras"
            )
    os.environ["KERAS_BACKEND"] = backend


def _check_kind(asked: DeviceParams, facts: dict) -> None:
    if asked.require not in ("auto", facts["kind"]):
        raise DeviceError(
            f"devices.require: received {asked.require}, found {facts['device']} ({facts['backend']}){_sign(tpu_hint())}. "
            f"Run it on such a machine, or write devices.require: auto, which takes what there is"
        )


def _unused(asked: DeviceParams, found: int, facts: dict) -> list[str]:
    """What seems to be there and is not used, though nobody asked for less."""
    kind, used = facts["kind"], facts["devices"]
    if asked.count is None and used < found:
        return [
            f"{found} devices are here, and {used} are used: a batch of {facts['batch']} images cannot be shared by more"
        ]
    if asked.require != "auto":
        return []
    if kind != "tpu" and (hint := tpu_hint()):
        return [f"a TPU seems to be here ({hint}), and is not used; it needs JAX: pip install 'jax[tpu]'"]
    if kind == "cpu" and Path("/dev/nvidia0").exists():
        return [
            f"an NVIDIA GPU is here, and is not used: {facts['backend']} was built for the CPU here, see the README"
        ]
    return []


def _sign(hint: str | None) -> str:
    return f"; {hint} says that a TPU is here" if hint else "; no sign of a TPU"


def _batches(batch_size: int, devices: int) -> dict[str, int]:
    if batch_size % devices:
        near = [n for n in (batch_size - batch_size % devices, batch_size + devices - batch_size % devices) if n]
        raise DeviceError(
            f"training.batch_size: received {batch_size}, which {devices} devices cannot share evenly; the nearest are "
            f"{' and '.join(str(n) for n in near)}. Or use fewer devices: devices.count"
        )
    return {"batch": batch_size, "batch_per_device": batch_size // devices}


def describe() -> dict:
    """What numbers depend on besides code and data.

    Returns:
        `backend`, `kind` (cpu, gpu, tpu), `device` (its name), `devices` and `processes` (how many share a batch), `cores`,
        `precision`.
    """
    import keras

    seen = see_tensorflow() if keras.backend.backend() == "tensorflow" else see_jax()
    return {
        **seen,
        "processes": processes()[1],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "precision": keras.config.dtype_policy().name,
    }


def device_words(facts: dict) -> str:
    """Where a run took place, in one line, from what `start` returns; results of runs without a network have less to say."""
    if not facts:
        return "not recorded"
    several = several_words(facts)
    hosts = f" in {facts['processes']} processes" if facts.get("processes", 1) > 1 else ""
    parts = [f"{several}{facts['device']}{hosts} ({facts['cores']} cores)"]
    parts += [str(facts[name]) for name in ("backend", "precision") if name in facts]
    if "batch" in facts:
        shared = f" ({facts['batch_per_device']} on each device)" if several else ""
        parts.append(f"batches of {facts['batch']} images{shared}")
    return ", ".join(parts)


def several_words(facts: dict) -> str:
    """`8 x ` of eight devices, nothing of one."""
    return f"{facts['devices']} x " if facts.get("devices", 1) > 1 else ""


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether a failure of any backend means that the device or the machine has no memory left."""
    return isinstance(fault, MemoryError) or any(
        word in f"{type(fault).__name__} {fault}" for word in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OOM when")
    )
