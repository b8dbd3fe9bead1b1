"""How sure are we? Limits that count patient groups, not images: images of one patient resemble each other.

- AUROC: the clustered variance of Obuchowski (Biometrics 1997) on the logit scale, with Student's t.
- Proportions (sensitivity, specificity, PPV, NPV, accuracy): Clopper and Pearson's limits with the effective number of
  cases of the clustered variance (Korn and Graubard, Survey Methodology 1998).
- Other metrics and all paired differences: percentiles of a bootstrap of groups, stratified by class. Whole groups are drawn,
  as often as there are groups; an image's weight is how often its group was drawn.

Percentiles are too close near 0 and 1: `benchmarks/coverage.py` shows how often each kind of limits holds the true value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pneumolib.errors import InputError
from pneumolib.evaluation.metrics import METRICS, PROPORTIONS, check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

Metrics = dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]]
Interval = tuple[float, float, float]  # a value, its lower and its upper limit
_NOTHING = 1e-9  # rounding alone spreads resamples by less
_BLOCK = 250  # resamples at once: the sorted and summed copies of the weights stay small


def group_weights(labels: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> np.ndarray | None:
    """Bootstrap weights, float (resamples, n), or None where a class has fewer than two groups to draw from, or a single
    group holds both classes.

    Groups are drawn among those of the same class; groups that hold both classes are a stratum of their own, so that
    each is drawn whole.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"label": np.asarray(labels), "group": np.asarray(groups)})
    mean = table.groupby("group").label.transform("mean")
    strata = mean.where(mean.isin([0, 1]), 2)
    # A stratum of one group would be the same in every resample.
    if table.label.nunique() < 2 or (table.groupby(strata).group.nunique() < 2).any():
        return None
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

    def metric_limits(self, *models: tuple[np.ndarray, float], scored: Sequence | None = None) -> dict[str, Interval]:
        """Each metric's value and its limits; of several models the mean over them.

        Args:
            models: scores, (n,), and threshold of each.
            scored: what `score` gave of each, where that is at hand.
        """
        scored, found = scored or [self.score(*model) for model in models], {}
        for name in METRICS:
            value = float(np.mean([value[name] for value, _ in scored]))
            found[name] = (value, *self.limits(np.mean([draws[name] for _, draws in scored], axis=0)))
        return found | {name: self.clustered_limits(name, *models) for name in ("auroc", *PROPORTIONS)}

    def clustered_limits(self, name: str, *models: tuple[np.ndarray, float]) -> Interval:
        """The AUROC, or one of PROPORTIONS, and its limits: see `metric_limits`. Nothing is drawn."""
        value = np.mean([compute_metrics(self.labels, *model)[name] for model in models])
        moved = np.mean([influences(self.labels, *model)[name] for model in models], axis=0)
        if name == "auroc":
            return self.auroc_interval(value, moved)
        variance = clustered_variance(moved, self.labels, self.groups)
        cases = np.any([_cases(self.labels, *model)[name] for model in models], axis=0)
        groups = len(set(self.groups[cases]))
        return (float(value), *proportion_limits(value, variance, cases.sum(), groups, 2 * self.tail))

    def auroc_interval(self, value: float, influence: np.ndarray, cases: np.ndarray | bool = True) -> Interval:
        """An AUROC with its limits, from the `influences` of the images and the groups of those that are `cases`."""
        groups = min(len(set(self.groups[cases & (self.labels == label)])) for label in (0, 1))
        variance = clustered_variance(influence, self.labels, self.groups)
        return (float(value), *auroc_limits(value, variance, groups, 2 * self.tail))


