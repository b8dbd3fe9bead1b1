"""Comparisons on the same images and the same resamples: models, seeds, changed images, subgroups.

Paired differences with their intervals are the answer. McNemar's and DeLong's tests stand beside them because readers look
for them. Both take images for independent, which images of one child are not: their p-values are too small.

Of several seeds, the spread says how much another random start would have changed; the interval of the mean says how much
other children would have. The best seed is never shown alone: to pick the best seed is to pick chance.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used: `scipy.stats` takes a second, and the check of what is due uses none

from pneumolib.errors import InputError
from pneumolib.evaluation.calibration import choose_threshold
from pneumolib.evaluation.intervals import interval_columns, resample, resampled
from pneumolib.evaluation.metrics import METRICS, PREDICTION_COLUMNS, check_predictions
from pneumolib.params import EvaluationParams

DIFFERENCES = ("auroc", "sensitivity", "specificity", "accuracy", "brier")
CHANGED = ("auroc", "sensitivity", "specificity")  # of subgroups and of changed images
SITE, UNRELATED = "site ", "unrelated to training "  # what the names of such subgroups start with
Tables = Mapping[Hashable, pd.DataFrame]
_KINDS = ("bacteria", "virus")
_CHANGES = [f"{name}{end}" for name in CHANGED for end in ("", "_change", "_change_low", "_change_high")]


def _aligned(predictions: Tables, split: str, reference: Hashable) -> Tables:
    """Each table's rows in the order of ids. Raises InputError for tables of other images than the reference's."""
    if reference not in predictions:
        raise InputError(f"reference: received {reference!r}, allowed {', '.join(map(str, predictions)) or 'none'}")
    tables = {name: check_predictions(table, split).sort_values("image_id") for name, table in predictions.items()}
    for name, table in tables.items():
        if table.image_id.tolist() != tables[reference].image_id.tolist():
            raise InputError(f"{name} and {reference} were scored on other images of split {split!r}")
    return tables


def paired_differences(
    predictions: Tables,
    split: str,
    thresholds: Mapping[Hashable, float],
    reference: Hashable,
    params: EvaluationParams,
    seed: int,
    metrics: Sequence[str] = DIFFERENCES,
) -> pd.DataFrame:
    """Metrics of each model at its own frozen threshold, and their paired differences from `reference`.

    All models are scored on the same resamples of groups, so that what is hard for both cancels out of the difference.

    Args:
        predictions: model's name to its table, columns `PREDICTION_COLUMNS`.
        split: `val` or `test`.
        thresholds: model's name to its threshold.
        reference: the name that the others are compared with.
        params: `resamples` and `confidence`.
    Returns:
        one row a model and metric: `name, metric, value, low, high, difference, difference_low, difference_high`; the last
        three are NaN for the reference, and intervals are NaN where a class has fewer than two groups.
    Raises:
        InputError: models that were scored on other images, or predictions that cannot be used.
    """
    tables = _aligned(predictions, split, reference)
    resamples = resample(tables[reference], params, seed)
    scored = {name: resamples.score(table.probability, thresholds[name]) for name, table in tables.items()}
    base, base_draws = scored[reference]
    rows = []
    for name, (value, draws) in scored.items():
        for metric in metrics:
            apart = [np.nan] * 3
            if name != reference:
                apart = [value[metric] - base[metric], *resamples.limits(draws[metric] - base_draws[metric])]
            rows.append([name, metric, value[metric], *resamples.limits(draws[metric]), *apart])
    columns = ["name", "metric", "value", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=columns)


def compare_auroc(predictions: Tables, split: str, reference: str, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """AUROC of each model with its interval, and the paired difference from `reference`; see `paired_differences`.

    Returns:
        one row a model: `name, auroc, auroc_low, auroc_high, difference, difference_low, difference_high`.
    """
    thresholds = dict.fromkeys(predictions, 0.5)  # which plays no part in the AUROC
    found = paired_differences(predictions, split, thresholds, reference, params, seed, ["auroc"])
    columns = {"value": "auroc", "low": "auroc_low", "high": "auroc_high"}
    return found.drop(columns="metric").rename(columns=columns)


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
        InputError: a change that was applied to other images than `none`.
    """
    rows: dict[tuple, list] = {}
    if len(corrupted):
        clean = corrupted.corruption == "none"
        changes = corrupted[~clean].groupby(["corruption", "severity"], sort=False)
        ways = {("none", 0): corrupted[clean]} | {(name, int(severity)): part for (name, severity), part in changes}
        thresholds = dict.fromkeys(ways, threshold)
        found = paired_differences(ways, split, thresholds, ("none", 0), params, seed, CHANGED)
        for one in found.itertuples():
            row = rows.setdefault(one.name, list(one.name))
            row += [one.value, one.difference, one.difference_low, one.difference_high]
    return pd.DataFrame(rows.values(), columns=["corruption", "severity", *_CHANGES])


