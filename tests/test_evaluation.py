"""Metrics, intervals, threshold, calibration: against numbers worked out by hand, scikit-learn, scipy and statsmodels."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy.special import expit, logit
from scipy.stats import t
from sklearn import metrics as sklearn_metrics
from statsmodels.stats.proportion import proportion_confint

from pneumolib.errors import InputError
from pneumolib.evaluation.calibration import (
    METHODS,
    NONE,
    Threshold,
    calibration_curve,
    calibration_table,
    choose_threshold,
    expected_errors,
    fit_method,
    freeze,
    reliability,
    slope_and_intercept,
)
from pneumolib.evaluation.intervals import clustered_variance, group_weights, influences, metric_table, precision_table
from pneumolib.evaluation.metrics import (
    METRICS,
    check_predictions,
    classification_report,
    compute_metrics,
    confusion_counts,
)
from pneumolib.params import EvaluationParams

PARAMS = EvaluationParams(resamples=300)
THEIRS = {
    "auroc": "roc_auc_score", "auprc": "average_precision_score", "brier": "brier_score_loss", "log_loss": "log_loss",
    "sensitivity": "recall_score", "ppv": "precision_score", "accuracy": "accuracy_score", "f1": "f1_score",
    "balanced_accuracy": "balanced_accuracy_score", "mcc": "matthews_corrcoef",
}  # fmt: skip


def frame(labels, probabilities, split="test", groups=None) -> pd.DataFrame:
    ids = [f"{split}{i:04d}" for i in range(len(labels))]
    return pd.DataFrame({
        "image_id": ids, "split": split, "label": labels, "kind": "x", "group_id": ids if groups is None else groups,
        "logit": logit(probabilities), "probability": probabilities,
    })  # fmt: skip


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    parts = []
    for split, n in (("val", 150), ("test", 200)):
        labels = (np.arange(n) % 3 > 0).astype(int)
        scores = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0.01, 0.99).round(2)
        parts.append(frame(labels, scores, split, [f"g{label}-{i // 4}" for i, label in enumerate(labels)]))
    return pd.concat(parts, ignore_index=True)


# --- metrics


@st.composite
def scored(draw):
    """Labels, tied scores and how often each image counts; both classes count, and a class may have no prediction."""
    n = draw(st.integers(2, 40))
    labels, weights = (draw(arrays(int, n, elements=st.integers(0, top))) for top in (1, 3))
    labels[:2], weights[:2] = (0, 1), 1
    return labels, draw(arrays(int, n, elements=st.integers(0, 8))) / 8, weights


@settings(deadline=None, max_examples=25)
@given(scored())
def test_weighted_metrics_are_scikit_learns_and_those_of_repeated_images(drawn):
    labels, scores, weights = drawn
    got = {name: float(value[0]) for name, value in compute_metrics(labels, scores, 0.5, weights[None]).items()}
    called = scores >= 0.5
    for name, theirs in THEIRS.items():
        undefined = name in ("ppv", "mcc") and len(set(called[weights > 0])) == 1
        if not undefined:
            given_scores = scores if name in ("auroc", "auprc", "brier", "log_loss") else called
            options = {"zero_division": 0} if name == "f1" else {}
            expected = getattr(sklearn_metrics, theirs)(labels, given_scores, sample_weight=weights, **options)
            assert got[name] == pytest.approx(expected), name
    copies = np.repeat(np.arange(len(labels)), weights)
    again = compute_metrics(labels[copies], scores[copies], 0.5)
    assert [got[m] for m in METRICS] == pytest.approx([float(again[m]) for m in METRICS], nan_ok=True)


@settings(deadline=None, max_examples=15)
@given(scored(), st.sampled_from([0.0, 0.5, 1.01]))
def test_the_classification_report_is_that_of_its_metrics(drawn, threshold):
    labels, scores, _ = drawn
    own = classification_report(labels, scores, threshold).set_index("label")
    of_one = {name: float(value) for name, value in compute_metrics(labels, scores, threshold).items()}
    for (row, column), metric in {
        (1, "precision"): "ppv", (1, "recall"): "sensitivity", (1, "f1"): "f1", (0, "precision"): "npv",
        (0, "recall"): "specificity", ("mean", "recall"): "balanced_accuracy", ("weighted mean", "recall"): "accuracy",
    }.items():  # fmt: skip
        assert own.loc[row, column] == pytest.approx(of_one[metric], nan_ok=True), metric
    assert own.images.tolist() == [(labels == 0).sum(), labels.sum(), len(labels), len(labels)]


def test_what_cannot_be_computed_is_nan_not_a_number():
    only_sick = compute_metrics([1, 1, 1], [0.2, 0.6, 0.9], 0.5)
    assert np.isnan([only_sick["auroc"], only_sick["specificity"]]).all()
    assert np.isnan(compute_metrics([0, 1], [0.1, 0.2], 0.5)["ppv"])
    assert confusion_counts([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2], 0.5) == {"tp": 2, "fp": 1, "tn": 1, "fn": 0}
    assert float(compute_metrics([0, 1, 0, 1], [0.5] * 4, 0.5)["auroc"]) == 0.5
    assert np.isnan(compute_metrics([0, 1], [-3.0, 3.0], 0.5)["brier"])  # scores that are no probabilities


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.drop(columns="group_id"), r"lack the column\(s\) group_id; found image_id, split"),
        (lambda p: p.assign(probability=np.nan), r"200 row\(s\) of split 'test' without a usable probability, such as test0000"),
        (lambda p: p.assign(label=2), r"label: received \[2\], allowed 0 \(normal\), 1 \(pneumonia\)"),
        (lambda p: pd.concat([p, p]), r"every image counts exactly once, such as test0000"),
        (lambda p: p[p.split == "val"], r"no rows of split 'test'; splits found: val"),
        (lambda p: p.assign(group_id=" "), r"200 row\(s\) of split 'test' where group_id is missing, such as test0000"),
    ],
)  # fmt: skip
def test_unusable_predictions_are_refused_in_words(predictions, change, message):
    with pytest.raises(InputError, match=message):
        check_predictions(change(predictions), "test")


def test_evaluation_needs_no_tensorflow():
    program = (
        "import sys, pneumolib as pn; pn.evaluation.metric_table, pn.evaluation.freeze, pn.audit.judge_shortcut;"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- intervals


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=30), st.integers(0, 99))
def test_groups_are_drawn_whole_and_as_often_as_there_are_groups_of_their_kind(images, seed):
    """Groups of one class, of the other, and of both are strata of their own."""
    labels, groups = (np.array(column) for column in zip(*images, strict=True))
    weights = group_weights(labels, groups, 20, seed)
    classes = {group: frozenset(labels[groups == group]) for group in set(groups)}
    of_stratum = {kind: [g for g in classes if classes[g] == kind] for kind in set(classes.values())}
    lone = any(len(members) < 2 for members in of_stratum.values())
    too_few = min(len(set(groups[labels == label])) for label in (0, 1)) < 2
    assert (weights is None) == (lone or too_few)
    for members in of_stratum.values() if weights is not None else ():
        of_members = [weights[:, groups == group] for group in members]
        assert all((own == own[:, :1]).all() for own in of_members)
        np.testing.assert_array_equal(sum(own[:, 0] for own in of_members), len(members))


def test_intervals_hold_the_value_and_widen_with_grouping(predictions):
    def table_of(rows):
        return metric_table(rows, "test", 0.5, PARAMS, seed=1)

    grouped = table_of(predictions)
    assert list(grouped.metric) == METRICS
    assert ((grouped.low <= grouped.value) & (grouped.value <= grouped.high)).all()
    pd.testing.assert_frame_equal(grouped, table_of(predictions.sample(frac=1, random_state=1)))
    # Every patient's images the same: ten times the images say no more than one each.
    copies = [
        predictions.assign(image_id=predictions.image_id + f"_{i}", group_id=predictions.image_id) for i in range(10)
    ]
    tens, single = table_of(pd.concat(copies)), table_of(predictions.assign(group_id=predictions.image_id))
    np.testing.assert_allclose(tens.high - tens.low, single.high - single.low, atol=0.005)
    lone = table_of(predictions.assign(group_id=np.where(predictions.label == 1, "one", predictions.group_id)))
    assert lone.value.notna().all()
    assert lone.metric[lone.low.notna()].tolist() == ["specificity"]  # of the class that has several


@pytest.mark.parametrize("copies", [1, 3])
def test_limits_of_proportions_are_exact_ones_of_the_effective_number_of_cases(predictions, copies):
    """The clustered variance is statsmodels' of a regression without variables, the limits are its "beta" ones."""
    tables = [predictions.assign(image_id=predictions.image_id + str(i)) for i in range(copies)]
    table = pd.concat(tables, ignore_index=True)
    rows = table[(table.split == "test") & (table.label == 1)]
    hit = rows.probability.ge(0.5).astype(float).to_numpy()
    fitted = sm.OLS(hit, np.ones(len(hit))).fit(cov_type="cluster", cov_kwds={"groups": pd.factorize(rows.group_id)[0]})
    few = (t.ppf(0.975, len(hit) - 1) / t.ppf(0.975, rows.group_id.nunique() - 1)) ** 2
    effective = min(few * hit.mean() * (1 - hit.mean()) / fitted.bse[0] ** 2, len(hit))
    assert (effective < len(hit)) == (copies > 1)
    own = metric_table(table, "test", 0.5, PARAMS, seed=1).set_index("metric").loc["sensitivity"]
    limits = proportion_confint(hit.mean() * effective, effective, method="beta")
    assert (own.low, own.high) == pytest.approx(limits, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 999))
