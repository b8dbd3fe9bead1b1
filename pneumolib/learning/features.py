"""Transfer learning on a frozen backbone: run it once over some augmented views of each image, train the head on that.

An epoch through a frozen backbone computes the same features again and again, but for augmentation; a few kept views
take its place, and an epoch of the head then takes a fraction of a second.
"""

import json
import os
import time
from pathlib import Path

import keras
import numpy as np

from pneumolib.data.batches import eval_dataset, view_dataset
from pneumolib.data.layout import bar
from pneumolib.data.pixels import ImageSet
from pneumolib.hosts import processes
from pneumolib.learning.callbacks import read_arrays, training_key, write_atomically
from pneumolib.learning.devices import check_agreement, predict_batches
from pneumolib.learning.predicting import predict_batch
from pneumolib.params import RunParams
from pneumolib.provenance import text_digest


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
