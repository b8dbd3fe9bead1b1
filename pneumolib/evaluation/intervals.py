"""How sure are we? Percentile intervals from a bootstrap of groups, stratified by class.

Images of one patient resemble each other: on this data's groups, a nominal 95% interval for sensitivity covered
84-86% when images were resampled at an intra-group correlation of 0.6, and 92% when groups were. So whole groups are
drawn, as often as there are groups, within each class; an image's weight is how often its group was drawn.

Where all resamples agree, as they do when not one image was classified wrongly, they say nothing about how sure that is;
with a few errors they say too little. Proportions have exact limits there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pneumolib.errors import InputError
from pneumolib.evaluation.metrics import METRICS, PROPORTIONS, check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

Metrics = dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]]
_NOTHING = 1e-9  # rounding alone spreads resamples by less
_FEW_GROUPS = 5  # with errors in fewer, resamples make a proportion near 0 or 1 look too sure
_BLOCK = 250  # resamples at once: the sorted and summed copies of the weights stay small


def group_weights(labels: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> np.ndarray | None:
    """Bootstrap weights, float (resamples, n), or None where a class has fewer than two groups to draw from, or a single
    group holds both classes.

    Groups are drawn among those of the same class; groups that hold both classes are a stratum of their own, so that
    each is drawn whole.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"label": np.asarray(labels), "group": np.asarray(groups)})
    if table.groupby("label").group.nunique().reindex([0, 1], fill_value=0).min() < 2:
        return None
    mean = table.groupby("group").label.transform("mean")
    strata = mean.where(mean.isin([0, 1]), 2)
    if (table.groupby(strata).group.nunique() < 2).any():
        return None  # a stratum of one group would be the same in every resample
    weights = np.zeros((resamples, len(table)))
    for stratum in sorted(set(strata)):
        rows = np.flatnonzero(strata == stratum)
        codes, names = pd.factorize(table.group.to_numpy()[rows], sort=True)
        weights[:, rows] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)[:, codes]
    return weights


@dataclass(frozen=True)
class Resamples:
    """The resamples of one split: the same for every model, metric and subgroup that is scored on them.

    Attributes:
        labels: int (n,).
        groups: group of each image, (n,).
        weights: (resamples, n), or None where a class has fewer than two groups.
        tail: share of resamples beyond each limit.
    """

    labels: np.ndarray
    groups: np.ndarray
    weights: np.ndarray | None
    tail: float

    def part(self, kept: np.ndarray) -> "Resamples":
        """The same resamples of some of the images, `kept` being a mask."""
        weights = None if self.weights is None else self.weights[:, kept]
        return Resamples(self.labels[kept], self.groups[kept], weights, self.tail)

    def score(self, scores: np.ndarray, threshold: float) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Each metric's value, and its value in every resample: one NaN where there are no resamples.

        Args:
            scores: probabilities, (n,).
            threshold: frozen.
        """
        value = {name: float(v) for name, v in compute_metrics(self.labels, scores, threshold).items()}
        if self.weights is None:
            return value, dict.fromkeys(METRICS, np.array([np.nan]))
        # By columns, as `part` has them: sums then round alike for all images and for some.
        weights, starts = np.asfortranarray(self.weights), range(0, len(self.weights), _BLOCK)
        blocks = [compute_metrics(self.labels, scores, threshold, weights[i : i + _BLOCK]) for i in starts]
        return value, {name: np.concatenate([block[name] for block in blocks]) for name in METRICS}

    def limits(self, draws: np.ndarray) -> tuple[float, float]:
        """Lower and upper limit of what `score` gave, or of a difference of two; see `percentiles`.

        NaN where all resamples agree: limits of no width would look certain.
        """
        low, high = percentiles(draws, self.tail)
        return (low, high) if high - low > _NOTHING else (np.nan, np.nan)

    def metric_limits(self, scores: np.ndarray, threshold: float) -> dict[str, tuple[float, float, float]]:
        """Each metric's value and its limits.

        Where fewer than five groups hold a wrong prediction, or fewer than five a right one, a proportion has Clopper and
        Pearson's limits, groups counted as cases: percentiles of so few errors are too close, and of none they are one point.
        """
        value, draws = self.score(scores, threshold)
        found = {name: (value[name], *self.limits(draws[name])) for name in METRICS}
        sick, called = self.labels == 1, np.asarray(scores) >= threshold
        right = called == sick
        cases_of = dict(zip(PROPORTIONS, (sick, ~sick, called, ~called, sick | ~sick), strict=True))
        for name, cases in cases_of.items() if self.weights is not None else ():
            if min(len(set(self.groups[cases & part])) for part in (right, ~right)) < _FEW_GROUPS:
                found[name] = (value[name], *_exact(value[name], len(set(self.groups[cases])), self.tail))
        return found


def _exact(value: float, cases: int, tail: float) -> tuple[float, float]:
    """Clopper and Pearson's limits of `value` of `cases`, which need not be a whole number; NaN for fewer than two."""
    from scipy.stats import beta  # here, because it takes a second and reading results does without

    if cases < 2 or np.isnan(value):
        return np.nan, np.nan
    hits = value * cases
    low = 0.0 if hits <= 0 else beta.ppf(tail, hits, cases - hits + 1)
    high = 1.0 if hits >= cases else beta.ppf(1 - tail, hits + 1, cases - hits)
    return float(low), float(high)


def resample(rows: pd.DataFrame, params: EvaluationParams, seed: int) -> Resamples:
    """Resamples of `check_predictions` rows, in their order; sort by `image_id` to have the same ones for every model."""
    weights = group_weights(rows.label, rows.group_id, params.resamples, seed)
    return Resamples(rows.label.to_numpy(), rows.group_id.to_numpy(), weights, (1 - params.confidence) / 2)


