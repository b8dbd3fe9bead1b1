"""How good is it? Metrics from labels and scores in NumPy, for one weighting or for thousands at once.

Contract: labels int (n,), 1 = pneumonia; scores float (n,), larger = more like pneumonia; weights (..., n), one set of
non-negative weights a row; results (...,). A weight is how often an image counts: one row of ones gives the plain
value, multinomial counts give a bootstrap resample. A value that cannot be computed is NaN, never 0 or 1. All metrics lie
between 0 and 1, but for MCC, from -1 to 1, and log loss, from 0 up.
"""

import numpy as np
import pandas as pd

from pneumolib.errors import InputError

METRIC_NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "ppv": "PPV", "npv": "NPV", "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "f1": "F1", "mcc": "MCC",
    "brier": "Brier score", "log_loss": "Log loss",
}  # fmt: skip
METRICS = list(METRIC_NAMES)
# Shares of images that were classified rightly or wrongly.
PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv", "accuracy")
PREDICTION_COLUMNS = ["image_id", "split", "label", "kind", "group_id", "logit", "probability"]


def check_predictions(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split, `logit` and `probability` as numbers.

    Raises:
        InputError: columns, labels, probabilities, ids or groups that cannot be used, with the first row that is at fault.
    """
    if missing := [c for c in PREDICTION_COLUMNS if c not in predictions]:
        raise InputError(f"predictions lack the column(s) {', '.join(missing)}; found {', '.join(predictions)}")
    rows = predictions[predictions.split == split]
    if rows.empty:
        found = ", ".join(sorted(map(str, predictions.split.unique()))) or "none"
        raise InputError(f"predictions hold no rows of split {split!r}; splits found: {found}")
    if others := set(rows.label) - {0, 1}:
        raise InputError(f"label: received {sorted(others, key=str)}, allowed 0 (normal), 1 (pneumonia)")
    rows = rows.assign(**{name: pd.to_numeric(rows[name], errors="coerce") for name in ("logit", "probability")})
    faults = {
        "without a usable probability": ~(np.isfinite(rows.logit) & rows.probability.between(0, 1)),
        "of an image that appears before; every image counts exactly once": rows.image_id.duplicated(),
        "where group_id is missing": rows.group_id.isna() | (rows.group_id.astype(str).str.strip() == ""),
    }
    for what, bad in faults.items():
        if bad.any():
            raise InputError(f"{bad.sum()} row(s) of split {split!r} {what}, such as {rows.image_id[bad].iloc[0]}")
    return rows


def compute_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every metric of `METRICS`; a score at or above the threshold is classified as pneumonia.

    AUROC counts ties as one half; AUPRC is the average precision (step-wise sum, no interpolation). Both agree with
    scikit-learn's `roc_auc_score` and `average_precision_score` under `sample_weight`.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    positive, negative = weights * (labels == 1), weights * (labels == 0)
    called = (scores >= threshold).astype(float)
    tp, fp = positive @ called, negative @ called
    fn, tn = positive.sum(-1) - tp, negative.sum(-1) - fp
    shares = {"sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}
    shares |= {"accuracy": (tp + tn, tp + tn + fp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}
    shares |= {"mcc": (tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))}
    found = {name: _ratio(part, whole) for name, (part, whole) in shares.items()}
    found["balanced_accuracy"] = (found["sensitivity"] + found["specificity"]) / 2
    return found | _ranking_metrics(scores, positive, negative) | _probability_metrics(labels, scores, weights)


def _probability_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Brier score and log loss, as scikit-learn's `brier_score_loss` and `log_loss`; NaN for scores that are no probabilities."""
    scores = np.where((scores >= 0) & (scores <= 1), scores, np.nan)
    tiny = np.finfo(float).eps  # a certain error would cost an infinite loss
    likely = np.where(labels == 1, scores, 1 - scores).clip(tiny, 1)
    losses = {"brier": (scores - labels) ** 2, "log_loss": -np.log(likely)}
    return {name: _ratio(weights @ loss, weights.sum(-1)) for name, loss in losses.items()}


def _ranking_metrics(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC and AUPRC from the weight of each class at each distinct score, highest score first."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    pos = np.add.reduceat(positive[..., order], starts, axis=-1)
    neg = np.add.reduceat(negative[..., order], starts, axis=-1)
    tp, fp = np.cumsum(pos, axis=-1), np.cumsum(neg, axis=-1)
    n_pos, n_neg = tp[..., -1], fp[..., -1]
    ranked_above = ((tp - pos / 2) * neg).sum(-1)  # for each negative, the positives above it, ties by half
    average_precision = (pos * _ratio(tp, tp + fp, empty=0)).sum(-1)
    # Without either class there is nothing to rank.
    return {"auroc": _ratio(ranked_above, n_pos * n_neg), "auprc": _ratio(average_precision, n_pos * (n_neg > 0))}


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    whole = np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(whole.shape, empty, dtype=float), where=whole > 0)


def confusion_counts(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, int]:
    """`tp, fp, tn, fn` as plain counts."""
    sick, called = np.asarray(labels) == 1, np.asarray(scores) >= threshold
    cells = {"tp": sick & called, "fp": ~sick & called, "tn": ~sick & ~called, "fn": sick & ~called}
    return {name: int(cell.sum()) for name, cell in cells.items()}


def classification_report(labels: np.ndarray, scores: np.ndarray, threshold: float) -> pd.DataFrame:
    """Precision, recall and F1 of each class as if it were the positive one, and their means.

    Returns:
        one row each for normal (0), pneumonia (1), the plain mean of both and the mean weighted by `images`; columns
        `label` (0, 1, `mean`, `weighted mean`), `precision, recall, f1, images`; NaN where a ratio has no cases.
    """
    from sklearn.metrics import precision_recall_fscore_support  # here, because reading results does without

    called = np.asarray(scores) >= threshold
    *ratios, images = precision_recall_fscore_support(labels, called, labels=[0, 1], zero_division=np.nan)
    rows = [[*r, r.mean(), (r * (images / images.sum())).sum()] for r in ratios]
    table = {"label": [0, 1, "mean", "weighted mean"]} | dict(zip(("precision", "recall", "f1"), rows, strict=True))
    return pd.DataFrame(table | {"images": [*map(int, images), *[int(images.sum())] * 2]})


def threshold_sweep(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """`threshold, sensitivity, specificity, accuracy, ppv, npv` at 199 thresholds from 0.005 to 0.995."""
    rows = check_predictions(predictions, split)
    thresholds = pd.Series(np.arange(1, 200) / 200, name="threshold")
    found = pd.DataFrame([compute_metrics(rows.label, rows.probability, threshold) for threshold in thresholds])
    shown = found[["sensitivity", "specificity", "accuracy", "ppv", "npv"]].astype(float)
    return pd.concat([thresholds, shown], axis=1)
