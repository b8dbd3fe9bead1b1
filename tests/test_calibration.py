"""Recalibration and its measures, on scores whose miscalibration is known."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from pneumolib.evaluation.calibration import (
    METHODS,
    Calibration,
    calibration_table,
    error_floor,
    expected_error,
    fit_calibration,
    reliability,
    slope_and_intercept,
)
from pneumolib.evaluation.metrics import EvaluationError
from pneumolib.params import EvaluationParams


def drawn(split: str, n: int, seed: int, slope: float = 1.0, shift: float = 0.0) -> pd.DataFrame:
    """Labels that follow their probabilities exactly, and logits that are `slope` times too steep and moved by `shift`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.5, 2, n)
    labels = (rng.random(n) < expit(true)).astype(int)
    logits = slope * true + shift
    return pd.DataFrame({
        "image_id": [f"{split}{i}" for i in range(n)], "split": split, "label": labels, "kind": "x",
        "group_id": [f"{label}-{i // 2}" for i, label in enumerate(labels)], "logit": logits, "probability": expit(logits),
    })  # fmt: skip


@pytest.fixture(scope="module")
def steep() -> pd.DataFrame:
    return pd.concat([drawn("val", 3000, 1, 2.0, 1.0), drawn("test", 3000, 2, 2.0, 1.0)], ignore_index=True)


def test_platt_finds_slope_and_shift_and_temperature_the_slope_alone(steep):
    platt = fit_calibration(steep, "platt")
    assert (platt.slope, platt.intercept) == (pytest.approx(0.5, abs=0.04), pytest.approx(-0.5, abs=0.12))
    val = steep[steep.split == "val"]
    theirs = LogisticRegression(C=np.inf).fit(val[["logit"]], val.label)
    assert platt.slope == pytest.approx(theirs.coef_[0, 0], rel=0.01)
    unmoved = steep.assign(logit=steep.logit - 1)
    unmoved["probability"] = expit(unmoved.logit)
    assert fit_calibration(unmoved, "temperature").slope == pytest.approx(0.5, abs=0.04)


def test_calibration_rises_and_knows_validation_alone(steep):
    grid = np.linspace(-20, 20, 200)
    other_test = steep.assign(label=steep.label.where(steep.split == "val", 0))
    for method in METHODS:
        fitted = fit_calibration(steep, method)
        mapped = fitted.apply(grid)
        assert (np.diff(mapped) >= 0).all()
        assert ((mapped >= 0) & (mapped <= 1)).all()
        assert fit_calibration(other_test, method) == fitted
        assert fitted.chosen_on == "validation"


def test_the_table_shows_the_fault_and_its_cure(steep):
    table = calibration_table(steep, "test", EvaluationParams(), seed=1).set_index("method")
    assert table.slope["none"] == pytest.approx(0.5, abs=0.05)
    assert table.slope_high["none"] < 0.6
    for method in ("platt", "isotonic"):
        assert table.brier[method] < table.brier["none"]
        assert table.ece[method] < 2 * table.ece_floor[method] < table.ece["none"]
    assert table.slope_low["platt"] < 1 < table.slope_high["platt"]
    assert table.intercept_low["platt"] < 0 < table.intercept_high["platt"]
    assert table.chosen.to_dict() == {"none": False, "temperature": False, "platt": True, "isotonic": False}


def test_slope_and_intercept_are_those_of_a_logistic_regression_with_wider_limits(steep):
    rows = steep[steep.split == "test"].iloc[:400]
    own = slope_and_intercept(rows, rows.probability.to_numpy())
    plain = sm.Logit(rows.label.to_numpy(), sm.add_constant(rows.logit.to_numpy())).fit(disp=0)
    assert own["slope"] == pytest.approx(plain.params[1], rel=1e-3)
    # The same images five times over say no more: limits that know the groups do not narrow.
    copies = pd.concat([rows] * 5, ignore_index=True)
    copies["group_id"] = np.tile(np.arange(len(rows)), 5)
    single = slope_and_intercept(rows.assign(group_id=np.arange(len(rows))), rows.probability.to_numpy())
    many = slope_and_intercept(copies, copies.probability.to_numpy())
    assert many["slope_high"] - many["slope_low"] == pytest.approx(single["slope_high"] - single["slope_low"], rel=0.02)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [1, 1, 1, 1]])
def test_what_has_no_slope_is_nan(labels):
    rows = pd.DataFrame({"label": labels, "group_id": list("abcd")})
    found = slope_and_intercept(rows, np.array([0.1, 0.2, 0.8, 0.9]))
    assert np.isnan([found["slope"], found["slope_low"]]).all()
    assert np.isnan(slope_and_intercept(rows, np.full(4, 0.5))["slope"])


def test_certain_probabilities_that_are_wrong_have_a_finite_intercept():
    """As isotonic maps give them: 0 and 1, and some of them wrong."""
    rows = drawn("test", 200, 4)
    certain = np.clip(np.round(rows.probability * 2) / 2, 0, 1)
    found = slope_and_intercept(rows, certain.to_numpy())
    assert all(np.isfinite(value) and abs(value) < 20 for value in found.values())


def test_reliability_by_hand():
    rows = pd.DataFrame({"label": [0, 0, 1, 1, 1], "group_id": ["a", "a", "b", "c", "c"]})
    bins = reliability(rows, np.array([0.11, 0.13, 0.15, 0.93, 1.0]))
    assert bins.images.tolist() == [3, 2]
    assert bins.groups.tolist() == [2, 1]
    assert bins.probability.tolist() == pytest.approx([0.13, 0.965])
    assert bins.observed.tolist() == pytest.approx([1 / 3, 1.0])
    assert bins.low[1] < 0.3  # one child is one case, however many of its images were right
    assert expected_error([0, 0, 1, 1, 1], [0.11, 0.13, 0.15, 0.93, 1.0]) == pytest.approx(
        (abs(0.39 - 1) + abs(1.93 - 2)) / 5
    )


def test_a_calibrated_model_has_an_error_about_the_floor():
    rows = drawn("test", 624, 3)
    floor = error_floor(rows.probability.to_numpy(), seed=0)
    assert 0.015 < floor < 0.05
    assert expected_error(rows.label, rows.probability) < 2 * floor


def test_faults_in_words(steep):
    with pytest.raises(EvaluationError, match="received 'beta', allowed none, temperature, platt, isotonic"):
        fit_calibration(steep, "beta")
    with pytest.raises(EvaluationError, match="one class only, label 1"):
        fit_calibration(steep.assign(label=1), "platt")
    assert fit_calibration(steep.assign(label=1), "none") == Calibration("none")


def test_separated_and_constant_scores_are_no_crash(steep):
    apart = steep.assign(logit=np.where(steep.label == 1, 4.0, -4.0))
    level = steep.assign(logit=0.0)
    for table in (apart, level):
        table["probability"] = expit(table.logit)
        found = calibration_table(table, "test", EvaluationParams(), seed=1)
        assert found.slope.isna().all()
        assert found.brier.notna().all()
        assert np.isfinite(fit_calibration(table, "platt").slope)
