"""Fitting. Stopping and the kept weights follow validation, whose figures are computed exactly."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from pneumolib.code_digest import code_digest
from pneumolib.data.images import ImageSet
from pneumolib.data.pipeline import steps_per_epoch, train_dataset
from pneumolib.errors import InputError
from pneumolib.hosts import processes
from pneumolib.learning.checkpoint import Checkpoint
from pneumolib.learning.devices import check_agreement, describe, is_out_of_memory, synchronised, unsharded
from pneumolib.learning.files import load_network
from pneumolib.learning.fine_tuning import backbone_layers
from pneumolib.learning.optimizers import make_optimizer, rate_callbacks
from pneumolib.learning.predicting import PREDICT_BATCH, predict_logits
from pneumolib.learning.stopping import HISTORY_COLUMNS, DivergenceGuard, ValidationWatch
from pneumolib.params import RunParams, TrainingParams

# The code, besides the network, that decides what a training gives.
_DECIDE = [
    *(f"learning/{name}.py" for name in ("training", "optimizers", "stopping", "checkpoint", "features", "fine_tuning")),
    "learning/devices.py",
    "data/pipeline.py", "data/augment.py", "data/shards.py",
]  # fmt: skip


def class_weights(labels: np.ndarray, mode: str = "balanced") -> dict[int, float]:
    """Sample weight for each label: n / (2 n_c) when `balanced`, 1 when `none`.

    They travel as sample weights, which every backend and device takes; `class_weight` of `fit` does not.

    Raises:
        ValueError: labels of one class only, or an unknown mode.
    """
    counts = {label: int(np.sum(np.asarray(labels) == label)) for label in (0, 1)}
    if 0 in counts.values():
        raise ValueError(f"both classes are needed to train; received {counts[0]} normal and {counts[1]} pneumonia")
    if mode not in ("balanced", "none"):
        raise ValueError(f"training.class_weights: received {mode!r}, allowed: balanced, none")
    total = sum(counts.values())
    return {label: total / (2 * n) if mode == "balanced" else 1.0 for label, n in counts.items()}


def initial_logit(labels: np.ndarray, weights: dict[int, float]) -> float:
    """log(pos / neg) of the classes as the loss sees them, that is, after weighting: the best constant to start from.

    Without weights this is the plain class ratio; balanced weights make it 0, and the plain ratio would then start
    the training off by just what the weights took away.
    """
    positives, total = np.sum(labels), len(labels)
    return float(np.log(weights[1] * positives) - np.log(weights[0] * (total - positives)))


def fit(
    model: keras.Model, train: ImageSet, val: ImageSet, params: RunParams, folder: Path | None = None
) -> pd.DataFrame:
    """Train the model in place; it ends with the weights of the kept epoch, see `params.TrainingParams`.

    Args:
        model: from `build_model`, logit out. What is not trainable stays as it is.
        train, val: pixels and labels; the test split has no business here.
        params: `training`, `augment`, `fine_tuning` and `seed` are used.
        folder: where the state is kept after each epoch. A training that finds its own state there goes on from it, and
            ends as if it had not been interrupted, to the bit; a finished one is not repeated.
    Returns:
        history, one row an epoch, columns `HISTORY_COLUMNS`; `loss` is weighted by class and smoothed, `val_loss` is not.
        Without an epoch above all floors no row is `kept`, and the last weights stay.
    Raises:
        ValueError: one class only, or fewer images than a batch.
        FloatingPointError: the training diverged.
        MemoryError: with the parameter to lower.
    """
    training, mine = params.training, processes()
    weights = class_weights(train.table.label.to_numpy(), training.class_weights)
    task = Task(
        model=model,
        batches=lambda start: train_dataset(
            train, params.augment, training.batch_size, params.seed, training.epochs, weights, start, process=mine
        ),
        steps=steps_per_epoch(train, training.batch_size),
        score=lambda: predict_logits(model, val),
        labels=val.table.label.to_numpy(),
        seen=[train.identity, val.identity, *(part.table[["label"]].to_numpy() for part in (train, val))],
    )
    with memory_explained(params):
        return run_task(task, params, folder)


@dataclass(frozen=True)
class Task:
    """One training, whatever its input is.

    Attributes:
        model: to be trained.
        batches: from the first epoch to run, counted from 0, to `(inputs, label, weight)` batches.
        steps: batches in an epoch.
        score: logits of validation from the model as it is.
        labels: of validation.
        seen: arrays that the training depends on, for its key.
        prepared_in: seconds that went into `batches` before the first epoch, which they are added to.
    """

    model: keras.Model
    batches: Callable[[int], Iterable]
    steps: int
    score: Callable[[], np.ndarray]
    labels: np.ndarray
    seen: list[np.ndarray]
    prepared_in: float = 0.0


def run_task(task: Task, params: RunParams, folder: Path | None) -> pd.DataFrame:
    """Compile, take up what was kept, fit, and put the kept epoch's weights in place; see `fit`."""
    model, training = task.model, params.training
    key = training_key(task, params)  # before the weights move
    compile_model(model, params, task.steps)
    watch = ValidationWatch(task.score, task.labels, training, task.prepared_in)
    rates = rate_callbacks(training)
    average = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if training.ema_momentum else []
    checkpoint = Checkpoint(folder, key, watch, [*average, *rates])
    check_agreement("batches in an epoch", task.steps)  # after which no process still writes what the others will read
    done = checkpoint.take_up(model)
    check_agreement("epochs done", done)
    if done:
        print(f"Taken up after epoch {done} from {folder}" + (": nothing left to train" if watch.is_over else ""))
    if not watch.is_over:
        board = _tensorboard(folder) if training.tensorboard and processes()[0] == 0 else []
        # The moving average goes into the model before validation sees it; the checkpoint sees what all others did.
        callbacks = [DivergenceGuard(), *average, watch, *rates, *board, checkpoint]
        # shuffle=False: the data set comes shuffled, and Keras would warn that it cannot do it again.
        with synchronised(model):
            model.fit(
                unsharded(task.batches(done)), epochs=training.epochs, initial_epoch=done, steps_per_epoch=task.steps,
                callbacks=callbacks, shuffle=False, verbose=0,
            )  # fmt: skip
    model.set_weights(watch.best_weights)
    if watch.kept is None:
        print(f"No epoch exceeded all floors ({training.floors}); the weights of the last one stay")
    return pd.DataFrame(watch.rows, columns=HISTORY_COLUMNS)


