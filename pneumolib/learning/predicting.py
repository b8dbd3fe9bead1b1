"""Scores of images, as they are, augmented and corrupted: every image once, in the order of its table. And features of images."""

import json
import os
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy.special import logit

from pneumolib.data.batches import eval_dataset, view_dataset
from pneumolib.data.corruptions import SEVERITIES, corrupt
from pneumolib.data.layout import bar
from pneumolib.data.pixels import ChangedPixels, ImageSet, subset
from pneumolib.hosts import processes
from pneumolib.learning.callbacks import read_arrays, training_key, write_atomically
from pneumolib.learning.devices import check_agreement, describe, predict_batches
from pneumolib.learning.networks import output_activation
from pneumolib.params import RunParams

PREDICT_BATCH = 64
_SMALLEST = float(np.finfo(np.float32).epsneg)
CORRUPTED_COLUMNS = ["image_id", "split", "label", "kind", "group_id", "corruption", "severity", "logit"]


def predict_batch(n: int) -> int:
    """Images in a batch when `n` are predicted: `PREDICT_BATCH` or fewer, a multiple of the devices that share it."""
    devices = describe()["devices"]
    return -(-min(PREDICT_BATCH, n) // devices) * devices


def predict_logits(model: keras.Model, images: ImageSet, batches=None) -> np.ndarray:
    """Logits, float64 (n,), in the order of `images.table`, every image once; also of a network that ends in a sigmoid.

    Args:
        batches: of the images changed, of `view_dataset`; the images as they are by default.
    """
    batches = batches or eval_dataset(images.pixels, predict_batch(len(images)))
    found = predict_batches(model, batches)[: len(images), 0].astype(np.float64)
    if output_activation(model) == "linear":
        return found
    return logit(np.clip(found, _SMALLEST, 1 - _SMALLEST))  # float32 has no probability between 1 - 6e-8 and 1


def predict(model: keras.Model, images: ImageSet) -> pd.DataFrame:
    """Predictions for one split: the columns of `images.table`, then `logit`; a `Calibration` makes probabilities of it."""
    return images.table.assign(logit=predict_logits(model, images))


def predict_views(model: keras.Model, images: ImageSet, params: RunParams) -> pd.DataFrame:
    """As `predict`, for `evaluation.threshold_views` views of each image changed by `augment`; empty without views."""
    batch, tables = predict_batch(len(images)), []
    for view in range(params.evaluation.threshold_views):
        # Another seed than training's, whose kept features may be of the same views.
        changed = view_dataset(images, params.augment, batch, params.seed + 1, view)
        tables.append(images.table.assign(logit=predict_logits(model, images, changed)))
    return pd.concat(tables, ignore_index=True) if tables else images.table.iloc[:0].assign(logit=0.0)


def predict_corrupted(model: keras.Model, images: ImageSet, params: RunParams) -> pd.DataFrame:
    """Predictions for `choose_images`, as they are and under every corruption and severity that is asked for.

    One corruption of one severity is computed at a time, a batch ahead of the network, so that memory does not grow.

    Args:
        images: one split, usually test.
        params: `robustness` (with `images: 0` nothing is computed) and `seed`, which decides the images and what is
            drawn for them.
    Returns:
        one row for each image, corruption and severity, with `CORRUPTED_COLUMNS`; first corruption `none` of severity 0, the
        images as they are. Empty, with these columns, without images.
    """
    asked = params.robustness
    chosen = subset(images, choose_images(images.table, asked.images, params.seed))
    if len(chosen) == 0:
        return images.table.iloc[:0].assign(corruption="", severity=0, logit=0.0)[CORRUPTED_COLUMNS]
    tables = [predict(model, chosen).assign(corruption="none", severity=0)]
    # A corruption that is named twice is still one.
    changes = [(name, severity) for name in dict.fromkeys(asked.corruptions) for severity in SEVERITIES]
    for name, severity in bar(changes, len(changes), f"{len(chosen)} images corrupted", unit="way"):
        changed = ChangedPixels(
            chosen.pixels, lambda pixels, first, change=(name, severity): corrupt(pixels, *change, params.seed, first)
        )
        tables.append(predict(model, ImageSet(chosen.table, changed)).assign(corruption=name, severity=severity))
    return pd.concat(tables, ignore_index=True)[CORRUPTED_COLUMNS]


def choose_images(table: pd.DataFrame, n: int, seed: int) -> list[str]:
    """Ids of at most `n` images, whole groups of each class, the classes in about the proportion they have in `table`.

    Groups come in an order that the seed decides. A group that no longer fits into its class's share is passed over, so
    a few places may stay empty. A group of both classes counts to the class of its first image. Ids keep the table's order.
    """
    if n >= len(table):
        return table.image_id.tolist()
    of_group = table.groupby("group_id").label.transform("first")
    wanted = round(n * float((of_group == 1).mean()))
    rng, kept = np.random.default_rng(seed), []
    for label, places in ((0, n - wanted), (1, wanted)):
        sizes = table[of_group == label].groupby("group_id").size()
        for group in rng.permutation(sizes.index.to_numpy()):
            if sizes[group] <= places:
                kept.append(group)
                places -= sizes[group]
    return table.image_id[table.group_id.isin(kept)].tolist()


def logits_of(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Logits, float64 (n,), of pixels in memory, uint8 (n, height, width, channels), in one batch.

    It is filled up to the next power of two, so that many calls of different sizes compile the network a few times only.
    """
    filled = 1 << (len(pixels) - 1).bit_length()
    padding = [(0, filled - len(pixels))] + [(0, 0)] * (pixels.ndim - 1)
    return np.asarray(model.predict_on_batch(np.pad(pixels, padding)))[: len(pixels), 0].astype(np.float64)


def milliseconds_per_image(model: keras.Model, images: ImageSet) -> float:
    """Wall time of a prediction, an image, of at most 128 images in batches as `predict` makes them; pixels are decoded already.

    The first pass, which compiles, does not count.
    """
    few = ImageSet(images.table.iloc[:128], images.pixels[:128])
    predict_logits(model, few)
    began = time.perf_counter()
    predict_logits(model, few)
    return 1000 * (time.perf_counter() - began) / len(few)


def frozen_features(
    backbone: keras.Model, images: ImageSet, params: RunParams, views: int, folder: Path | None = None
) -> tuple[np.ndarray, float]:
    """What a frozen backbone makes of the images, and the seconds that it took, now or when they were kept.

    An epoch through a frozen backbone computes the same features again and again, but for augmentation; a few kept views
    take its place, and an epoch of the head then takes a fraction of a second.

    Args:
        backbone: the first model of `split_at_head`.
        params: `augment` and `seed` are used.
        views: of each image, changed by `augment`; 0 takes the image as it is, once.
        folder: where they are kept, with the key of what they are made from.
    Returns:
        features, float32 (n, views or 1, ...), in the order of `images.table`; seconds.
    Raises:
        ValueError: features that take more than a third of the machine's memory: training on them needs them three times.
    """
    made = np.empty(check_memory((len(images), max(views, 1), *backbone.output_shape[1:])), np.float32)
    key = json.dumps([views, training_key(backbone, params, {"seed", "augment"}, [images])])
    name = f"features-{images.table.split.iloc[0]}"
    file = None if folder is None else folder / f"{name}.npz"
    kept = read_arrays(file, "its features are made anew")
    is_known = str(kept.get("key")) == key
    check_agreement(f"kept {name}", is_known)
    if not is_known:
        began, batch = time.perf_counter(), predict_batch(len(images))
        for view in bar(range(made.shape[1]), made.shape[1], f"features of {len(images)} images", unit="view"):
            changed = view_dataset(images, params.augment, batch, params.seed, view) if views else None
            found = predict_batches(backbone, changed or eval_dataset(images.pixels, batch))
            made[:, view] = found[: len(images)]
        kept = {"key": key, "features": made, "seconds": time.perf_counter() - began}
        if file is not None and processes()[0] == 0:
            write_atomically(file, **kept)
    return kept["features"], float(kept["seconds"])


def check_memory(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (n, views, ...) of float32 features; ValueError if the machine cannot hold them three times."""
    needed_gb = np.prod(shape, dtype=float) * 4 / 1e9
    have_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed_gb > have_gb / 3:
        raise ValueError(
            f"features.views {shape[1]}: the features of {shape[0]:,} images are {shape[2:]} numbers each and would take "
            f"{needed_gb:.1f} GB; at most a third of the machine's {have_gb:.1f} GB are allowed. Lower it, or set it to 0"
        )
    return shape
