"""Comparisons on the same images and the same resamples: models, seeds, changed images, subgroups.

Paired differences with their intervals are the answer. McNemar's and DeLong's tests stand beside them because readers look
for them; both count patient groups here, not images.

Of several seeds, the spread says how much another random start would have changed; the interval of the mean says how much
other children would have. The best seed is never shown alone: to pick the best seed is to pick chance.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used: `scipy.stats` takes a second, and the check of what is due uses none

from pneumolib.errors import InputError
from pneumolib.evaluation.calibration import freeze
from pneumolib.evaluation.intervals import clustered_variance, influences, interval_columns, resample, resampled
from pneumolib.evaluation.metrics import METRICS, PREDICTION_COLUMNS, check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

DIFFERENCES = ("auroc", "sensitivity", "specificity", "accuracy", "brier")
CHANGED = ("auroc", "sensitivity", "specificity")  # of subgroups and of changed images
SITE, UNRELATED = "site ", "unrelated to training "  # what the names of such subgroups start with
Tables = Mapping[Hashable, pd.DataFrame]
Seeds = Mapping[int, tuple[pd.DataFrame, float]]  # the predictions of other seeds, each with its threshold
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
    models = {name: (table.probability.to_numpy(), thresholds[name]) for name, table in tables.items()}
    scored = {name: resamples.score(*model) for name, model in models.items()}
    base, base_draws = scored[reference]
    rows = []
    for name, (value, draws) in scored.items():
        own = resamples.metric_limits(models[name], scored=[scored[name]])
        for metric in metrics:
            apart = [np.nan] * 3
            if name != reference:
                apart = [value[metric] - base[metric], *resamples.limits(draws[metric] - base_draws[metric])]
            rows.append([name, metric, *own[metric], *apart])
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
        groups = corrupted.groupby(["corruption", "severity"], sort=False)
        ways = {(name, int(severity)): part for (name, severity), part in groups}
        found = paired_differences(ways, split, dict.fromkeys(ways, threshold), ("none", 0), params, seed, CHANGED)
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
    columns: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """AUROC, sensitivity and specificity of subgroups of a split.

    Subgroups are kinds of pneumonia, the values of `columns`, and test without images that may be related to training.

    Args:
        predictions: columns `PREDICTION_COLUMNS`; `kind` is bacteria, virus or normal where that is known.
        split: `val` or `test`.
        threshold: frozen.
        params, seed: as for `metric_table`.
        related: from `audit.sensitivity_list`: `image_id`, and a True in a column for each reason to leave an image out.
        columns: by `image_id`, such as `site`, or `view` and `age_years`; from `subgroup_columns`.
    Returns:
        one row a subgroup, all images first: `part, images, pneumonia, groups`, and of each of `CHANGED` `<metric>`,
        `<metric>_low`, `<metric>_high`; NaN where a class is missing or an interval cannot be computed.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    table, scores = [], rows.probability.to_numpy()
    for part, kept in _subgroups(rows, related, columns).items():
        own = resamples.part(kept)
        row = {"part": part, "images": int(kept.sum()), "pneumonia": int(rows.label[kept].sum()),
               "groups": rows.group_id[kept].nunique()}  # fmt: skip
        for name in CHANGED:
            row |= interval_columns(name, own.clustered_limits(name, (scores[kept], threshold)))
        table.append(row)
    return pd.DataFrame(table)


