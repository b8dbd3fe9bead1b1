"""Scores of images: every image once, in the order of its table."""

import time

import keras
import numpy as np
import pandas as pd
from scipy.special import expit

from pneumolib.data.batches import eval_dataset, view_dataset
from pneumolib.data.pixels import ImageSet
from pneumolib.learning.distribution import even, predict_batches
from pneumolib.params import RunParams

PREDICT_BATCH = 64


def predict_batch(n: int) -> int:
    """Images in a batch when `n` are predicted: `PREDICT_BATCH` or fewer, a multiple of the devices that share it."""
    return even(min(PREDICT_BATCH, n))


def predict_logits(model: keras.Model, images: ImageSet) -> np.ndarray:
    """Logits, float64 (n,), in the order of `images.table`, every image once."""
    return _logits(model, eval_dataset(images.pixels, predict_batch(len(images))), len(images))


def _logits(model: keras.Model, batches, n: int) -> np.ndarray:
    """Of the first `n` images; those after them fill the last batch."""
    return predict_batches(model, batches)[:n, 0].astype(np.float64)


def predict(model: keras.Model, images: ImageSet) -> pd.DataFrame:
    """Predictions for one split: the columns of `images.table`, then `logit` and `probability` of pneumonia."""
    logits = predict_logits(model, images)
    return images.table.assign(logit=logits, probability=expit(logits))


def predict_views(model: keras.Model, images: ImageSet, params: RunParams) -> pd.DataFrame:
    """As `predict`, for `evaluation.threshold_views` views of each image changed by `augment`; empty without views."""
    empty = images.table.iloc[:0].assign(logit=0.0, probability=0.0)
    tables = []
    for view in range(params.evaluation.threshold_views):
        # Another seed than training's, whose kept features may be of the same views.
        changed = view_dataset(images, params.augment, predict_batch(len(images)), params.seed + 1, view)
        logits = _logits(model, changed, len(images))
        tables.append(images.table.assign(logit=logits, probability=expit(logits)))
    return pd.concat(tables, ignore_index=True) if tables else empty


def logits_of(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Logits, float64 (n,), of pixels in memory, uint8 (n, height, width, channels), in one batch.

    It is filled up to the next power of two, so that many calls of different sizes compile the network a few times only.
    """
    filled = 1 << (len(pixels) - 1).bit_length()
    padding = [(0, filled - len(pixels))] + [(0, 0)] * (pixels.ndim - 1)
    return np.asarray(model.predict_on_batch(np.pad(pixels, padding)))[: len(pixels), 0].astype(np.float64)


def milliseconds_per_image(model: keras.Model, images: ImageSet, most: int = 128) -> float:
    """Wall time of a prediction, an image, in batches as `predict` makes them; pixels are decoded already.

    The first pass, which compiles, does not count.
    """
    few = ImageSet(images.table.iloc[:most], images.pixels[:most])
    predict_logits(model, few)
    began = time.perf_counter()
    predict_logits(model, few)
    return 1000 * (time.perf_counter() - began) / len(few)