def compile_model(model: keras.Model, params: RunParams, steps: int) -> None:
    """Optimizer, loss and the streaming training metrics, which see augmented images and weights that still move."""
    training, factor = params.training, params.fine_tuning.backbone_rate_factor
    slow = [v for layer in backbone_layers(model) for v in layer.trainable_variables] if factor < 1 else []
    if factor < 1 and len(slow) == len(model.trainable_variables):
        raise ValueError(
            f"fine_tuning.backbone_rate_factor {factor}: {model.name} has no backbone beside its head, so that the factor "
            f"would lower the whole rate; lower training.learning_rate instead"
        )
    optimizer = make_optimizer(training, steps, slow, factor)
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=training.label_smoothing)
    # A logit above 0 is a probability above 0.5, as in `validation_figures`.
    metrics = [
        keras.metrics.AUC(from_logits=True, name="auroc"),
        keras.metrics.Recall(thresholds=0.0, name="sensitivity"),
        keras.metrics.Precision(thresholds=0.0, name="ppv"),
    ]
    model.compile(optimizer, loss, metrics=metrics, steps_per_execution=_steps_at_once(training, steps))
    model.optimizer.build(model.trainable_variables)  # now, so that a kept state finds its variables


def _steps_at_once(training: TrainingParams, steps: int) -> int:
    """The largest number up to `steps_per_execution` that divides an epoch, which otherwise would run into the next one.

    Raises:
        InputError: several under MirroredStrategy, where Keras's fit fails (keras#19246).
    """
    asked, devices = training.steps_per_execution, describe()["devices"]
    if asked > 1 and devices > 1 and keras.backend.backend() == "tensorflow":
        raise InputError(
            f"training.steps_per_execution: received {asked}, allowed with {devices} devices under TensorFlow: 1; or "
            f"devices.backend: jax"
        )
    return max(n for n in range(1, min(asked, steps) + 1) if steps % n == 0)


