"""Does a frozen model hold on images from another source? What would choosing threshold and calibration anew there bring?

Contract: predictions of the other source have the columns `PREDICTION_COLUMNS`, `split` being `external`, and `part`:
`recalibration` or `evaluation`, cut by whole groups (`data.split_external`). What was frozen is judged on all of them. What
is chosen on the recalibration part is judged on the evaluation part, beside what was frozen; its `chosen_on` says so, and a
result's `threshold` and `calibration` refuse it.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are used: the check of what is due uses none

from pneumolib.data.facts import QUANTILES, TrainingReference
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.data.split import EXTERNAL, PARTS
from pneumolib.errors import InputError
from pneumolib.evaluation.calibration import Calibration, Threshold, assess, choose_threshold, fit_method, log_odds
from pneumolib.evaluation.compare import paired_differences
from pneumolib.evaluation.intervals import interval_columns, percentiles, share_limits, unpaired_difference
from pneumolib.evaluation.metrics import check_predictions
from pneumolib.params import EvaluationParams

RECALIBRATION, EVALUATION = PARTS
_FEWEST = 10  # images of a class in a part of a site, to choose or to judge
_CELLS = pd.MultiIndex.from_product([PARTS, (0, 1)])
CALIBRATIONS = ("network", "frozen", "prior moved", "refitted")


def part_of(predictions: pd.DataFrame, part: str) -> pd.DataFrame:
    """The checked rows of one part. Raises InputError as `check_predictions` does."""
    rows = check_predictions(predictions, EXTERNAL)
    return rows[rows.part == part]


def recalibrate(
    predictions: pd.DataFrame, threshold: Threshold, frozen: Calibration, params: EvaluationParams
) -> tuple[Threshold, Calibration]:
    """Threshold and calibration as the study chooses them on validation, chosen on the recalibration part instead.

    Where the rule cannot be applied, such as `binormal` where scores are turned round, the frozen threshold is kept. Its
    `chosen_on` stays `validation` then, and its `rule` says why.

    Args:
        predictions: see above; rows of the evaluation part are not looked at.
        threshold, frozen: of the run. The new threshold is expressed in probabilities of the frozen calibration.
        params: those of the run whose model it is. Where they ask for no calibration Platt's is fitted; views of
            validation (`threshold_views`) have no counterpart here.
    """
    rows = part_of(predictions, RECALIBRATION).assign(split="val")  # what those two look at
    try:
        threshold = replace(choose_threshold(rows, params, calibration=frozen), chosen_on=RECALIBRATION)
    except InputError as fault:
        threshold = replace(threshold, rule=str(fault))
    return threshold, replace(_refitted(rows, frozen, params), chosen_on=RECALIBRATION)


def _refitted(rows: pd.DataFrame, frozen: Calibration, params: EvaluationParams) -> Calibration:
    """A calibration fitted to `rows`; the frozen one, with `failed` saying why, where the fit is of no use."""
    found = fit_method(rows, "platt" if params.calibration == "none" else params.calibration)
    return replace(frozen, failed=found.failed) if found.failed else found


def threshold_differences(
    predictions: pd.DataFrame, frozen: float, local: Threshold, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """The frozen and the recalibrated threshold on the evaluation part, and their paired difference.

    Returns:
        of `frozen` and `recalibrated` each one row for sensitivity, specificity and accuracy, columns as
        `paired_differences` has them; the difference is recalibrated less frozen, on the same resamples of groups.
    """
    rows, metrics = part_of(predictions, EVALUATION), ("sensitivity", "specificity", "accuracy")
    thresholds = {"frozen": frozen, "recalibrated": local.value}
    return paired_differences(dict.fromkeys(thresholds, rows), EXTERNAL, thresholds, "frozen", params, seed, metrics)


def move_prior(probability: np.ndarray, before: float, after: float) -> np.ndarray:
    """Probabilities as they would be where pneumonia has the share `after` instead of `before`, both between 0 and 1.

    The log odds move by scipy.special.logit(after) - scipy.special.logit(before): Bayes's rule when sick and well look the same in both places and
    only their shares differ (Saerens, Latinne and Decaestecker, Neural Comput 2002; Elkan, IJCAI 2001).
    """
    return scipy.special.expit(log_odds(probability) + scipy.special.logit(after) - scipy.special.logit(before))


def expected_share(internal: pd.DataFrame, frozen: Calibration) -> float:
    """The share of pneumonia that frozen probabilities stand for: what they add up to on the study's validation images.

    Not the share of its labels: class weights teach a network another one, and only Platt's map and the isotonic one bring it
    back.

    Args:
        internal: `predictions.csv` of the run; rows of `val` count.
    """
    return float(frozen.apply(check_predictions(internal, "val").logit).mean())


def external_calibrations(
    predictions: pd.DataFrame, frozen: Calibration, local: Calibration, share_before: float
) -> pd.DataFrame:
    """The evaluation part with a column of probabilities for each of `CALIBRATIONS`.

    `prior moved` takes the frozen ones from `share_before` (see `expected_share`) to pneumonia's share in the recalibration
    part: it needs to know how common pneumonia is there, not which image shows it.
    """
    rows, share_after = part_of(predictions, EVALUATION), part_of(predictions, RECALIBRATION).label.mean()
    calibrated = frozen.apply(rows.logit)
    moved = move_prior(calibrated, share_before, share_after)
    columns = (scipy.special.expit(rows.logit), calibrated, moved, local.apply(rows.logit))
    return rows.assign(**dict(zip(CALIBRATIONS, columns, strict=True)))


def external_calibration_table(calibrated: pd.DataFrame, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """How well each column of `external_calibrations` holds on the evaluation part.

    Returns:
        one row for each of `CALIBRATIONS`: `method`; `brier` with `_low, _high`, and `difference` from the frozen one on the
        same resamples with its own; `slope` and `intercept` likewise (see `slope_and_intercept`); `observed_expected`, images
        with pneumonia for each one that the probabilities add up to, with limits from resamples of groups that keep
        no share of pneumonia fixed, because that share is what is asked; those of `expected_errors`.
    """
    tables = {name: calibrated.assign(probability=calibrated[name]) for name in CALIBRATIONS}
    # The threshold plays no part in the Brier score.
    briers = paired_differences(tables, EXTERNAL, dict.fromkeys(tables, 0.5), "frozen", params, seed, ["brier"])
    names = {"name": "method", "value": "brier", "low": "brier_low", "high": "brier_high"}
    rows = [
        assess(calibrated, calibrated[name], params, seed)
        | _observed_expected(calibrated, calibrated[name], params, seed)
        for name in CALIBRATIONS
    ]
    return pd.concat([briers.drop(columns="metric").rename(columns=names), pd.DataFrame(rows)], axis=1)


def _observed_expected(
    rows: pd.DataFrame, probability: np.ndarray, params: EvaluationParams, seed: int
) -> dict[str, float]:
    groups = rows.assign(expected=probability).groupby("group_id")[["label", "expected"]].sum()
    n = len(groups)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), params.resamples)
    observed, expected = (drawn @ groups[name].to_numpy() for name in ("label", "expected"))
    limits = percentiles(observed / np.maximum(expected, 1e-6), (1 - params.confidence) / 2)
    value = float(groups.label.sum() / max(groups.expected.sum(), 1e-6))
    return interval_columns("observed_expected", (value, *limits))


def drift_table(reference: TrainingReference, facts: pd.DataFrame) -> pd.DataFrame:
    """Each fact in training and in another source.

    Args:
        facts: from `data.describe_images`.
    Returns:
        one row a fact: `fact`; `training_low, training_median, training_high`, the ends of the middle 95% of training images
        and the middle; `low, median, high`, the same of these images; `outside`, the share of these images beyond training's
        ends, where one in twenty is to be expected; `flagged`, the share beyond the limits of a warning.
    """
    unusual, rows, middle = reference.unusual(facts[list(reference.quantiles)]), [], (0.025, 0.5, 0.975)
    for fact, quantiles in reference.quantiles.items():
        training = [quantiles[QUANTILES.index(q)] for q in middle]
        outside = 1 - facts[fact].between(training[0], training[2]).mean()
        rows.append([fact, *training, *np.quantile(facts[fact], middle), outside, unusual[fact].mean()])
    ends = ("low", "median", "high")
    return pd.DataFrame(rows, columns=["fact", *(f"training_{end}" for end in ends), *ends, "outside", "flagged"])


def ood_warning_table(reference: TrainingReference, facts: pd.DataFrame) -> pd.DataFrame:
    """Share of images with an out-of-distribution warning of each kind, and of `any`.

    Returns:
        `kind, validation_warnings` (share on validation), `flagged` (share of these images).
    """
    flagged = reference.flagged(facts).mean()
    before = pd.to_numeric(pd.Series([reference.validation_warnings[kind] for kind in flagged.index]))
    return pd.DataFrame({"kind": flagged.index, "validation_warnings": before, "flagged": flagged.to_numpy()})


def errors_by_warning(
    predictions: pd.DataFrame, flagged: pd.Series, threshold: float, params: EvaluationParams
) -> pd.DataFrame:
    """Are images with an out-of-distribution warning classified wrongly more often? By class, and by site where there are several.

    Classes and sites differ in both, so that a comparison over all images can point the wrong way.

    Args:
        predictions: of split `external`; `site` where it is known.
        flagged: bool by `image_id`, see `TrainingReference.flagged`.
        threshold: frozen.
    Returns:
        one row a class, or a site and class: `part`; `flagged_images, flagged_errors, other_images, other_errors`; `flagged` and
        `other`, the shares of errors, and their `difference` (flagged less others), each with `_low, _high`. NaN where
        a side is empty.
    """
    rows = check_predictions(predictions, EXTERNAL).reset_index(drop=True)
    marked, sites = rows.image_id.map(flagged).to_numpy(bool), rows.get("site", pd.Series("", rows.index))
    wrong = ((rows.probability >= threshold) != (rows.label == 1)).to_numpy()
    table = []
    for (site, label), part in rows.groupby([sites, "label"]):
        row, sides = {"part": f"{site}, {LABEL_NAMES[label]}".removeprefix(", ")}, {}
        for name, kept in (("flagged", marked), ("other", ~marked)):
            own = part.index[kept[part.index]]
            row |= {f"{name}_images": len(own), f"{name}_errors": int(wrong[own].sum())}
            sides[name] = share_limits(wrong[own], rows.group_id[own], params.confidence) if len(own) else [np.nan] * 3
            row |= interval_columns(name, sides[name])
        table.append(row | unpaired_difference(sides["flagged"], sides["other"]))
    return pd.DataFrame(table)


def recalibrate_sites(
    predictions: pd.DataFrame, threshold: Threshold, frozen: Calibration, params: EvaluationParams, seed: int
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Threshold and calibration chosen for each site on its recalibration part, against the frozen ones, on the evaluation part.

    Args:
        predictions: see above, with `site`; sites with fewer than ten images of a class in a part keep what was frozen.
        threshold, frozen: of the run; kept by a site where the rule cannot be applied.
    Returns:
        as `paired_differences` has them, of `frozen` and `by site`: AUROC and Brier score of all sites together, sensitivity and
        specificity at each site's threshold. Empty with fewer than two such sites. And each site where the rule cannot be
        applied, with the reason.
    """
    rows = part_of(predictions, EVALUATION).assign(reached=lambda t: t.probability >= threshold.value)
    changed, kept, large = rows.copy(), {}, 0
    for site, own in predictions[predictions.site != ""].groupby("site"):
        if own.groupby(["part", "label"]).size().reindex(_CELLS, fill_value=0).min() < _FEWEST:
            continue
        large += 1
        local, calibration = recalibrate(own, threshold, frozen, params)
        if local.chosen_on != RECALIBRATION:
            kept[site] = local.rule
            continue
        here = changed.site == site
        changed.loc[here, "reached"] = changed.probability[here] >= local.value
        changed.loc[here, "probability"] = calibration.apply(changed.logit[here])
    if large < 2:
        return pd.DataFrame(), kept
    found = []
    for metrics, column in ((("auroc", "brier"), "probability"), (("sensitivity", "specificity"), "reached")):
        tables = {"frozen": rows, "by site": changed}
        scored = {name: table.assign(probability=table[column].astype(float)) for name, table in tables.items()}
        found.append(paired_differences(scored, EXTERNAL, dict.fromkeys(scored, 0.5), "frozen", params, seed, metrics))
    return pd.concat(found, ignore_index=True), kept
