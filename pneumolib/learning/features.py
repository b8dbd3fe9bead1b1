"""Transfer learning on a frozen backbone: run it once over some augmented views of each image, train the head on that.

An epoch through a frozen backbone computes the same features again and again, but for augmentation; a few kept views
stand in for it, and an epoch of the head then takes a fraction of a second.
"""

import os
import time
from pathlib import Path
from zipfile import BadZipFile

import keras
import numpy as np
import pandas as pd

from pneumolib.data.images import ImageSet
from pneumolib.data.pipeline import eval_dataset, feature_dataset, view_dataset
from pneumolib.data.progress import bar
from pneumolib.hosts import processes
from pneumolib.learning.checkpoint import write_atomically
from pneumolib.learning.devices import check_agreement, describe, predict_batches
from pneumolib.learning.fine_tuning import split_at_head
from pneumolib.learning.predicting import predict_batch
from pneumolib.learning.training import (
    Task,
    architecture_hash,
    arrays_hash,
    class_weights,
    code_of,
    fit,
    memory_explained,
    run_task,
    weights_hash,
)
from pneumolib.params import AugmentParams, RunParams

_DECIDE = ["learning/features.py", "learning/backbones.py", "data/pipeline.py", "data/augment.py", "data/shards.py"]


def fit_head(
    model: keras.Model, train: ImageSet, val: ImageSet, params: RunParams, folder: Path | None = None
) -> pd.DataFrame:
    """Train the head of a transfer model in place, on kept features; `learning.fit` where `features.views` is 0.

    Arguments, result and errors are those of `learning.fit`. Features are kept in `folder`, too: a training that was
    killed goes on without computing them again. The seconds they took are part of the first epoch's.

    Raises:
        ValueError: also for a network that is no head on a frozen backbone.
    """
    if params.model.name != "transfer":
        raise ValueError(
            f"model.name {params.model.name!r} has no head on a backbone: 03_baseline_cnn trains it; here write transfer"
        )
    if params.features.views == 0:
        return fit(model, train, val, params, folder)
    with memory_explained(params):
        return run_task(_head_task(model, train, val, params, folder), params, folder)


def _head_task(model: keras.Model, train: ImageSet, val: ImageSet, params: RunParams, folder: Path | None) -> Task:
    """The training of the head alone; the backbone runs here, once, unless its features are kept already."""
    training = params.training
    backbone, head = split_at_head(model)
    seen, seconds = frozen_features(backbone, train, params.augment, params.features.views, params.seed, folder)
    val_seen, val_seconds = frozen_features(backbone, val, None, 1, params.seed, folder)
    labels = train.table.label.to_numpy()
    weights, mine = class_weights(labels, training.class_weights), processes()
    val_batch = predict_batch(len(val))
    return Task(
        model=head,
        batches=lambda start: feature_dataset(
            seen, labels, training.batch_size, params.seed, training.epochs, weights, start, process=mine
        ),
        steps=len(seen) // training.batch_size,
        score=lambda: predict_batches(head, eval_dataset(val_seen[:, 0], val_batch))[: len(val), 0].astype(float),
        labels=val.table.label.to_numpy(),
        seen=[seen, val_seen, labels],
        prepared_in=seconds + val_seconds,
    )


def frozen_features(
    backbone: keras.Model,
    images: ImageSet,
    augment: AugmentParams | None,
    views: int,
    seed: int,
    folder: Path | None = None,
) -> tuple[np.ndarray, float]:
    """What a frozen backbone makes of the images, and the seconds that it took, now or when they were kept.

    Args:
        backbone: the first model of `split_at_head`.
        augment: changes, drawn anew for each view; None leaves the images as they are.
        folder: where they are kept, under a name that says what they are made from.
    Returns:
        features, float32 (n, views, ...), in the order of `images.table`; seconds.
    Raises:
        ValueError: features that take more than a third of the machine's memory: training on them needs them three times.
    """
    check_memory((len(images), views, *backbone.output_shape[1:]))
    part, key = images.table.split.iloc[0], _key(backbone, images, augment, views, seed)
    file = None if folder is None else folder / f"features-{part}-{key}.npz"
    kept = None if file is None else _read(file)
    check_agreement(f"kept features of {part}", int(kept is not None))
    if kept:
        return kept
    began = time.perf_counter()
    batch, made = predict_batch(len(images)), None
    for view in bar(range(views), views, f"features of {len(images)} images", unit="view"):
        plain = augment is None
        data = eval_dataset(images.pixels, batch) if plain else view_dataset(images, augment, batch, seed, view)
        found = predict_batches(backbone, data)[: len(images)]
        if made is None:
            made = np.empty((len(images), views, *found.shape[1:]), np.float32)
        made[:, view] = found
    seconds = time.perf_counter() - began
    if file is not None and processes()[0] == 0:
        for outdated in folder.glob(f"features-{part}-*.npz"):
            outdated.unlink()
        write_atomically(file, lambda opened: np.savez(opened, features=made, seconds=seconds))
    return made, seconds


def check_memory(shape: tuple[int, ...]) -> None:
    """Refuse float32 features of a shape (n, views, ...) that the machine cannot hold three times; see `frozen_features`."""
    needed_gb, have_gb = (
        np.prod(shape, dtype=float) * 4 / 1e9,
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    )
    if needed_gb > have_gb / 3:
        raise ValueError(
            f"features.views {shape[1]}: the features of {shape[0]:,} images are {shape[2:]} numbers each and would take "
            f"{needed_gb:.1f} GB; at most a third of the machine's {have_gb:.1f} GB are allowed. Lower features.views, or set it "
            f"to 0, which trains through the backbone and keeps none"
        )


def _read(file: Path) -> tuple[np.ndarray, float] | None:
    """Kept features, or None where there are none that can be read; they are made anew then."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return kept["features"], float(kept["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as fault:
        print(f"{file} cannot be read ({type(fault).__name__}: {fault}); its features are made anew", flush=True)
        return None


def _key(backbone: keras.Model, images: ImageSet, augment: AugmentParams | None, views: int, seed: int) -> str:
    """16 hex digits of all that features are made from."""
    network = [architecture_hash(backbone), weights_hash(backbone)]
    made_from = [network, arrays_hash([images.identity]), augment, views, seed, describe(), code_of(_DECIDE)]
    return arrays_hash([np.frombuffer(repr(made_from).encode(), np.uint8)])[:16]
