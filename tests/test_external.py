"""Another source: frozen figures, what is chosen anew, moved priors, drift; against numbers worked out by hand."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy.special import expit, logit

from pneumolib.data.facts import KINDS, QUANTILES, TrainingReference
from pneumolib.evaluation.calibration import NONE, Calibration, Threshold, choose_threshold
from pneumolib.evaluation.external import (
    CALIBRATIONS,
    drift_table,
    errors_by_warning,
    expected_share,
    external_calibration_table,
    external_calibrations,
    move_prior,
    ood_warning_table,
    part_of,
    recalibrate,
    recalibrate_sites,
    threshold_differences,
)
from pneumolib.evaluation.intervals import metric_table, unpaired_differences
from pneumolib.params import EvaluationParams
from pneumolib.reporting.results import CalibrationResult, ThresholdResult, plain

PARAMS = EvaluationParams(resamples=200)


def drawn(n: int, split: str, share: float, shift: float, seed: int, scale: float = 1.0) -> pd.DataFrame:
    """Children with two images each; logits that a shift moves, and a scale stretches."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n // 2) < share * n / 2, 2).astype(int)
    logits = scale * (rng.normal(2.5 * labels - 1.25, 1.2) + shift)
    return pd.DataFrame({
        "image_id": [f"{split}{i:04d}" for i in range(n)], "split": split, "label": labels,
        "kind": np.where(labels == 1, "pneumonia", "normal"), "group_id": [f"{split}-{i // 2}" for i in range(n)],
        "logit": logits, "probability": expit(logits),
    })  # fmt: skip


