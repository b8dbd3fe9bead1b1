"""Does a frozen model hold on images from another source? And what would choosing threshold and calibration anew there bring?

Contract: predictions of the other source have the columns `PREDICTION_COLUMNS`, `split` being `external`, and `part`:
`recalibration` or `evaluation`, cut by whole groups (`data.split_external`). What was frozen is judged on all of them. What
is chosen on the recalibration part is judged on the evaluation part, beside what was frozen; it has types of its own,
which a result's `threshold` and `calibration` refuse.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from pneumolib.data.split import EXTERNAL, PARTS
from pneumolib.evaluation.calibration import (
    Calibration,
    error_floor,
    expected_error,
    fit_calibration,
    slope_and_intercept,
)
from pneumolib.evaluation.comparison import paired_differences
from pneumolib.evaluation.intervals import percentiles, resample, unpaired_difference
from pneumolib.evaluation.metrics import check_predictions
from pneumolib.evaluation.thresholds import Threshold, choose_threshold
from pneumolib.params import EvaluationParams

RECALIBRATION, EVALUATION = PARTS
FROZEN, ANEW = "frozen", "recalibrated"
CALIBRATIONS = ("network", "frozen", "prior moved", "refitted")
MOVED = ("auroc", "sensitivity", "specificity")  # compared between the sources: not moved by prevalence, as PPV is
_CERTAIN = 1e-6  # isotonic maps give 0 and 1, whose logits are infinite


@dataclass(frozen=True)
class LocalThreshold(Threshold):
    """A threshold chosen on the recalibration part of another source; `sensitivity` and `specificity` are those there."""

    chosen_on: Literal["recalibration"] = "recalibration"


@dataclass(frozen=True)
class LocalCalibration(Calibration):
    """A calibration fitted on the recalibration part of another source."""

    chosen_on: Literal["recalibration"] = "recalibration"


def part_of(predictions: pd.DataFrame, part: str) -> pd.DataFrame:
    """The checked rows of one part. Raises EvaluationError as `check_predictions` does."""
    rows = check_predictions(predictions, EXTERNAL)
    return rows[rows.part == part]


def recalibrate(predictions: pd.DataFrame, params: EvaluationParams) -> tuple[LocalThreshold, LocalCalibration]:
    """Threshold and calibration as the study chooses them on validation, chosen on the recalibration part instead.

    Args:
        predictions: see above; rows of the evaluation part are not looked at.
        params: those of the run whose model it is. Where they ask for no calibration Platt's is fitted; views of
            validation (`threshold_views`) have no counterpart here.
    Raises:
        EvaluationError: see `choose_threshold` and `fit_calibration`.
    """
    rows = part_of(predictions, RECALIBRATION).assign(split="val")  # what those two look at
    threshold, method = choose_threshold(rows, params), "platt" if params.calibration == "none" else params.calibration
    calibration = fit_calibration(rows, method)
    local = {"chosen_on": RECALIBRATION}
    return LocalThreshold(**asdict(threshold) | local), LocalCalibration(**asdict(calibration) | local)


def threshold_differences(
    predictions: pd.DataFrame, frozen: float, local: LocalThreshold, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """Calls at the frozen and at the recalibrated threshold, on the evaluation part, and their paired difference.

    Returns:
        of `frozen` and `recalibrated` each one row for sensitivity, specificity and accuracy, columns as
        `paired_differences` has them; the difference is recalibrated less frozen, on the same resamples of groups.
    """
    rows = part_of(predictions, EVALUATION)
    thresholds = {FROZEN: frozen, ANEW: local.value}
    found = paired_differences(dict.fromkeys(thresholds, rows), EXTERNAL, thresholds, FROZEN, params, seed)
    return found[found.metric.isin(["sensitivity", "specificity", "accuracy"])].reset_index(drop=True)


def move_prior(probability: np.ndarray, before: float, after: float) -> np.ndarray:
    """Probabilities as they would be where pneumonia has the share `after` instead of `before`, both between 0 and 1.

    The log odds move by logit(after) - logit(before): Bayes's rule when sick and well look the same in both places and
    only their shares differ (Saerens, Latinne and Decaestecker, Neural Comput 2002; Elkan, IJCAI 2001).
    """
    odds = logit(np.clip(probability, _CERTAIN, 1 - _CERTAIN))
    return expit(odds + logit(after) - logit(before))


def expected_share(internal: pd.DataFrame, frozen: Calibration) -> float:
    """The share of pneumonia that frozen probabilities stand for: what they add up to on the study's validation images.

    Not the share of its labels: class weights teach a network another one, and only Platt's map and the isotonic one bring it
    back.

    Args:
        internal: `predictions.csv` of the run; rows of `val` count.
    """
    return float(frozen.apply(check_predictions(internal, "val").logit).mean())


def external_calibrations(
    predictions: pd.DataFrame, frozen: Calibration, local: LocalCalibration, share_before: float
) -> pd.DataFrame:
    """The evaluation part with a column of probabilities for each of `CALIBRATIONS`.

    `prior moved` takes the frozen ones from `share_before` (see `expected_share`) to pneumonia's share in the recalibration
    part: it needs to know how common pneumonia is there, not which image shows it.
    """
    rows, share_after = part_of(predictions, EVALUATION), part_of(predictions, RECALIBRATION).label.mean()
    calibrated = frozen.apply(rows.logit)
    columns = (rows.probability, calibrated, move_prior(calibrated, share_before, share_after), local.apply(rows.logit))
    return rows.assign(**dict(zip(CALIBRATIONS, columns, strict=True)))


def external_calibration_table(calibrated: pd.DataFrame, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """How well each column of `external_calibrations` holds on the evaluation part.

    Returns:
        one row for each of `CALIBRATIONS`: `method`; `brier` with `_low, _high`, and `difference` from the frozen one on the
        same resamples with its own; `slope` and `intercept` likewise (see `slope_and_intercept`); `observed_expected`, images
        with pneumonia for each one that the probabilities add up to, with limits from resamples of groups that keep
        no share of pneumonia fixed, because that share is what is asked; `ece` and `ece_floor`.
    """
    tables = {name: calibrated.assign(probability=calibrated[name]) for name in CALIBRATIONS}
    found = paired_differences(tables, EXTERNAL, dict.fromkeys(tables, 0.5), "frozen", params, seed)
    brier = found[found.metric == "brier"].set_index("name")
    rows = []
    for name in CALIBRATIONS:
        probability, of_brier = calibrated[name].to_numpy(), brier.loc[name]
        rows.append(
            {"method": name, "brier": of_brier.value, "brier_low": of_brier.low, "brier_high": of_brier.high}
            | {column: of_brier[column] for column in ("difference", "difference_low", "difference_high")}
            | slope_and_intercept(calibrated, probability, params.confidence)
            | _observed_expected(calibrated, probability, params, seed)
            | {"ece": expected_error(calibrated.label, probability), "ece_floor": error_floor(probability, seed)}
        )
    return pd.DataFrame(rows)


def _observed_expected(
    rows: pd.DataFrame, probability: np.ndarray, params: EvaluationParams, seed: int
) -> dict[str, float]:
    groups = (
        pd.DataFrame({"observed": rows.label.to_numpy(), "expected": probability})
        .groupby(rows.group_id.to_numpy())
        .sum()
    )
    drawn = np.random.default_rng(seed).multinomial(
        len(groups), np.full(len(groups), 1 / len(groups)), params.resamples
    )
    observed, expected = (drawn @ groups[name].to_numpy() for name in ("observed", "expected"))
    low, high = percentiles(observed / np.maximum(expected, _CERTAIN), (1 - params.confidence) / 2)
    value = float(groups.observed.sum() / max(groups.expected.sum(), _CERTAIN))
    return {"observed_expected": value, "observed_expected_low": low, "observed_expected_high": high}


def external_differences(
    external: pd.DataFrame, internal: pd.DataFrame, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """All images of the other source against the study's own test, both at the frozen threshold.

    Other images and other children, so the two sides are resampled apart, groups within each class. The limits of a
    difference are put together from those of its sides (Zou and Donner, Stat Med 2008; of proportions Newcombe, Stat Med
    1998): where one side has few errors or none, its resamples would say too little.

    Args:
        external: predictions of split `external`.
        internal: `predictions.csv` of the run; rows of `test` count.
    Returns:
        one row for each of `MOVED`: `metric`, and `internal`, `external`, `difference` (external less internal), each with
        `_low, _high`; NaN where they cannot be computed.
    """
    sides = {}
    for name, (table, split) in {"internal": (internal, "test"), "external": (external, EXTERNAL)}.items():
        rows = check_predictions(table, split).sort_values("image_id")
        sides[name] = resample(rows, params, seed).metric_limits(rows.probability, threshold)
    rows = []
    for metric in MOVED:
        row = {"metric": metric}
        for name, (value, limits) in sides.items():
            row |= {name: value[metric], f"{name}_low": limits[metric][0], f"{name}_high": limits[metric][1]}
        before, after = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("internal", "external"))
        rows.append(row | unpaired_difference(after, before))
    return pd.DataFrame(rows)