def test_the_variance_of_the_auroc_is_that_of_leaving_out_one_group_after_the_other(seed):
    """Also where groups hold both classes. A jackknife of scikit-learn's AUROC, which is larger by little."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 200)
    labels = np.where(groups < 10, rng.integers(0, 2, 200), groups % 2)
    scores = (labels + rng.normal(0, 0.8, 60)[groups] + rng.normal(0, 0.8, 200)).round(1)
    left = [sklearn_metrics.roc_auc_score(labels[groups != g], scores[groups != g]) for g in set(groups)]
    jackknife = (len(left) - 1) * np.var(left)
    own = clustered_variance(influences(labels, scores, 0.5)["auroc"], labels, groups)
    assert own == pytest.approx(jackknife, rel=0.15)


def test_no_error_is_not_certainty():
    """No error among 10 groups of each class: the limits of 10 cases, one-sided for the AUROC; none where there is no such thing."""
    labels = np.repeat([0, 1], 20)
    groups = [f"{label}-{i // 2 % 10}" for i, label in enumerate(labels)]
    table = metric_table(frame(labels, 0.1 + 0.8 * labels, groups=groups), "test", 0.5, PARAMS, 1).set_index("metric")
    shares = ["sensitivity", "specificity", "ppv", "npv"]
    assert (table.loc[["auroc", *shares], ["value", "high"]] == 1).all(axis=None)
    assert table.low[shares].tolist() == pytest.approx([0.025 ** (1 / 10)] * 4)
    assert table.low["accuracy"] == pytest.approx(0.025 ** (1 / 20))
    assert table.low["auroc"] == pytest.approx(0.05 ** (1 / 10))
    assert table.loc[["auprc", "mcc"], ["low", "high"]].isna().all(axis=None)


# --- threshold


def test_threshold_is_chosen_on_validation_alone(predictions):
    chosen, calibration = freeze(predictions, PARAMS)
    other = predictions.assign(logit=predictions.logit.where(predictions.split == "val", 0.0))
    assert freeze(other.drop(columns="probability"), PARAMS) == (chosen, calibration)
    assert chosen.chosen_on == calibration.chosen_on == "validation"
    assert chosen.sensitivity >= 0.95
    val = calibration.applied(predictions[predictions.split == "val"])
    higher = val.probability[val.probability >= chosen.value].min() + 1e-6
    assert compute_metrics(val.label, val.probability, higher)["sensitivity"] < 0.95


def test_threshold_by_hand():
    val = frame([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.8], "val")
    youden = choose_threshold(val, EvaluationParams(threshold_rule="youden"))
    assert youden == Threshold(0.5, "largest sensitivity + specificity (Youden)", 1.0, 1.0)
    half = choose_threshold(val, EvaluationParams(target_sensitivity=0.5))
    assert (half.value, half.sensitivity, half.specificity) == (pytest.approx(0.7), 0.5, 1.0)
    fixed = choose_threshold(val, EvaluationParams(threshold_rule="fixed", fixed_threshold=0.2))
    assert (fixed.value, fixed.specificity) == (0.2, 0.5)
    with pytest.raises(InputError, match="threshold_rule youden: there is one class only, label 1"):
        choose_threshold(val.assign(label=1), EvaluationParams(threshold_rule="youden"))


def test_binormal_threshold_lies_as_many_deviations_from_one_mean_as_from_the_other():
    logits = np.array([-3.0, -2.0, -1.0, 0.0, 4.0, 8.0])  # means -2 and 4, the second class four times as wide
    val = frame([0, 0, 0, 1, 1, 1], expit(logits), "val").assign(logit=logits)
    assert logit(choose_threshold(val, EvaluationParams(threshold_rule="binormal")).value) == pytest.approx(-2 + 6 / 5)
    with pytest.raises(InputError, match="the mean logit of pneumonia does not lie above"):
        choose_threshold(val.assign(label=1 - val.label), EvaluationParams(threshold_rule="binormal"))


def test_views_weigh_as_much_as_the_images_themselves():
    plain = frame([0, 0, 1, 1], [0.1, 0.2, 0.5, 0.6], "val")
    shifted = pd.concat([frame([0, 0, 1, 1], [0.4, 0.5, 0.8, 0.9], "val")] * 3, ignore_index=True)
    rule = EvaluationParams(threshold_rule="binormal")
    low, high, both = (choose_threshold(*a) for a in ((plain, rule), (shifted.iloc[:4], rule), (plain, rule, shifted)))
    assert low.value < both.value < high.value
    assert both.rule == "equal error by binormal logits, on validation as it is and in 3 augmented views"
    assert (both.sensitivity, both.specificity) == (1.0, 1.0)  # of the images as they are
    assert choose_threshold(plain, rule, shifted.iloc[:0]) == low
    with pytest.raises(InputError, match="views of 4 images, but validation has 4, or other ones"):
        choose_threshold(plain, rule, shifted.assign(image_id=shifted.image_id + "x"))


# --- calibration


def drawn(split: str, n: int, seed: int, slope: float = 1.0, shift: float = 0.0) -> pd.DataFrame:
    """Labels that follow their probabilities exactly, and logits that are `slope` times too steep and moved by `shift`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.5, 2, n)
    labels = (rng.random(n) < expit(true)).astype(int)
    groups = [f"{label}-{i // 2}" for i, label in enumerate(labels)]
    return frame(labels, expit(slope * true + shift), split, groups).assign(logit=slope * true + shift)


