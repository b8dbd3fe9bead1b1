"""A small training in a process of its own, which `test_resume.py` kills.

    python training_child.py <folder> <trainer>:<kind>:<number>

trainer: `cnn` (dropout, plateau, moving average), or `head` (frozen backbone, kept features), whose process first finishes
the `cnn`: it is killed after that has trained to its end and before anyone saw what came out. kind: `batch` (the N-th one of
the trainer in this process) or `write` (half-way through its N-th checkpoint).
"""

# ruff: noqa: E402
import itertools
import os
import signal
import sys
from pathlib import Path

from pneumolib.learning.devices import import_keras

import_keras()  # before the others do so without haste: two seconds less for each process
import numpy as np
from test_training import image_set, run_params, small_network, transfer_params

from pneumolib import learning
from pneumolib.learning import callbacks
from pneumolib.learning.callbacks import weights_hash
from pneumolib.learning.fitting import fit
from pneumolib.learning.predicting import predict
from pneumolib.params import check

TRAINING = {
    "epochs": 6, "batch_size": 8, "optimizer": "rmsprop", "learning_rate": 3.0e-3, "schedule": "plateau",
    "decay_rate": 0.5, "decay_every": 1, "plateau_metric": "loss", "label_smoothing": 0.05, "ema_momentum": 0.8,
    "keep_best": ["accuracy", "auroc"], "patience_epochs": None,
}  # fmt: skip


def arrange(kind: str, number: int) -> None:
    """Make this process kill itself at the given moment, counted from now."""
    place, name = {"batch": (callbacks.ValidationWatch, "on_train_batch_end"), "write": (np, "savez")}[kind]
    function, count = getattr(place, name), itertools.count(1)

    def counting(*args, **kwargs):
        if next(count) == number:
            if kind == "write":
                args[0].write(b"half a checkpoint")
                args[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(place, name, counting)


def trained(folder: Path, trainer: str) -> dict[str, str]:
    """What a training with its state in `folder` ends with."""
    base = run_params() if trainer == "cnn" else transfer_params(folder.parent, head_units=8, head_dropout=0.3)
    params = check(base.model_dump() | {"training": TRAINING})
    learning.start(params)
    network = small_network() if trainer == "cnn" else learning.build_model(params.model, params.image)
    val = image_set(25, 1, "val")
    val.table["label"] = np.random.default_rng(3).permutation(val.table.label)  # so that no epoch is plainly the best
    history = fit(network, image_set(48, 0), val, params, folder)
    return {
        "weights": weights_hash(network),
        "history": history.drop(columns="seconds").to_csv(index=False),
        "predictions": predict(network, val).to_csv(index=False),
    }


def main() -> None:
    folder, (trainer, kind, number) = Path(sys.argv[1]), sys.argv[2].split(":")
    if trainer == "head":
        trained(folder / "cnn-killed", "cnn")
    arrange(kind, int(number))
    trained(folder / f"{trainer}-killed", trainer)


if __name__ == "__main__":
    main()
