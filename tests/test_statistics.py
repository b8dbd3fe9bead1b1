"""Curves, use, parts, paired comparisons, seeds and robustness: against numbers worked out by hand and other libraries."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from pneumolib.evaluation.comparison import delong_test, paired_differences, secondary_tests
from pneumolib.evaluation.curves import curve_bands, threshold_sweep
from pneumolib.evaluation.intervals import metric_table
from pneumolib.evaluation.metrics import EvaluationError
from pneumolib.evaluation.robustness import permutation_check, robustness_table
from pneumolib.evaluation.seeds import seed_table, seed_tables
from pneumolib.evaluation.subgroups import subgroup_table
from pneumolib.evaluation.thresholds import choose_threshold
from pneumolib.evaluation.use import decision_curve, predictive_values
from pneumolib.params import EvaluationParams

PARAMS = EvaluationParams(resamples=400)


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    """180 images of 90 groups, calibrated; normal, and two kinds of pneumonia, of which virus is the harder one."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [60, 120])
    kinds = np.array(["normal"] * 60 + ["bacteria"] * 70 + ["virus"] * 50)
    logits = rng.normal(np.where(kinds == "bacteria", 2.5, np.where(kinds == "virus", 0.7, -1.5)), 1.2).round(1)
    return pd.DataFrame({
        "image_id": [f"i{n:03d}" for n in range(180)], "split": "test", "label": labels, "kind": kinds,
        "group_id": [f"{kind}-{n // 2}" for n, kind in enumerate(kinds)], "logit": logits, "probability": expit(logits),
    })  # fmt: skip


def band_of(predictions: pd.DataFrame, curve: str) -> pd.DataFrame:
    """One curve on test; validation, which the function wants too, is the same."""
    both = pd.concat([predictions, predictions.assign(split="val")], ignore_index=True)
    bands = curve_bands(both, PARAMS, seed=1)
    return bands[(bands.curve == curve) & (bands.split == "test")].reset_index(drop=True)


