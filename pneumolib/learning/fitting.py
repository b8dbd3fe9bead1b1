"""Fitting. Stopping and the kept weights follow validation, whose figures are computed exactly."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from pneumolib.data.batches import steps_per_epoch, train_dataset
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet, read_images
from pneumolib.errors import InputError
from pneumolib.hosts import processes
from pneumolib.learning.callbacks import HISTORY_COLUMNS, Checkpoint, ValidationWatch, training_key, weights_hash
from pneumolib.learning.devices import check_agreement, describe, synchronised, unsharded
from pneumolib.learning.files import load_network
from pneumolib.learning.networks import build_model
from pneumolib.learning.predicting import PREDICT_BATCH, predict, predict_logits, predict_views
from pneumolib.learning.transfer import backbone_layers, trainable_parameters, unfreeze
from pneumolib.params import RunParams, TrainingParams

# Sections of the parameters that decide a training.
DECIDING = {"seed", "image", "augment", "model", "features", "fine_tuning", "training"}


def class_weights(labels: np.ndarray, mode: str = "balanced") -> dict[int, float]:
    """Sample weight for each label: n / (2 n_c) when `balanced`, 1 when `none`.

    They travel as sample weights, which every backend and device takes; `class_weight` of `fit` does not.

    Raises:
        ValueError: labels of one class only.
    """
    counts = {label: int(np.sum(np.asarray(labels) == label)) for label in (0, 1)}
    if 0 in counts.values():
        raise ValueError(f"both classes are needed to train; received {counts[0]} normal and {counts[1]} pneumonia")
    return {label: sum(counts.values()) / (2 * n) if mode == "balanced" else 1.0 for label, n in counts.items()}


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
            ends as if it had not been interrupted, to the bit; a finished training is not repeated.
    Returns:
        history, one row an epoch, columns `HISTORY_COLUMNS`; `loss` is weighted by class and smoothed, `val_loss` is not.
        Without an epoch above all floors no row is `kept`, and the last weights stay.
    Raises:
        ValueError: one class only, or fewer images than a batch.
        FloatingPointError: the training diverged.
        MemoryError: with the parameter to lower.
    """
    with memory_explained(params):
        key = training_key(model, params, DECIDING, [train, val], fit)
        return run_training(model, train, val, params, folder, key, partial(train_dataset, train, params.augment))


def run_training(
    model: keras.Model,
    train: ImageSet,
    val: ImageSet,
    params: RunParams,
    folder: Path | None,
    key: dict,
    batches: Callable,
) -> pd.DataFrame:
    """Compile, take up what was kept, fit, and put the kept epoch's weights in place; see `fit`.

    Args:
        model: what is trained, which may be a part of a network.
        val: what the model takes of validation: pixels, or features in their place.
        key: of `training_key`; a kept state of another key is not taken up.
        batches: `train_dataset` or `feature_dataset` of the images; takes what these take from `batch_size` on.
    """
    training, steps = params.training, steps_per_epoch(train, params.training.batch_size)
    weights = class_weights(train.table.label.to_numpy(), training.class_weights)
    compile_model(model, params, steps)
    watch = ValidationWatch(lambda: predict_logits(model, val), val.table.label.to_numpy(), training)
    rates = rate_callbacks(training)
    average = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if training.ema_momentum else []
    checkpoint = Checkpoint(folder, key, watch, [*average, *rates])
    check_agreement("batches in an epoch", steps)  # after which no process still writes what the others will read
    done = checkpoint.take_up(model)
    check_agreement("epochs done", done)
    if done:
        print(f"Taken up after epoch {done} from {folder}" + (": nothing left to train" if watch.is_over else ""))
    if not watch.is_over:
        logged = training.tensorboard and folder is not None and processes()[0] == 0
        board = [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)] if logged else []
        # The moving average goes into the model before validation sees it; the checkpoint sees what all others did.
        callbacks = [*average, watch, *rates, *board, checkpoint]
        order = (training.batch_size, params.seed, training.epochs, weights, done, processes())
        # shuffle=False: the data set comes shuffled, and Keras would warn that it cannot do it again.
        with synchronised(model):
            model.fit(
                unsharded(batches(*order)), epochs=training.epochs, initial_epoch=done, steps_per_epoch=steps,
                callbacks=callbacks, shuffle=False, verbose=0,
            )  # fmt: skip
    model.set_weights(watch.best_weights)
    if watch.kept is None:
        print(f"No epoch exceeded all floors ({training.floors}); the weights of the last one stay")
    return pd.DataFrame(watch.rows, columns=HISTORY_COLUMNS)


