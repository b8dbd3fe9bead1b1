"""Which of several models is better, on the same images and the same resamples?

The paired differences with their intervals are the answer; McNemar's and DeLong's tests stand beside them because readers
look for them. Both take images for independent, which images of one child are not: their p-values are too small.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, rankdata
from statsmodels.stats.multitest import multipletests

from pneumolib.evaluation.intervals import resample
from pneumolib.evaluation.metrics import EvaluationError, check_predictions
from pneumolib.params import EvaluationParams

COLUMNS = ["name", "auroc", "auroc_low", "auroc_high", "difference", "difference_low", "difference_high"]
DIFFERENCES = ("auroc", "sensitivity", "specificity", "accuracy", "brier")


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
    found = paired_differences(predictions, split, dict.fromkeys(predictions, 0.5), reference, params, seed)
    columns = {"value": "auroc", "low": "auroc_low", "high": "auroc_high"}
    return found[found.metric == "auroc"].rename(columns=columns).reset_index(drop=True)[COLUMNS]


def paired_differences(
    predictions: dict[str, pd.DataFrame],
    split: str,
    thresholds: dict[str, float],
    reference: str,
    params: EvaluationParams,
    seed: int,
) -> pd.DataFrame:
    """Each metric of `DIFFERENCES`, each model at its own frozen threshold, and its paired difference from `reference`.

    Args:
        thresholds: model's name to its threshold; the others are as for `compare_auroc`.
    Returns:
        one row a model and metric: `name, metric, value, low, high, difference, difference_low, difference_high`.
    """
    tables = _aligned(predictions, split, reference)
    resamples = resample(tables[reference], params, seed)
    scored = {name: resamples.score(table.probability, thresholds[name]) for name, table in tables.items()}
    base_value, base_draws = scored[reference]
    rows = []
    for name, (value, draws) in scored.items():
        for metric in DIFFERENCES:
            low, high = resamples.limits(draws[metric])
            row = {"name": name, "metric": metric, "value": value[metric], "low": low, "high": high}
            apart, limits = np.nan, (np.nan, np.nan)
            if name != reference:
                apart = value[metric] - base_value[metric]
                limits = resamples.limits(draws[metric] - base_draws[metric])
            rows.append(row | {"difference": apart, "difference_low": limits[0], "difference_high": limits[1]})
    return pd.DataFrame(rows)


def secondary_tests(
    predictions: dict[str, pd.DataFrame], split: str, thresholds: dict[str, float], reference: str
) -> pd.DataFrame:
    """Exact McNemar tests of the calls and DeLong tests of the AUROC against `reference`, Holm-corrected per test.

    Returns:
        one row for each other model: `name, only_reference_right, only_this_right` (images), `mcnemar, mcnemar_holm,
        delong, delong_holm` (p-values; NaN where DeLong's variance is zero). Groups are ignored.
    """
    tables = _aligned(predictions, split, reference)
    labels = tables[reference].label.to_numpy()
    right = {n: (t.probability.to_numpy() >= thresholds[n]) == (labels == 1) for n, t in tables.items()}
    rows = []
    for name in (n for n in tables if n != reference):
        lost, won = int((right[reference] & ~right[name]).sum()), int((~right[reference] & right[name]).sum())
        mcnemar = binomtest(won, won + lost).pvalue if won + lost else 1.0
        delong = delong_test(labels, tables[reference].probability, tables[name].probability)
        rows.append({"name": name, "only_reference_right": lost, "only_this_right": won, "mcnemar": mcnemar,
                     "delong": delong})  # fmt: skip
    found = pd.DataFrame(rows, columns=["name", "only_reference_right", "only_this_right", "mcnemar", "delong"])
    for test in ("mcnemar", "delong"):
        p = found[test].astype(float)
        found[f"{test}_holm"] = np.nan
        if p.notna().any():
            found.loc[p.notna(), f"{test}_holm"] = multipletests(p.dropna(), method="holm")[1]
    return found


def delong_test(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p-value that two scores of the same images have the same AUROC (DeLong et al., Biometrics 1988).

    The variance comes from midranks (Sun and Xu, IEEE Signal Process Lett 2014). NaN when it is zero or a class has
    fewer than two images.
    """
    labels = np.asarray(labels)
    sick, well = labels == 1, labels == 0
    if min(sick.sum(), well.sum()) < 2:
        return np.nan
    placements = [_placements(np.asarray(scores, float), sick, well) for scores in (one, other)]
    of_sick, of_well = (np.stack([p[i] for p in placements]) for i in (0, 1))
    covariance = np.cov(of_sick) / sick.sum() + np.cov(of_well) / well.sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if not variance > 1e-12:
        return np.nan
    apart = of_sick[0].mean() - of_sick[1].mean()
    return float(2 * norm.sf(abs(apart) / np.sqrt(variance)))


def _placements(scores: np.ndarray, sick: np.ndarray, well: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each sick image the share of well ones below it, for each well image the share of sick ones above it."""
    ranks = rankdata(scores)
    below = (ranks[sick] - rankdata(scores[sick])) / well.sum()
    above = 1 - (ranks[well] - rankdata(scores[well])) / sick.sum()
    return below, above


def _aligned(predictions: dict[str, pd.DataFrame], split: str, reference: str) -> dict[str, pd.DataFrame]:
    """Each model's rows in the order of ids. Raises EvaluationError for models that were scored on other images."""
    if reference not in predictions:
        raise EvaluationError(f"reference: received {reference!r}, allowed {', '.join(predictions) or 'none'}")
    tables = {name: check_predictions(table, split).sort_values("image_id") for name, table in predictions.items()}
    base = tables[reference]
    for name, table in tables.items():
        if table.image_id.tolist() != base.image_id.tolist():
            raise EvaluationError(f"{name} and {reference} were scored on other images of split {split!r}")
    return tables
