"""A whole training in one call, for pages that compare ways of preparing images rather than trainings."""

import keras
import pandas as pd

from pneumolib.data.images import read_images
from pneumolib.data.manifest import Manifest
from pneumolib.learning.models import build_model
from pneumolib.learning.predicting import predict
from pneumolib.learning.training import class_weights, fit, initial_logit
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