def _subgroups(rows: pd.DataFrame, related: pd.DataFrame | None, columns: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """Name of each subgroup to a mask of its rows; subgroups that would be the whole or empty are left out."""
    normal = (rows.label == 0).to_numpy()
    parts = {f"{kind} against normal": normal | (rows.kind == kind).to_numpy() for kind in _KINDS}
    parts = {name: kept for name, kept in parts.items() if kept.sum() > normal.sum()}
    if related is not None:
        for reason in related.columns.drop("image_id"):
            out = rows.image_id.isin(related.image_id[related[reason]]).to_numpy()
            parts[f"{UNRELATED}({reason.replace('_', ' ')})"] = ~out
    for name, values in {} if columns is None else columns.items():
        of_row = rows.image_id.map(values)
        parts |= {f"{name} {value}": (of_row == value).to_numpy() for value in values.cat.categories}
    parts = {name: kept for name, kept in parts.items() if 0 < kept.sum() < len(rows)}
    return {"all": np.ones(len(rows), bool)} | parts


def subgroup_columns(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Columns of a manifest's table by `image_id`, categorical: `site`, and those of `evaluation.subgroups`.

    Columns of numbers with more than five values are cut at their thirds, each named by its ends. Empty cells are of none.

    Raises:
        InputError: a column that the table does not have.
    """
    if missing := [name for name in names if name not in table]:
        raise InputError(f"subgroups: received {missing[0]!r}, allowed columns of the data: {', '.join(table)}")
    rows, found = table.set_index("image_id"), {}
    for name in dict.fromkeys(["site", *names]):
        values = rows[name].astype(str).replace("", None)
        numbers = pd.to_numeric(values, errors="coerce")
        found[name] = values.astype("category")
        if numbers.nunique() > 5 and numbers.notna().sum() == values.notna().sum():
            ends = np.unique(numbers.quantile([0, 1 / 3, 2 / 3, 1], interpolation="nearest"))
            words = [f"{'above ' if n else ''}{ends[n]:.10g} to {ends[n + 1]:.10g}" for n in range(len(ends) - 1)]
            found[name] = pd.cut(numbers, ends, labels=words, include_lowest=True)
    return pd.DataFrame(found)


def stratified_table(
    predictions: pd.DataFrame, split: str, columns: pd.DataFrame, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """AUROC of pairs of images within the same value of a column, beside that of all pairs.

    A pooled AUROC mixes two questions: it ranks the column's values against each other, too. Both are of the images whose value
    has both classes.
    The stratified one is the mean over the column's values, weighted by their pairs (Janes and Pepe, Biometrika 2009).

    Returns:
        one row a column: `column`; `pooled` and `stratified`, each with `_low, _high`; `difference` (stratified less
        pooled) with limits from the clustered variance of the difference; `strata`, values with images of both classes.
        Columns with fewer than two such values are left out.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    labels, groups, scores = rows.label.to_numpy(), rows.group_id.to_numpy(), rows.probability.to_numpy()
    table, z = [], scipy.special.ndtri(1 - resamples.tail)
    for name, values in columns.items():
        of_row = rows.image_id.map(values)
        parts = [(of_row == value).to_numpy() for value in values.cat.categories]
        parts = [part for part in parts if 0 < labels[part].sum() < part.sum()]
        if len(parts) < 2:
            continue
        pairs = np.array([labels[part].sum() * (1 - labels[part]).sum() for part in parts], float)
        shares, influence, value = pairs / pairs.sum(), np.zeros(len(rows)), 0.0
        for part, share in zip(parts, shares, strict=True):
            value += share * float(compute_metrics(labels[part], scores[part], 0.5)["auroc"])
            influence[part] = share * influences(labels[part], scores[part], 0.5)["auroc"]
        known, whole = np.any(parts, axis=0), np.zeros(len(rows))
        pooled = resamples.part(known).clustered_limits("auroc", (scores[known], 0.5))
        whole[known] = influences(labels[known], scores[known], 0.5)["auroc"]
        stratified = resamples.auroc_interval(value, influence, known)
        reach = z * np.sqrt(clustered_variance(influence - whole, labels, groups))
        apart = value - pooled[0]
        row = {"column": name, "strata": len(parts)} | interval_columns("pooled", pooled)
        row |= interval_columns("stratified", stratified)
        table.append(row | interval_columns("difference", (apart, apart - reach, apart + reach)))
    return pd.DataFrame(table)


def label_review(predictions: pd.DataFrame, others: Seeds, n: int = 50) -> pd.DataFrame:
    """Images of validation and test whose label disagrees most with the networks, for a person to look at again.

    None of them was trained on. The score is the mean probability over the run's own seed and all `others`. Nothing is relabelled.

    Args:
        predictions: of the run.
        others: from `freeze_seeds`.
    Returns:
        at most `n` rows, the largest disagreement first: `image_id, split, label, kind, group_id, probability` (the mean),
        `seeds`, `disagreement` (1 less the probability of the label), above one half in all rows.
    """
    tables = [predictions, *(table[table.split != "views"] for table, _ in others.values())]
    mean = pd.concat(tables).groupby("image_id").probability.mean()
    rows = predictions[["image_id", "split", "label", "kind", "group_id"]].assign(seeds=len(tables))
    rows.insert(5, "probability", rows.image_id.map(mean))
    rows["disagreement"] = np.where(rows.label == 1, 1 - rows.probability, rows.probability)
    return rows[rows.disagreement > 0.5].nlargest(n, "disagreement").reset_index(drop=True)


def freeze_seeds(others: dict[int, pd.DataFrame], params: EvaluationParams) -> Seeds:
    """Of each further seed its predictions with probabilities, and its threshold, chosen on its own validation by `freeze`.

    Args:
        others: from `learning.predict_seeds`; rows of split `views` are validation in augmented views.
    """
    found = {}
    for seed, table in others.items():
        threshold, calibration = freeze(table, params, table[table.split == "views"].assign(split="val"))
        found[seed] = (calibration.applied(table), threshold.value)
    return found


def seed_tables(
    own: pd.DataFrame, threshold: float, others: Seeds, params: EvaluationParams, seed: int
) -> dict[str, pd.DataFrame]:
    """Seed variability on `val` and `test`: each metric's mean over seeds with the interval of that mean, and its spread.

    Args:
        own, threshold: predictions of the run's own seed, and its frozen threshold.
        others: from `freeze_seeds`.
        params, seed: of the resamples, which are the same for all seeds.
    Returns:
        split to table, one row a metric: `metric, seeds, mean, low, high, sd, lowest, highest`; `low` and `high` are of the
        mean, `sd` is over seeds. Empty without other seeds: one seed has no spread.
    Raises:
        InputError: seeds that were scored on other images.
    """
    every, tables = {"own": (own, threshold)} | others, {}
    for split in ("val", "test"):
        rows = []
        if others:
            aligned = _aligned({name: table for name, (table, _) in every.items()}, split, "own")
            resamples = resample(aligned["own"], params, seed)
            models = [(aligned[name].probability.to_numpy(), value) for name, (_, value) in every.items()]
            scored = [resamples.score(*model) for model in models]
            limits = resamples.metric_limits(*models, scored=scored)
            values = pd.DataFrame([value for value, _ in scored])
            spread = pd.concat([values.std(skipna=False), values.min(), values.max()], axis=1)
            rows = [[metric, len(values), *limits[metric], *spread.loc[metric]] for metric in METRICS]
        columns = ["metric", "seeds", "mean", "low", "high", "sd", "lowest", "highest"]
        tables[split] = pd.DataFrame(rows, columns=columns)
    return tables


def seed_predictions(others: Seeds) -> pd.DataFrame:
    """The predictions of all other seeds in one table, to be kept; `seed` is its first column."""
    columns = ["seed", *PREDICTION_COLUMNS]
    tables = [table.assign(seed=seed)[columns] for seed, (table, _) in others.items()]
    return pd.concat(tables) if tables else pd.DataFrame(columns=columns)


def secondary_tests(predictions: Tables, split: str, thresholds: Mapping[str, float], reference: str) -> pd.DataFrame:
    """McNemar's and DeLong's test against `reference`, by patient groups; Holm-corrected for the number of models.

    Returns:
        one row for each other model: `name, only_reference_right, only_this_right` (images), `mcnemar, mcnemar_holm,
        delong, delong_holm` (p-values; NaN where DeLong's variance is zero).
    """
    from statsmodels.stats.multitest import multipletests

    tables = _aligned(predictions, split, reference)
    labels, groups = tables[reference].label.to_numpy(), tables[reference].group_id.to_numpy()
    scores = {name: table.probability.to_numpy() for name, table in tables.items()}
    right = {name: (score >= thresholds[name]) == (labels == 1) for name, score in scores.items()}
    rows = []
    for name in (n for n in tables if n != reference):
        lost, won = right[reference] & ~right[name], ~right[reference] & right[name]
        mcnemar = mcnemar_test(won.astype(int) - lost, groups)
        delong = delong_test(labels, scores[reference], scores[name], groups)
        rows.append([name, int(lost.sum()), int(won.sum()), mcnemar, delong])
    found = pd.DataFrame(rows, columns=["name", "only_reference_right", "only_this_right", "mcnemar", "delong"])
    for test in ("mcnemar", "delong"):
        p = found[test].dropna().astype(float)
        found[f"{test}_holm"] = pd.Series(multipletests(p, method="holm")[1] if len(p) else [], p.index, float)
    return found


def mcnemar_test(gained: np.ndarray, groups: np.ndarray) -> float:
    """Exact two-sided p-value that two models are right on equally many images, by patient groups.

    If the models are alike, each group could as well have been answered the other way round: the sign of its sum is a coin's.
    The distribution of the total is computed, not drawn. With one image a group this is McNemar's exact test.

    Args:
        gained: 1 where only the second model is right, -1 where only the first one is, 0 elsewhere, (n,).
        groups: of each image, (n,).
    """
    sums = np.abs(pd.Series(gained).groupby(groups).sum().to_numpy())
    chances = np.ones(1)  # of each total from -sums.sum() to sums.sum()
    for size in sums[sums > 0]:
        chances = np.convolve(chances, [0.5, *[0] * (2 * size - 1), 0.5])
    totals = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(totals) >= abs(np.sum(gained))].sum()))


def delong_test(labels: np.ndarray, one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> float:
    """Two-sided p-value that two scores of the same images have the same AUROC, by patient groups (Obuchowski, Biometrics 1997).

    With one image a group the variance is that of DeLong et al. (Biometrics 1988). NaN where it is zero, or a class has fewer
    than two groups.
    """
    moved = [influences(labels, scores, 0.5)["auroc"] for scores in (one, other)]
    values = [compute_metrics(labels, scores, 0.5)["auroc"] for scores in (one, other)]
    variance = clustered_variance(moved[1] - moved[0], labels, groups)
    if not variance > 1e-18:
        return np.nan
    return float(2 * scipy.stats.norm.sf(abs(values[1] - values[0]) / np.sqrt(variance)))
