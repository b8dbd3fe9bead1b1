"""Fitting. Stopping and the kept weights follow validation, whose figures are computed exactly."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import optimizers
from scipy.special import expit

from pneumolib.data.batches import steps_per_epoch, train_dataset
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet, read_images
from pneumolib.errors import InputError
from pneumolib.hosts import processes
from pneumolib.learning.callbacks import HISTORY_COLUMNS, Checkpoint, ValidationWatch, training_key, weights_hash
from pneumolib.learning.devices import check_agreement, describe, replicated, synchronised, unsharded
from pneumolib.learning.files import load_model
from pneumolib.learning.networks import averaged, build_model, logit_network, members, output_activation
from pneumolib.learning.predicting import PREDICT_BATCH, frozen_features, predict, predict_logits, predict_views
from pneumolib.learning.transfer import backbone_layers, split_at_head, trainable_parameters
from pneumolib.params import RunParams, TrainingParams
from pneumolib.project import whole_file

# Sections of the parameters that decide a training.
DECIDING = {"seed", "image", "augment", "model", "features", "fine_tuning", "training"}
SEED_FILE = "seed-{}.keras"
# Keras's losses that take no logit.
_OTHER_LOSSES = re.compile("^(mean_|huber|log_cosh|poisson|kl_|dice|tversky)|categorical|hinge$")


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
    network: keras.Model, train: ImageSet, val: ImageSet, params: RunParams, folder: Path | None = None
) -> pd.DataFrame:
    """Compile and train as the study's parameters say; `training` has arguments and errors. Returns the history."""
    part = trained_part(network, params)
    compile_model(part, params, steps_per_epoch(train, params.training.batch_size))
    with training(network, train, val, params, folder, part) as going:
        part.fit(going.batches, callbacks=going.callbacks, **going.options)
    return going.history


def trained_part(network: keras.Model, params: RunParams) -> keras.Model:
    """What is fitted: of a transfer network with kept `features.views` the head alone, from the features on; else all of it.

    Raises:
        ValueError: a backbone that is not frozen.
    """
    return split_at_head(network)[1] if params.features.views and params.model.backbone else network


@dataclass
class Training:
    """What `fit` of a compiled network takes for one training, and its history afterwards.

    Attributes:
        batches: `(pixels, label, weight)`, of the epochs that are still to do.
        callbacks: the study's, which keep the best epoch and the state.
        options: epochs and steps, as `fit` takes them.
        history: one row an epoch, columns `HISTORY_COLUMNS` and the network's own metrics, once the training is over; `loss`
            is weighted by class and of augmented images, `val_loss` is neither. Without an epoch above all floors no row is
            `kept`, and the last weights stay.
    """

    batches: Any  # a `tf.data.Dataset`
    callbacks: list[keras.callbacks.Callback]
    options: dict[str, Any]
    history: pd.DataFrame | None = None


