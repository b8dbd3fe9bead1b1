"""Comparisons, seeds, robustness, subgroups and curves: against numbers worked out by hand and other libraries."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from scipy.stats import binomtest, mannwhitneyu
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from pneumolib.errors import InputError
from pneumolib.evaluation import curves
from pneumolib.evaluation.calibration import freeze
from pneumolib.evaluation.compare import (
    DIFFERENCES,
    compare_auroc,
    delong_test,
    freeze_seeds,
    label_review,
    mcnemar_test,
    paired_differences,
    robustness_table,
    secondary_tests,
    seed_predictions,
    seed_tables,
    stratified_table,
    subgroup_columns,
    subgroup_table,
)
from pneumolib.evaluation.intervals import metric_table, permutation_check, unpaired_ratio
from pneumolib.evaluation.metrics import compute_metrics
from pneumolib.params import EvaluationParams

PARAMS = EvaluationParams(resamples=300)
OPTIONS = {"params": PARAMS, "seed": 1}


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


def moved(predictions: pd.DataFrame, by: float, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    logits = predictions.logit + by + np.random.default_rng(seed).normal(0, noise, len(predictions))
    return predictions.assign(logit=logits, probability=expit(logits))


# --- paired comparisons


@settings(deadline=None, max_examples=6)
@given(st.data())
def test_differences_are_those_of_the_metrics_and_paired(data):
    """Of any scores: a model differs from itself by nothing, and the order of rows and of models plays no part."""
    n = 24
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    table = pd.DataFrame({"image_id": [f"i{i:02d}" for i in range(n)], "split": "test", "label": np.arange(n) % 2, "kind": "x",
                          "group_id": [f"{i % 2}-{i // 4}" for i in range(n)]})  # fmt: skip
    scores = [data.draw(arrays(int, n, elements=st.integers(0, 10))) / 10 for _ in range(2)]
    a, b = (table.assign(logit=s, probability=s) for s in scores)
    options = {"split": "test", "reference": "a", "params": EvaluationParams(resamples=30), "seed": 1}
    thresholds = {"a": 0.5, "b": 0.3, "same": 0.5}
    found = paired_differences(
        {"a": a, "b": b, "same": a.sample(frac=1, random_state=1)}, thresholds=thresholds, **options
    )
    rows = found.set_index(["name", "metric"])
    for name, values in zip("ab", scores, strict=True):
        expected = compute_metrics(table.label, values, thresholds[name])
        assert rows.value[name].tolist() == [float(expected[m]) for m in DIFFERENCES]
    np.testing.assert_allclose(rows.difference["b"], rows.value["b"] - rows.value["a"])
    assert (rows.difference["same"] == 0).all()
    assert rows.difference["a"].isna().all()
    assert rows.loc["same", ["difference_low", "difference_high"]].isna().all(axis=None)  # no width is no certainty
    models = {"same": a, "b": b.sample(frac=1, random_state=int(rng.integers(9))), "a": a}
    again = paired_differences(models, thresholds=thresholds, **options).set_index(["name", "metric"])
    pd.testing.assert_frame_equal(again.loc[rows.index], rows)


def test_a_worse_model_is_surely_worse(predictions):
    worse, same = moved(predictions, 0, noise=2.5), moved(predictions, 1.0)
    models = {"first": predictions, "worse": worse.sample(frac=1, random_state=1), "moved": same}
    thresholds = {"first": 0.5, "worse": 0.5, "moved": float(expit(1.0))}
    found = paired_differences(models, "test", thresholds, "first", **OPTIONS).set_index(["name", "metric"])
    assert found.difference[("moved", "auroc")] == pytest.approx(0, abs=1e-12)
    assert found.difference[("moved", "sensitivity")] == 0  # the threshold moved with the scores
    assert found.difference_high[("worse", "auroc")] < 0
    aurocs = compare_auroc(models, "test", "first", **OPTIONS).set_index("name")
    assert aurocs.difference_low["worse"] == found.difference_low[("worse", "auroc")]
    # Paired, the difference from a model with nearly the same scores is surer than either value.
    near = compare_auroc({"a": predictions, "b": moved(predictions, 0, noise=0.3)}, "test", "a", **OPTIONS).iloc[1]
    assert near.difference_high - near.difference_low < near.auroc_high - near.auroc_low
    alone = metric_table(predictions, "test", 0.5, **OPTIONS).set_index("metric").loc["auroc"]
    assert aurocs.loc["first"].tolist()[:3] == pytest.approx([alone.value, alone.low, alone.high])
    tests = secondary_tests(models, "test", thresholds, "first").set_index("name")
    assert tests.mcnemar["moved"] == 1.0
    assert tests.delong["worse"] < 0.01
    assert tests.mcnemar_holm["worse"] == pytest.approx(min(1, 2 * tests.mcnemar["worse"]))
    assert np.isnan(tests.delong["moved"])  # the same ranks leave nothing to test


def test_other_images_or_an_unknown_reference_are_not_compared(predictions):
    with pytest.raises(InputError, match="b and a were scored on other images of split 'test'"):
        compare_auroc({"a": predictions, "b": predictions.iloc[1:]}, "test", "a", **OPTIONS)
    with pytest.raises(InputError, match="reference: received 'best', allowed a"):
        compare_auroc({"a": predictions}, "test", "best", **OPTIONS)


def test_mcnemar_by_hand(predictions):
    rows = predictions.iloc[[0, 1, 2, 3, 60, 61, 62, 63]]
    one = rows.assign(probability=[0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    other = rows.assign(probability=[0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.1])
    found = secondary_tests({"a": one, "b": other}, "test", {"a": 0.5, "b": 0.5}, "a").iloc[0]
    assert (found.only_reference_right, found.only_this_right) == (4, 0)
    assert found.mcnemar == pytest.approx(2 * 0.5**3)  # two of the four images are of one patient


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(0, 5)), min_size=1, max_size=12))
def test_mcnemar_by_groups_is_that_of_all_exchanges_and_of_single_images_the_exact_one(images):
    gained, groups = map(np.array, zip(*images, strict=True))
    sums = [gained[groups == g].sum() for g in sorted(set(groups))]
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product([-1, 1], repeat=len(sums))]
    assert mcnemar_test(gained, groups) == pytest.approx(np.mean(np.array(totals) >= abs(gained.sum())))
    won, lost = (gained == 1).sum(), (gained == -1).sum()
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar_test(gained, np.arange(len(gained))) == pytest.approx(expected)


def test_delong_by_the_double_sums_of_its_definition(predictions):
    other = moved(predictions, 0, noise=0.8)
    sick, well = predictions.label == 1, predictions.label == 0
    parts = []
    for scores in (predictions.probability, other.probability):
        pairs = np.sign(scores[sick].to_numpy()[:, None] - scores[well].to_numpy()) / 2 + 0.5
        parts.append((pairs.mean(1), pairs.mean(0)))
    difference = [a - b for a, b in zip(*parts, strict=True)]
    variance = difference[0].var(ddof=1) / sick.sum() + difference[1].var(ddof=1) / well.sum()
    z = abs(parts[0][0].mean() - parts[1][0].mean()) / np.sqrt(variance)
    labels, one, two = (values.to_numpy() for values in (predictions.label, predictions.probability, other.probability))
    alone = np.arange(len(labels))
    assert delong_test(labels, one, two, alone) == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert np.isnan(delong_test(labels, one, one, alone))
    assert np.isnan(
        delong_test(np.array([1, 1, 0]), np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1]), np.arange(3))
    )
    # Copies of all images are no new evidence.
    twice = (np.tile(values, 2) for values in (labels, one, two, alone))
    assert delong_test(*twice) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)


def test_permuted_labels_leave_chance(predictions):
    found = permutation_check(predictions, "test", seed=1)
    assert found["mean"] == pytest.approx(0.5, abs=0.01)
    assert found["low"] < 0.45 < 0.55 < found["high"]
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


# --- seeds, changed images, subgroups


def test_spread_over_seeds_and_the_interval_of_the_mean_are_two_things(predictions):
    """Another seed's logits lie 2 higher: with its own threshold it predicts the same classes as the first."""
    own = pd.concat([predictions, predictions.assign(split="val")], ignore_index=True)
    higher = pd.concat([moved(own, 2.0), moved(own[own.split == "val"], 2.0).assign(split="views")], ignore_index=True)
    rule = EvaluationParams(resamples=100, threshold_rule="binormal", calibration="none")
    threshold = freeze(own, rule)[0].value
    test = seed_tables(own, threshold, freeze_seeds({2: higher}, rule), rule, seed=1)["test"].set_index("metric")
    assert test.sd["sensitivity"] == test.sd["auroc"] == 0
    assert test.sd["brier"] > 0
    others = freeze_seeds({s: moved(own, 0, noise=1.0, seed=s) for s in (1, 2)}, rule)
    table = seed_tables(own, threshold, others, rule, seed=1)["test"].set_index("metric")
    aurocs = [
        roc_auc_score(t.label, t.probability)
        for t in (own, *(table for table, _ in others.values()))
        for t in [t[t.split == "test"]]
    ]
    assert table.loc["auroc", ["mean", "sd", "lowest", "highest"]].tolist() == pytest.approx(
        [np.mean(aurocs), np.std(aurocs, ddof=1), min(aurocs), max(aurocs)]
    )
    assert table.low["auroc"] < table["mean"]["auroc"] < table.high["auroc"]
    assert seed_predictions(others).groupby("seed").size().tolist() == [360, 360]
    assert [t.empty for t in seed_tables(own, threshold, {}, rule, seed=1).values()] == [True, True]
    with pytest.raises(InputError, match="2 and own were scored on other images"):
        seed_tables(own, threshold, {2: (own.iloc[1:], threshold)}, rule, seed=1)


