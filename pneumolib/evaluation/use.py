"""Would it be of use? Net benefit of acting on the scores, and what a call means where pneumonia is rarer than here."""

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import resample
from pneumolib.evaluation.metrics import EvaluationError, check_predictions
from pneumolib.params import EvaluationParams

PREVALENCES = (0.05, 0.10, 0.20, 0.40)
_ODDS_AT = np.arange(1, 100) / 100


def decision_curve(
    predictions: pd.DataFrame, split: str, probability: np.ndarray, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """Net benefit against treating all and treating none (Vickers and Elkin, Med Decis Making 2006).

    A threshold probability p says that one is willing to treat 1/p children to treat one with pneumonia; false calls
    count p / (1 - p) of a true one. The prevalence is that of the split, which is that of no clinic.

    Args:
        predictions: columns `PREDICTION_COLUMNS`.
        split: `val` or `test`.
        probability: calibrated, of the split's rows in their order: p is compared with it, so it must be a probability.
        params, seed: for the limits, from resamples of groups.
    Returns:
        one row for p = 0.01 to 0.99: `threshold, model, low, high, treat_all`; treating none is 0.
    """
    rows = check_predictions(predictions, split)
    calibrated = np.asarray(probability, float)
    if len(calibrated) != len(rows) or not ((calibrated >= 0) & (calibrated <= 1)).all():
        raise EvaluationError(
            f"probability: received {len(calibrated)} value(s), {np.isnan(calibrated).sum()} of them no number; needed is one "
            f"between 0 and 1 for each of the {len(rows)} rows of split {split!r}"
        )
    rows = rows.assign(calibrated=calibrated).sort_values("image_id")
    resamples, labels = resample(rows, params, seed), rows.label.to_numpy()
    odds = _ODDS_AT / (1 - _ODDS_AT)
    called = rows.calibrated.to_numpy()[:, None] >= _ODDS_AT
    worth = np.where(labels[:, None] == 1, called, called * -odds)  # of each image at each threshold, (n, thresholds)
    low = high = np.full(len(odds), np.nan)
    if (weights := resamples.weights) is not None:
        drawn = weights @ worth / weights.sum(1, keepdims=True)
        low, high = np.quantile(drawn, [resamples.tail, 1 - resamples.tail], axis=0)
    sick = labels.mean()
    return pd.DataFrame(
        {"threshold": _ODDS_AT, "model": worth.mean(0), "low": low, "high": high, "treat_all": sick - (1 - sick) * odds}
    )


def predictive_values(
    predictions: pd.DataFrame, split: str, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """PPV and NPV at other prevalences, from sensitivity and specificity by Bayes's rule.

    It takes for granted that sick and well children look the same elsewhere, which another spectrum of disease denies.

    Returns:
        one row for each of `PREVALENCES`: `prevalence, ppv, ppv_low, ppv_high, npv, npv_low, npv_high`.
    """
    rows = check_predictions(predictions, split).sort_values("image_id")
    resamples, table = resample(rows, params, seed), []
    value, draws = resamples.score(rows.probability, threshold)
    for prevalence in PREVALENCES:
        row, drawn = {"prevalence": prevalence}, _at(prevalence, draws)
        for name, found in _at(prevalence, value).items():
            low, high = resamples.limits(drawn[name])
            row |= {name: float(found), f"{name}_low": low, f"{name}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def _at(prevalence: float, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PPV and NPV from `sensitivity` and `specificity`; NaN where nobody is called."""
    sensitivity, specificity = np.asarray(found["sensitivity"], float), np.asarray(found["specificity"], float)
    hit, false = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    right, missed = (1 - prevalence) * specificity, prevalence * (1 - sensitivity)
    with np.errstate(invalid="ignore"):
        return {"ppv": hit / (hit + false), "npv": right / (right + missed)}