@contextmanager
def training(
    network: keras.Model,
    train: ImageSet,
    val: ImageSet,
    params: RunParams,
    folder: Path | None = None,
    part: keras.Model | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    change: Callable | None = None,
) -> Iterator[Training]:
    """Take up what was kept, let the caller `fit`, and put the kept epoch's weights in place; see `params.TrainingParams`.

    Args:
        network: its output one logit or one probability. What is not trainable stays as it is.
        train, val: pixels and labels; the test split has no business here.
        params: `training`, `augment`, `features`, `fine_tuning` and `seed` are used.
        folder: where the state is kept after each epoch. A training that finds its own state there goes on from it, and
            ends as if it had not been interrupted, to the bit; a finished training is not repeated.
        part: what is compiled and fitted, of `trained_part`; the network by default.
        callbacks: further ones. What they remember is not kept.
        change: a further change of training images, after `augment`; see `data.train_dataset`.
    Raises:
        InputError: what is fitted is not compiled, or its loss does not fit to its output.
        ValueError: one class only, or fewer images than a batch.
        FloatingPointError: the training diverged.
        MemoryError: with the parameter to lower.
    """
    asked, model, steps = params.training, part or network, steps_per_epoch(train, params.training.batch_size)
    key = training_key(network, params, DECIDING, [train, val]) | {"part": model is not network}
    with memory_explained(params):
        batches, val_inputs, seconds = _inputs(network, model, train, val, params, folder, change)
        check_compiled(model, val_inputs)
    model.optimizer.build(model.trainable_variables)  # now, so that a kept state finds its variables
    watch = ValidationWatch(lambda: predict_logits(model, val_inputs), val.table.label.to_numpy(), asked)
    rates = rate_callbacks(asked)
    average = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if asked.ema_momentum else []
    is_logged = asked.tensorboard and folder is not None and processes()[0] == 0
    board = [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)] if is_logged else []
    checkpoint = Checkpoint(folder, key, watch, [*average, *rates])
    # The moving average goes into the model before validation sees it; the checkpoint sees what all others did.
    every = [*average, watch, *rates, *board, *callbacks, checkpoint]
    going = _taken_up(model, train, steps, batches, params, checkpoint, every)
    if callbacks and folder:
        names = ", ".join(type(callback).__name__ for callback in callbacks)
        print(f"What {names} remembers is not kept: after an interruption it begins anew")
    with memory_explained(params), synchronised(model):
        yield going
    if not watch.rows:
        raise InputError("no epoch was trained: give `fit` the batches, callbacks and options of `training`")
    model.set_weights(watch.best_weights or model.get_weights())
    own = [name for name in watch.rows[0] if name not in HISTORY_COLUMNS]
    going.history = pd.DataFrame(watch.rows, columns=[*HISTORY_COLUMNS, *own])
    going.history.loc[0, "seconds"] += seconds


def _inputs(network, model, train, val, params, folder, change) -> tuple[Callable, ImageSet, float]:
    """What makes batches of, what validation is scored on, and the seconds that features took: kept ones, for a head."""
    if model is network:
        return partial(train_dataset, train, params.augment, change=change), val, 0.0
    if change:
        raise InputError("change: kept features are of images as `augment` made them; write features.views: 0")
    backbone = split_at_head(network)[0]
    seen, seconds = frozen_features(backbone, train, params, params.features.views, folder)
    val_seen, val_seconds = frozen_features(backbone, val, params, 0, folder)
    batches = partial(train_dataset, ImageSet(train.table, seen), None)
    return batches, ImageSet(val.table, val_seen[:, 0]), seconds + val_seconds


def _taken_up(model, train, steps, batches, params, checkpoint, callbacks) -> Training:
    """What is left to train after the kept epochs; nothing of a finished training."""
    asked, watch = params.training, checkpoint.watch
    weights = class_weights(train.table.label.to_numpy(), asked.class_weights)
    check_agreement("batches in an epoch", steps)  # after which no process still writes what the others will read
    done = checkpoint.take_up(model)
    check_agreement("epochs done", done)
    if done:
        left = ": nothing left to train" if watch.is_over else ""
        print(f"Taken up after epoch {done} from {checkpoint.file.parent}{left}")
    last = done if watch.is_over else asked.epochs
    order = (asked.batch_size, params.seed, asked.epochs, weights, 0 if watch.is_over else done, processes())
    # shuffle=False: the data set comes shuffled, and Keras would warn that it cannot do it again.
    options = {"epochs": last, "initial_epoch": done, "steps_per_epoch": steps, "shuffle": False, "verbose": 0}
    return Training(unsharded(batches(*order)), [] if watch.is_over else callbacks, options)


def check_compiled(model: keras.Model, val: ImageSet) -> None:
    """Refuse what would train without a word and be wrong: no loss, or one that takes the output for what it is not.

    Raises:
        InputError: with the line to write.
    """
    if fault := next(_faults(model), None):
        raise InputError(fault)
    few = predict_logits(model, ImageSet(val.table.iloc[:16], val.pixels[:16]))
    if len(few) > 1 and np.ptp(few) == 0:  # said and not refused: random features may be this small
        print(
            f"{model.name} gives {few[0]:.6g} for each of {len(few)} validation images, before training. If it does so afterwards, "
            f"look for an activation that is dead or saturated"
        )


