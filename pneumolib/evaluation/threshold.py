"""From a probability to a predicted class: the threshold is chosen on validation, once, and frozen before test is read."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy  # `scipy.special` is loaded when it is used: the check of what is due uses none

from pneumolib.errors import InputError
from pneumolib.evaluation.metrics import check_predictions, compute_metrics
from pneumolib.params import EvaluationParams


@dataclass(frozen=True)
class Threshold:
    """A frozen threshold on the probability of pneumonia.

    Attributes:
        value: a probability at or above it is classified as pneumonia.
        rule: how it was chosen, in words.
        sensitivity, specificity: what it gave on validation.
        chosen_on: never test; `recalibration` for another source's, see `external`.
    """

    value: float
    rule: str
    sensitivity: float
    specificity: float
    chosen_on: Literal["validation", "recalibration"] = "validation"


def choose_threshold(
    predictions: pd.DataFrame, params: EvaluationParams, views: pd.DataFrame | None = None
) -> Threshold:
    """Choose on the validation rows; rows of other splits are not looked at.

    `sensitivity` takes the highest threshold that still reaches `target_sensitivity`, `youden` the one with the
    largest sensitivity + specificity; both lie half-way to the next lower score, so that they do not hang on the last
    digit of one image's probability. `fixed` is `fixed_threshold`. `binormal` is where sensitivity equals specificity if
    the logits of each class are normally distributed (Dorfman and Alf, J Math Psychol 1969): as many standard deviations
    from one class's mean as from the other's. It rests on all images where the others, on a validation set that is
    nearly separated, rest on the few that are classified wrongly.

    Args:
        predictions: columns `PREDICTION_COLUMNS`.
        params: the rule.
        views: the validation images again, under changes of acquisition (`learning.predict_views`). They weigh as much,
            all together, as the images as they are: a threshold that holds for both has some room on either side.
    Raises:
        InputError: no usable validation rows, views of other images, or means in the wrong order for `binormal`.
    """
    rows = check_predictions(predictions, "val")
    if rows.label.nunique() < 2:
        raise InputError(
            f"threshold_rule {params.threshold_rule}: validation holds one class only, label {rows.label.iloc[0]}, so that "
            f"sensitivity and specificity cannot both be had there; give it images of the other class"
        )
    seen, weights, said = _with_views(rows, views)
    labels = seen.label.to_numpy()
    if params.threshold_rule == "fixed":
        value, rule = params.fixed_threshold, f"fixed at {params.fixed_threshold:g}"
    elif params.threshold_rule == "binormal":
        value, rule = _binormal(labels, seen.logit.to_numpy(), weights), f"equal error by binormal logits{said}"
    else:
        value, rule = _from_scores(labels, seen.probability.to_numpy(), weights, params)
        rule += said
    reached = compute_metrics(rows.label.to_numpy(), rows.probability.to_numpy(), value)
    return Threshold(float(value), rule, float(reached["sensitivity"]), float(reached["specificity"]))


def _with_views(rows: pd.DataFrame, views: pd.DataFrame | None) -> tuple[pd.DataFrame, np.ndarray, str]:
    """Validation and its views in one table, the weight of each row, and words for the rule."""
    if views is None or views.empty:
        return rows, np.ones(len(rows)), ""
    if set(views.image_id) != set(rows.image_id):
        raise InputError(f"views of {views.image_id.nunique()} images, but validation has {len(rows)}, or other ones")
    weights = np.concatenate([np.ones(len(rows)), np.full(len(views), len(rows) / len(views))])
    said = f", on validation as it is and in {len(views) // len(rows)} augmented views"
    return pd.concat([rows, views], ignore_index=True), weights, said


def _binormal(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    means, deviations = [], []
    for label in (0, 1):
        own, share = logits[labels == label], weights[labels == label]
        means.append(np.average(own, weights=share))
        deviations.append(np.sqrt(np.average((own - means[-1]) ** 2, weights=share)))
    if not means[1] > means[0]:
        raise InputError(
            "threshold_rule binormal: the mean logit of pneumonia does not lie above that of normal on validation, so "
            "no point lies between them; use sensitivity, or look at the training"
        )
    share = deviations[0] / sum(deviations) if sum(deviations) else 0.5
    return float(scipy.special.expit(means[0] + share * (means[1] - means[0])))


def _from_scores(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, params: EvaluationParams
) -> tuple[float, str]:
    distinct = np.unique(scores)
    candidates = (distinct + np.concatenate([[0.0], distinct[:-1]])) / 2
    called = scores[:, None] >= candidates
    of_each = {label: weights[labels == label] / weights[labels == label].sum() for label in (0, 1)}
    sensitivity, specificity = of_each[1] @ called[labels == 1], of_each[0] @ ~called[labels == 0]
    if params.threshold_rule == "youden":
        return candidates[np.argmax(sensitivity + specificity)], "largest sensitivity + specificity (Youden)"
    # Weights that sum to 1 do so up to rounding; a target that is reached exactly must count as reached.
    reaching = np.flatnonzero(sensitivity >= params.target_sensitivity - 1e-12)
    return candidates[reaching[-1]], f"highest with sensitivity of at least {params.target_sensitivity:g}"
