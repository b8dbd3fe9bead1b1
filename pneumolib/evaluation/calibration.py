"""From a logit to a probability and to a predicted class: calibration and threshold, chosen on validation and frozen.

There is one probability: that of the frozen calibration. The threshold is expressed in it, and so is all that is shown. Both are
chosen once, on the same rows with the same weights, before test is read: validation as it is and, with as much weight all
together, its augmented views. How well the probabilities hold on test is computed here too.

Discrimination and calibration are different questions: a network whose scores are all twice too sure has the same AUROC.
Class weights move the mean probability, strong augmentation and label smoothing flatten it, and a long training sharpens it.

Optimisers and regressions are imported where they are used: they take a second, and reading a result needs none of them.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used: the check of what is due uses none

from pneumolib.data.layout import LABEL_NAMES
from pneumolib.errors import InputError
from pneumolib.evaluation.intervals import interval_columns, resample
from pneumolib.evaluation.metrics import check_predictions, compute_metrics
from pneumolib.params import EvaluationParams, Fraction

METHODS = ("none", "temperature", "platt", "isotonic")
REFER = "refer"  # the predicted class of an image that a person has to look at
CERTAIN = 1e-6  # isotonic maps give 0 and 1, whose logits are infinite
_BINS = 10
_NARROWEST, _WIDEST = 0.05, 20.0  # temperatures; on a validation set without an error the best one would be 0
_STEEPEST = 20.0  # a calibration slope or intercept beyond it is that of classes that are next to separated
_DRAWN = 100  # resamples behind a band: a picture needs fewer than a table
_FOLDS = 5  # of groups, to judge a calibration by


@dataclass(frozen=True)
class Calibration:
    """A frozen map from a logit to a probability.

    Attributes:
        method: one of `METHODS`.
        slope, intercept: probability = expit(slope * logit + intercept), for all methods but `isotonic`.
        logits, probabilities: the corners of the isotonic map, straight between them; empty otherwise.
        chosen_on: never test; `recalibration` for another source's, see `external`.
        asked: the method that the parameters ask for; where it is another one than `method`, it was not applied.
        log_loss, log_loss_before: with the method that was asked for and without it, cross-validated by groups on validation;
            None where that was not possible, or `none` was asked for.
        failed: why a fit gave nothing that could be applied; empty otherwise.
    """

    method: Literal["none", "temperature", "platt", "isotonic"]
    slope: float = 1.0
    intercept: float = 0.0
    logits: tuple[float, ...] = ()
    probabilities: tuple[Fraction, ...] = ()
    chosen_on: Literal["validation", "recalibration"] = "validation"
    asked: str = "none"
    log_loss: float | None = None
    log_loss_before: float | None = None
    failed: str = ""

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of pneumonia, the shape of `logits`."""
        logits = np.asarray(logits, dtype=float)
        if self.method == "isotonic":
            return np.interp(logits, self.logits, self.probabilities)
        return scipy.special.expit(self.slope * logits + self.intercept)

    def applied(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Predictions with the column `probability` that belongs to their column `logit`."""
        return predictions.assign(probability=self.apply(predictions.logit))

    def in_words(self) -> str:
        """Such as `Platt scaling: the sigmoid of 0.812 x logit -0.104`."""
        return {
            "none": "no calibration: the sigmoid of the logit",
            "temperature": f"temperature scaling: the sigmoid of logit / {1 / self.slope:.3f}",
            "platt": f"Platt scaling: the sigmoid of {self.slope:.3f} x logit {self.intercept:+.3f}",
            "isotonic": f"isotonic regression with {len(self.logits)} corners",
        }[self.method]


NONE = Calibration("none")


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Of probabilities, also of the 0 and 1 that isotonic maps give."""
    return scipy.special.logit(np.clip(np.asarray(probability), CERTAIN, 1 - CERTAIN))


def freeze(
    predictions: pd.DataFrame, params: EvaluationParams, views: pd.DataFrame | None = None
) -> tuple["Threshold", Calibration]:
    """Calibration and threshold, both chosen on validation; rows of other splits are not looked at.

    A calibration that does not lower the log loss on validation, cross-validated by groups, is not applied; nor is one that
    falls or whose fit failed. A rising map moves no image across the threshold. Only an isotonic one gives several logits the
    same probability: there the rule is applied to these probabilities, and images at the threshold are all predicted as pneumonia.

    Args:
        predictions: columns of `check_predictions` but `probability`, which follows from the logit.
        params: threshold rule and calibration.
        views: the validation images again, under changes of acquisition (`learning.predict_views`). They weigh as much,
            all together, as the images as they are.
    Raises:
        InputError: see `choose_threshold`.
    """
    rows = check_predictions(NONE.applied(predictions), "val")
    seen, weights, _ = _with_views(rows, views)
    calibration = judged_calibration(seen, weights, params.calibration)
    return choose_threshold(rows, params, views, calibration), calibration


def judged_calibration(rows: pd.DataFrame, weights: np.ndarray, method: str) -> Calibration:
    """The fitted `method` if it lowers the cross-validated log loss of `rows`, else none; rows of one group stay together."""
    from sklearn.model_selection import StratifiedGroupKFold

    if method == "none":
        return NONE
    fitted = fit_method(rows, method, weights)
    folds = min(_FOLDS, rows.groupby("label").group_id.nunique().min())
    few = "" if folds > 1 else "a class has fewer than two groups, so that it cannot be cross-validated"
    if failed := fitted.failed or few:
        return replace(NONE, asked=method, failed=failed)
    logits, labels = rows.logit.to_numpy(dtype=float), rows.label.to_numpy()
    found = np.empty(len(rows))
    for kept, held in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(rows, labels, rows.group_id):
        found[held] = fit_method(rows.iloc[kept], method, weights[kept]).apply(logits[held])
    losses = [_loss(log_odds(probability), labels, weights) for probability in (found, NONE.apply(logits))]
    fitted = fitted if losses[0] < losses[1] else NONE
    return replace(fitted, asked=method, log_loss=losses[0], log_loss_before=losses[1])


def fit_method(rows: pd.DataFrame, method: str, weights: np.ndarray | None = None) -> Calibration:
    """One method, fitted to `logit` and `label` of all rows and not judged; see `freeze`.

    `temperature`: one factor for all logits, by maximum likelihood (Guo et al., ICML 2017). `platt`: slope and intercept,
    with targets drawn in by one image of each class as Platt did (1999), so that separated classes do not ask for an
    infinite slope. `isotonic`: any rising map (Zadrozny and Elkan, KDD 2002); it needs more images than the others.

    Args:
        rows: each image once, or with its views.
        weights: of the rows; 1 each by default. They need not sum to the number of images.
    """
    logits, labels = rows.logit.to_numpy(dtype=float), rows.label.to_numpy()
    weights = np.ones(len(rows)) if weights is None else weights
    if method == "none":
        return NONE
    if len(set(labels)) < 2:
        return replace(NONE, asked=method, failed=f"there is one class only, label {labels[0]}")
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels, weights)
        corners = (tuple(map(float, values)) for values in (fitted.X_thresholds_, fitted.y_thresholds_))
        return Calibration("isotonic", 1.0, 0.0, *corners)
    if method == "temperature":
        return _temperature(logits, labels, weights)
    return _platt(logits, labels, weights, np.bincount(rows.drop_duplicates("image_id").label))


