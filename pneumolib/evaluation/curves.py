"""Curves with bands, and what every threshold would have given. All thresholds of these curves are for looking, not for choosing."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import resample
from pneumolib.evaluation.metrics import check_predictions
from pneumolib.params import EvaluationParams

_DRAWN = 500  # resamples behind a band: a picture needs fewer than a table
_PLACES = 101  # of a curve


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
        rows = check_predictions(predictions, split).sort_values("image_id")
        order = np.argsort(-rows.probability.to_numpy(), kind="stable")
        scores, labels = rows.probability.to_numpy()[order], rows.label.to_numpy()[order]
        ends = np.flatnonzero(np.diff(scores, append=np.nan) != 0)  # the last image at each distinct score
        both = 0 < labels.sum() < len(labels)
        resamples = resample(rows, params, seed)
        for name, curve in {"roc": _roc, "precision_recall": _precision_recall}.items():
            values = curve(labels, np.ones(len(labels)), ends, places) if both else np.full(_PLACES, np.nan)
            low = high = np.full(_PLACES, np.nan)
            if resamples.weights is not None:
                drawn = np.array([curve(labels, row, ends, places) for row in resamples.weights[:_DRAWN, order]])
                low, high = np.quantile(drawn, [resamples.tail, 1 - resamples.tail], axis=0)
            bands.append(
                pd.DataFrame({"curve": name, "split": split, "x": places, "y": values, "low": low, "high": high})
            )
    return pd.concat(bands, ignore_index=True)


def _counts(labels: np.ndarray, weights: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false calls of pneumonia at each distinct score, highest first."""
    return np.cumsum(weights * (labels == 1))[ends], np.cumsum(weights * (labels == 0))[ends]


def _roc(labels: np.ndarray, weights: np.ndarray, ends: np.ndarray, places: np.ndarray) -> np.ndarray:
    true, false = _counts(labels, weights, ends)
    # Where x repeats, `interp` takes the last value: the curve rises there before it goes on.
    return np.interp(places, np.append(0, false / false[-1]), np.append(0, true / true[-1]))


def _precision_recall(labels: np.ndarray, weights: np.ndarray, ends: np.ndarray, places: np.ndarray) -> np.ndarray:
    true, false = _counts(labels, weights, ends)
    recall, precision = true / true[-1], true / np.maximum(true + false, 1e-12)
    first = np.searchsorted(recall, places - 1e-12)  # the first score that reaches so much recall
    first = np.maximum(first, np.argmax(true > 0))
    return precision[first]


def threshold_sweep(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """`threshold, sensitivity, specificity, accuracy, ppv, npv` at 199 thresholds from 0.005 to 0.995."""
    rows = check_predictions(predictions, split)
    sick = rows.label.to_numpy() == 1
    thresholds = np.arange(1, 200) / 200
    called = rows.probability.to_numpy()[:, None] >= thresholds
    tp, fp = called[sick].sum(0), called[~sick].sum(0)
    fn, tn = sick.sum() - tp, (~sick).sum() - fp
    with np.errstate(invalid="ignore"):  # 0 of 0 is NaN, and no line is drawn there
        return pd.DataFrame({
            "threshold": thresholds, "sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp),
            "accuracy": (tp + tn) / len(rows), "ppv": tp / (tp + fp), "npv": tn / (tn + fn),
        })  # fmt: skip