def _faults(model: keras.Model) -> Iterator[str]:
    """What is wrong with a network or its loss, and the line to write."""
    gives = output_activation(model) if hasattr(model, "outputs") else None
    if gives not in ("linear", "sigmoid"):
        yield f"{model.name}: write network = pn.learning.checked(network, params.image) where it is built"
    if not model.compiled:
        yield f"{model.name} is not compiled: write {model.name}.compile(optimizer, loss) before the training"
    loss = model.loss[0] if isinstance(model.loss, list) else model.loss
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    name = getattr(loss, "name", getattr(loss, "__name__", ""))
    takes_logits, is_logit = getattr(loss, "from_logits", False), gives == "linear"
    if name.startswith("binary_") and takes_logits != is_logit:
        yield f"loss: received {name} with from_logits={takes_logits}, and the network's output is {gives}; write from_logits={is_logit}"
    if _OTHER_LOSSES.search(name) and (is_logit or "categorical" in name):
        kind, write = "logit" if is_logit else "probability", f"keras.losses.BinaryCrossentropy(from_logits={is_logit})"
        yield f"loss: received {name}, which does not fit one {kind}; write {write}"


def compile_model(model: keras.Model, params: RunParams, steps: int) -> None:
    """Optimizer, loss and metrics of the study's parameters; training notebooks write the same out."""
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=params.training.label_smoothing)
    options = {"metrics": training_metrics(model), "steps_per_execution": steps_at_once(params, steps)}
    model.compile(make_optimizer(model, params, steps), loss, **options)


def training_metrics(network: keras.Model) -> list[keras.metrics.Metric]:
    """Metrics of a network's logits or probabilities, which see augmented images and weights that still change."""
    logits = output_activation(network) == "linear"
    even = 0.0 if logits else 0.5  # a logit of 0 is a probability of 0.5, as in `validation_figures`
    return [
        keras.metrics.AUC(from_logits=logits, name="auroc"),
        keras.metrics.Recall(thresholds=even, name="sensitivity"),
        keras.metrics.Precision(thresholds=even, name="ppv"),
    ]


def steps_at_once(params: RunParams, steps: int) -> int:
    """`steps_per_execution`, as far as it divides the steps of an epoch, which otherwise would run into the next one.

    1 under MirroredStrategy, where Keras's fit fails with more (keras#19246).
    """
    asked = 1 if replicated(describe()) else params.training.steps_per_execution
    return max(n for n in range(1, min(asked, steps) + 1) if steps % n == 0)


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


def make_optimizer(network: keras.Model, params: RunParams, steps: int) -> optimizers.Optimizer:
    """The optimizer with its rate; rates that change by epoch are left to `rate_callbacks`.

    Args:
        network: what it will train; with `fine_tuning.backbone_rate_factor` its backbone moves slower (discriminative rates).
            A CNN from scratch is all backbone. AdamW's decay keeps the full rate.
        params: optimizer, rate, schedule, weight decay, moving average.
        steps: optimizer steps in an epoch.
    """
    training, factor = params.training, params.fine_tuning.backbone_rate_factor
    kind = {"adam": optimizers.Adam, "adamw": optimizers.AdamW, "rmsprop": optimizers.RMSprop}[training.optimizer]
    options = {"weight_decay": training.weight_decay} if training.optimizer == "adamw" else {}
    if training.ema_momentum:
        options |= {"use_ema": True, "ema_momentum": training.ema_momentum}
    if factor < 1:
        slow = {id(v) for layer in backbone_layers(network) for v in layer.trainable_variables}
        kind = _with_slow_part(kind, slow, factor)
    return kind(_rate(training, steps), **options)