def test_robustness_is_the_paired_change_at_the_frozen_threshold(predictions):
    parts = [predictions.assign(corruption="none", severity=0), moved(predictions, -2).assign(corruption="gamma", severity=1),
             moved(predictions, 0, noise=3).assign(corruption="noise", severity=5)]  # fmt: skip
    corrupted = pd.concat(parts, ignore_index=True)
    table = robustness_table(corrupted, "test", 0.5, **OPTIONS).set_index("corruption")
    assert table.severity.to_dict() == {"none": 0, "gamma": 1, "noise": 5}
    assert table.auroc_change["gamma"] == pytest.approx(0)
    assert table.sensitivity_change_high["gamma"] < 0 < table.specificity_change["gamma"]
    assert table.auroc_change_high["noise"] < 0
    empty = robustness_table(corrupted.iloc[:0], "test", 0.5, **OPTIONS)
    assert empty.columns.tolist() == table.reset_index().columns.tolist()
    with pytest.raises(InputError, match=r"\('noise', 5\) and \('none', 0\) were scored on other images"):
        robustness_table(corrupted.iloc[:-1], "test", 0.5, **OPTIONS)


def test_subgroups_are_scored_like_tables_of_their_own(predictions):
    related = pd.DataFrame({"image_id": ["i000", "i001", "i099"], "same_number": [True, True, False]})
    table = pd.DataFrame({"image_id": predictions.image_id, "site": np.where(np.arange(180) % 2, "north", "south"),
                          "age": [*range(60), *[""] * 120], "view": "AP"})  # fmt: skip
    columns = subgroup_columns(table, ["age", "view"])
    with pytest.raises(InputError, match=r"subgroups: received 'sex', allowed columns of the data: image_id, site"):
        subgroup_columns(table, ["sex"])
    table = subgroup_table(predictions, "test", 0.5, **OPTIONS, related=related, columns=columns).set_index("part")
    assert list(table.index) == [
        "all", "bacteria against normal", "virus against normal", "unrelated to training (same number)",
        "site north", "site south", "age 0 to 20", "age above 20 to 39", "age above 39 to 59",
    ]  # fmt: skip
    assert table.images.iloc[-3:].tolist() == [21, 19, 20]
    whole = metric_table(predictions, "test", 0.5, **OPTIONS).set_index("metric")
    assert table.loc["all", ["auroc", "auroc_low", "auroc_high"]].tolist() == pytest.approx(whole.loc["auroc"].tolist())
    virus = predictions[predictions.kind != "bacteria"]
    assert table.auroc["virus against normal"] == pytest.approx(roc_auc_score(virus.label, virus.probability))
    assert table.images.to_dict()["virus against normal"] == 110
    assert table.specificity["virus against normal"] == table.specificity["all"]  # the same normal images
    assert table.images["unrelated to training (same number)"] == 178
    plain = predictions.assign(kind=predictions.label.map({0: "normal", 1: "pneumonia"}))
    assert subgroup_table(plain, "test", 0.5, **OPTIONS, related=related.iloc[:0]).part.tolist() == ["all"]


