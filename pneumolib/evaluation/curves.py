"""Curves with bands, and what acting on the scores would be worth.

All thresholds of these curves are for looking, not for choosing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pneumolib.evaluation.calibration import REFER, Threshold, uncertainty
from pneumolib.evaluation.intervals import interval_columns, resampled, share_limits, unpaired_ratio
from pneumolib.evaluation.metrics import check_predictions
from pneumolib.params import EvaluationParams

PREVALENCES = (0.05, 0.10, 0.20, 0.40)
_DRAWN = 500  # resamples behind a band: a picture needs fewer than a table
_PLACES = 101  # of a curve
_COVERAGES = np.arange(20, 9, -1) / 20
_ODDS_AT = np.arange(1, 100) / 100


def curve_bands(
    predictions: pd.DataFrame, params: EvaluationParams, seed: int, splits: Sequence[str] = ("val", "test")
) -> pd.DataFrame:
    """ROC and precision-recall curves of validation and test, or of other `splits`, at 101 places, with bands.

    Returns:
        columns `x`, `y`, `low`, `high`, `curve` (`roc`, `precision_recall`), `split`. Of `roc` x is 1 - specificity and y
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
            bands.append(pd.DataFrame({"x": places, "y": y, "low": low, "high": high}).assign(curve=name, split=split))
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


def decision_curve(predictions: pd.DataFrame, split: str, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """Net benefit against treating all and treating none (Vickers and Elkin, Med Decis Making 2006).

    A threshold probability p says that one is willing to treat 1/p children to treat one with pneumonia; false positives
    count p / (1 - p) of a true one. The prevalence is that of the split, which is that of no clinic.

    Args:
        predictions: columns `PREDICTION_COLUMNS`.
        split: `val` or `test`.
        params, seed: for the limits, from resamples of groups.
    Returns:
        one row for p = 0.01 to 0.99: `threshold, model, low, high, treat_all`, treating none being 0; `difference` from
        the better of the two with its own limits, `difference_low, difference_high`.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    odds, labels = _ODDS_AT / (1 - _ODDS_AT), rows.label.to_numpy()[:, None]
    called = rows.probability.to_numpy()[:, None] >= _ODDS_AT
    # What each image is worth at each threshold, (n, thresholds): to the model, and to whoever treats all.
    of_model, of_all = np.where(labels == 1, called, called * -odds), np.where(labels == 1, 1, -odds)
    model, treat_all = of_model.mean(0), of_all.mean(0)
    limits = dict.fromkeys(("low", "high", "difference_low", "difference_high"), np.full(len(odds), np.nan))
    if (weights := resamples.weights) is not None:
        drawn, drawn_all = (weights @ worth / weights.sum(1, keepdims=True) for worth in (of_model, of_all))
        apart = drawn - np.where(treat_all > 0, drawn_all, 0)
        ends = [np.quantile(one, [resamples.tail, 1 - resamples.tail], axis=0) for one in (drawn, apart)]
        limits = dict(zip(limits, np.concatenate(ends), strict=True))
    difference = model - np.maximum(treat_all, 0)
    columns = {"threshold": _ODDS_AT, "model": model, "treat_all": treat_all, "difference": difference}
    return pd.DataFrame(columns | limits)


def better_ranges(curve: pd.DataFrame) -> list[tuple[float, float]]:
    """Runs of neighbouring thresholds at which the interval of the `difference` in a decision curve lies above 0."""
    better = curve.difference_low > 0
    runs = curve.threshold[better].groupby((better != better.shift()).cumsum()[better])
    return [(float(run.iloc[0]), float(run.iloc[-1])) for _, run in runs]


def risk_coverage(
    predictions: pd.DataFrame, split: str, threshold: Threshold, confidence: float = 0.95
) -> pd.DataFrame:
    """How often is a predicted class wrong when the least certain images are referred to a person?

    Certain is what lies far from the threshold, by the log odds. `coverage` is the share of images that is not referred.

    Returns:
        one row for each coverage of 1.00, 0.95, ... 0.50 and first, where the threshold refers, one for its frozen band:
        `frozen, coverage, images, errors, error` (share of images) with `error_low, error_high`.
    """
    rows = check_predictions(predictions, split)
    probability, groups = rows.probability.to_numpy(), rows.group_id.to_numpy()
    order = np.argsort(uncertainty(probability, threshold.value), kind="stable")  # the most certain first
    kept = [(False, order[: round(share * len(rows))]) for share in _COVERAGES]
    if threshold.refer_low is not None:
        kept.insert(0, (True, np.flatnonzero(threshold.classes(probability) != REFER)))
    wrong, table = (probability >= threshold.value) != (rows.label == 1).to_numpy(), []
    for frozen, images in ((frozen, images) for frozen, images in kept if len(images)):
        found = {"frozen": frozen, "coverage": len(images) / len(rows), "images": len(images)}
        limits = share_limits(wrong[images], groups[images], confidence)
        table.append(found | {"errors": int(wrong[images].sum())} | interval_columns("error", limits))
    return pd.DataFrame(table)


def predictive_values(
    predictions: pd.DataFrame, split: str, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """PPV and NPV at other prevalences, from sensitivity and specificity by Bayes's rule.

    Limits are those of the likelihood ratios, put together from the limits of sensitivity and specificity.
    It takes for granted that sick and well children look the same elsewhere, which another spectrum of disease denies.

    Returns:
        one row for each of `PREVALENCES`: `prevalence, ppv, ppv_low, ppv_high, npv, npv_low, npv_high`.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    model = rows.probability.to_numpy(), threshold
    sick, well = (np.array(resamples.clustered_limits(name, model)) for name in ("sensitivity", "specificity"))
    flipped = [0, 2, 1]  # of what is left to 1, the limits change places
    positive, negative = unpaired_ratio(sick, 1 - well[flipped]), unpaired_ratio(1 - sick[flipped], well)
    table = []
    for prevalence in PREVALENCES:
        odds = prevalence / (1 - prevalence)
        with np.errstate(divide="ignore"):  # ratios are 0 or infinite where a class has no error
            ppv, npv = 1 / (1 + 1 / (odds * positive)), 1 / (1 + odds * negative)
        row = {"prevalence": prevalence} | interval_columns("ppv", ppv) | interval_columns("npv", npv[flipped])
        table.append(row)
    return pd.DataFrame(table)