def _rate(training: TrainingParams, steps_per_epoch: int) -> float | optimizers.schedules.LearningRateSchedule:
    """A schedule over steps, or the first rate of a schedule over epochs."""
    start = training.learning_rate
    if training.schedule == "cosine":
        warmup = round(training.warmup_epochs * steps_per_epoch)
        falling = max(1, training.epochs * steps_per_epoch - warmup)
        share, (first, target) = training.lowest_rate / start, (0.0, start) if warmup else (start, None)
        return optimizers.schedules.CosineDecay(first, falling, share, warmup_target=target, warmup_steps=warmup)
    if training.schedule == "exponential_steps":

        class FlooredDecay(optimizers.schedules.ExponentialDecay):
            def __call__(self, step):
                return keras.ops.maximum(super().__call__(step), training.lowest_rate)

        return FlooredDecay(start, training.decay_every, training.decay_rate, staircase=True)
    return start


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


def train_and_predict(
    manifest: Manifest, split: pd.DataFrame, params: RunParams, parts: Sequence[str] = ("val",)
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train `params.model` on images prepared as `params.image` says; the best epoch on validation predicts.

    The random state starts from `params.seed`, so that calls that differ in `params.image` alone start from the same
    weights and see the same images in the same order under the same changes.

    Args:
        parts: the splits to predict.
    Returns:
        their predictions, not calibrated: `image_id, split, label, kind, group_id, logit, probability`;
        and the training's history, columns `HISTORY_COLUMNS`.
    """
    sets = {part: read_images(manifest, split, part, params.image) for part in {"train", "val", *parts}}
    keras.utils.set_random_seed(params.seed)
    labels = sets["train"].table.label
    bias = initial_logit(labels, class_weights(labels, params.training.class_weights))
    model = build_model(params.model, params.image, bias)
    history = fit(model, sets["train"], sets["val"], params)
    found = pd.concat([predict(model, sets[part]) for part in parts], ignore_index=True)
    return found.assign(probability=expit(found.logit)), history


def repeat_seeds(
    build: Callable[[], keras.Model], train: Callable, params: RunParams, folder: Path, training_folder: Path
) -> None:
    """The run's training again from each of `evaluation.seeds`; weights, order, augmentation and dropout start anew.

    Args:
        build: makes the network, or loads the one that a fine-tuning starts from.
        train: takes a network, parameters and a folder, and trains the network in place.
        folder: each network is saved there, for `predict_seeds`.
        training_folder: the run's own; each seed keeps its state in a folder in there, and continues from it.
    """
    if not params.evaluation.seeds:
        print("evaluation.seeds names no other seeds")
    for seed in params.evaluation.seeds:
        print(f"Seed {seed}", flush=True)
        keras.utils.set_random_seed(seed)
        model = build()
        train(model, params.model_copy(update={"seed": seed}), training_folder / f"seed-{seed}")
        save_model(model, folder / SEED_FILE.format(seed))


def average_seeds(network: keras.Model, params: RunParams, folder: Path) -> keras.Model:
    """With `evaluation.average_seeds` one network of the run's own and those of `repeat_seeds`; otherwise the run's own."""
    if not params.evaluation.average_seeds:
        return network
    others = [load_model(folder / SEED_FILE.format(seed)) for seed in params.evaluation.seeds]
    print(f"The network that is judged averages the logits of {1 + len(others)} seeds")
    return averaged([logit_network(network), *others])


def predict_seeds(
    network: keras.Model, folder: Path, val: ImageSet, test: ImageSet, params: RunParams
) -> dict[int, pd.DataFrame]:
    """Predictions of the networks that `repeat_seeds` saved in `folder`.

    Args:
        network: the run's own.
    Returns:
        seed to predictions of validation and test, and of split `views`, validation in the augmented views of
        `evaluation.threshold_views`; empty without seeds, and where `network` averages them.
    """
    found = {}
    for seed in params.evaluation.seeds if members(network) == [network] else ():
        model = load_model(folder / SEED_FILE.format(seed))
        views = predict_views(model, val, params.model_copy(update={"seed": seed})).assign(split="views")
        found[seed] = pd.concat([predict(model, val), predict(model, test), views], ignore_index=True)
    return found


def save_model(network: keras.Model, file: Path) -> None:
    """Save network and weights as `.keras`, its output a logit, without the optimizer; it loads without this library."""
    with whole_file(file) as temporary:
        logit_network(network).save(temporary)


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
