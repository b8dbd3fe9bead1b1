"""Callbacks of a training: validation figures, the kept epoch, divergence; what is kept of it: its state, and the key of that.

A training that was killed goes on from its last whole epoch, and ends as if it had never been killed. Keras's
BackupAndRestore keeps weights, optimizer and epoch; it forgets the states of Dropout's random generators, the best weights
and what the rate's callbacks remember. Here all of it goes into one file, which replaces the one before by a rename: there
is always a whole one. The order of images needs no keeping, being a function of (seed, epoch).

The key says what a training is made from: equal keys give equal weights, to the bit, on the same machine. A change of code in
`DECIDING_MODULES` trains anew, whether the training reaches it or not.
"""

import ast
import functools
import hashlib
import json
import os
import re
import symtable
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np
from IPython import get_ipython
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from pneumolib.data.pixels import ImageSet
from pneumolib.hosts import processes
from pneumolib.learning.devices import describe
from pneumolib.params import RunParams, TrainingParams
from pneumolib.project import whole_file
from pneumolib.provenance import text_digest, without_docstrings

HISTORY_COLUMNS = [
    "epoch", "loss", "auroc", "sensitivity", "ppv", "val_loss", "val_auroc", "val_accuracy", "val_sensitivity",
    "val_specificity", "val_ppv", "learning_rate", "kept", "seconds",
]  # fmt: skip
# Of this library: what decides a training of given pixels, network and parameters.
DECIDING_MODULES = (
    "data/augment", "data/batches", "learning/callbacks", "learning/devices", "learning/fitting", "learning/lite",
    "learning/networks", "learning/predicting", "learning/transfer",
)  # fmt: skip


def current_rate(model: keras.Model) -> float:
    """The learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


class ValidationWatch(keras.callbacks.Callback):
    """Scores validation after each epoch, writes the figures into `logs` for the callbacks after it, keeps the history.

    It also ends a training that diverged, in the batch where it happens: Keras's TerminateOnNaN stops quietly, and the run
    would go on to be evaluated.

    Args:
        score: logits of validation, (n,), from the model as it is.
        labels: of validation, 0 and 1.
        training: epochs, and what decides which weights are kept.
    Attributes:
        rows: the history, a dict an epoch.
        best_weights: of the kept epoch, arrays in the order of `model.get_weights()`; None before there is one.
    """

    def __init__(self, score: Callable[[], np.ndarray], labels: np.ndarray, training: TrainingParams):
        super().__init__()
        self.score, self.labels, self.training = score, labels, training
        self.rows: list[dict] = []
        self.best_weights: list[np.ndarray] | None = None
        self.stopped = False  # by another callback

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise self._diverged(f", batch {batch + 1}: the loss is {logs['loss']}")

    def on_epoch_end(self, epoch, logs=None):
        logits = self.score()
        if not np.isfinite(logits).all():
            lost = np.sum(~np.isfinite(logits))
            raise self._diverged(f": {lost} of {len(logits)} validation logits are not finite")
        logs |= validation_figures(self.labels, logits)
        row = {"epoch": epoch + 1} | {name: float(value) for name, value in logs.items()}
        row |= {"learning_rate": current_rate(self.model), "kept": self._is_better(row)}
        row["seconds"] = time.perf_counter() - self.epoch_began
        if row["kept"]:
            self.best_weights = self.model.get_weights()
        self.rows.append(row)
        best = f"epoch {self.kept['epoch']} kept" if self.kept else "no epoch above all floors yet"
        left = sum(r["seconds"] for r in self.rows) / len(self.rows) * (self.training.epochs - len(self.rows))
        print(
            f"epoch {row['epoch']}/{self.training.epochs}  loss {row['loss']:.3f}  validation AUROC "
            f"{row['val_auroc']:.4f}, accuracy {row['val_accuracy']:.3f} ({best})  {row['seconds']:.1f} s, "
            f"at most {left:.0f} s left",
            flush=True,
        )
        self.model.stop_training |= self.is_over

    def _diverged(self, how: str) -> FloatingPointError:
        return FloatingPointError(
            f"training diverged in epoch {len(self.rows) + 1}{how} at a learning rate of {current_rate(self.model):.3g}. "
            f"Lower training.learning_rate"
        )

    @property
    def kept(self) -> dict | None:
        """The row of the kept epoch."""
        return next((row for row in reversed(self.rows) if row["kept"]), None)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train: all epochs done, or the patience is at its end."""
        done, patience = len(self.rows), self.training.patience_epochs
        waited = done - self.kept["epoch"] if self.kept else 0
        return self.stopped or done >= self.training.epochs or (patience is not None and waited >= patience)

    def _is_better(self, row: dict) -> bool:
        """Every floor exceeded, and every metric of `keep_best` better than in the kept epoch."""
        if any(not row[f"val_{name}"] > floor for name, floor in self.training.floors.items()):
            return False
        signs = {f"val_{name}": -1 if name == "loss" else 1 for name in self.training.keep_best}
        return self.kept is None or all(sign * row[name] > sign * self.kept[name] for name, sign in signs.items())


