"""Transfer learning on a frozen backbone: run it once over some augmented views of each image, train the head on that.

An epoch through a frozen backbone computes the same features again and again, but for augmentation; a few kept views
take its place, and an epoch of the head then takes a fraction of a second.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from pneumolib.data.batches import eval_dataset, feature_dataset, steps_per_epoch, view_dataset
from pneumolib.data.layout import bar
from pneumolib.data.pixels import ImageSet
from pneumolib.hosts import processes
from pneumolib.learning.callbacks import read_arrays, training_key, write_atomically
from pneumolib.learning.devices import check_agreement, predict_batches
from pneumolib.learning.fitting import DECIDING, Training, compile_model, memory_explained, run_training, training
from pneumolib.learning.predicting import predict_batch
from pneumolib.learning.transfer import split_at_head
from pneumolib.params import RunParams
from pneumolib.provenance import text_digest


def fit_head(
    network: keras.Model, train: ImageSet, val: ImageSet, params: RunParams, folder: Path | None = None
) -> pd.DataFrame:
    """Compile and train the head as the study's parameters say; `head_training` has arguments, result and errors."""
    part = trained_part(network, params)
    compile_model(part, params, steps_per_epoch(train, params.training.batch_size))
    with head_training(network, part, train, val, params, folder) as going:
        part.fit(going.batches, callbacks=going.callbacks, **going.options)
    return going.history


def trained_part(network: keras.Model, params: RunParams) -> keras.Model:
    """What `head_training` trains: the head, from the kept features on; the whole network where `features.views` is 0.

    Raises:
        ValueError: a network that is no head on a frozen backbone.
    """
    return split_at_head(network)[1] if params.features.views else network


def head_training(
    network: keras.Model,
    part: keras.Model,
    train: ImageSet,
    val: ImageSet,
    params: RunParams,
    folder: Path | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> AbstractContextManager[Training]:
    """As `fitting.training`, of the head of a transfer network on kept features, where `features.views` is above 0.

    Features are kept in `folder`, too: a training that was killed goes on without computing them again. The seconds they
    took are part of the first epoch's.

    Args:
        network: the whole.
        part: of `trained_part`, compiled. Training it trains the network.
    """
    if part is network:
        return training(network, train, val, params, folder, callbacks)
    return _on_features(network, part, train, val, params, folder, callbacks)


@contextmanager
def _on_features(network, part, train, val, params, folder, callbacks) -> Iterator[Training]:
    with memory_explained(params):
        backbone = split_at_head(network)[0]
        seen, seconds = frozen_features(backbone, train, params, params.features.views, folder)
        val_seen, val_seconds = frozen_features(backbone, val, params, 0, folder)
    key = training_key(network, params, DECIDING, [train, val], head_training)
    batches = partial(feature_dataset, seen, train.table.label.to_numpy())
    val_features = ImageSet(val.table, val_seen[:, 0])
    with run_training(part, train, val_features, params, folder, key, batches, callbacks) as going:
        yield going
    going.history.loc[0, "seconds"] += seconds + val_seconds


def frozen_features(
    backbone: keras.Model, images: ImageSet, params: RunParams, views: int, folder: Path | None = None
) -> tuple[np.ndarray, float]:
    """What a frozen backbone makes of the images, and the seconds that it took, now or when they were kept.

    Args:
        backbone: the first model of `split_at_head`.
        params: `augment` and `seed` are used.
        views: of each image, changed by `augment`; 0 takes the image as it is, once.
        folder: where they are kept, under a name that says what they are made from.
    Returns:
        features, float32 (n, views or 1, ...), in the order of `images.table`; seconds.
    Raises:
        ValueError: features that take more than a third of the machine's memory: training on them needs them three times.
    """
    made = np.empty(check_memory((len(images), max(views, 1), *backbone.output_shape[1:])), np.float32)
    key = [views, training_key(backbone, params, {"seed", "augment"}, [images], frozen_features)]
    name = f"features-{images.table.split.iloc[0]}"
    file = None if folder is None else folder / f"{name}-{text_digest(json.dumps(key))}.npz"
    kept = read_arrays(file, "its features are made anew")
    check_agreement(f"kept {name}", len(kept))
    if not kept:
        began, batch = time.perf_counter(), predict_batch(len(images))
        for view in bar(range(made.shape[1]), made.shape[1], f"features of {len(images)} images", unit="view"):
            changed = view_dataset(images, params.augment, batch, params.seed, view) if views else None
            found = predict_batches(backbone, changed or eval_dataset(images.pixels, batch))
            made[:, view] = found[: len(images)]
        kept = {"features": made, "seconds": time.perf_counter() - began}
        if file is not None and processes()[0] == 0:
            for outdated in folder.glob(f"{name}-*.npz"):
                outdated.unlink()
            write_atomically(file, **kept)
    return kept["features"], float(kept["seconds"])


def check_memory(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (n, views, ...) of float32 features; ValueError if the machine cannot hold them three times."""
    needed_gb = np.prod(shape, dtype=float) * 4 / 1e9
    have_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed_gb > have_gb / 3:
        raise ValueError(
            f"features.views {shape[1]}: the features of {shape[0]:,} images are {shape[2:]} numbers each and would take "
            f"{needed_gb:.1f} GB; at most a third of the machine's {have_gb:.1f} GB are allowed. Lower features.views, or set it "
            f"to 0, which trains through the backbone and keeps none"
        )
    return shape