@pytest.fixture(scope="module")
def steep() -> pd.DataFrame:
    return pd.concat([drawn("val", 3000, 1, 2.0, 1.0), drawn("test", 3000, 2, 2.0, 1.0)], ignore_index=True)


def test_platt_finds_slope_and_shift_and_temperature_the_slope_alone(steep):
    platt = fit_method(steep, "platt")
    assert (platt.slope, platt.intercept) == (pytest.approx(0.5, abs=0.03), pytest.approx(-0.5, abs=0.1))
    unmoved = steep.assign(logit=steep.logit - 1)
    assert fit_method(unmoved, "temperature").slope == pytest.approx(0.5, abs=0.03)
    # Weights count as copies do.
    copies, weights = steep.iloc[:300].loc[lambda t: t.index.repeat(1 + t.index % 3)], 1.0 + np.arange(300) % 3
    for method in METHODS:
        one, other = fit_method(steep.iloc[:300], method, weights), fit_method(copies, method)
        np.testing.assert_allclose(one.apply(steep.logit), other.apply(steep.logit), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", ["sensitivity", "youden"])
def test_a_calibration_rises_and_moves_no_image_across_the_threshold(steep, method, rule):
    """Threshold and probability are of one map; where an isotonic one makes ties, the rule holds among them."""
    params = EvaluationParams(calibration=method, threshold_rule=rule)
    threshold, calibration = freeze(steep, params)
    assert calibration.method == calibration.asked == method
    mapped = calibration.apply(np.linspace(-20, 20, 200))
    assert (np.diff(mapped) >= 0).all()
    assert ((mapped >= 0) & (mapped <= 1)).all()
    plain, _ = freeze(steep, params.model_copy(update={"calibration": "none"}))
    classes = calibration.apply(steep.logit) >= threshold.value
    changed = (classes != (steep.probability >= plain.value)).sum()
    assert changed == 0 if method != "isotonic" else changed < 0.05 * len(steep)
    val = steep.split == "val"
    assert (threshold.sensitivity, threshold.specificity) == pytest.approx((
        classes[val & (steep.label == 1)].mean(), 1 - classes[val & (steep.label == 0)].mean()
    ))  # fmt: skip
    if rule == "sensitivity":
        assert threshold.sensitivity >= 0.95


def test_a_calibration_is_fitted_where_the_threshold_is_and_applied_only_where_it_helps(steep):
    steep = steep[steep.split == "val"].iloc[:600]
    views = pd.concat([steep.assign(logit=steep.logit - 3)] * 2)
    assert freeze(steep, PARAMS, views)[1].intercept > freeze(steep, PARAMS)[1].intercept + 0.3
    right = steep.assign(logit=lambda t: (t.logit - 1) / 2)  # probabilities that are right as they are
    kept = freeze(right, PARAMS)[1]
    assert (kept.method, kept.asked, kept.failed) == ("none", "platt", "")
    assert kept.log_loss >= kept.log_loss_before
    mended = freeze(steep, PARAMS)[1]
    assert mended.log_loss < mended.log_loss_before
    with pytest.raises(ValidationError, match="binormal"):
        EvaluationParams(threshold_rule="binormal", calibration="isotonic")


@pytest.mark.parametrize(
    ("method", "change", "failed"),
    [
        ("temperature", lambda t: 0.001 * t.logit, "the temperature ended at its bound, 0.05"),
        ("temperature", lambda t: np.where(t.label == 1, -4.0, 4.0), "the temperature ended at its bound, 20"),
        ("platt", lambda t: -t.logit, r"the slope is -0\.\d+: scores are not higher for pneumonia"),
    ],
)  # fmt: skip
def test_a_fit_that_ends_at_its_bound_or_falls_is_named_and_not_applied(steep, method, change, failed):
    table = steep.assign(logit=change)
    params = EvaluationParams(calibration=method)
    found = freeze(table, params)[1]
    assert (found.method, found.asked) == ("none", method)
    assert re.fullmatch(failed, found.failed)
    rows = calibration_table(found.applied(table), "test", found, params, seed=1).set_index("method")
    assert re.fullmatch(failed, rows.failed[method])
    assert rows.chosen.to_dict() == dict.fromkeys(METHODS, False) | {"none": True}


def test_the_table_shows_the_fault_and_its_remedy(steep):
    frozen = freeze(steep, EvaluationParams())[1]
    table = calibration_table(steep, "test", frozen, EvaluationParams(), seed=1).set_index("method")
    assert table.slope["none"] == pytest.approx(0.5, abs=0.05)
    assert table.slope_high["none"] < 0.6
    for method in ("platt", "isotonic"):
        assert table.brier[method] < table.brier["none"]
        assert table.ece[method] < 2 * table.ece_perfect_high[method] < table.ece["none"]
    assert table.slope_low["platt"] < 1 < table.slope_high["platt"]
    assert table.intercept_low["platt"] < 0 < table.intercept_high["platt"]
    assert table.chosen.to_dict() == {"none": False, "temperature": False, "platt": True, "isotonic": False}


def test_slope_and_intercept_are_those_of_a_logistic_regression_with_wider_limits(steep):
    rows = steep[steep.split == "test"].iloc[:400]
    own = slope_and_intercept(rows, rows.probability.to_numpy())
    plain = sm.Logit(rows.label.to_numpy(), sm.add_constant(rows.logit.to_numpy())).fit(disp=0)
    assert own["slope"] == pytest.approx(plain.params[1], rel=1e-3)
    # The same images five times over say no more: limits that know the groups do not narrow.
    copies = pd.concat([rows] * 5, ignore_index=True).assign(group_id=np.tile(np.arange(len(rows)), 5))
    single = slope_and_intercept(rows.assign(group_id=np.arange(len(rows))), rows.probability.to_numpy())
    many = slope_and_intercept(copies, copies.probability.to_numpy())
    assert many["slope_high"] - many["slope_low"] == pytest.approx(single["slope_high"] - single["slope_low"], rel=0.02)


def test_a_regression_with_one_class_is_nan():
    found = slope_and_intercept(pd.DataFrame({"label": 1, "group_id": list("abcd")}), np.array([0.1, 0.2, 0.8, 0.9]))
    assert np.isnan(list(found.values())).all()


def test_reliability_by_hand():
    rows = pd.DataFrame({"label": [0, 0, 1, 1, 1], "group_id": ["a", "a", "b", "c", "c"]})
    probability = np.array([0.11, 0.13, 0.15, 0.93, 1.0])
    bins = reliability(rows, probability)
    assert bins[["images", "groups"]].to_numpy().tolist() == [[3, 2], [2, 1]]
    assert bins[["probability", "observed"]].to_numpy() == pytest.approx(np.array([[0.13, 1 / 3], [0.965, 1.0]]))
    assert bins.low[1] < 0.3  # one child is one case, however many of its images were right
    expected = (abs(0.39 - 1) + abs(1.93 - 2)) / 5
    assert expected_errors(rows.label, probability, seed=0)["ece"] == pytest.approx(expected)


def test_calibration_faults_are_in_words_and_separated_or_constant_scores_no_crash(steep):
    assert fit_method(steep.assign(label=1), "platt").failed == "there is one class only, label 1"
    nearly = np.where(steep.label == 1, 4.0, -4.0) * np.where(np.arange(len(steep)) == 3500, -1e-3, 1)
    for logits in (np.where(steep.label == 1, 4.0, -4.0), nearly, 0.0):
        table = steep.assign(logit=logits, probability=expit(logits))
        found = calibration_table(table, "test", NONE, EvaluationParams(), seed=1)
        assert found.slope.isna().all()
        assert found.brier.notna().all()


def test_the_expected_error_of_a_perfect_model_is_a_range():
    rng = np.random.default_rng(0)
    probability = rng.beta(2, 2, 400)
    found = [expected_errors(rng.random(400) < probability, probability, seed) for seed in range(100)]
    held = [f["ece_perfect_low"] <= f["ece"] <= f["ece_perfect_high"] for f in found]
    assert 0.88 <= np.mean(held) <= 1


def test_the_smoothed_curve_follows_the_truth_within_its_band():
    rows = drawn("test", 800, 3, 2.0).assign(logit=lambda t: t.logit)
    found = calibration_curve(rows, rows.probability, PARAMS, seed=1)
    truth = expit(logit(found.probability) / 2)  # logits are twice too steep
    assert ((found.low <= truth) & (truth <= found.high)).mean() > 0.8
    assert ((found.low <= found.observed) & (found.observed <= found.high)).mean() > 0.9
    lone = calibration_curve(rows.assign(group_id=rows.label), rows.probability, PARAMS, seed=1)
    assert lone.low.isna().all()
    assert lone.observed.notna().all()


def test_the_precision_of_a_test_set_and_what_it_would_take(predictions):
    table = metric_table(predictions, "test", 0.5, PARAMS, seed=1)
    found = precision_table(
        table, {"slope_low": 0.8, "slope_high": 1.6}, {"images": 200, "pneumonia": 133, "normal": 67}
    )
    found = found.set_index("metric")
    sensitivity = table.set_index("metric").loc["sensitivity"]
    assert found.width["sensitivity"] == pytest.approx(sensitivity.high - sensitivity.low)
    assert found.needed["slope"] == 200 * 4
    assert found.needed["sensitivity"] == np.ceil(133 * (found.width["sensitivity"] / 0.1) ** 2)
