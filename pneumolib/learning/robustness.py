"""Do calls hold when images change? Predictions for corrupted copies of some test images."""

import keras
import numpy as np
import pandas as pd
from scipy.special import expit

from pneumolib.data.corruptions import SEVERITIES, corrupt
from pneumolib.data.layout import bar
from pneumolib.data.pixels import ChangedPixels, ImageSet, subset
from pneumolib.learning.predicting import predict_logits
from pneumolib.params import RunParams

COLUMNS = ["image_id", "split", "label", "kind", "group_id", "corruption", "severity", "logit", "probability"]
AS_THEY_ARE = "none"  # the corruption of the images as they are, with severity 0


def predict_corrupted(model: keras.Model, images: ImageSet, params: RunParams) -> pd.DataFrame:
    """Predictions for `choose_images`, as they are and under every corruption and severity that is asked for.

    One corruption of one severity is computed at a time, a batch ahead of the network, so that memory does not grow.

    Args:
        images: one split, usually test.
        params: `robustness` (with `images: 0` nothing is computed) and `seed`, which decides the images and what is
            drawn for them.
    Returns:
        one row for each image, corruption and severity: `image_id, split, label, kind, group_id, corruption, severity,
        logit, probability`; corruption `none` of severity 0 first, the images as they are. Empty, with these columns,
        without images.
    """
    asked = params.robustness
    chosen = subset(images, choose_images(images.table, asked.images, params.seed))
    if len(chosen) == 0:
        return images.table.iloc[:0].assign(corruption="", severity=0, logit=0.0, probability=0.0)[COLUMNS]
    # A corruption that is named twice is still one.
    changes = [(name, severity) for name in dict.fromkeys(asked.corruptions) for severity in SEVERITIES]
    tables = [_predicted(model, chosen, AS_THEY_ARE, 0)]
    for name, severity in bar(changes, len(changes), f"{len(chosen)} images corrupted", unit="way"):
        changed = ChangedPixels(chosen.pixels, _corruption(name, severity, params.seed))
        tables.append(_predicted(model, ImageSet(chosen.table, changed), name, severity))
    return pd.concat(tables, ignore_index=True)


def _corruption(name: str, severity: int, seed: int):
    return lambda pixels, first: corrupt(pixels, name, severity, seed, first)


def _predicted(model: keras.Model, images: ImageSet, name: str, severity: int) -> pd.DataFrame:
    logits = predict_logits(model, images)
    table = images.table.assign(corruption=name, severity=severity, logit=logits, probability=expit(logits))
    return table[COLUMNS]


def choose_images(table: pd.DataFrame, n: int, seed: int) -> list[str]:
    """Ids of at most `n` images, whole groups of each class, the classes in about the proportion they have in `table`.

    Groups come in an order that the seed decides, and one that no longer fits into its class's share is passed over, so
    that a few places may stay empty; a group of both classes counts to that of its first image. Ids keep the table's order.
    """
    if n >= len(table):
        return table.image_id.tolist()
    of_group = table.groupby("group_id").label.transform("first")
    wanted = round(n * float((of_group == 1).mean()))
    rng = np.random.default_rng(seed)
    kept = set()
    for label, places in ((0, n - wanted), (1, wanted)):
        sizes = table[of_group == label].groupby("group_id").size()
        for group in rng.permutation(sizes.index.to_numpy()):
            if sizes[group] <= places:
                kept.add(group)
                places -= sizes[group]
    return table.image_id[table.group_id.isin(kept)].tolist()
