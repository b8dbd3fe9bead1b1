"""Whole trainings in one call: for pages that compare ways of preparing images, and for the spread over seeds."""

from collections.abc import Callable
from pathlib import Path

import keras
import pandas as pd

from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet, read_images
from pneumolib.learning.fine_tuning import unfreeze
from pneumolib.learning.models import build_model
from pneumolib.learning.predicting import predict, predict_views
from pneumolib.learning.training import class_weights, fit, initial_logit, load_model
from pneumolib.params import RunParams


def train_and_predict(manifest: Manifest, split: pd.DataFrame, params: RunParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train `params.model` on images prepared as `params.image` says; the best epoch on validation predicts.

    The random state starts from `params.seed`, so that calls that differ in `params.image` alone start from the same
    weights and see the same images in the same order under the same changes.

    Returns:
        predictions of validation and test: `image_id, split, label, kind, group_id, logit, probability`;
        and the training's history, columns `training.HISTORY_COLUMNS`.
    """
    keras.utils.set_random_seed(params.seed)
    sets = {part: read_images(manifest, split, part, params.image) for part in ("train", "val", "test")}
    labels = sets["train"].table.label
    weights = class_weights(labels, params.training.class_weights)
    model = build_model(params.model, params.image, initial_logit(labels, weights))
    history = fit(model, sets["train"], sets["val"], params)
    return pd.concat([predict(model, sets[part]) for part in ("val", "test")], ignore_index=True), history


def train_other_seeds(
    trainer: Callable[..., pd.DataFrame],
    sets: dict[str, ImageSet],
    params: RunParams,
    folder: Path,
    continues: Path | None = None,
) -> dict[int, pd.DataFrame]:
    """The run's training again from each of `evaluation.seeds`; weights, order, augmentation and dropout start anew.

    Args:
        trainer: `fit` or `fit_head`.
        sets: `train`, `val` and `test`; test is predicted, and decides nothing.
        folder: the run's own training folder; each seed keeps its state in a folder in there, and goes on from it.
        continues: the network that a fine-tuning starts from; the same for all seeds. None builds one.
    Returns:
        seed to predictions of validation and test, and of split `views`, validation in the augmented views of
        `evaluation.threshold_views`; empty without seeds.
    """
    labels, found = sets["train"].table.label, {}
    weights = class_weights(labels, params.training.class_weights)
    for seed in params.evaluation.seeds:
        print(f"Seed {seed}", flush=True)
        keras.utils.set_random_seed(seed)
        own = params.model_copy(update={"seed": seed})
        if continues is None:
            model = build_model(params.model, params.image, initial_logit(labels, weights))
        else:
            model = load_model(continues)
            unfreeze(model, params.fine_tuning)
        trainer(model, sets["train"], sets["val"], own, folder / f"seed-{seed}")
        views = predict_views(model, sets["val"], own).assign(split="views")
        found[seed] = pd.concat([*(predict(model, sets[part]) for part in ("val", "test")), views], ignore_index=True)
    return found
