"""Fitting and predicting. Early stopping and the kept weights follow validation AUROC, computed exactly.

Keras's own AUC metric sums over 200 thresholds on [0, 1], which is coarse once probabilities crowd at the ends; so
each epoch ends with one pass over validation, and every validation figure comes from that one set of logits.
"""

import hashlib
import time

import keras
import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from pneumolib.data.images import ImageSet
from pneumolib.data.pipeline import eval_dataset, steps_per_epoch, train_dataset
from pneumolib.params import RunParams, TrainingParams

PREDICT_BATCH = 64
HISTORY_COLUMNS = [
    "epoch", "loss", "auroc", "val_loss", "val_auroc", "val_sensitivity", "val_specificity", "learning_rate", "seconds",
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


def compile_model(model: keras.Model, training: TrainingParams, steps: int) -> None:
    """Optimizer, rate, loss and the streaming training metrics.

    Args:
        steps: optimizer steps of the whole training; the cosine falls to zero over them.
    """
    rate = training.learning_rate
    if training.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(training.learning_rate, decay_steps=steps)
    if training.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=training.weight_decay)
    else:
        optimizer = keras.optimizers.Adam(rate)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=[keras.metrics.AUC(from_logits=True, name="auroc")])


def fit(model: keras.Model, train: ImageSet, val: ImageSet, params: RunParams) -> pd.DataFrame:
    """Train the model in place; it ends with the weights of the epoch with the best validation AUROC.

    Args:
        model: from `build_model`, logit out.
        train, val: pixels and labels; the test split has no business here.
        params: `training`, `augment` and `seed` are used.
    Returns:
        history, one row an epoch, columns `HISTORY_COLUMNS`; `loss` is weighted by class, `val_loss` is not.
    Raises:
        ValueError: one class only, or fewer images than a batch.
    """
    training = params.training
    weights = class_weights(train.table.label.to_numpy(), training.class_weights)
    steps = steps_per_epoch(train, training.batch_size)
    batches = train_dataset(train, params.augment, training.batch_size, params.seed, training.epochs, weights)
    compile_model(model, training, steps * training.epochs)
    watch = _ValidationWatch(val, training.epochs)
    stop = keras.callbacks.EarlyStopping(
        "val_auroc", mode="max", patience=training.patience_epochs, restore_best_weights=True
    )
    # shuffle=False: the data set comes shuffled, and Keras would warn that it cannot do it again.
    model.fit(batches, epochs=training.epochs, steps_per_epoch=steps, callbacks=[watch, stop], shuffle=False, verbose=0)
    return pd.DataFrame(watch.rows, columns=HISTORY_COLUMNS)


class _ValidationWatch(keras.callbacks.Callback):
    """Scores validation after each epoch, writes the figures into `logs` for the callbacks after it, prints a line."""

    def __init__(self, val: ImageSet, epochs: int):
        super().__init__()
        self.val, self.epochs, self.rows = val, epochs, []
        self.labels = val.table.label.to_numpy()

    def on_train_begin(self, logs=None):
        self.began = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logits = predict_logits(self.model, self.val)
        if not (np.isfinite(logits).all() and np.isfinite(logs["loss"])):
            raise FloatingPointError(
                f"training diverged in epoch {epoch + 1}: loss {logs['loss']}, {np.sum(~np.isfinite(logits))} of "
                f"{len(logits)} validation logits not finite. Lower training.learning_rate"
            )
        logs |= validation_figures(self.labels, logits)
        seconds = time.perf_counter() - self.epoch_began
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.rows.append({"epoch": epoch + 1, **logs, "learning_rate": rate, "seconds": seconds})
        left = (time.perf_counter() - self.began) / (epoch + 1) * (self.epochs - epoch - 1)
        best = max(row["val_auroc"] for row in self.rows)
        print(
            f"epoch {epoch + 1}/{self.epochs}  loss {logs['loss']:.3f}  validation AUROC {logs['val_auroc']:.4f} "
            f"(best {best:.4f})  {seconds:.1f} s, at most {left:.0f} s left",
            flush=True,
        )


def validation_figures(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Loss, exact AUROC, and sensitivity and specificity at a probability of 0.5."""
    probabilities = expit(logits)
    called = logits >= 0
    return {
        "val_loss": float(log_loss(labels, probabilities, labels=[0, 1])),
        "val_auroc": float(roc_auc_score(labels, logits)),
        "val_sensitivity": float(called[labels == 1].mean()),
        "val_specificity": float((~called[labels == 0]).mean()),
    }


def predict_logits(model: keras.Model, images: ImageSet) -> np.ndarray:
    """Logits, float64 (n,), in the order of `images.table`, every image once."""
    batches = eval_dataset(images, min(PREDICT_BATCH, len(images)))
    return model.predict(batches, verbose=0)[: len(images), 0].astype(np.float64)


def predict(model: keras.Model, images: ImageSet) -> pd.DataFrame:
    """Predictions for one split: the columns of `images.table`, then `logit` and `probability` of pneumonia."""
    logits = predict_logits(model, images)
    return images.table.assign(logit=logits, probability=expit(logits))


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over all weight arrays; `.keras` files differ from save to save, their arrays do not."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def training_facts(model: keras.Model, history: pd.DataFrame) -> dict:
    """What `result.json` keeps of a training besides its metrics."""
    return {
        "parameters": model.count_params(),
        "epochs": len(history),
        "best_epoch": int(history.epoch[history.val_auroc.idxmax()]),
        "training_seconds": round(float(history.seconds.sum()), 1),
        "weights_sha256": weights_hash(model),
    }
