"""Which of several models is better, on the same images and the same resamples?"""

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import group_weights, percentiles, resampled_metrics
from pneumolib.evaluation.metrics import EvaluationError, check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

COLUMNS = ["name", "auroc", "auroc_low", "auroc_high", "difference", "difference_low", "difference_high"]


def compare_auroc(
    predictions: dict[str, pd.DataFrame], split: str, reference: str, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """AUROC of each model with its interval, and the paired difference from `reference` with its own.

    All models are scored on the same resamples of groups, so that what is hard for both cancels out of the difference.

    Args:
        predictions: model's name to its table, columns `PREDICTION_COLUMNS`.
        split: `val` or `test`.
        reference: the name that the others are compared with.
        params: `resamples` and `confidence`.
    Returns:
        one row a model, columns `COLUMNS`; the last three are NaN for the reference, and intervals are NaN where a
        class has fewer than two groups.
    Raises:
        EvaluationError: models that were scored on other images, or predictions that cannot be used.
    """
    tables = {name: check_predictions(table, split).sort_values("image_id") for name, table in predictions.items()}
    base = tables[reference]
    for name, table in tables.items():
        if table.image_id.tolist() != base.image_id.tolist():
            raise EvaluationError(f"{name} and {reference} were scored on other images of split {split!r}")
    labels, weights = base.label.to_numpy(), group_weights(base.label, base.group_id, params.resamples, seed)
    values, draws = {}, {}
    for name, table in tables.items():
        scores = table.probability.to_numpy()
        values[name] = float(compute_metrics(labels, scores, 0.5)["auroc"])
        resampled = None if weights is None else resampled_metrics(labels, scores, 0.5, weights)
        draws[name] = np.array([np.nan]) if resampled is None else resampled["auroc"]
    tail = (1 - params.confidence) / 2
    rows = [_row(name, values, draws, reference, tail) for name in values]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(name: str, values: dict[str, float], draws: dict[str, np.ndarray], reference: str, tail: float) -> tuple:
    own = (name, values[name], *percentiles(draws[name], tail))
    if name == reference:
        return (*own, np.nan, np.nan, np.nan)
    return (*own, values[name] - values[reference], *percentiles(draws[name] - draws[reference], tail))
