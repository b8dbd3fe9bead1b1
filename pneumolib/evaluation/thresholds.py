"""From a probability to a call: the threshold is chosen on validation, once, and frozen before test is read."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import expit

from pneumolib.evaluation.metrics import EvaluationError, check_predictions, compute_metrics
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
    largest sensitivity + specificity; both lie half-way to the next lower score, so that they do not hang on the last
    digit of one image's probability. `fixed` is `fixed_threshold`. `binormal` is where sensitivity equals specificity if
    the logits of each class are normally distributed (Dorfman and Alf, J Math Psychol 1969): as many standard deviations
    from one class's mean as from the other's. It rests on all images where the others, on a validation set that is
    nearly separated, rest on the few that are called wrongly.

    Raises:
        EvaluationError: no usable validation rows.
    """
    rows = check_predictions(predictions, "val")
    labels, scores = rows.label.to_numpy(), rows.probability.to_numpy()
    if params.threshold_rule == "fixed":
        value, rule = params.fixed_threshold, f"fixed at {params.fixed_threshold:g}"
    elif params.threshold_rule == "binormal":
        value, rule = _binormal(labels, rows.logit.to_numpy()), "equal error by binormal logits"
    else:
        value, rule = _from_scores(labels, scores, params)
    reached = compute_metrics(labels, scores, value)
    return Threshold(float(value), rule, float(reached["sensitivity"]), float(reached["specificity"]))


def _binormal(labels: np.ndarray, logits: np.ndarray) -> float:
    normal, pneumonia = logits[labels == 0], logits[labels == 1]
    if not (len(normal) and len(pneumonia) and pneumonia.mean() > normal.mean()):
        raise EvaluationError(
            "threshold_rule binormal: the mean logit of pneumonia does not lie above that of normal on validation, so "
            "no point lies between them; use sensitivity, or look at the training"
        )
    spread = normal.std() + pneumonia.std()
    share = normal.std() / spread if spread else 0.5
    return float(expit(normal.mean() + share * (pneumonia.mean() - normal.mean())))


def _from_scores(labels: np.ndarray, scores: np.ndarray, params: EvaluationParams) -> tuple[float, str]:
    distinct = np.unique(scores)
    candidates = (distinct + np.concatenate([[0.0], distinct[:-1]])) / 2
    called = scores[:, None] >= candidates
    sensitivity, specificity = called[labels == 1].mean(axis=0), (~called[labels == 0]).mean(axis=0)
    if params.threshold_rule == "youden":
        return candidates[np.argmax(sensitivity + specificity)], "largest sensitivity + specificity (Youden)"
    reaching = np.flatnonzero(sensitivity >= params.target_sensitivity)
    return candidates[reaching[-1]], f"highest with sensitivity of at least {params.target_sensitivity:g}"