def resampled(
    predictions: pd.DataFrame, split: str, params: EvaluationParams, seed: int
) -> tuple[pd.DataFrame, Resamples]:
    """The checked rows of one split, sorted by `image_id`, and their resamples; raises as `check_predictions` does."""
    rows = check_predictions(predictions, split).sort_values("image_id", ignore_index=True)
    return rows, resample(rows, params, seed)


def interval_columns(name: str, found: Sequence[float | None]) -> dict[str, float | None]:
    """`<name>, <name>_low, <name>_high` of a value and its limits, as every table of this library names them."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def metric_table(
    predictions: pd.DataFrame, split: str, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """Each metric with its interval, for one split of predictions.csv.

    Args:
        predictions: the columns of `PREDICTION_COLUMNS`.
        split: `val` or `test`.
        threshold: on the probability, frozen beforehand.
        params: `resamples` and `confidence`.
        seed: the same seed gives every model of a study the same resamples.
    Returns:
        one row a metric: `metric, value, low, high`; NaN where a value or its interval cannot be computed: a ratio
        without cases, a class with fewer than two groups, more than one resample in twenty without a value, or
        resamples that all agree. Proportions with few errors have exact limits, see `Resamples.metric_limits`.
    Raises:
        InputError: see `check_predictions`.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    found = resamples.metric_limits(rows.probability, threshold)
    return pd.DataFrame([(name, *found[name]) for name in METRICS], columns=["metric", "value", "low", "high"])


def own_metrics(
    predictions: pd.DataFrame, split: str, threshold: float, functions: Metrics, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """Metrics of a researcher's own, on the resamples of `metric_table`.

    Args:
        predictions, split, threshold, params, seed: as for `metric_table`.
        functions: name to a function of labels, int (n,), probabilities, float (n,), and predicted classes, bool (n,);
            it returns one number.
    Returns:
        one row a metric: `metric, value, low, high`; NaN where a value or its interval cannot be computed.
    Raises:
        InputError: the name of a metric that there is, or a function that returns no number.
    """
    if known := sorted(functions.keys() & set(METRICS)):
        raise InputError(
            f"own metric {known[0]!r}: there is one of this name; choose another than {', '.join(METRICS)}"
        )
    rows, resamples = resampled(predictions, split, params, seed)
    drawn = [] if resamples.weights is None else resamples.weights.astype(int)
    found = []
    for name, function in functions.items():

        def value(times: np.ndarray, name: str = name, function: Callable = function) -> float:
            seen = rows.loc[rows.index.repeat(times)]
            number = function(
                seen.label.to_numpy(), seen.probability.to_numpy(), (seen.probability >= threshold).to_numpy()
            )
            if not np.isscalar(number):
                raise InputError(f"own metric {name!r}: received {type(number).__name__}, needed one number")
            return float(number) if np.isfinite(number) else np.nan

        draws = np.array([value(times) for times in drawn] or [np.nan])
        found.append((name, value(np.ones(len(rows), int)), *resamples.limits(draws)))
    return pd.DataFrame(found, columns=["metric", "value", "low", "high"])


def percentiles(values: np.ndarray, tail: float) -> tuple[float, float]:
    """Lower and upper limit with `tail` of the values beyond each; NaN when one resample in twenty gave no value."""
    if np.isnan(values).mean() > 0.05:
        return np.nan, np.nan
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def unpaired_difference(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How far a value lies above another one of other images, with limits put together from their own.

    Zou and Donner (Stat Med 2008; of proportions Newcombe, Stat Med 1998): where one side has few errors or none, its
    resamples would say too little, and its own limits are exact ones.

    Args:
        one, other: value, low, high of each.
    Returns:
        `difference, difference_low, difference_high`.
    """
    apart = one[0] - other[0]
    low = apart - np.hypot(one[0] - one[1], other[2] - other[0])
    return interval_columns("difference", (apart, low, apart + np.hypot(one[2] - one[0], other[0] - other[1])))


def permutation_check(predictions: pd.DataFrame, split: str, seed: int, permutations: int = 1000) -> dict[str, float]:
    """Permutation test: the AUROC with permuted labels, near 0.5, and how often it reaches the observed AUROC.

    It checks the arithmetic of the evaluation and gives a p-value. It cannot see a leak in training: scores stay as they are.

    Labels are permuted among groups, not images: what images of one child have in common is no evidence. A group that
    holds both classes hands on its mean, which its new images carry as weights in either class.

    Returns:
        `mean, low, high` (the middle 95%) of the AUROC over permutations, and `p`, the share of them, the observed
        labels counted in, that reach the observed AUROC. NaN with one class only.
    """
    rows = check_predictions(predictions, split)
    groups = pd.factorize(rows.group_id)[0]
    observed = float(compute_metrics(rows.label, rows.probability, 0.5)["auroc"])
    if np.isnan(observed):
        return dict.fromkeys(("mean", "low", "high", "p"), np.nan)
    means = rows.label.groupby(groups).mean().to_numpy()
    rng = np.random.default_rng(seed)
    shares = np.stack([rng.permutation(means) for _ in range(permutations)])[:, groups]
    # Each image counts twice, once in each class, weighted by the share of that class in the group whose labels it got.
    twice, labels = np.tile(rows.probability, 2), np.repeat([1, 0], len(rows))
    found = compute_metrics(labels, twice, 0.5, np.concatenate([shares, 1 - shares], axis=1))["auroc"]
    low, high = np.quantile(found, [0.025, 0.975])
    p = (1 + (found >= observed - 1e-12).sum()) / (1 + permutations)
    return {"mean": float(found.mean()), "low": float(low), "high": float(high), "p": float(p)}
