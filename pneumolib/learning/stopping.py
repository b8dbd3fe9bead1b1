"""Callbacks that look at validation: figures of each epoch, the weights that are kept, when to stop, divergence."""

import time
from collections.abc import Callable

import keras
import numpy as np
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from pneumolib.learning.optimizers import current_rate
from pneumolib.params import TrainingParams

HISTORY_COLUMNS = [
    "epoch", "loss", "auroc", "sensitivity", "ppv", "val_loss", "val_auroc", "val_accuracy", "val_sensitivity",
    "val_specificity", "val_ppv", "learning_rate", "kept", "seconds",
]  # fmt: skip


class ValidationWatch(keras.callbacks.Callback):
    """Scores validation after each epoch, writes the figures into `logs` for the callbacks after it, keeps the history.

    Args:
        score: logits of validation, (n,), from the model as it is.
        labels: of validation, 0 and 1.
        training: epochs, and what decides which weights are kept.
        prepared_in: seconds before the first epoch that belong to the training; its row has them.
    Attributes:
        rows: the history, a dict an epoch.
        best_weights: of the kept epoch, arrays in the order of `model.get_weights()`; None before there is one.
    """

    def __init__(
        self, score: Callable[[], np.ndarray], labels: np.ndarray, training: TrainingParams, prepared_in: float = 0.0
    ):
        super().__init__()
        self.prepared_in = prepared_in
        self.score, self.labels, self.training = score, labels, training
        self.rows: list[dict] = []
        self.best_weights: list[np.ndarray] | None = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logits = self.score()
        if not np.isfinite(logits).all():
            raise FloatingPointError(
                f"training diverged in epoch {epoch + 1}: {np.sum(~np.isfinite(logits))} of {len(logits)} validation "
                f"logits are not finite, at a rate of {current_rate(self.model):.3g}. Lower training.learning_rate"
            )
        logs |= validation_figures(self.labels, logits)
        row = {k: logs[k] for k in HISTORY_COLUMNS if k in logs}
        seconds = time.perf_counter() - self.epoch_began + (0 if self.rows else self.prepared_in)
        row |= {"epoch": epoch + 1, "learning_rate": current_rate(self.model), "kept": False, "seconds": seconds}
        if self._is_better(row):
            row["kept"] = True
            self.best_weights = self.model.get_weights()
        self.rows.append(row)
        self._say(row)
        self.model.stop_training = self.is_over

    @property
    def kept(self) -> dict | None:
        """The row of the kept epoch."""
        return next((row for row in reversed(self.rows) if row["kept"]), None)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train: all epochs done, or the patience is at its end."""
        done, patience = len(self.rows), self.training.patience_epochs
        if done >= self.training.epochs:
            return True
        return patience is not None and self.kept is not None and done - self.kept["epoch"] >= patience

    def _is_better(self, row: dict) -> bool:
        """Every floor exceeded, and every metric of `keep_best` better than in the kept epoch."""
        if any(not row[f"val_{name}"] > floor for name, floor in self.training.floors.items()):
            return False
        signs = {name: -1 if name == "loss" else 1 for name in self.training.keep_best}
        return self.kept is None or all(
            sign * row[f"val_{name}"] > sign * self.kept[f"val_{name}"] for name, sign in signs.items()
        )

    def _say(self, row: dict) -> None:
        left = (
            (sum(r["seconds"] for r in self.rows) - self.prepared_in)
            / len(self.rows)
            * (self.training.epochs - len(self.rows))
        )
        best = f"epoch {self.kept['epoch']} kept" if self.kept else "no epoch above all floors yet"
        print(
            f"epoch {row['epoch']}/{self.training.epochs}  loss {row['loss']:.3f}  validation AUROC "
            f"{row['val_auroc']:.4f}, accuracy {row['val_accuracy']:.3f} ({best})  {row['seconds']:.1f} s, "
            f"at most {left:.0f} s left",
            flush=True,
        )


def validation_figures(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Loss, exact AUROC, and accuracy, sensitivity, specificity and PPV at a probability of 0.5.

    Keras's own AUC metric sums over 200 thresholds on [0, 1], which is coarse once probabilities crowd at the ends.
    """
    called = logits >= 0
    return {
        "val_loss": float(log_loss(labels, expit(logits), labels=[0, 1])),
        "val_auroc": float(roc_auc_score(labels, logits)),
        "val_accuracy": float((called == (labels == 1)).mean()),
        "val_sensitivity": float(called[labels == 1].mean()),
        "val_specificity": float((~called[labels == 0]).mean()),
        "val_ppv": float((labels[called] == 1).mean()) if called.any() else float("nan"),
    }


class DivergenceGuard(keras.callbacks.Callback):
    """Ends a training whose loss is no number any more, in the batch where it happens.

    Keras's TerminateOnNaN stops quietly, and the run would go on to be evaluated.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"training diverged in epoch {self.epoch + 1}, batch {batch + 1}: the loss is {logs['loss']} at a "
                f"learning rate of {current_rate(self.model):.3g}. Lower training.learning_rate"
            )