def differences(external: pd.DataFrame, internal: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """All images of the other source against the study's own test, by metric."""
    tables = [
        metric_table(table, *at, threshold, PARAMS, 1) for table, *at in ((external, "external"), (internal, "test"))
    ]
    return unpaired_differences(*tables, names=("external", "internal")).set_index("metric")


@pytest.fixture(scope="module")
def internal():
    return pd.concat([drawn(200, "val", 0.6, 0, 1), drawn(200, "test", 0.6, 0, 2)], ignore_index=True)


@pytest.fixture(scope="module")
def external():
    """Rarer pneumonia, all logits higher by 1.5: the order of scores holds, the threshold does not."""
    table = drawn(400, "external", 0.3, 1.5, 3)
    return table.assign(part=np.where((np.arange(400) // 2) % 3 == 0, "recalibration", "evaluation"), site="there")


def test_a_shifted_source_keeps_its_order_and_loses_its_threshold(internal, external):
    frozen = choose_threshold(internal, PARAMS).value
    found = differences(external, internal, frozen)
    for side, table, split in (("internal", internal, "test"), ("external", external, "external")):
        expected = metric_table(table, split, frozen, PARAMS, 1).set_index("metric").loc[found.index]
        np.testing.assert_array_equal(found[[side, f"{side}_low", f"{side}_high"]], expected)
    np.testing.assert_allclose(found.difference, found.external - found.internal)
    assert found.difference_low["auroc"] < 0 < found.difference_high["auroc"]
    assert found.difference_high["specificity"] < -0.2
    assert found.difference_low["sensitivity"] > -0.05


def test_the_limits_of_an_unpaired_difference_are_newcombes(internal, external):
    """Zou and Donner's for two proportions, from each side's own limits."""
    row = differences(external, internal, 0.5).loc["specificity"]
    low = row.difference - np.hypot(row.external - row.external_low, row.internal_high - row.internal)
    assert row.difference_low == pytest.approx(low)
    # A side without an error has limits too, and the difference is not surer than they are.
    flawless = internal.assign(probability=np.where(internal.label == 1, 0.9, 0.1))
    row = differences(external, flawless, 0.5).loc["specificity"]
    assert row.internal == 1 > row.internal_low
    assert row.difference_low == pytest.approx(row.external_low - 1)
    assert row.difference_high - row.difference > row.external_high - row.external


def test_a_threshold_chosen_anew_is_chosen_on_its_part_alone_and_named_so(internal, external):
    frozen = choose_threshold(internal, PARAMS)
    local, calibration = recalibrate(external, frozen, NONE, PARAMS)
    turned = external.assign(label=external.label.where(external.part == "recalibration", 1 - external.label))
    assert recalibrate(turned, frozen, NONE, PARAMS) == (local, calibration)
    # It is expressed in the probabilities of the frozen calibration, and classifies as before.
    platt = Calibration("platt", slope=0.5, intercept=1.0)
    moved, _ = recalibrate(platt.applied(external), frozen, platt, PARAMS)
    assert moved.value == pytest.approx(platt.apply(logit(local.value)))
    assert local.value == choose_threshold(part_of(external, "recalibration").assign(split="val"), PARAMS).value
    assert local.value > frozen.value
    assert local.sensitivity >= PARAMS.target_sensitivity
    found = threshold_differences(external, frozen.value, local, PARAMS, 1).set_index(["name", "metric"])
    anew = found.loc["recalibrated"]
    assert anew.difference_low["specificity"] > 0.1
    assert anew.difference["sensitivity"] <= 0
    rows = part_of(external, "evaluation")
    specificity = ((rows.probability < local.value) & (rows.label == 0)).sum() / (rows.label == 0).sum()
    assert anew.value["specificity"] == pytest.approx(specificity)
    # What was chosen anew cannot be written as what was frozen.
    for written, values in ((ThresholdResult, local), (CalibrationResult, calibration)):
        assert values.chosen_on == "recalibration"
        with pytest.raises(ValidationError, match="Input should be 'validation'"):
            TypeAdapter(written).validate_python(plain(asdict(values)))
    for asked, fitted in (("none", "platt"), ("isotonic", "isotonic")):
        assert recalibrate(external, frozen, NONE, PARAMS.model_copy(update={"calibration": asked}))[1].method == fitted


def test_the_share_that_probabilities_stand_for_is_not_that_of_the_labels(internal):
    """As class weights make it: logits that are right where half have pneumonia."""
    moved = internal.assign(logit=internal.logit - 2.0)
    assert expected_share(moved, Calibration("none")) < expected_share(internal, Calibration("none")) - 0.1
    mended = Calibration("platt", slope=1.0, intercept=2.0)
    assert expected_share(moved, mended) == pytest.approx(expected_share(internal, Calibration("none")))
    changed = moved.assign(logit=moved.logit.where(moved.split == "val", 9.0))  # test is not looked at
    assert expected_share(changed, mended) == expected_share(moved, mended)


@pytest.mark.parametrize(("before", "after"), [(0.6, 0.3), (0.1, 0.9), (0.5, 0.5)])
def test_a_moved_prior_is_bayess_rule(before, after):
    """Likelihood ratios stay, odds follow the share of pneumonia: Saerens et al., equation 2.4."""
    probability = np.array([0.01, 0.3, 0.6, 0.97])
    ratio = (after / before * probability) / (
        after / before * probability + (1 - after) / (1 - before) * (1 - probability)
    )
    np.testing.assert_allclose(move_prior(probability, before, after), ratio)
    assert np.isfinite(logit(move_prior(np.array([0.0, 1.0]), before, after))).all()


def test_calibrations_are_judged_on_the_evaluation_part(internal):
    """Scores that are right elsewhere, with another share of pneumonia: moving the prior mends them."""
    rows = drawn(3000, "external", 0.25, 0.0, 5, scale=2.5 / 1.2**2)  # right where half have pneumonia
    rows["part"] = np.where((np.arange(3000) // 2) % 3 == 0, "recalibration", "evaluation")
    _, local = recalibrate(rows, choose_threshold(internal, PARAMS), NONE, PARAMS)
    calibrated = external_calibrations(rows, Calibration("none"), local, 0.5)
    assert len(calibrated) == (rows.part == "evaluation").sum()
    np.testing.assert_array_equal(calibrated.network, calibrated.frozen)
    table = external_calibration_table(calibrated, PARAMS, 1).set_index("method")
    assert list(table.index) == list(CALIBRATIONS)
    assert table.observed_expected_high["frozen"] < 0.95
    assert table.observed_expected["frozen"] == pytest.approx(calibrated.label.sum() / calibrated.frozen.sum())
    for mended in ("prior moved", "refitted"):
        assert table.observed_expected_low[mended] < 1 < table.observed_expected_high[mended]
        assert table.intercept_low[mended] < 0 < table.intercept_high[mended]
        assert table.difference_high[mended] < 0
    assert table.slope["prior moved"] == pytest.approx(table.slope["frozen"])
    assert np.isnan(table.difference["frozen"])


def known() -> TrainingReference:
    """Grey values of 100 to 140, files of 400 px, as training would leave them."""
    spread = {fact: tuple(np.interp(QUANTILES, [0, 1], [0.0, 1.0])) for fact in KINDS}
    spread |= {"mean_grey": tuple(100 + 40 * q for q in QUANTILES)}
    limits = dict.fromkeys(KINDS, (0.0, 1.0)) | {"mean_grey": (100.0, 140.0)}
    rates = dict.fromkeys([*dict.fromkeys(KINDS.values()), "any"], 0.01)
    return TrainingReference(100, 20, spread, limits, (0.0,), ((1.0,),), rates)


def test_drift_says_what_lies_outside_and_how_often_a_warning_is_given():
    facts = pd.DataFrame(0.5, index=range(10), columns=list(KINDS)).assign(image_id=[str(i) for i in range(10)])
    facts["mean_grey"] = [120.0] * 4 + [139.5] * 2 + [150.0] * 4
    table = drift_table(known(), facts).set_index("fact")
    numbers = ["training_low", "training_median", "training_high", "outside", "flagged"]
    assert table.loc["mean_grey", numbers].tolist() == pytest.approx([101, 120, 139, 0.6, 0.4])
    assert table.outside.drop("mean_grey").max() == 0
    kinds = ood_warning_table(known(), facts).set_index("kind")
    assert kinds.flagged.to_dict() == pytest.approx({"size": 0, "exposure": 0.4, "colour": 0, "content": 0, "any": 0.4})
    assert set(kinds.validation_warnings) == {0.01}


def test_errors_by_warning_are_compared_within_a_class_and_a_site(external):
    """Warnings are given to nearly all of one class: over all images the errors are rarer among them, within each they are not."""
    wrong = ((external.probability >= 0.5) != (external.label == 1)).to_numpy()
    rng = np.random.default_rng(0)
    marks = rng.random(400) < np.where(external.label == 1, 0.9, 0.1) + 0.1 * wrong
    assert wrong[marks].mean() < wrong[~marks].mean()
    found = errors_by_warning(external.drop(columns="site"), pd.Series(marks, external.image_id), 0.5, PARAMS)
    assert found.part.tolist() == ["normal", "pneumonia"]
    for label, row in enumerate(found.itertuples()):
        own = (external.label == label).to_numpy()
        assert (row.flagged_images, row.other_images) == ((own & marks).sum(), (own & ~marks).sum())
        assert (row.flagged, row.other) == pytest.approx((wrong[own & marks].mean(), wrong[own & ~marks].mean()))
        assert row.difference_low < row.flagged - row.other < row.difference_high
    sites = external.assign(site=np.where(np.arange(400) // 2 % 2, "north", "south"))
    found = errors_by_warning(sites, pd.Series(False, external.image_id), 0.5, PARAMS)
    assert found.part.tolist() == ["north, normal", "north, pneumonia", "south, normal", "south, pneumonia"]
    assert found.difference.isna().all()
    assert found.other_images.sum() == 400
    assert found.other_errors.sum() == wrong.sum()


def test_thresholds_by_site_mend_sites_that_are_shifted_apart():
    """Two hospitals, one with all logits higher by 3: together they are ranked badly, each by itself well."""
    rows = pd.concat(
        [drawn(400, "external", 0.4, shift, seed) for seed, shift in ((7, -1.5), (8, 1.5))], ignore_index=True
    )
    rows["site"] = np.repeat(["south", "north"], 400)
    rows["image_id"], rows["group_id"] = rows.site + rows.image_id, rows.site + rows.group_id
    rows["part"] = np.where((np.arange(800) // 2) % 3 == 0, "recalibration", "evaluation")
    found, kept = recalibrate_sites(rows, Threshold(0.5, "half", 1, 1), NONE, PARAMS, 1)
    found = found.set_index(["name", "metric"]).loc["by site"]
    assert kept == {}
    assert found.difference_low["auroc"] > 0.02
    assert found.difference_high["brier"] < 0
    assert found.value["sensitivity"] > 0.9
    lone = rows.assign(label=rows.label.where(rows.part == "evaluation", 1))  # no second class to choose on
    assert recalibrate_sites(lone, Threshold(0.5, "half", 1, 1), NONE, PARAMS, 1)[0].empty


@pytest.mark.parametrize("rule", ["binormal", "sensitivity"])
def test_where_a_rule_cannot_be_applied_the_frozen_one_is_kept_and_named(internal, rule):
    """One hospital of two whose labels are the wrong way round, and a source of one class."""
    params = PARAMS.model_copy(update={"threshold_rule": rule})
    frozen, halves = choose_threshold(internal, params), ("south", "north")
    rows = pd.concat([drawn(400, "external", 0.4, 0, seed) for seed in (7, 8)], ignore_index=True)
    rows = rows.assign(
        site=np.repeat(halves, 400), part=np.where(np.arange(800) // 2 % 3, "evaluation", "recalibration")
    )
    rows["image_id"], rows["group_id"] = rows.site + rows.image_id, rows.site + rows.group_id
    one_turned = rows.assign(label=np.where(rows.site == "south", 1 - rows.label, rows.label))
    table, kept = recalibrate_sites(one_turned, frozen, NONE, params, 1)
    assert len(table) == 8
    assert list(kept) == (["south"] if rule == "binormal" else [])
    turned = rows.assign(label=1 - rows.label)
    local, refitted = recalibrate(turned, frozen, NONE, params)
    assert refitted.failed.startswith("the slope is -")
    assert (refitted.method, refitted.slope) == ("none", 1)
    if rule == "binormal":
        assert kept["south"].startswith("threshold_rule binormal: the mean logit of pneumonia does not lie above")
        assert (local.value, local.chosen_on, local.rule) == (frozen.value, "validation", kept["south"])
        # Where all sites keep what was frozen, the table says that nothing moves.
        table, kept = recalibrate_sites(turned, frozen, NONE, params, 1)
        assert sorted(kept) == sorted(halves)
        assert (table.difference.dropna() == 0).all()
    lone = rows.assign(label=1)
    local, refitted = recalibrate(lone, frozen, NONE, params)
    assert (local.value, local.chosen_on) == (frozen.value, "validation")
    assert f"threshold_rule {rule}: there is one class only, label 1" in local.rule
    assert refitted == Calibration("none", chosen_on="recalibration", failed="there is one class only, label 1")
