"""From a probability to a call: the threshold is chosen on validation, once, and frozen before test is read."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from pneumolib.evaluation.metrics import check_predictions, compute_metrics
from pneumolib.params import EvaluationParams


@dataclass(frozen=True)
class Threshold:
    """A frozen threshold on the probability of pneumonia.

    Attributes:
        value: a probability at or above it is called pneumonia.
        rule: how it was chosen, in words.
        sensitivity, specificity: what it gave on validation.
        chosen_on: a constant; a threshold chosen on test cannot be expressed.
    """

    value: float
    rule: str
    sensitivity: float
    specificity: float
    chosen_on: Literal["validation"] = "validation"


def choose_threshold(predictions: pd.DataFrame, params: EvaluationParams) -> Threshold:
    """Choose on the validation rows; rows of other splits are not looked at.

    `sensitivity` takes the highest threshold that still reaches `target_sensitivity`, `youden` the one with the
    largest sensitivity + specificity, `fixed` is `fixed_threshold`. The value lies half-way to the next lower score,
    so that it does not hang on the last digit of one image's probability.

    Raises:
        EvaluationError: no usable validation rows.
    """
    rows = check_predictions(predictions, "val")
    labels, scores = rows.label.to_numpy(), rows.probability.to_numpy()
    if params.threshold_rule == "fixed":
        value, rule = params.fixed_threshold, f"fixed at {params.fixed_threshold:g}"
    else:
        value, rule = _from_scores(labels, scores, params)
    reached = compute_metrics(labels, scores, value)
    return Threshold(float(value), rule, float(reached["sensitivity"]), float(reached["specificity"]))


def _from_scores(labels: np.ndarray, scores: np.ndarray, params: EvaluationParams) -> tuple[float, str]:
    distinct = np.unique(scores)
    candidates = (distinct + np.concatenate([[0.0], distinct[:-1]])) / 2
    called = scores[:, None] >= candidates
    sensitivity, specificity = called[labels == 1].mean(axis=0), (~called[labels == 0]).mean(axis=0)
    if params.threshold_rule == "youden":
        return candidates[np.argmax(sensitivity + specificity)], "largest sensitivity + specificity (Youden)"
    reaching = np.flatnonzero(sensitivity >= params.target_sensitivity)
    return candidates[reaching[-1]], f"highest with sensitivity of at least {params.target_sensitivity:g}"