def _cases(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Of each of PROPORTIONS the images that it is a share of, masks (n,)."""
    sick, positive = np.asarray(labels) == 1, np.asarray(scores) >= threshold
    return dict(zip(PROPORTIONS, (sick, ~sick, positive, ~positive, sick | ~sick), strict=True))


def influences(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """How far each image moves the AUROC and each of PROPORTIONS, float (n,): the first term of a Taylor series.

    Of the AUROC these are DeLong's components (Biometrics 1988), ties by half: the share of images of the other class that an
    image is ranked rightly against, less their mean, over the number of its own class. NaN where a value cannot be computed.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, float)
    right, found = (scores >= threshold) == (labels == 1), {"auroc": np.full(len(labels), np.nan)}
    for name, cases in _cases(labels, scores, threshold).items():
        n = cases.sum()
        found[name] = np.where(cases, right - right[cases].mean(), 0) / n if n else np.full(len(labels), np.nan)
    if 0 < labels.sum() < len(labels):
        for own, sign in ((1, 1), (0, -1)):
            others = np.sort(sign * scores[labels != own])
            below = [np.searchsorted(others, sign * scores[labels == own], side) for side in ("left", "right")]
            shares = np.mean(below, axis=0) / len(others)
            found["auroc"][labels == own] = (shares - shares.mean()) / len(shares)
    return found


def clustered_variance(influence: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Variance of a value from the `influences` of its images, groups being what is drawn.

    Obuchowski's for the AUROC; a group that holds both classes adds its covariance. Of PPV, NPV and accuracy it is that of groups
    drawn from all, which is larger. NaN where a class that counts has fewer than two groups.
    """
    codes, names = pd.factorize(groups)
    sums, variance = [], 0.0
    for label in (0, 1):
        own = labels == label
        sums.append(np.bincount(codes[own], influence[own], len(names)))
        n = len(set(codes[own]))
        if n > 1:
            variance += n / (n - 1) * (sums[-1] ** 2).sum()
        elif np.any(influence[own]):
            return np.nan
    return float(variance + 2 * len(names) / max(len(names) - 1, 1) * (sums[0] @ sums[1]))


def auroc_limits(value: float, variance: float, groups: int, alpha: float) -> tuple[float, float]:
    """Limits on the logit scale with t, `groups` being those of the class that has fewer, less one degree of freedom.

    At 1 there is a lower limit alone, at 0 an upper one: the AUROC at which so many groups without an error are as rare as
    `alpha`. NaN with fewer than two groups.
    """
    from scipy.special import expit, logit
    from scipy.stats import t

    at_end = min(value, 1 - value) < _NOTHING
    # Without variance within (0, 1), as of constant scores, there is no interval: one of no width would look certain.
    if not np.isfinite(value + variance) or groups < 2 or not (at_end or variance > _NOTHING**2):
        return np.nan, np.nan
    if at_end:
        bound = alpha ** (1 / groups)
        return (bound, 1.0) if value > 0.5 else (0.0, 1 - bound)
    arm = t.ppf(1 - alpha / 2, groups - 1) * np.sqrt(max(variance, 0)) / (value * (1 - value))
    return float(expit(logit(value) - arm)), float(expit(logit(value) + arm))


def proportion_limits(value: float, variance: float, cases: int, groups: int, alpha: float) -> tuple[float, float]:
    """Clopper and Pearson's limits with the effective number of cases, value * (1 - value) / variance, at most `cases`.

    It is lowered by Student's t where groups are few, and is the number of groups without any variance, as at 0 and 1. NaN with
    fewer than two groups.
    """
    from scipy.stats import beta, t  # here, because it takes a second and reading results does without

    if not np.isfinite(value + variance) or groups < 2:
        return np.nan, np.nan
    few = np.square(np.divide(*t.ppf(1 - alpha / 2, [max(cases - 1, 1), groups - 1])))
    effective = min(few * value * (1 - value) / variance, cases) if variance > _NOTHING**2 else groups
    hits = value * effective
    low = 0.0 if value < _NOTHING else beta.ppf(alpha / 2, hits, effective - hits + 1)
    high = 1.0 if 1 - value < _NOTHING else beta.ppf(1 - alpha / 2, hits + 1, effective - hits)
    return float(low), float(high)


def share_limits(hit: np.ndarray, groups: np.ndarray, confidence: float = 0.95) -> Interval:
    """A share of images and its limits, see `proportion_limits`; `hit` is bool (n,)."""
    hit, n = np.asarray(hit, float), len(hit)
    variance = clustered_variance((hit - hit.mean()) / n, np.ones(n), groups)
    return (float(hit.mean()), *proportion_limits(hit.mean(), variance, n, len(set(groups)), 1 - confidence))


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
        without cases, fewer than two groups, constant scores; of a metric with a bootstrap more than one resample in twenty
        without a value, or resamples that all agree.
    Raises:
        InputError: see `check_predictions`.
    """
    rows, resamples = resampled(predictions, split, params, seed)
    found = resamples.metric_limits((rows.probability.to_numpy(), threshold))
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
            labels, probability = seen.label.to_numpy(), seen.probability.to_numpy()
            number = function(labels, probability, probability >= threshold)
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


def unpaired_differences(
    one: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str] = ("one", "other")
) -> pd.DataFrame:
    """Of two tables of `metric_table`, of other images each, the first less the second; see `unpaired_difference`.

    Returns:
        one row a metric: `metric`, the value of each under its name and `difference`, each with `_low, _high`.
    """
    sides = [table.set_index("metric")[["value", "low", "high"]] for table in (one, other)]
    rows = []
    for metric in ("auroc", "sensitivity", "specificity"):
        first, second = (side.loc[metric].tolist() for side in sides)
        row = {"metric": metric} | interval_columns(names[0], first) | interval_columns(names[1], second)
        rows.append(row | unpaired_difference(first, second))
    return pd.DataFrame(rows)