def moved(predictions: pd.DataFrame, by: float, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    logits = predictions.logit + by + np.random.default_rng(seed).normal(0, noise, len(predictions))
    return predictions.assign(logit=logits, probability=expit(logits))


def test_the_roc_band_goes_through_scikit_learns_curve(predictions):
    band = band_of(predictions, "roc")
    x, y, _ = roc_curve(predictions.label, predictions.probability, drop_intermediate=False)
    np.testing.assert_allclose(band.y, np.interp(band.x, x, y), atol=1e-9)
    inside = band[(band.x > 0) & (band.x < 1)]
    assert ((inside.low <= inside.y + 1e-9) & (inside.y <= inside.high + 1e-9)).all()
    assert (inside.high - inside.low).max() > 0.02


def test_the_precision_recall_band_is_the_step_function_of_average_precision(predictions):
    band = band_of(predictions, "precision_recall")
    precision, recall, _ = precision_recall_curve(predictions.label, predictions.probability)
    for place in (0.25, 0.5, 0.9):
        reached = recall >= place - 1e-12
        assert band.y[np.isclose(band.x, place)].iloc[0] == pytest.approx(precision[reached][-1])
    middle = (band.y[1:].to_numpy()).mean()
    assert middle == pytest.approx(average_precision_score(predictions.label, predictions.probability), abs=0.01)


def test_curves_of_one_class_or_few_groups_are_nan_not_a_crash(predictions):
    sick = predictions[predictions.label == 1]
    assert band_of(sick, "roc").y.isna().all()
    few = predictions.assign(group_id=predictions.label.map({0: "a", 1: "b"}))
    band = band_of(few, "precision_recall")
    assert band.y.notna().all()
    assert band.low.isna().all()


def test_the_sweep_falls_and_rises(predictions):
    sweep = threshold_sweep(predictions, "test")
    assert (sweep.sensitivity.diff().dropna() <= 0).all()
    assert (sweep.specificity.diff().dropna() >= 0).all()
    row = sweep[np.isclose(sweep.threshold, 0.5)].iloc[0]
    assert row.accuracy == pytest.approx(((predictions.probability >= 0.5) == predictions.label).mean())


def test_net_benefit_by_hand(predictions):
    curve = decision_curve(predictions, "test", predictions.probability, PARAMS, seed=1).set_index("threshold")
    called = predictions.probability >= 0.2
    true, false = (called & (predictions.label == label) for label in (1, 0))
    at = curve.loc[curve.index[np.isclose(curve.index, 0.2)][0]]
    assert at.model == pytest.approx(true.mean() - false.mean() * 0.2 / 0.8)
    assert at.treat_all == pytest.approx(120 / 180 - 60 / 180 * 0.25)
    assert at.low < at.model < at.high
    assert curve.treat_all.iloc[-1] < 0 < curve.model.iloc[50]


def test_predictive_values_at_the_splits_own_prevalence_are_its_own(predictions, monkeypatch):
    monkeypatch.setattr("pneumolib.evaluation.use.PREVALENCES", (0.1, 2 / 3))
    table = predictive_values(predictions, "test", 0.5, PARAMS, seed=1).set_index("prevalence")
    own = metric_table(predictions, "test", 0.5, PARAMS, seed=1).set_index("metric").value
    assert table.ppv[2 / 3] == pytest.approx(own["ppv"])
    assert table.npv[2 / 3] == pytest.approx(own["npv"])
    assert table.ppv[0.1] < own["ppv"]
    assert table.ppv_low[0.1] < table.ppv[0.1] < table.ppv_high[0.1]
    nobody = predictive_values(predictions, "test", 1.0, PARAMS, seed=1)
    assert nobody.ppv.isna().all()


def test_parts_are_scored_like_tables_of_their_own(predictions):
    related = pd.DataFrame({"image_id": ["i000", "i001", "i099"], "same_number": [True, True, False]})
    sites = pd.Series(np.where(np.arange(180) % 2, "north", "south"), index=predictions.image_id)
    table = subgroup_table(predictions, "test", 0.5, PARAMS, 1, related, sites).set_index("part")
    assert list(table.index) == [
        "all", "bacteria against normal", "virus against normal", "unrelated to training (same number)",
        "site north", "site south",
    ]  # fmt: skip
    whole = metric_table(predictions, "test", 0.5, PARAMS, seed=1).set_index("metric")
    assert table.loc["all", ["auroc", "auroc_low", "auroc_high"]].tolist() == pytest.approx(whole.loc["auroc"].tolist())
    virus = predictions[predictions.kind != "bacteria"]
    assert table.auroc["virus against normal"] == pytest.approx(roc_auc_score(virus.label, virus.probability))
    assert table.images.to_dict()["virus against normal"] == 110
    assert table.specificity["virus against normal"] == table.specificity["all"]  # the same normal images
    assert table.images["unrelated to training (same number)"] == 178
    plain = predictions.assign(kind=predictions.label.map({0: "normal", 1: "pneumonia"}))
    assert subgroup_table(plain, "test", 0.5, PARAMS, 1, related.iloc[:0]).part.tolist() == ["all"]


def test_delong_against_its_definition_and_chance(predictions):
    """The variance by the definition's double sums; and p-values of two equally good scores are spread evenly."""
    other = moved(predictions, 0, noise=0.8)
    sick, well = predictions.label == 1, predictions.label == 0
    parts = []
    for scores in (predictions.probability, other.probability):
        pairs = np.sign(scores[sick].to_numpy()[:, None] - scores[well].to_numpy()) / 2 + 0.5
        parts.append((pairs.mean(1), pairs.mean(0)))
    difference = [a - b for a, b in zip(*parts, strict=True)]
    variance = difference[0].var(ddof=1) / sick.sum() + difference[1].var(ddof=1) / well.sum()
    z = abs(parts[0][0].mean() - parts[1][0].mean()) / np.sqrt(variance)
    assert delong_test(predictions.label, predictions.probability, other.probability) == pytest.approx(
        math.erfc(z / math.sqrt(2))
    )
    assert np.isnan(delong_test(predictions.label, predictions.probability, predictions.probability))
    assert np.isnan(delong_test([1, 1, 0], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]))


def test_paired_differences_and_tests_with_thresholds_of_each_models_own(predictions):
    worse, same = moved(predictions, 0, noise=2.5), moved(predictions, 1.0)
    models = {"first": predictions, "worse": worse.sample(frac=1, random_state=1), "moved": same}
    thresholds = {"first": 0.5, "worse": 0.5, "moved": float(expit(1.0))}
    found = paired_differences(models, "test", thresholds, "first", PARAMS, seed=1).set_index(["name", "metric"])
    assert found.difference[("moved", "auroc")] == pytest.approx(0, abs=1e-12)
    assert found.difference[("moved", "sensitivity")] == 0  # the threshold moved with the scores
    assert found.difference_high[("worse", "auroc")] < 0
    assert found.difference[("worse", "brier")] == pytest.approx(
        found.value[("worse", "brier")] - found.value[("first", "brier")]
    )
    tests = secondary_tests(models, "test", thresholds, "first").set_index("name")
    assert tests.mcnemar["moved"] == 1.0
    assert tests.delong["worse"] < 0.01
    assert tests.mcnemar_holm["worse"] == pytest.approx(min(1, 2 * tests.mcnemar["worse"]))
    assert np.isnan(tests.delong["moved"])  # the same ranks leave nothing to test
    with pytest.raises(EvaluationError, match="reference: received 'best', allowed first, worse, moved"):
        paired_differences(models, "test", thresholds, "best", PARAMS, seed=1)


