"""A training that was killed goes on from its last whole epoch, and ends as if it had never been killed.

Keras's BackupAndRestore keeps weights, optimizer and epoch; it forgets the states of Dropout's random generators, the
best weights and what the rate's callbacks remember. Here all of it goes into one file, which replaces the one before by
a rename: there is always a whole one. The order of images needs no keeping, being a function of (seed, epoch).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np

from pneumolib.hosts import processes
from pneumolib.learning.stopping import ValidationWatch

FILE = "checkpoint.npz"
# What ReduceLROnPlateau remembers from epoch to epoch.
_REMEMBERED = ("best", "wait", "cooldown_counter")


class Checkpoint(keras.callbacks.Callback):
    """Writes the state of a training after each epoch; stands last among the callbacks, so that it sees what they did.

    Args:
        folder: where the file lies; None keeps nothing.
        key: what the training is made from, plain values; a file with another key is not taken up.
        watch: history and best weights are part of the state.
        others: callbacks whose memory is part of the state: ReduceLROnPlateau and SwapEMAWeights.
    """

    def __init__(
        self, folder: Path | None, key: dict[str, Any], watch: ValidationWatch, others: list[keras.callbacks.Callback]
    ):
        super().__init__()
        self.file = None if folder is None else folder / FILE
        self.key, self.watch = key, watch
        self.others = {type(callback).__name__: callback for callback in others}
        self.memory: dict[str, dict] = {}

    def take_up(self, model: keras.Model) -> int:
        """Bring model, optimizer and callbacks to where the file left them; returns the epochs done, 0 without a file.

        A file of another training is left where it is until the first epoch is done.
        """
        if self.file is None or not self.file.is_file():
            return 0
        try:
            return self._read(model)
        # What NumPy says of a file that a full disk or a power cut left behind.
        except (OSError, ValueError, EOFError, KeyError, BadZipFile) as fault:
            print(f"{self.file} cannot be read ({type(fault).__name__}: {fault}); training starts anew", flush=True)
            return 0

    def _read(self, model: keras.Model) -> int:
        with np.load(self.file, allow_pickle=False) as arrays:
            state = json.loads(str(arrays["state"]))
            if changed := [k for k in self.key if state["key"].get(k) != self.key[k]]:
                print(f"An earlier training is not taken up: {', '.join(changed)} differ", flush=True)
                return 0
            best = [arrays[f"best{i}"] for i in range(state["best"])]
            if state["variables"]:  # none are kept of a finished training
                _assign(_variables(model), [arrays[f"variable{i}"] for i in range(state["variables"])])
        self.watch.rows, self.watch.best_weights = state["rows"], best or None
        self.memory = state["memory"]
        return len(state["rows"])

    def on_train_begin(self, logs=None):
        # Their own on_train_begin, which ran before this one, has made them forget.
        for name, values in self.memory.items():
            vars(self.others[name]).update(values)

    def on_epoch_end(self, epoch, logs=None):
        # A finished training needs the weights it ended with, and no state to go on from: a third of the space.
        if self.watch.is_over and self.watch.best_weights is None:
            self.watch.best_weights = self.model.get_weights()
        if self.file is not None and processes()[0] == 0:
            self._write([] if self.watch.is_over else _variables(self.model), self.watch.best_weights or [])

    def _write(self, variables: list[keras.Variable], best: list[np.ndarray]) -> None:
        state = {"key": self.key, "rows": self.watch.rows, "variables": len(variables), "best": len(best),
                 "memory": self._remembered()}  # fmt: skip
        arrays = {f"variable{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        arrays |= {f"best{i}": array for i, array in enumerate(best)}
        write_atomically(self.file, lambda file: np.savez(file, state=json.dumps(state), **arrays))

    def _remembered(self) -> dict[str, dict]:
        found = {n: {k: vars(c)[k] for k in _REMEMBERED if k in vars(c)} for n, c in self.others.items()}
        # After an epoch the moving average stands in the model, and the raw weights in the optimizer.
        found |= {n: {"_ema_weights_in_model": True} for n in found if n == "SwapEMAWeights"}
        return json.loads(json.dumps({n: values for n, values in found.items() if values}, default=float))


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that training moves: weights, random generators, optimizer."""
    return [*model.variables, *model.optimizer.variables]


def _assign(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def write_atomically(file: Path, write: Callable[[Any], None]) -> None:
    """`write` into a file beside it, which then takes its place: a kill leaves the old one or the new one, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as opened:
        write(opened)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, file)