def _temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Calibration:
    bounds = np.log([_NARROWEST, _WIDEST])
    found = scipy.optimize.minimize_scalar(
        lambda t: _loss(logits / np.exp(t), labels, weights), bounds=bounds, method="bounded"
    )
    at_end = np.abs(found.x - bounds).min() < 0.01
    failed = f"the temperature ended at its bound, {np.exp(found.x):.3g}" if at_end else ""
    return Calibration("temperature", slope=float(np.exp(-found.x)), failed=failed)


def _platt(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, images: np.ndarray) -> Calibration:
    """`images` are the numbers of normal and of pneumonia."""
    targets = np.where(labels == 1, (images[1] + 1) / (images[1] + 2), 1 / (images[0] + 2))
    spread = logits.std() or 1.0  # a common scale keeps the search well conditioned
    found = scipy.optimize.minimize(lambda x: _loss(x[0] * logits / spread + x[1], targets, weights), [spread, 0.0])
    slope = float(found.x[0] / spread)
    failed = "" if slope > 0 else f"the slope is {slope:.3g}: scores are not higher for pneumonia"
    return Calibration("platt", slope=slope, intercept=float(found.x[1]), failed=failed)


def _loss(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    losses = targets * scipy.special.log_expit(logits) + (1 - targets) * scipy.special.log_expit(-logits)
    return float(-np.average(losses, weights=weights))


def calibration_table(
    predictions: pd.DataFrame, split: str, frozen: Calibration, params: EvaluationParams, seed: int,
    views: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Every method, fitted on validation, and what it gives on `split`.

    Args:
        frozen: the calibration of the run, which is not fitted again.
        views: of validation, which `frozen` was fitted on too.
    Returns:
        one row a method: `method, chosen` (whether it is the frozen one), `failed` (why the fit is of no use), `brier,
        log_loss`, those of `expected_errors`, and `slope, intercept` with `_low, _high` (see `slope_and_intercept`).
    """
    rows, table = check_predictions(predictions, split), []
    seen, weights, _ = _with_views(check_predictions(predictions, "val"), views)
    for method in METHODS:
        fitted = frozen if method == frozen.method else fit_method(seen, method, weights)
        probability = fitted.apply(rows.logit)
        found = compute_metrics(rows.label, probability, 0.5)
        row = {"method": method, "chosen": method == frozen.method, "failed": fitted.failed}
        row |= {name: float(found[name]) for name in ("brier", "log_loss")}
        table.append(row | assess(rows, probability, params, seed))
    return pd.DataFrame(table)


def assess(rows: pd.DataFrame, probability: np.ndarray, params: EvaluationParams, seed: int) -> dict[str, float]:
    """How well probabilities hold: `expected_errors`, and `slope_and_intercept` with limits."""
    errors = expected_errors(rows.label, probability, seed)
    return errors | slope_and_intercept(rows, probability, params.confidence)


def slope_and_intercept(rows: pd.DataFrame, probability: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """Calibration slope and intercept by logistic regression on the logit of `probability` (Cox, Biometrika 1958).

    A slope below 1 means scores that are too extreme, above 1 too timid; the intercept, with the slope held at 1, is
    above 0 where pneumonia is commoner than the probabilities say. Intervals are Wald's with standard errors that are
    robust to groups (statsmodels, `cov_type="cluster"`).

    Args:
        rows: columns `label, group_id`.
        probability: as many.
    Returns:
        `slope, slope_low, slope_high, intercept, intercept_low, intercept_high`; NaN where a regression has no answer:
        classes that the probabilities separate or nearly so (a value beyond 20), one class, all probabilities equal, or fewer
        than two groups.
    """
    logits = log_odds(probability)
    labels, one = rows.label.to_numpy(), np.ones(len(rows))
    slope = intercept = [np.nan] * 3
    if min(rows.label.nunique(), rows.group_id.nunique()) > 1:
        sick, well = logits[labels == 1], logits[labels == 0]
        if sick.min() < well.max() and well.min() < sick.max():  # else the scores separate the classes
            slope = _regression(rows, confidence, np.column_stack([logits, one]))
        # The search begins at its end, which steps from zero miss where offsets are extreme.
        start = scipy.optimize.brentq(lambda a: (scipy.special.expit(logits + a) - labels).sum(), -100, 100)
        intercept = _regression(rows, confidence, one, offset=logits, start=np.array([start]))
    return interval_columns("slope", slope) | interval_columns("intercept", intercept)


def _regression(rows: pd.DataFrame, confidence: float, design: np.ndarray, offset=None, start=None) -> list[float]:
    """The first coefficient with its limits; NaN for a search that ran away, or nearly."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    groups = {"groups": pd.factorize(rows.group_id)[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # near-separation shows in the interval, which comes out very wide
        model = GLM(rows.label.to_numpy(), design, family=Binomial(), offset=offset)
        fitted = model.fit(cov_type="cluster", cov_kwds=groups, start_params=start)
    found = [float(fitted.params[0]), *map(float, np.asarray(fitted.conf_int(1 - confidence))[0])]
    settled = fitted.converged and np.isfinite(found[1:]).all() and abs(found[0]) < _STEEPEST
    return found if settled else [np.nan] * 3


def calibration_curve(rows: pd.DataFrame, probability: np.ndarray, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """Observed share of pneumonia by probability, smoothed, with a band: a flexible calibration curve (Van Calster et al., BMC
    Med 2019).

    Logistic regression on a cubic spline of the log odds with four knots, between the 1st and the 99th percentile of the
    probabilities. The band is of each place for itself, from resamples of groups.

    Args:
        rows: columns `label, group_id`.
        probability: as many.
    Returns:
        columns `probability, observed, low, high`, 41 rows; NaN with one class or equal probabilities, limits also where a class
        has fewer than two groups.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import SplineTransformer

    odds = log_odds(probability)
    places = np.linspace(*np.quantile(odds, [0.01, 0.99]), 41)
    found = {"probability": scipy.special.expit(places)} | dict.fromkeys(("observed", "low", "high"), np.nan)
    if rows.label.nunique() < 2 or places[0] == places[-1]:
        return pd.DataFrame(found)
    spline = SplineTransformer(4, knots="uniform", extrapolation="linear").fit(places[:, None])
    seen, shown = spline.transform(odds[:, None]), spline.transform(places[:, None])
    resamples = resample(rows, params.model_copy(update={"resamples": min(params.resamples, _DRAWN)}), seed)

    def smoothed(weights: np.ndarray) -> np.ndarray:
        # The penalty is small; it holds the ends where a model is next to perfect.
        model = LogisticRegression(C=100, solver="newton-cholesky").fit(seen, rows.label, weights)
        return model.predict_proba(shown)[:, 1]

    found["observed"] = smoothed(np.ones(len(rows)))
    if resamples.weights is not None:
        drawn = [smoothed(weights) for weights in resamples.weights]
        ends = np.quantile(drawn, [resamples.tail, 1 - resamples.tail], axis=0)
        found |= dict(zip(("low", "high"), ends, strict=True))
    return pd.DataFrame(found)


def reliability(rows: pd.DataFrame, probability: np.ndarray, confidence: float = 0.95) -> pd.DataFrame:
    """Observed share of pneumonia in ten bins of equal width.

    Returns:
        one row a bin that holds images: `images, groups, probability` (the mean of the bin), `observed, low, high`.
        Limits are Wilson's, with groups instead of images as cases: wider, because images of a child repeat each other.
    """
    from statsmodels.stats.proportion import proportion_confint

    of_bin = rows.assign(probability=np.asarray(probability)).groupby(_bin_of(probability))
    bins = pd.DataFrame({"images": of_bin.size(), "groups": of_bin.group_id.nunique()})
    bins = bins.assign(probability=of_bin.probability.mean(), observed=of_bin.label.mean())
    low, high = proportion_confint(bins.observed * bins.groups, bins.groups, 1 - confidence, method="wilson")
    return bins.assign(low=low, high=high).reset_index(drop=True)


def _bin_of(probability: np.ndarray) -> np.ndarray:
    return np.minimum((np.asarray(probability) * _BINS).astype(int), _BINS - 1)


def expected_errors(labels: np.ndarray, probability: np.ndarray, seed: int, draws: int = 500) -> dict[str, float]:
    """`ece`, the expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015), and what it is by chance.

    `ece_perfect_low` to `ece_perfect_high` hold it in 95 of 100 draws of labels from these very probabilities: a perfect model
    and independent images.
    """
    probability, place = np.asarray(probability), _bin_of(probability)
    drawn = np.random.default_rng(seed).random((draws, len(probability))) < probability
    gaps = [np.bincount(place, probability - row, minlength=_BINS) for row in (np.asarray(labels), *drawn)]
    found = [float(np.abs(gap).sum() / len(place)) for gap in gaps]
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return {"ece": found[0], "ece_perfect_low": float(low), "ece_perfect_high": float(high)}


# --- threshold


@dataclass(frozen=True)
class Threshold:
    """A frozen threshold on the calibrated probability of pneumonia.

    Attributes:
        value: a probability at or above it is classified as pneumonia.
        rule: how it was chosen, in words.
        sensitivity, specificity: what it gave on validation.
        chosen_on: never test; `recalibration` for another source's, see `external`.
        refer_low, refer_high: probabilities between them, both included, are referred to a person; None where none are.
    """

    value: Fraction
    rule: str
    sensitivity: Fraction
    specificity: Fraction
    chosen_on: Literal["validation", "recalibration"] = "validation"
    refer_low: Fraction | None = None
    refer_high: Fraction | None = None

    def classes(self, probability: np.ndarray) -> np.ndarray:
        """`pneumonia`, `normal` or `refer` for each probability. Raises ValueError for one that is not between 0 and 1."""
        probability = np.asarray(probability, float)
        if not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError(f"probability: received {probability.min()} to {probability.max()}, needed 0 to 1")
        found = np.where(probability >= self.value, LABEL_NAMES[1], LABEL_NAMES[0]).astype(object)
        if self.refer_low is not None:
            found[(probability >= self.refer_low) & (probability <= self.refer_high)] = REFER
        return found


def choose_threshold(
    predictions: pd.DataFrame,
    params: EvaluationParams,
    views: pd.DataFrame | None = None,
    calibration: Calibration = NONE,
) -> Threshold:
    """Choose on the validation rows; rows of other splits are not looked at.

    `sensitivity` takes the highest threshold that still reaches `target_sensitivity`, `youden` the one with the
    largest sensitivity + specificity; both lie half-way to the next lower score, so that they do not hang on the last
    digit of one image's probability. `fixed` is `fixed_threshold`, a probability after calibration. `binormal` is where
    sensitivity equals specificity if the logits of each class are normally distributed (Dorfman and Alf, J Math Psychol 1969):
    as many standard deviations from one class's mean as from the other's. It rests on all images where the others, on a
    validation set that is nearly separated, rest on the few that are classified wrongly.

    Args:
        predictions: columns `PREDICTION_COLUMNS`; logits decide.
        params: the rule.
        views, calibration: see `freeze`; the value is a probability after this calibration.
    Raises:
        InputError: no usable validation rows, views of other images, or means in the wrong order for `binormal`.
    """
    rows = check_predictions(predictions, "val")
    if rows.label.nunique() < 2:
        raise InputError(
            f"threshold_rule {params.threshold_rule}: there is one class only, label {rows.label.iloc[0]}, so that "
            f"sensitivity and specificity cannot both be had; give validation images of the other class"
        )
    seen, weights, said = _with_views(rows, views)
    # A rising map keeps the order; an isotonic one makes ties, among which the rule has to choose.
    ties = calibration if calibration.method == "isotonic" else NONE
    labels, scores = seen.label.to_numpy(), ties.apply(seen.logit)
    if params.threshold_rule == "fixed":
        value, rule = params.fixed_threshold, f"fixed at {params.fixed_threshold:g}"
    elif params.threshold_rule == "binormal":
        value = float(calibration.apply(_binormal(labels, seen.logit.to_numpy(), weights)))
        rule = f"equal error by binormal logits{said}"
    else:
        value, rule = _from_scores(labels, scores, weights, params)
        value = value if ties is calibration else float(calibration.apply(scipy.special.logit(value)))
        rule += said
    probability = calibration.apply(rows.logit)
    found = compute_metrics(rows.label, probability, value)
    reached = (float(found[name]) for name in ("sensitivity", "specificity"))
    ends = _refer_between(probability, value, params.refer_fraction)
    return Threshold(float(value), rule, *reached, "validation", *ends)


def uncertainty(probability: np.ndarray, threshold: float) -> np.ndarray:
    """How near each probability lies to the threshold: the distance of the log odds, negative, (n,); 0 is nearest."""
    return -np.abs(log_odds(probability) - log_odds(threshold))


def _refer_between(probability: np.ndarray, threshold: float, fraction: float) -> tuple[float | None, float | None]:
    """The ends of the band of log odds around the threshold that holds this fraction of the probabilities."""
    if not fraction:
        return None, None
    reach = -np.quantile(uncertainty(probability, threshold), 1 - fraction, method="higher")
    reach += 1e-9  # the image at the end is inside, whatever rounding does
    return tuple(map(float, scipy.special.expit(log_odds(threshold) + np.array([-reach, reach]))))


def _with_views(rows: pd.DataFrame, views: pd.DataFrame | None) -> tuple[pd.DataFrame, np.ndarray, str]:
    """Validation and its views in one table, the weight of each row, and words for the rule."""
    if views is None or views.empty:
        return rows, np.ones(len(rows)), ""
    if set(views.image_id) != set(rows.image_id):
        raise InputError(f"views of {views.image_id.nunique()} images, but validation has {len(rows)}, or other ones")
    weights = np.concatenate([np.ones(len(rows)), np.full(len(views), len(rows) / len(views))])
    said = f", on validation as it is and in {len(views) // len(rows)} augmented views"
    return pd.concat([rows, views], ignore_index=True), weights, said


def _binormal(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    from statsmodels.stats.weightstats import DescrStatsW

    normal, pneumonia = (DescrStatsW(logits[labels == label], weights[labels == label]) for label in (0, 1))
    if not pneumonia.mean > normal.mean:
        raise InputError(
            "threshold_rule binormal: the mean logit of pneumonia does not lie above that of normal, so no point "
            "lies between them; use sensitivity, or look at the training"
        )
    both = normal.std + pneumonia.std
    return float(normal.mean + (normal.std / both if both else 0.5) * (pneumonia.mean - normal.mean))


def _from_scores(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, params: EvaluationParams
) -> tuple[float, str]:
    distinct = np.unique(scores)
    candidates = (distinct + np.concatenate([[0.0], distinct[:-1]])) / 2
    called = scores[:, None] >= candidates
    of_each = {label: weights[labels == label] / weights[labels == label].sum() for label in (0, 1)}
    sensitivity, specificity = of_each[1] @ called[labels == 1], of_each[0] @ ~called[labels == 0]
    if params.threshold_rule == "youden":
        return candidates[np.argmax(sensitivity + specificity)], "largest sensitivity + specificity (Youden)"
    # Weights that sum to 1 do so up to rounding; a target that is reached exactly must count as reached.
    reaching = np.flatnonzero(sensitivity >= params.target_sensitivity - 1e-12)
    return candidates[reaching[-1]], f"highest with sensitivity of at least {params.target_sensitivity:g}"