def compile_model(model: keras.Model, params: RunParams, steps: int) -> None:
    """Optimizer, loss and the streaming training metrics, which see augmented images and weights that still change.

    Several steps are executed at once as far as they divide an epoch, which otherwise would run into the next one.

    Raises:
        ValueError: a slower backbone of a network that has none.
        InputError: several steps at once under MirroredStrategy, where Keras's fit fails (keras#19246).
    """
    training, factor = params.training, params.fine_tuning.backbone_rate_factor
    asked, devices = training.steps_per_execution, describe()["devices"]
    if asked > 1 and devices > 1 and keras.backend.backend() == "tensorflow":
        raise InputError(
            f"training.steps_per_execution: received {asked}, allowed with {devices} devices under TensorFlow: 1; or "
            f"devices.backend: jax"
        )
    at_once = max(n for n in range(1, min(asked, steps) + 1) if steps % n == 0)
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
    model.compile(optimizer, loss, metrics=metrics, steps_per_execution=at_once)
    model.optimizer.build(model.trainable_variables)  # now, so that a kept state finds its variables


@contextmanager
def memory_explained(params: RunParams) -> Iterator[None]:
    """Turn a full memory, which each backend reports in its own way, into a MemoryError that says what to lower."""
    try:
        yield
    # Broad, because each backend has its own exception for it; all others go on as they are.
    except Exception as fault:
        words = "MemoryError|ResourceExhausted|RESOURCE_EXHAUSTED|OOM when"
        if not re.search(words, f"{type(fault).__name__} {fault}"):
            raise
        first = f"features.views {params.features.views}, " if params.features.views and params.model.backbone else ""
        raise MemoryError(
            f"out of memory with {first}training.batch_size {params.training.batch_size} and image.size_px "
            f"{params.image.size_px}: lower them in this order, each to half. Validation is scored in batches of "
            f"{PREDICT_BATCH}, which only image.size_px makes smaller"
        ) from fault


def make_optimizer(
    training: TrainingParams, steps_per_epoch: int, slow: list | None = None, factor: float = 1.0
) -> keras.optimizers.Optimizer:
    """The optimizer with its rate; rates that change by epoch are left to `rate_callbacks`.

    Args:
        training: optimizer, rate, schedule, weight decay, moving average.
        steps_per_epoch: optimizer steps.
        slow: variables whose rate is multiplied by `factor` (discriminative rates). AdamW's decay keeps the full rate.
    """
    kinds = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "rmsprop": keras.optimizers.RMSprop}
    kind = kinds[training.optimizer]
    options = {"weight_decay": training.weight_decay} if training.optimizer == "adamw" else {}
    if training.ema_momentum:
        options |= {"use_ema": True, "ema_momentum": training.ema_momentum}
    if slow:
        kind = _with_slow_part(kind, {id(v) for v in slow}, factor)
    return kind(_rate(training, steps_per_epoch), **options)