def unpaired_ratio(one: Sequence[float], other: Sequence[float]) -> np.ndarray:
    """The ratio of two values that are not below 0, with limits put together from their own (Donner and Zou, Stat Methods Med
    Res 2012), also where one of them is 0.

    Args:
        one, other: value, low, high of each.
    Returns:
        ratio, low, high; infinite where the other value, or its lower limit, is 0.
    """
    (a, a_low, a_high), (b, b_low, b_high) = np.asarray(one, float), np.asarray(other, float)
    if np.isnan([a_low, a_high, b_low, b_high]).any():
        return np.array([np.divide(a, b) if b else np.inf, np.nan, np.nan])
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.sqrt(np.maximum((a * b) ** 2 - a_low * b_high * (2 * a - a_low) * (2 * b - b_high), 0))
        low = a_low * (2 * a - a_low) / (a * b + reach) if a_low > 0 else 0.0
        reach = np.sqrt(np.maximum((a * b) ** 2 - a_high * b_low * (2 * a - a_high) * (2 * b - b_low), 0))
        return np.array([a / b, low, (a * b + reach) / (b_low * (2 * b - b_low)) if b_low > 0 else np.inf])


def precision_table(metrics: pd.DataFrame, slope: Mapping[str, float], counts: Mapping[str, int]) -> pd.DataFrame:
    """What a test set of this size can show: the width of each interval, and how many images would give the width that is wanted.

    Wanted are, after Riley et al. (Stat Med 2021), 0.1 for AUROC, sensitivity and specificity and 0.4 for the calibration slope, in
    all. Widths fall with the root of the number of images, of patients like these.

    Args:
        metrics: of `metric_table`.
        slope: `slope_low, slope_high` of the probabilities that are used.
        counts: `images, pneumonia, normal` of the test set.
    Returns:
        `metric, of, images` (what and how many count), `width, wanted, needed` (images of the same kind for the wanted width); NaN where
        there is no interval.
    """
    limits = metrics.set_index("metric")
    widths = (limits.high - limits.low).to_dict() | {"slope": slope["slope_high"] - slope["slope_low"]}
    kinds = {"auroc": "images", "sensitivity": "pneumonia", "specificity": "normal", "slope": "images"}
    found = pd.DataFrame({"metric": kinds.keys(), "of": kinds.values()})
    found = found.assign(images=found.of.map(counts), width=found.metric.map(widths))
    found["wanted"] = np.where(found.metric == "slope", 0.4, 0.1)
    return found.assign(needed=np.ceil(found.images * (found.width / found.wanted) ** 2))


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