def test_a_stratified_auroc_compares_within_strata_alone(predictions):
    """A view that goes with label and score: pooled it looks good, within each view it is chance."""
    rng = np.random.default_rng(3)
    view = np.where(rng.random(180) < np.where(predictions.label == 1, 0.8, 0.2), "AP", "PA")
    confounded = predictions.assign(probability=expit(3 * (view == "AP") + rng.normal(size=180)))
    columns = pd.DataFrame({"view": view, "alike": "one"}, index=predictions.image_id).astype("category")
    found = stratified_table(confounded, "test", columns, **OPTIONS)
    assert found.column.tolist() == ["view"]
    row = found.iloc[0]
    parts = [confounded[view == name] for name in ("AP", "PA")]
    pairs = [(t.label == 1).sum() * (t.label == 0).sum() for t in parts]
    aurocs = [roc_auc_score(t.label, t.probability) for t in parts]
    assert row.stratified == pytest.approx(np.average(aurocs, weights=pairs))
    assert row.pooled == pytest.approx(roc_auc_score(confounded.label, confounded.probability))
    assert row.stratified_low < 0.5 < row.stratified_high < row.pooled
    assert row.difference_high < 0
    # A column that goes with neither changes nothing.
    columns["view"] = pd.Categorical(np.where(np.arange(180) // 2 % 2, "AP", "PA"))
    row = stratified_table(predictions, "test", columns, **OPTIONS).iloc[0]
    assert row.difference_low < 0 < row.difference_high


def test_referring_the_least_certain_images(predictions):
    rule = EvaluationParams(threshold_rule="youden", refer_fraction=0.2, resamples=100)
    both = pd.concat([predictions, predictions.assign(split="val")], ignore_index=True)
    threshold, calibration = freeze(both, rule)
    rows = calibration.applied(both)
    classes = threshold.classes(rows.probability)
    assert (classes == "refer").mean() == pytest.approx(0.2, abs=0.02)
    found = curves.risk_coverage(rows, "test", threshold)
    assert found.frozen.tolist() == [True] + [False] * 11
    frozen, whole, half = found.iloc[0], found.iloc[1], found.iloc[-1]
    assert frozen.coverage == pytest.approx((classes[:180] != "refer").mean())
    assert (whole.coverage, whole.images, half.images) == (1, 180, 90)
    wrong = (rows.probability[:180] >= threshold.value) != (predictions.label == 1)
    assert (whole.errors, whole.error) == (wrong.sum(), pytest.approx(wrong.mean()))
    assert half.error < frozen.error < whole.error
    assert (found.error_low <= found.error).all()
    assert (found.error <= found.error_high).all()
    assert set(freeze(both, PARAMS)[0].classes(rows.probability)) == {"normal", "pneumonia"}
    all_of_them = replace(threshold, refer_low=0.0, refer_high=1.0)
    assert not curves.risk_coverage(rows, "test", all_of_them).frozen.any()
    with pytest.raises(ValueError, match="probability: received nan to nan, needed 0 to 1"):
        threshold.classes([0.3, np.nan])


def test_the_label_review_names_what_all_seeds_contradict(predictions):
    """A label that was turned, and one that a single seed contradicts; views are none of them."""
    turned = predictions.assign(label=predictions.label.where(predictions.image_id != "i100", 0))
    seeds = {2: (turned.assign(probability=turned.probability.where(turned.image_id != "i005", 0.99)), 0.5)}
    found = label_review(turned, seeds, n=200)
    assert found.image_id.is_unique
    assert found.disagreement.is_monotonic_decreasing
    assert found.seeds.eq(2).all()
    row = found.set_index("image_id").loc["i100"]
    assert row.disagreement == pytest.approx(predictions.probability[100])
    mean = (turned.probability + seeds[2][0].probability) / 2
    expected = np.where(turned.label == 1, 1 - mean, mean) > 0.5
    assert set(found.image_id) == set(turned.image_id[expected])
    assert len(label_review(turned, {}, n=3)) == 3


# --- curves and what they are worth


def test_the_bands_go_through_scikit_learns_curves(predictions):
    bands = curves.curve_bands(predictions, **OPTIONS, splits=["test"])
    roc, precision_recall = (bands[bands.curve == name] for name in ("roc", "precision_recall"))
    x, y, _ = roc_curve(predictions.label, predictions.probability, drop_intermediate=False)
    np.testing.assert_allclose(roc.y, np.interp(roc.x, x, y), atol=1e-9)
    inside = roc[(roc.x > 0) & (roc.x < 1)]
    assert ((inside.low <= inside.y + 1e-9) & (inside.y <= inside.high + 1e-9)).all()
    assert (inside.high - inside.low).max() > 0.02
    precision, recall, _ = precision_recall_curve(predictions.label, predictions.probability)
    for place, found in zip(precision_recall.x, precision_recall.y, strict=True):
        if place:  # at no recall scikit-learn draws a precision of 1 that no threshold gives
            assert found == pytest.approx(precision[recall >= place - 1e-12][-1])


def test_net_benefit_by_hand(predictions):
    curve = curves.decision_curve(predictions, "test", **OPTIONS)
    called = predictions.probability >= 0.2
    true, false = (called & (predictions.label == label) for label in (1, 0))
    at = curve[np.isclose(curve.threshold, 0.2)].iloc[0]
    assert at.model == pytest.approx(true.mean() - false.mean() * 0.2 / 0.8)
    assert at.treat_all == pytest.approx(120 / 180 - 60 / 180 * 0.25)
    assert at.low < at.model < at.high
    assert curve.treat_all.iloc[-1] < 0 < curve.model.iloc[50]
    np.testing.assert_allclose(curve.difference, curve.model - np.maximum(curve.treat_all, 0))
    # Where the model does as well as the better default by chance alone, it is not called better.
    ranges = curves.better_ranges(curve)
    assert all((curve.difference_low[curve.threshold.between(low, high)] > 0).all() for low, high in ranges)
    assert sum(round(100 * (high - low)) + 1 for low, high in ranges) == (curve.difference_low > 0).sum() < len(curve)
    noise = predictions.assign(probability=np.random.default_rng(1).random(180))
    assert curves.better_ranges(curves.decision_curve(noise, "test", **OPTIONS)) == []


def test_predictive_values_at_the_splits_own_prevalence_are_its_own(predictions, monkeypatch):
    monkeypatch.setattr(curves, "PREVALENCES", (0.1, 2 / 3))
    table = curves.predictive_values(predictions, "test", 0.5, **OPTIONS).set_index("prevalence")
    own = metric_table(predictions, "test", 0.5, **OPTIONS).set_index("metric").value
    assert table.loc[2 / 3, ["ppv", "npv"]].tolist() == pytest.approx([own["ppv"], own["npv"]])
    assert table.ppv_low[0.1] < table.ppv[0.1] < min(own["ppv"], table.ppv_high[0.1])
    assert curves.predictive_values(predictions, "test", 1.0, **OPTIONS).ppv.isna().all()
    # Without a false positive the PPV is 1, and its lower limit is that of the upper one of false positives.
    sure = curves.predictive_values(predictions, "test", 0.99, **OPTIONS).iloc[0]
    assert (sure.ppv, sure.ppv_high) == (1.0, 1.0)
    assert 0 < sure.ppv_low < 0.9
    lone = predictions.assign(group_id=np.where(predictions.label == 1, "one", predictions.group_id))
    assert curves.predictive_values(lone, "test", 0.5, **OPTIONS)[["ppv_low", "npv_high"]].isna().all(axis=None)


def test_limits_of_a_ratio_are_those_of_a_simulation():
    """PPV by Bayes: MOVER limits hold the middle 95% of ratios of two independent shares about as a simulation does."""
    rng = np.random.default_rng(0)
    one, other = rng.beta(81, 10, 100_000), rng.beta(9, 82, 100_000)
    ends = [(values.mean(), *np.quantile(values, [0.025, 0.975])) for values in (one, other)]
    _, low, high = unpaired_ratio(*ends)
    assert (low, high) == pytest.approx(np.quantile(one / other, [0.025, 0.975]), rel=0.08)