@contextmanager
def memory_explained(params: RunParams) -> Iterator[None]:
    """Turn a full memory, which each backend reports in its own way, into a MemoryError that says what to lower."""
    try:
        yield
    # Broad, because each backend has its own exception for it; all others go on as they are.
    except Exception as fault:
        if not is_out_of_memory(fault):
            raise
        first = f"features.views {params.features.views}, " if params.features.views and params.model.backbone else ""
        raise MemoryError(
            f"out of memory with {first}training.batch_size {params.training.batch_size} and image.size_px "
            f"{params.image.size_px}: lower them in this order, each to half. Validation is scored in batches of "
            f"{PREDICT_BATCH}, which only image.size_px makes smaller"
        ) from fault


def _tensorboard(folder: Path | None) -> list[keras.callbacks.Callback]:
    if folder is None:
        return []
    return [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)]


def training_key(task: Task, params: RunParams) -> dict[str, Any]:
    """What a training is made from; two with equal keys give equal weights, to the bit, on the same machine."""
    sections = {"seed", "image", "augment", "model", "features", "fine_tuning", "training"}
    return {
        "parameters": params.model_dump(include=sections, mode="json"),
        "network": [architecture_hash(task.model), weights_hash(task.model)],
        "images": arrays_hash([*task.seen, task.labels]),
        "library": code_of(_DECIDE),
        "machine": describe() | {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
    }


def code_of(modules: list[str]) -> dict[str, str]:
    """Module, as a path within the library, to a digest of what its code does."""
    package = Path(__file__).resolve().parents[1]
    return {name: code_digest((package / name).read_text(encoding="utf-8")) for name in modules}


def architecture_hash(model: keras.Model) -> str:
    """Settings of all operations and how they are wired; names do not count, Keras numbers them through a process's life."""
    config = model.get_config()
    places = {layer["config"]["name"]: f"operation {n}" for n, layer in enumerate(config["layers"])}

    def renamed(value):
        if isinstance(value, dict):
            return {k: renamed(v) for k, v in value.items() if k != "registered_name"}
        if isinstance(value, list | tuple):
            return [renamed(v) for v in value]
        return places.get(value, value) if isinstance(value, str) else value

    config.pop("name", None)
    return arrays_hash([np.frombuffer(repr(renamed(config)).encode(), np.uint8)])


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over all weight arrays; `.keras` files differ from save to save, their arrays do not."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def arrays_hash(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the values of arrays, shapes and types included."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_model(model: keras.Model, file: Path) -> None:
    """Save network and weights as `.keras`, without the optimizer: smaller, and it loads without this library."""
    # Tensors, not lists of one: a network that is read back has them as it was built with.
    keras.Model(model.inputs[0], model.outputs[0], name=model.name).save(file)


def load_model(file: Path) -> keras.Model:
    """A network that `save_model` wrote, as it was: weights, and which of them are trainable.

    Raises:
        FileNotFoundError: no such file, with what writes it.
        ModelError: a file that must not be loaded; see `files`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the notebook that trains this network writes it")
    return load_network(file)


def kept_epoch(history: pd.DataFrame) -> int:
    """The epoch, from 1, whose weights a training ended with: the last one `kept`, or the last one of all."""
    return int(history.epoch[history.kept].max() if history.kept.any() else history.epoch.max())


def training_facts(model: keras.Model, history: pd.DataFrame) -> dict:
    """What `result.json` keeps of a training besides its metrics."""
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return {
        "parameters": model.count_params(),
        "trainable_parameters": trainable,
        "epochs": len(history),
        "best_epoch": kept_epoch(history),
        "floors_exceeded": bool(history.kept.any()),
        "training_seconds": round(float(history.seconds.sum()), 1),
        "weights_sha256": weights_hash(model),
    }
