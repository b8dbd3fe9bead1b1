"""Another source: frozen figures, what is chosen anew, moved priors, drift; against numbers worked out by hand."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.special import expit, logit

from pneumolib.data.facts import KINDS, QUANTILES, TrainingReference
from pneumolib.evaluation.calibration import Calibration, choose_threshold
from pneumolib.evaluation.external import (
    CALIBRATIONS,
    drift_table,
    errors_by_warning,
    expected_share,
    external_calibration_table,
    external_calibrations,
    external_differences,
    move_prior,
    ood_warning_table,
    part_of,
    recalibrate,
    threshold_differences,
)
from pneumolib.evaluation.intervals import metric_table
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
    found = external_differences(external, internal, frozen, PARAMS, 1).set_index("metric")
    for side, table, split in (("internal", internal, "test"), ("external", external, "external")):
        expected = metric_table(table, split, frozen, PARAMS, 1).set_index("metric").loc[found.index]
        np.testing.assert_array_equal(found[[side, f"{side}_low", f"{side}_high"]], expected)
    np.testing.assert_allclose(found.difference, found.external - found.internal)
    assert found.difference_low["auroc"] < 0 < found.difference_high["auroc"]
    assert found.difference_high["specificity"] < -0.2
    assert found.difference_low["sensitivity"] > -0.05


def test_the_limits_of_an_unpaired_difference_are_newcombes(internal, external):
    """Zou and Donner's for two proportions, from each side's own limits."""
    row = external_differences(external, internal, 0.5, PARAMS, 1).set_index("metric").loc["specificity"]
    low = row.difference - np.hypot(row.external - row.external_low, row.internal_high - row.internal)
    assert row.difference_low == pytest.approx(low)
    # A side without an error has limits too, and the difference is not surer than they are.
    flawless = internal.assign(probability=np.where(internal.label == 1, 0.9, 0.1))
    row = external_differences(external, flawless, 0.5, PARAMS, 1).set_index("metric").loc["specificity"]
    assert row.internal == 1 > row.internal_low
    assert row.difference_low == pytest.approx(row.external_low - 1)
    assert row.difference_high - row.difference > row.external_high - row.external


def test_a_threshold_chosen_anew_is_chosen_on_its_part_alone_and_named_so(internal, external):
    frozen = choose_threshold(internal, PARAMS)
    local, calibration = recalibrate(external, PARAMS)
    turned = external.assign(label=external.label.where(external.part == "recalibration", 1 - external.label))
    assert recalibrate(turned, PARAMS) == (local, calibration)
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
            written(**plain(asdict(values)))
    for asked, fitted in (("none", "platt"), ("isotonic", "isotonic")):
        assert recalibrate(external, PARAMS.model_copy(update={"calibration": asked}))[1].method == fitted


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


def test_calibrations_are_judged_on_the_evaluation_part(external):
    """Scores that are right elsewhere, with another share of pneumonia: moving the prior mends them."""
    rows = drawn(3000, "external", 0.25, 0.0, 5, scale=2.5 / 1.2**2)  # right where half have pneumonia
    rows["part"] = np.where((np.arange(3000) // 2) % 3 == 0, "recalibration", "evaluation")
    _, local = recalibrate(rows, PARAMS)
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


def test_errors_by_warning(external):
    wrong = ((external.probability >= 0.5) != (external.label == 1)).to_numpy()

    def of(flagged):
        marks = pd.Series(flagged, index=external.image_id)
        return errors_by_warning(external, marks, 0.5, PARAMS, 1).set_index("part")

    flagged = (wrong & (np.arange(400) % 4 > 0)) | (np.arange(400) % 10 == 0)
    found = of(flagged)
    assert (found.images.sum(), found.errors.sum()) == (400, wrong.sum())
    assert found.share["others"] == pytest.approx(wrong[~flagged].mean())
    assert found.difference["flagged"] == pytest.approx(found.share["flagged"] - found.share["others"])
    assert 0 < found.difference_low["flagged"] < found.difference["flagged"] < found.difference_high["flagged"]
    # Three images without an error beside many: their own limits reach far, and so must those of the difference.
    few = of(np.isin(np.arange(400), np.flatnonzero(~wrong)[:3]))
    assert few.errors["flagged"] == 0
    assert few.difference_low["flagged"] < 0 < few.difference_high["flagged"]
    for mask in (False, True):
        empty = of(mask)
        assert np.isnan(empty.difference["flagged"])
        assert empty.share["flagged" if mask else "others"] == pytest.approx(wrong.mean())