def test_mcnemar_by_hand(predictions):
    rows = predictions.iloc[[0, 1, 2, 3, 60, 61, 62, 63]]
    one = rows.assign(probability=[0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    other = rows.assign(probability=[0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.1])
    found = secondary_tests({"a": one, "b": other}, "test", {"a": 0.5, "b": 0.5}, "a").iloc[0]
    assert (found.only_reference_right, found.only_this_right) == (4, 0)
    assert found.mcnemar == pytest.approx(2 * 0.5**4)


def test_spread_over_seeds_and_the_interval_of_the_mean_are_two_things(predictions):
    seeds = {s: moved(predictions, 0, noise=1.0, seed=s) for s in (1, 2, 3)}
    table = seed_table(seeds, "test", dict.fromkeys(seeds, 0.5), PARAMS, seed=1).set_index("metric")
    aurocs = [roc_auc_score(t.label, t.probability) for t in seeds.values()]
    assert table["mean"]["auroc"] == pytest.approx(np.mean(aurocs))
    assert table.sd["auroc"] == pytest.approx(np.std(aurocs, ddof=1))
    assert (table.lowest["auroc"], table.highest["auroc"]) == pytest.approx((min(aurocs), max(aurocs)))
    assert table.low["auroc"] < table["mean"]["auroc"] < table.high["auroc"]
    assert table.high["auroc"] - table.low["auroc"] > 2 * table.sd["auroc"]
    assert seed_table({1: predictions}, "test", {1: 0.5}, PARAMS, seed=1).empty
    with pytest.raises(EvaluationError, match="different images"):
        seed_table({1: predictions, 2: predictions.iloc[1:]}, "test", {1: 0.5, 2: 0.5}, PARAMS, seed=1)


def test_each_seed_has_a_threshold_of_its_own(predictions):
    """Another seed's logits lie 2 higher: with its own threshold it makes the same calls as the first."""
    own = pd.concat([predictions, predictions.assign(split="val")], ignore_index=True)
    higher = pd.concat([moved(own, 2.0), moved(own[own.split == "val"], 2.0).assign(split="views")], ignore_index=True)
    rule = EvaluationParams(resamples=50, threshold_rule="binormal")
    threshold = choose_threshold(own, rule).value
    tables = seed_tables(own, threshold, {2: higher}, rule, seed=1)
    test = tables["test"].set_index("metric")
    assert test.sd["sensitivity"] == test.sd["auroc"] == 0
    assert test.sd["brier"] > 0
    assert [t.empty for t in seed_tables(own, threshold, {}, rule, seed=1).values()] == [True, True]


def test_robustness_is_the_paired_change_at_the_frozen_threshold(predictions):
    darker = moved(predictions, -2)
    noisy = moved(predictions, 0, noise=3)
    parts = [predictions.assign(corruption="none", severity=0), darker.assign(corruption="gamma", severity=1),
             noisy.assign(corruption="noise", severity=5)]  # fmt: skip
    corrupted = pd.concat(parts, ignore_index=True)
    table = robustness_table(corrupted, "test", 0.5, PARAMS, seed=1).set_index("corruption")
    assert table.auroc_change["gamma"] == pytest.approx(0)
    assert table.sensitivity_change_high["gamma"] < 0 < table.specificity_change["gamma"]
    assert table.auroc_change_high["noise"] < 0
    assert robustness_table(corrupted.iloc[:0], "test", 0.5, PARAMS, seed=1).empty
    with pytest.raises(EvaluationError, match="noise, severity 5: predicted on other images"):
        robustness_table(corrupted.iloc[:-1], "test", 0.5, PARAMS, seed=1)


def test_labels_dealt_out_anew_leave_chance(predictions):
    found = permutation_check(predictions, "test", seed=1)
    assert found["mean"] == pytest.approx(0.5, abs=0.01)
    assert found["low"] < 0.45
    assert found["high"] > 0.55
    assert found["p"] == pytest.approx(1 / 1001)
    alone = permutation_check(predictions.assign(group_id=predictions.image_id), "test", seed=1)
    assert alone["high"] < found["high"]  # grouping widens chance
    # Groups of one image each: the null distribution is Mann and Whitney's.
    mixed = moved(predictions, 0, noise=30, seed=1).assign(group_id=predictions.image_id)
    test = mannwhitneyu(*(mixed.logit[mixed.label == label] for label in (1, 0)), alternative="greater")
    assert 0.1 < test.pvalue < 0.9
    mixed = mixed.assign(probability=expit(mixed.logit / 40))  # without ties at 0 and 1
    assert permutation_check(mixed, "test", seed=1)["p"] == pytest.approx(test.pvalue, abs=0.04)
    assert np.isnan(permutation_check(predictions[predictions.label == 1], "test", 1)["p"])