def subgroup_table(
    predictions: pd.DataFrame,
    split: str,
    threshold: float,
    params: EvaluationParams,
    seed: int,
    related: pd.DataFrame | None = None,
    sites: pd.Series | None = None,
) -> pd.DataFrame:
    """AUROC, sensitivity and specificity of subgroups of a split, all on the same resamples.

    Subgroups are kinds of pneumonia, hospitals, and test without images that may be related to training.

    Args:
        predictions: columns `PREDICTION_COLUMNS`; `kind` is bacteria, virus or normal where that is known.
        split: `val` or `test`.
        threshold: on the probability, frozen.
        params, seed: as for `metric_table`.
        related: from `audit.sensitivity_list`: `image_id`, and a True in a column for each reason to leave an image out.
        sites: hospital by `image_id`; empty where none is named. Subgroups are made where there are two or more.
    Returns:
        one row a subgroup, all images first: `part, images, pneumonia, groups`, and of each of `CHANGED` `<metric>`,
        `<metric>_low`, `<metric>_high`; NaN where a class is missing or an interval cannot be computed.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    table = []
    for part, kept in _subgroups(rows, related, sites).items():
        of_class = rows[kept].groupby("label").group_id.nunique().reindex([0, 1], fill_value=0)
        row = {"part": part, "images": int(kept.sum()), "pneumonia": int(rows.label[kept].sum()),
               "groups": rows.group_id[kept].nunique()}  # fmt: skip
        found = resamples.part(kept).metric_limits(rows.probability[kept], threshold)
        for name in CHANGED:
            limits = found[name][1:] if of_class.min() >= 2 else (np.nan, np.nan)
            row |= interval_columns(name, (found[name][0], *limits))
        table.append(row)
    return pd.DataFrame(table)


def _subgroups(rows: pd.DataFrame, related: pd.DataFrame | None, sites: pd.Series | None) -> dict[str, np.ndarray]:
    """Name of each subgroup to a mask of its rows; subgroups that would be the whole or empty are left out."""
    normal = (rows.label == 0).to_numpy()
    parts = {f"{kind} against normal": normal | (rows.kind == kind).to_numpy() for kind in _KINDS}
    parts = {name: kept for name, kept in parts.items() if kept.sum() > normal.sum()}
    if related is not None:
        for reason in related.columns.drop("image_id"):
            out = rows.image_id.isin(related.image_id[related[reason]]).to_numpy()
            parts[f"{UNRELATED}({reason.replace('_', ' ')})"] = ~out
    if sites is not None:
        of_row = rows.image_id.map(sites).fillna("")
        parts |= {f"{SITE}{name}": (of_row == name).to_numpy() for name in sorted(set(of_row) - {""})}
    parts = {name: kept for name, kept in parts.items() if 0 < kept.sum() < len(rows)}
    return {"all": np.ones(len(rows), bool)} | parts


def seed_tables(
    own: pd.DataFrame, threshold: float, others: dict[int, pd.DataFrame], params: EvaluationParams, seed: int
) -> dict[str, pd.DataFrame]:
    """Seed variability on `val` and `test`: each metric's mean over seeds with the interval of that mean, and its spread.

    Args:
        own, threshold: predictions of the run's own seed, and its frozen threshold.
        others: from `learning.predict_seeds`; rows of split `views` are validation in augmented views. Each seed has the
            threshold that the run's rule gives on its own validation.
        params, seed: of the resamples, which are the same for all seeds.
    Returns:
        split to table, one row a metric: `metric, seeds, mean, low, high, sd, lowest, highest`; `low` and `high` are of the
        mean, `sd` is over seeds. Empty without other seeds: one seed has no spread.
    Raises:
        InputError: seeds that were scored on other images.
    """
    every, thresholds, tables = {"own": own} | others, {"own": threshold}, {}
    for name, table in others.items():
        views = table[table.split == "views"].assign(split="val")
        thresholds[name] = choose_threshold(table, params, views).value
    for split in ("val", "test"):
        rows = []
        if others:
            aligned = _aligned(every, split, "own")
            resamples = resample(aligned["own"], params, seed)
            scored = [resamples.score(table.probability, thresholds[name]) for name, table in aligned.items()]
            for metric in METRICS:
                values = pd.Series([value[metric] for value, _ in scored])
                limits = resamples.limits(np.mean([draws[metric] for _, draws in scored], axis=0))
                spread = (values.std(skipna=False), values.min(), values.max())
                rows.append([metric, len(values), values.mean(skipna=False), *limits, *spread])
        columns = ["metric", "seeds", "mean", "low", "high", "sd", "lowest", "highest"]
        tables[split] = pd.DataFrame(rows, columns=columns)
    return tables


def seed_predictions(others: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """The predictions of all other seeds in one table, to be kept; `seed` is its first column."""
    columns = ["seed", *PREDICTION_COLUMNS]
    tables = [table.assign(seed=seed)[columns] for seed, table in others.items()]
    return pd.concat(tables) if tables else pd.DataFrame(columns=columns)


def secondary_tests(predictions: Tables, split: str, thresholds: Mapping[str, float], reference: str) -> pd.DataFrame:
    """Exact McNemar tests of the predicted classes and DeLong tests of the AUROC against `reference`, Holm-corrected per test.

    Returns:
        one row for each other model: `name, only_reference_right, only_this_right` (images), `mcnemar, mcnemar_holm,
        delong, delong_holm` (p-values; NaN where DeLong's variance is zero). Groups are ignored.
    """
    from statsmodels.stats.multitest import multipletests

    tables = _aligned(predictions, split, reference)
    labels = tables[reference].label.to_numpy()
    right = {n: (t.probability.to_numpy() >= thresholds[n]) == (labels == 1) for n, t in tables.items()}
    rows = []
    for name in (n for n in tables if n != reference):
        lost, won = int((right[reference] & ~right[name]).sum()), int((~right[reference] & right[name]).sum())
        mcnemar = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        delong = delong_test(labels, tables[reference].probability, tables[name].probability)
        rows.append([name, lost, won, mcnemar, delong])
    found = pd.DataFrame(rows, columns=["name", "only_reference_right", "only_this_right", "mcnemar", "delong"])
    for test in ("mcnemar", "delong"):
        p = found[test].dropna().astype(float)
        found[f"{test}_holm"] = pd.Series(multipletests(p, method="holm")[1] if len(p) else [], p.index, float)
    return found


def delong_test(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p-value that two scores of the same images have the same AUROC (DeLong et al., Biometrics 1988).

    NaN when the variance of their difference is zero or a class has fewer than two images.
    """
    sick, well = np.asarray(labels) == 1, np.asarray(labels) == 0
    if min(sick.sum(), well.sum()) < 2:
        return np.nan
    of_sick, of_well = [], []
    for scores in (np.asarray(one, float), np.asarray(other, float)):
        # Whether a well image has a higher score than a sick one, ties by half; summed before it is taken from 1.
        missed = (1 - np.sign(np.subtract.outer(scores[sick], scores[well]))) / 2
        of_sick.append((len(missed[0]) - missed.sum(axis=1)) / well.sum())
        of_well.append(1 - missed.sum(axis=0) / sick.sum())
    covariance = np.cov(of_sick) / sick.sum() + np.cov(of_well) / well.sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if not variance > 1e-12:
        return np.nan
    apart = of_sick[0].mean() - of_sick[1].mean()
    return float(2 * scipy.stats.norm.sf(abs(apart) / np.sqrt(variance)))