def validation_figures(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Loss, exact AUROC, and accuracy, sensitivity, specificity and PPV at a probability of 0.5.

    Keras's own AUC metric sums over 200 thresholds on [0, 1], which is coarse once probabilities crowd at the ends.
    """
    positive = logits >= 0
    return {
        "val_loss": float(log_loss(labels, expit(logits), labels=[0, 1])),
        "val_auroc": float(roc_auc_score(labels, logits)),
        "val_accuracy": float((positive == (labels == 1)).mean()),
        "val_sensitivity": float(positive[labels == 1].mean()),
        "val_specificity": float((~positive[labels == 0]).mean()),
        "val_ppv": float((labels[positive] == 1).mean()) if positive.any() else float("nan"),
    }


class Checkpoint(keras.callbacks.Callback):
    """Writes the state of a training after each epoch; comes last among the callbacks, so that it sees what they did.

    Args:
        folder: where `checkpoint.npz` is kept; None keeps nothing.
        key: what the training is made from, plain values; a file with another key is not taken up.
        watch: history and best weights are part of the state.
        others: callbacks whose memory is part of the state: ReduceLROnPlateau and SwapEMAWeights.
    """

    def __init__(self, folder: Path | None, key: dict[str, Any], watch: ValidationWatch, others: list):
        super().__init__()
        self.file = None if folder is None else folder / "checkpoint.npz"
        self.key, self.watch = key, watch
        self.others = {type(callback).__name__: callback for callback in others}
        self.memory: dict[str, dict] = {}

    def take_up(self, model: keras.Model) -> int:
        """Bring model, optimizer and callbacks to where the file left them; returns the epochs done, 0 without a file.

        A file of another training is left where it is until the first epoch is done.
        """
        kept = read_arrays(self.file, "training starts anew")
        if not kept:
            return 0
        state = json.loads(str(kept["state"]))
        if changed := [name for name in self.key if state["key"].get(name) != self.key[name]]:
            print(f"An earlier training is not taken up: {', '.join(changed)} differ", flush=True)
            return 0
        variables, best = ([kept[n] for n in kept if n.startswith(kind)] for kind in ("variable", "best"))
        # A finished training has none.
        for variable, value in zip(_variables(model) if variables else [], variables, strict=True):
            variable.assign(value)
        self.watch.best_weights = best or None
        self.watch.rows, self.memory, self.watch.stopped = state["rows"], state["memory"], state["stopped"]
        return len(state["rows"])

    def on_train_begin(self, logs=None):
        # Their own on_train_begin, which ran before this one, has made them forget.
        for name, values in self.memory.items():
            vars(self.others[name]).update(values)

    def on_epoch_end(self, epoch, logs=None):
        self.watch.stopped |= self.model.stop_training
        # A finished training needs the weights it ended with, and no state to go on from: a third of the space.
        if self.watch.is_over and self.watch.best_weights is None:
            self.watch.best_weights = self.model.get_weights()
        if self.file is None or processes()[0] != 0:
            return
        variables = [] if self.watch.is_over else _variables(self.model)
        best = self.watch.best_weights or []
        # Of ReduceLROnPlateau; of SwapEMAWeights, after which the model has the average and the optimizer the raw weights.
        names = ("best", "wait", "cooldown_counter", "_ema_weights_in_model")
        memory = {n: {k: float(vars(c)[k]) for k in names if k in vars(c)} for n, c in self.others.items()}
        state = {"key": self.key, "rows": self.watch.rows, "memory": memory, "stopped": self.watch.stopped}
        arrays = {f"variable{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        arrays |= {f"best{i}": array for i, array in enumerate(best)}
        write_atomically(self.file, state=json.dumps(state), **arrays)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that training moves: weights, random generators, optimizer."""
    return [*model.variables, *model.optimizer.variables]


def write_atomically(file: Path, **arrays: Any) -> None:
    """Save arrays into a file beside it, which then takes its place: a kill leaves the old one or the new one, whole."""
    # One name for all processes: of many that were killed, one such file is left at most.
    with whole_file(file, "writing") as temporary, temporary.open("wb") as opened:
        np.savez(opened, **arrays)
        opened.flush()
        os.fsync(opened.fileno())


def read_arrays(file: Path | None, remedy: str) -> dict[str, np.ndarray]:
    """What `write_atomically` saved; empty without a file, and with a line printed for a file that cannot be read."""
    if file is None or not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    # What NumPy raises for what a full disk or a power cut left behind.
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as fault:
        print(f"{file} cannot be read ({type(fault).__name__}: {fault}); {remedy}", flush=True)
        return {}


def training_key(model: keras.Model, params: RunParams, sections: set[str], images: list[ImageSet]) -> dict[str, Any]:
    """The key of one training, plain values.

    Args:
        model: as it is before the training.
        params: of the run, whose `sections` count.
        images: what it trains on and is validated on.
    """
    return {
        "parameters": params.model_dump(include=sections, mode="json"),
        "network": network_key(model),
        "images": [images_key(part) for part in images],
        "library": code_digest(),
        "cells": network_cells(),
        "machine": describe() | {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
    }


def images_key(images: ImageSet) -> list[str]:
    """Of pixels and labels. A mapped file has a key of all that decides its pixels; pixels in memory are read."""
    pixels = images.key or hashlib.sha256(np.ascontiguousarray(images.pixels)).hexdigest()
    return [pixels, text_digest(images.table[["image_id", "label"]].to_csv())]


def network_key(model: keras.Model) -> list[str]:
    """Of settings, wiring and weights; not of the numbers in names, which Keras counts through a process's life."""
    return [text_digest(re.sub(r"_\d+", "", json.dumps(model.get_config(), default=str))), weights_hash(model)]


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over all weight arrays; `.keras` files differ from save to save, their arrays do not."""
    return hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()


def network_cells() -> list[str]:
    """Digests of the notebook's running cell and of the earlier ones that it depends on; outside of a notebook, nothing.

    A cell counts when it binds or changes a name that a later one of them uses. Objects of this library are not followed: what
    they hold is in the key. A cell under a magic such as `%%time` counts always.
    """
    shell = get_ipython()
    if not shell:
        return []
    *earlier, running = shell.user_ns["In"]
    found, used = [], set()
    for cell in [running, *reversed(earlier)]:
        try:
            bound, needed = _names(cell)
        except SyntaxError:  # it did not run
            continue
        if cell is running or bound & used or "run_cell_magic(" in cell:
            found.append(text_digest(cell))
            used |= {name for name in needed if not _is_known(shell.user_ns.get(name))}
    return list(dict.fromkeys(found))


def _names(cell: str) -> tuple[set[str], set[str]]:
    """Names of the notebook that a cell binds or changes, and names that it uses, within its functions too."""
    tables = [symtable.symtable(cell, "cell", "exec")]
    bound = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported()}
    bound |= {*re.findall(r"^\s*(\w+)[.\[]", cell, re.MULTILINE)}  # `network.trainable = True`, `metrics[0] = ...`
    for table in tables:
        tables += table.get_children()
    return bound, {s.get_name() for t in tables for s in t.get_symbols() if s.is_referenced() and s.is_global()}


def _is_known(value: Any) -> bool:
    """Whether the key covers it: a module, or an object of this library."""
    return isinstance(value, ModuleType) or type(value).__module__.startswith("pneumolib.")


@functools.cache
def code_digest() -> str:
    """16 hex digits of the modules that decide a training; comments and docstrings do not count."""
    files = [Path(__file__).parents[1] / f"{module}.py" for module in DECIDING_MODULES]
    return text_digest("".join(ast.dump(without_docstrings(file.read_text(encoding="utf-8"))) for file in files))
