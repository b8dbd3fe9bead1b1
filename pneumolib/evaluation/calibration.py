"""From a score to a probability and to a predicted class: calibration and threshold, chosen on validation and frozen.

Both are chosen once, before test is read. How well the probabilities hold on test is computed here too.

Discrimination and calibration are different questions: a network whose scores are all twice too sure has the same AUROC.
Class weights move the mean probability, strong augmentation and label smoothing flatten it, and a long training sharpens it.

Optimisers and regressions are imported where they are used: they take a second, and reading a result needs none of them.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used: the check of what is due uses none

from pneumolib.errors import InputError
from pneumolib.evaluation.intervals import interval_columns
from pneumolib.evaluation.metrics import check_predictions, compute_metrics
from pneumolib.params import EvaluationParams

METHODS = ("none", "temperature", "platt", "isotonic")
CERTAIN = 1e-6  # isotonic maps give 0 and 1, whose logits are infinite
_BINS = 10
_NARROWEST, _WIDEST = 0.05, 20.0  # temperatures; on a validation set without an error the best one would be 0


@dataclass(frozen=True)
class Calibration:
    """A frozen map from a logit to a probability.

    Attributes:
        method: one of `METHODS`.
        slope, intercept: probability = expit(slope * logit + intercept), for all methods but `isotonic`.
        logits, probabilities: the corners of the isotonic map, straight between them; empty otherwise.
        chosen_on: never test; `recalibration` for another source's, see `external`.
    """

    method: Literal["none", "temperature", "platt", "isotonic"]
    slope: float = 1.0
    intercept: float = 0.0
    logits: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    chosen_on: Literal["validation", "recalibration"] = "validation"

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of pneumonia, the shape of `logits`."""
        logits = np.asarray(logits, dtype=float)
        if self.method == "isotonic":
            return np.interp(logits, self.logits, self.probabilities)
        return scipy.special.expit(self.slope * logits + self.intercept)

    def in_words(self) -> str:
        """Such as `Platt scaling: the sigmoid of 0.812 x logit -0.104`."""
        return {
            "none": "none: probabilities are the network's own",
            "temperature": f"temperature scaling: logits are divided by {1 / self.slope:.3f}",
            "platt": f"Platt scaling: the sigmoid of {self.slope:.3f} x logit {self.intercept:+.3f}",
            "isotonic": f"isotonic regression with {len(self.logits)} corners",
        }[self.method]


def fit_calibration(predictions: pd.DataFrame, method: str) -> Calibration:
    """Fit on the validation rows; rows of other splits are not looked at.

    `temperature`: one factor for all logits, by maximum likelihood (Guo et al., ICML 2017). `platt`: slope and intercept,
    with targets drawn in by one image of each class as Platt did (1999), so that separated classes do not ask for an
    infinite slope. `isotonic`: any rising map (Zadrozny and Elkan, KDD 2002); it needs more images than the others.

    Raises:
        InputError: an unknown method, or validation rows that cannot be used, one class alone among them.
    """
    if method not in METHODS:
        raise InputError(f"calibration: received {method!r}, allowed {', '.join(METHODS)}")
    rows = check_predictions(predictions, "val")
    logits, labels = rows.logit.to_numpy(dtype=float), rows.label.to_numpy()
    if method == "none":
        return Calibration("none")
    if len(set(labels)) < 2:
        raise InputError(f"calibration {method}: validation holds one class only, label {labels[0]}; use none")
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels)
        corners = (tuple(map(float, values)) for values in (fitted.X_thresholds_, fitted.y_thresholds_))
        return Calibration("isotonic", 1.0, 0.0, *corners)
    return _temperature(logits, labels) if method == "temperature" else _platt(logits, labels)