def _rate(training: TrainingParams, steps_per_epoch: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """A schedule over steps, or the first rate of a schedule over epochs."""
    start = training.learning_rate
    if training.schedule == "cosine":
        warmup = round(training.warmup_epochs * steps_per_epoch)
        falling = max(1, training.epochs * steps_per_epoch - warmup)
        share, (first, target) = training.lowest_rate / start, (0.0, start) if warmup else (start, None)
        return keras.optimizers.schedules.CosineDecay(first, falling, share, warmup_target=target, warmup_steps=warmup)
    if training.schedule == "exponential_steps":
        falling = _FlooredDecay(start, training.decay_every, training.decay_rate, staircase=True)
        falling.lowest = training.lowest_rate
        return falling
    return start


class _FlooredDecay(keras.optimizers.schedules.ExponentialDecay):
    lowest = 0.0

    def __call__(self, step):
        return keras.ops.maximum(super().__call__(step), self.lowest)


def _with_slow_part(kind: type, slow: set[int], factor: float) -> type:
    """The optimizer class with smaller updates for the variables of these ids.

    The rate is scaled, not the gradient: Adam and RMSprop divide by the gradient's size, so a scaled gradient would
    change nothing.
    """

    class Discriminative(kind):
        def update_step(self, gradient, variable, learning_rate):
            its_own = self._trainable_variables[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * (factor if id(its_own) in slow else 1.0))

    return Discriminative


def rate_callbacks(training: TrainingParams) -> list[keras.callbacks.Callback]:
    """Callbacks for rates that change from epoch to epoch; epochs are counted from 0, as published ones are."""

    def rate(epoch: int) -> float:
        turns = epoch // training.decay_every if training.schedule == "step_epochs" else epoch / training.decay_every
        return max(training.lowest_rate, float(training.learning_rate * training.decay_rate**turns))

    if training.schedule in ("exponential_epochs", "step_epochs"):
        return [keras.callbacks.LearningRateScheduler(rate)]
    if training.schedule != "plateau":
        return []
    options = {"mode": "min" if training.plateau_metric == "loss" else "max", "min_lr": training.lowest_rate}
    metric, patience = f"val_{training.plateau_metric}", training.decay_every
    return [keras.callbacks.ReduceLROnPlateau(metric, training.decay_rate, patience, **options)]


def train_and_predict(manifest: Manifest, split: pd.DataFrame, params: RunParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train `params.model` on images prepared as `params.image` says; the best epoch on validation predicts.

    The random state starts from `params.seed`, so that calls that differ in `params.image` alone start from the same
    weights and see the same images in the same order under the same changes.

    Returns:
        predictions of validation and test: `image_id, split, label, kind, group_id, logit, probability`;
        and the training's history, columns `HISTORY_COLUMNS`.
    """
    sets = {part: read_images(manifest, split, part, params.image) for part in ("train", "val", "test")}
    model, history = _trained(fit, sets, params)
    return pd.concat([predict(model, sets[part]) for part in ("val", "test")], ignore_index=True), history


def repeat_seeds(
    trainer: Callable, sets: dict[str, ImageSet], params: RunParams, folder: Path, continues: Path | None = None
) -> dict[int, pd.DataFrame]:
    """The run's training again from each of `evaluation.seeds`; weights, order, augmentation and dropout start anew.

    Args:
        trainer: `fit` or `fit_head`.
        sets: `train`, `val` and `test`; test is predicted, and decides nothing.
        folder: the run's own training folder; each seed keeps its state in a folder in there, and goes on from it.
        continues: the network that a fine-tuning starts from; the same for all seeds. None builds one.
    Returns:
        seed to predictions of validation and test, and of split `views`, validation in the augmented views of
        `evaluation.threshold_views`; empty without seeds.
    """
    found = {}
    for seed in params.evaluation.seeds:
        print(f"Seed {seed}", flush=True)
        own = params.model_copy(update={"seed": seed})
        model, _ = _trained(trainer, sets, own, folder / f"seed-{seed}", continues)
        views = predict_views(model, sets["val"], own).assign(split="views")
        found[seed] = pd.concat([*(predict(model, sets[part]) for part in ("val", "test")), views], ignore_index=True)
    return found


def _trained(trainer: Callable, sets: dict[str, ImageSet], params: RunParams, folder=None, continues=None) -> tuple:
    """A network from the state that `params.seed` gives, trained, and the history."""
    keras.utils.set_random_seed(params.seed)
    if continues is None:
        labels = sets["train"].table.label
        bias = initial_logit(labels, class_weights(labels, params.training.class_weights))
        model = build_model(params.model, params.image, bias)
    else:
        model = load_model(continues)
        unfreeze(model, params.fine_tuning)
    return model, trainer(model, sets["train"], sets["val"], params, folder)


def save_model(model: keras.Model, file: Path) -> None:
    """Save network and weights as `.keras`, without the optimizer: smaller, and it loads without this library."""
    # Tensors, not lists of one: a network that is read back has them as it was built with.
    keras.Model(model.inputs[0], model.outputs[0], name=model.name).save(file)


def load_model(file: Path) -> keras.Model:
    """A network that `save_model` wrote, as it was: weights, and which of them are trainable.

    Raises:
        FileNotFoundError: no such file, with what writes it.
        ModelError: a file that must not be loaded; see `load_network`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the notebook that trains this network writes it")
    return load_network(file)


def training_facts(model: keras.Model, history: pd.DataFrame) -> dict:
    """What `result.json` keeps of a training besides its metrics."""
    kept = history[history.kept] if history.kept.any() else history
    return {
        "parameters": model.count_params(),
        "trainable_parameters": trainable_parameters(model),
        "epochs": len(history),
        "best_epoch": int(kept.epoch.max()),
        "floors_exceeded": bool(history.kept.any()),
        "training_seconds": round(float(history.seconds.sum()), 1),
        "weights_sha256": weights_hash(model),
    }
