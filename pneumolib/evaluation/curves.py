"""Curves with bands, what every threshold would have given, and what acting on the scores would be worth.

All thresholds of these curves are for looking, not for choosing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import interval_columns, resampled
from pneumolib.evaluation.metrics import check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

PREVALENCES = (0.05, 0.10, 0.20, 0.40)
_DRAWN = 500  # resamples behind a band: a picture needs fewer than a table
_PLACES = 101  # of a curve
_ODDS_AT = np.arange(1, 100) / 100


def curve_bands(
    predictions: pd.DataFrame, params: EvaluationParams, seed: int, splits: Sequence[str] = ("val", "test")
) -> pd.DataFrame:
    """ROC and precision-recall curves of validation and test, or of other `splits`, at 101 places, with bands.

    Returns:
        columns `curve` (`roc`, `precision_recall`), `split`, `x`, `y`, `low`, `high`. Of `roc` x is 1 - specificity and y
        sensitivity, straight between the points of the curve; of `precision_recall` x is recall (sensitivity) and y precision
        (PPV), in steps as average precision sums them. Limits are of each place for itself, from resamples of groups; NaN
        where a class has fewer than two groups, as is y where a class is missing.
    """
    places, bands = np.linspace(0, 1, _PLACES), []
    for split in splits:
        rows, resamples = resampled(predictions, split, params, seed)
        order = np.argsort(-rows.probability.to_numpy(), kind="stable")
        scores, labels = rows.probability.to_numpy()[order], rows.label.to_numpy()[order]
        ends = np.flatnonzero(np.diff(scores, append=np.nan) != 0)  # the last image at each distinct score
        for name in ("roc", "precision_recall"):
            y = low = high = np.full(_PLACES, np.nan)
            if 0 < labels.sum() < len(labels):
                y = _curve(name, labels, np.ones(len(labels)), ends, places)
            if resamples.weights is not None:
                drawn = [_curve(name, labels, row, ends, places) for row in resamples.weights[:_DRAWN, order]]
                low, high = np.quantile(drawn, [resamples.tail, 1 - resamples.tail], axis=0)
            band = {"curve": name, "split": split, "x": places, "y": y, "low": low, "high": high}
            bands.append(pd.DataFrame(band))
    return pd.concat(bands, ignore_index=True)


def _curve(name: str, labels: np.ndarray, weights: np.ndarray, ends: np.ndarray, places: np.ndarray) -> np.ndarray:
    """y at each place, from true and false positives at each distinct score, highest first."""
    true, false = np.cumsum(weights * (labels == 1))[ends], np.cumsum(weights * (labels == 0))[ends]
    recall = true / true[-1]
    if name == "roc":
        # Where x repeats, `interp` takes the last value: the curve rises there before it goes on.
        return np.interp(places, np.append(0, false / false[-1]), np.append(0, recall))
    first = np.searchsorted(recall, places - 1e-12)  # the first score that reaches so much recall
    return (true / np.maximum(true + false, 1e-12))[np.maximum(first, np.argmax(true > 0))]


def threshold_sweep(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """`threshold, sensitivity, specificity, accuracy, ppv, npv` at 199 thresholds from 0.005 to 0.995."""
    rows = check_predictions(predictions, split)
    thresholds = pd.Series(np.arange(1, 200) / 200, name="threshold")
    found = pd.DataFrame([compute_metrics(rows.label, rows.probability, threshold) for threshold in thresholds])
    shown = found[["sensitivity", "specificity", "accuracy", "ppv", "npv"]].astype(float)
    return pd.concat([thresholds, shown], axis=1)


def decision_curve(predictions: pd.DataFrame, split: str, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """Net benefit against treating all and treating none (Vickers and Elkin, Med Decis Making 2006).

    A threshold probability p says that one is willing to treat 1/p children to treat one with pneumonia; false positives
    count p / (1 - p) of a true one. The prevalence is that of the split, which is that of no clinic.

    Args:
        predictions: columns `PREDICTION_COLUMNS`, and `calibrated`: p is compared with it, so it must be a probability.
        split: `val` or `test`.
        params, seed: for the limits, from resamples of groups.
    Returns:
        one row for p = 0.01 to 0.99: `threshold, model, low, high, treat_all`; treating none is 0.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    odds, labels = _ODDS_AT / (1 - _ODDS_AT), rows.label.to_numpy()
    called = rows.calibrated.to_numpy()[:, None] >= _ODDS_AT
    worth = np.where(labels[:, None] == 1, called, called * -odds)  # of each image at each threshold, (n, thresholds)
    low = high = np.full(len(odds), np.nan)
    if (weights := resamples.weights) is not None:
        drawn = weights @ worth / weights.sum(1, keepdims=True)
        low, high = np.quantile(drawn, [resamples.tail, 1 - resamples.tail], axis=0)
    treat_all = labels.mean() - (1 - labels.mean()) * odds
    columns = {"threshold": _ODDS_AT, "model": worth.mean(0), "low": low, "high": high, "treat_all": treat_all}
    return pd.DataFrame(columns)


def predictive_values(
    predictions: pd.DataFrame, split: str, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """PPV and NPV at other prevalences, from sensitivity and specificity by Bayes's rule.

    It takes for granted that sick and well children look the same elsewhere, which another spectrum of disease denies.

    Returns:
        one row for each of `PREVALENCES`: `prevalence, ppv, ppv_low, ppv_high, npv, npv_low, npv_high`.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    value, draws = resamples.score(rows.probability, threshold)
    table = []
    for prevalence in PREVALENCES:
        row, drawn = {"prevalence": prevalence}, _at(prevalence, draws)
        for name, found in _at(prevalence, value).items():
            row |= interval_columns(name, (float(found), *resamples.limits(drawn[name])))
        table.append(row)
    return pd.DataFrame(table)


def _at(prevalence: float, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PPV and NPV from `sensitivity` and `specificity`; NaN where no image is classified so."""
    sensitivity, specificity = np.asarray(found["sensitivity"], float), np.asarray(found["specificity"], float)
    hit, false = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    right, missed = (1 - prevalence) * specificity, prevalence * (1 - sensitivity)
    with np.errstate(invalid="ignore"):
        return {"ppv": hit / (hit + false), "npv": right / (right + missed)}