def _temperature(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    bounds = np.log([_NARROWEST, _WIDEST])
    found = scipy.optimize.minimize_scalar(lambda t: _loss(logits / np.exp(t), labels), bounds=bounds, method="bounded")
    return Calibration("temperature", slope=float(np.exp(-found.x)))


def _platt(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    positives, negatives = (labels == 1).sum(), (labels == 0).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = logits.std() or 1.0  # a common scale keeps the search well conditioned
    found = scipy.optimize.minimize(lambda x: _loss(x[0] * logits / spread + x[1], targets), [spread, 0.0])
    return Calibration("platt", slope=float(found.x[0] / spread), intercept=float(found.x[1]))


def _loss(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(-(targets * scipy.special.log_expit(logits) + (1 - targets) * scipy.special.log_expit(-logits)).mean())


def calibration_table(predictions: pd.DataFrame, split: str, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """Every method, fitted on validation, and what it gives on `split`.

    Returns:
        one row a method: `method, chosen` (whether it is the one of `params.calibration`), `brier, log_loss, ece,
        ece_floor`, and `slope, intercept` with `_low, _high` (see `slope_and_intercept`).
    """
    rows, table = check_predictions(predictions, split), []
    for method in METHODS:
        probability = fit_calibration(predictions, method).apply(rows.logit)
        found = compute_metrics(rows.label, probability, 0.5)
        row = {"method": method, "chosen": method == params.calibration}
        row |= {name: float(found[name]) for name in ("brier", "log_loss")}
        row |= expected_errors(rows.label, probability, seed)
        table.append(row | slope_and_intercept(rows, probability, params.confidence))
    return pd.DataFrame(table)


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
        classes that the probabilities separate, one class, all probabilities equal, or fewer than two groups.
    """
    logits = scipy.special.logit(np.clip(probability, CERTAIN, 1 - CERTAIN))
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
    """The first coefficient with its limits; NaN for a search that ran away."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    groups = {"groups": pd.factorize(rows.group_id)[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # near-separation shows in the interval, which comes out very wide
        model = GLM(rows.label.to_numpy(), design, family=Binomial(), offset=offset)
        fitted = model.fit(cov_type="cluster", cov_kwds=groups, start_params=start)
    found = [float(fitted.params[0]), *map(float, np.asarray(fitted.conf_int(1 - confidence))[0])]
    return found if fitted.converged and np.isfinite(found[1:]).all() else [np.nan] * 3


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


def expected_errors(labels: np.ndarray, probability: np.ndarray, seed: int, draws: int = 200) -> dict[str, float]:
    """`ece`, the expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015), and `ece_floor`.

    The floor is the mean error that labels drawn from these very probabilities give: what no model goes below.
    """
    probability, place = np.asarray(probability), _bin_of(probability)
    drawn = np.random.default_rng(seed).random((draws, len(probability))) < probability
    gaps = [np.bincount(place, probability - row, minlength=_BINS) for row in (np.asarray(labels), *drawn)]
    found = [float(np.abs(gap).sum() / len(place)) for gap in gaps]
    return {"ece": found[0], "ece_floor": float(np.mean(found[1:]))}


# --- threshold


@dataclass(frozen=True)
class Threshold:
    """A frozen threshold on the probability of pneumonia.

    Attributes:
        value: a probability at or above it is classified as pneumonia.
        rule: how it was chosen, in words.
        sensitivity, specificity: what it gave on validation.
        chosen_on: never test; `recalibration` for another source's, see `external`.
    """

    value: float
    rule: str
    sensitivity: float
    specificity: float
    chosen_on: Literal["validation", "recalibration"] = "validation"


def choose_threshold(
    predictions: pd.DataFrame, params: EvaluationParams, views: pd.DataFrame | None = None
) -> Threshold:
    """Choose on the validation rows; rows of other splits are not looked at.

    `sensitivity` takes the highest threshold that still reaches `target_sensitivity`, `youden` the one with the
    largest sensitivity + specificity; both lie half-way to the next lower score, so that they do not hang on the last
    digit of one image's probability. `fixed` is `fixed_threshold`. `binormal` is where sensitivity equals specificity if
    the logits of each class are normally distributed (Dorfman and Alf, J Math Psychol 1969): as many standard deviations
    from one class's mean as from the other's. It rests on all images where the others, on a validation set that is
    nearly separated, rest on the few that are classified wrongly.

    Args:
        predictions: columns `PREDICTION_COLUMNS`.
        params: the rule.
        views: the validation images again, under changes of acquisition (`learning.predict_views`). They weigh as much,
            all together, as the images as they are: a threshold that holds for both has some room on either side.
    Raises:
        InputError: no usable validation rows, views of other images, or means in the wrong order for `binormal`.
    """
    rows = check_predictions(predictions, "val")
    if rows.label.nunique() < 2:
        raise InputError(
            f"threshold_rule {params.threshold_rule}: validation holds one class only, label {rows.label.iloc[0]}, so that "
            f"sensitivity and specificity cannot both be had there; give it images of the other class"
        )
    seen, weights, said = _with_views(rows, views)
    labels = seen.label.to_numpy()
    if params.threshold_rule == "fixed":
        value, rule = params.fixed_threshold, f"fixed at {params.fixed_threshold:g}"
    elif params.threshold_rule == "binormal":
        value, rule = _binormal(labels, seen.logit.to_numpy(), weights), f"equal error by binormal logits{said}"
    else:
        value, rule = _from_scores(labels, seen.probability.to_numpy(), weights, params)
        rule += said
    reached = compute_metrics(rows.label.to_numpy(), rows.probability.to_numpy(), value)
    return Threshold(float(value), rule, float(reached["sensitivity"]), float(reached["specificity"]))


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
    means, deviations = [], []
    for label in (0, 1):
        own, share = logits[labels == label], weights[labels == label]
        means.append(np.average(own, weights=share))
        deviations.append(np.sqrt(np.average((own - means[-1]) ** 2, weights=share)))
    if not means[1] > means[0]:
        raise InputError(
            "threshold_rule binormal: the mean logit of pneumonia does not lie above that of normal on validation, so "
            "no point lies between them; use sensitivity, or look at the training"
        )
    share = deviations[0] / sum(deviations) if sum(deviations) else 0.5
    return float(scipy.special.expit(means[0] + share * (means[1] - means[0])))


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
