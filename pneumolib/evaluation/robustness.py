"""Do the figures hold when images come from other settings, and are they more than chance?"""

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import Resamples, resample
from pneumolib.evaluation.metrics import EvaluationError, check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

CHANGED = ("auroc", "sensitivity", "specificity")
COLUMNS = ["corruption", "severity", *(f"{n}{end}" for n in CHANGED
           for end in ("", "_change", "_change_low", "_change_high"))]  # fmt: skip


def robustness_table(
    corrupted: pd.DataFrame, split: str, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """What each change of the images does to AUROC, sensitivity and specificity at the frozen threshold.

    Args:
        corrupted: from `learning.predict_corrupted`: columns `PREDICTION_COLUMNS`, `corruption` and `severity` (1 to 5);
            rows of corruption `none` are the same images as they are.
        split: `val` or `test`.
        threshold: on the probability, frozen on validation without any change.
        params, seed: of the resamples, the same for all changes.
    Returns:
        one row a corruption and severity: `corruption, severity`, and for each of `CHANGED` the value and
        `<metric>_change, <metric>_change_low, <metric>_change_high`, the paired difference from the images as they are.
        The first row is of these. Empty, with these columns, when nothing was corrupted.
    Raises:
        EvaluationError: a change that was applied to other images than `none`.
    """
    if corrupted.empty:
        return pd.DataFrame(columns=COLUMNS)
    clean = check_predictions(corrupted[corrupted.corruption == "none"], split).sort_values("image_id")
    resamples = resample(clean, params, seed)
    value, draws = resamples.score(clean.probability, threshold)
    table = [{"corruption": "none", "severity": 0} | {name: value[name] for name in CHANGED}]
    changed = corrupted[corrupted.corruption != "none"]
    for (corruption, severity), part in changed.groupby(["corruption", "severity"], sort=False):
        rows = check_predictions(part, split).sort_values("image_id")
        if rows.image_id.tolist() != clean.image_id.tolist():
            raise EvaluationError(f"{corruption}, severity {severity}: predicted on other images than `none`")
        row = {"corruption": corruption, "severity": int(severity)}
        table.append(row | _changes(resamples, value, draws, *resamples.score(rows.probability, threshold)))
    return pd.DataFrame(table, columns=COLUMNS)


def _changes(
    resamples: Resamples, before: dict, before_draws: dict, after: dict, after_draws: dict
) -> dict[str, float]:
    row = {}
    for name in CHANGED:
        low, high = resamples.limits(after_draws[name] - before_draws[name])
        row |= {name: after[name], f"{name}_change": after[name] - before[name], f"{name}_change_low": low,
                f"{name}_change_high": high}  # fmt: skip
    return row


def permutation_check(predictions: pd.DataFrame, split: str, seed: int, permutations: int = 1000) -> dict[str, float]:
    """The AUROC that is left when labels are dealt out anew, near 0.5, and how often it reaches the observed one.

    It checks the arithmetic of the evaluation and gives a p-value. It cannot see a leak in training: scores stay as they are.

    Labels are shuffled among groups, not images: what images of one child have in common is no evidence. A group that
    holds both classes hands on its mean, which its new images carry as weights in either class.

    Returns:
        `mean, low, high` (the middle 95%) of the AUROC over permutations, and `p`, the share of them, the observed
        labels counted in, that reach the observed AUROC. NaN with one class only.
    """
    rows = check_predictions(predictions, split)
    groups = pd.factorize(rows.group_id)[0]
    observed = float(compute_metrics(rows.label, rows.probability, 0.5)["auroc"])
    if np.isnan(observed):
        return {"mean": np.nan, "low": np.nan, "high": np.nan, "p": np.nan}
    means = rows.label.groupby(groups).mean().to_numpy()
    rng = np.random.default_rng(seed)
    dealt = np.stack([rng.permutation(means) for _ in range(permutations)])[:, groups]
    # Each image stands twice, once in each class, weighted by the share of that class in the group it was dealt.
    twice = np.concatenate([rows.probability, rows.probability])
    labels = np.repeat([1, 0], len(rows))
    found = compute_metrics(labels, twice, 0.5, np.concatenate([dealt, 1 - dealt], axis=1))["auroc"]
    low, high = np.quantile(found, [0.025, 0.975])
    p = (1 + (found >= observed - 1e-12).sum()) / (1 + permutations)
    return {"mean": float(found.mean()), "low": float(low), "high": float(high), "p": float(p)}
