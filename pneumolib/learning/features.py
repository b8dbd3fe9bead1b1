"""Transfer learning on a frozen backbone: run it once over some augmented views of each image, train the head on that.

An epoch through a frozen backbone computes the same features again and again, but for augmentation; a few kept views
stand in for it, and an epoch of the head then takes a fraction of a second.
"""

from pathlib import Path

import keras
import numpy as np
import pandas as pd

from pneumolib.data.images import ImageSet
from pneumolib.data.pipeline import eval_dataset, feature_dataset, view_dataset
from pneumolib.data.progress import bar
from pneumolib.learning.checkpoint import write_atomically
from pneumolib.learning.devices import describe
from pneumolib.learning.fine_tuning import split_at_head
from pneumolib.learning.training import (
    PREDICT_BATCH,
    Task,
    arrays_hash,
    class_weights,
    code_of,
    fit,
    run_task,
    weights_hash,
)
from pneumolib.params import AugmentParams, RunParams

_DECIDE = ["learning/features.py", "learning/backbones.py", "data/pipeline.py", "data/augment.py"]


def fit_head(
    model: keras.Model, train: ImageSet, val: ImageSet, params: RunParams, folder: Path | None = None
) -> pd.DataFrame:
    """Train the head of a transfer model in place, on kept features; `learning.fit` where `features.views` is 0.

    Arguments, result and errors are those of `learning.fit`. Features are kept in `folder`, too: a training that was
    killed goes on without computing them again.
    """
    if params.features.views == 0:
        return fit(model, train, val, params, folder)
    training = params.training
    backbone, head = split_at_head(model)
    seen = frozen_features(backbone, train, params.augment, params.features.views, params.seed, folder)
    val_seen = frozen_features(backbone, val, None, 1, params.seed, folder)[:, 0]
    labels = train.table.label.to_numpy()
    weights = class_weights(labels, training.class_weights)
    val_batch = min(PREDICT_BATCH, len(val))
    task = Task(
        model=head,
        batches=lambda start: feature_dataset(
            seen, labels, training.batch_size, params.seed, training.epochs, weights, start
        ),
        steps=len(seen) // training.batch_size,
        score=lambda: head.predict(eval_dataset(val_seen, val_batch), verbose=0)[: len(val), 0].astype(np.float64),
        labels=val.table.label.to_numpy(),
        seen=[seen, val_seen, labels],
    )
    return run_task(task, params, folder)


def frozen_features(
    backbone: keras.Model,
    images: ImageSet,
    augment: AugmentParams | None,
    views: int,
    seed: int,
    folder: Path | None = None,
) -> np.ndarray:
    """What a frozen backbone makes of the images, float32 (n, views, ...), in the order of `images.table`.

    Args:
        backbone: the first model of `split_at_head`.
        augment: changes, drawn anew for each view; None leaves the images as they are.
        folder: where they are kept, under a name that says what they are made from.
    """
    part, key = images.table.split.iloc[0], _key(backbone, images, augment, views, seed)
    file = None if folder is None else folder / f"features-{part}-{key}.npy"
    if file is not None and file.is_file():
        return np.load(file)
    batch = min(PREDICT_BATCH, len(images))
    made = None
    for view in bar(range(views), views, f"features of {len(images)} images, views"):
        data = (
            eval_dataset(images.pixels, batch) if augment is None else view_dataset(images, augment, batch, seed, view)
        )
        found = backbone.predict(data, verbose=0)[: len(images)]
        if made is None:
            made = np.empty((len(images), views, *found.shape[1:]), np.float32)
        made[:, view] = found
    if file is not None:
        for outdated in folder.glob(f"features-{part}-*.npy"):
            outdated.unlink()
        write_atomically(file, lambda opened: np.save(opened, made))
    return made


def _key(backbone: keras.Model, images: ImageSet, augment: AugmentParams | None, views: int, seed: int) -> str:
    made_from = [
        weights_hash(backbone),
        arrays_hash([images.pixels]),
        augment,
        views,
        seed,
        describe(),
        code_of(_DECIDE),
    ]
    return arrays_hash([np.frombuffer(repr(made_from).encode(), np.uint8)])[:16]
