"""Metrics, intervals, threshold: against numbers worked out by hand and against scikit-learn."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from scipy.stats import bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics import classification_report as sklearn_report

from pneumolib.evaluation.comparison import compare_auroc
from pneumolib.evaluation.intervals import group_weights, metric_table
from pneumolib.evaluation.metrics import (
    METRICS,
    EvaluationError,
    check_predictions,
    classification_report,
    compute_metrics,
    confusion_counts,
)
from pneumolib.evaluation.thresholds import Threshold, choose_threshold
from pneumolib.params import EvaluationParams

PARAMS = EvaluationParams(resamples=400)


def frame(labels, probabilities, split="test", groups=None) -> pd.DataFrame:
    n = len(labels)
    ids = [f"{split}{i:04d}" for i in range(n)]
    columns = {
        "image_id": ids,
        "split": split,
        "label": labels,
        "kind": "x",
        "group_id": groups if groups is not None else ids,
    }
    return pd.DataFrame(columns | {"logit": logit(probabilities), "probability": probabilities})


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    parts = []
    for split, n in (("val", 150), ("test", 200)):
        labels = (np.arange(n) % 3 > 0).astype(int)
        scores = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0.01, 0.99).round(2)
        parts.append(frame(labels, scores, split, [f"g{label}-{i // 4}" for i, label in enumerate(labels)]))
    return pd.concat(parts, ignore_index=True)


def test_by_hand_on_four_rows_with_ties():
    """Scores 0.8+, 0.5+, 0.5-, 0.2-: of four pairs three are ordered and one is tied."""
    got = compute_metrics([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2], threshold=0.5)
    want = {
        "auroc": 3.5 / 4,
        "auprc": 0.5 * 1 + 0.5 * (2 / 3),  # precision 1 at recall 0.5, 2/3 at recall 1
        "sensitivity": 1.0,
        "specificity": 0.5,
        "ppv": 2 / 3,
        "npv": 1.0,
        "accuracy": 0.75,
        "balanced_accuracy": 0.75,
        "f1": 4 / 5,
        "mcc": (2 * 1 - 1 * 0) / np.sqrt(3 * 2 * 2 * 1),
        "brier": (0.04 + 0.25 + 0.25 + 0.04) / 4,
        "log_loss": -np.log([0.8, 0.5, 0.5, 0.8]).mean(),
    }
    assert {name: float(value) for name, value in got.items()} == pytest.approx(want)
    assert confusion_counts([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2], 0.5) == {"tp": 2, "fp": 1, "tn": 1, "fn": 0}


def test_weights_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 80), rng.integers(0, 12, 80) / 12
    weights = rng.multinomial(80, np.full(80, 1 / 80), size=20)
    got = compute_metrics(labels, scores, 0.5, weights)
    for row, weight in enumerate(weights):
        assert got["auroc"][row] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
        assert got["auprc"][row] == pytest.approx(average_precision_score(labels, scores, sample_weight=weight))
        known = {"balanced_accuracy": balanced_accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef,
                 "sensitivity": recall_score, "ppv": precision_score, "accuracy": accuracy_score}  # fmt: skip
        for name, metric in known.items():
            assert got[name][row] == pytest.approx(metric(labels, scores >= 0.5, sample_weight=weight)), name
        for name, metric in {"brier": brier_score_loss, "log_loss": log_loss}.items():
            assert got[name][row] == pytest.approx(metric(labels, scores, sample_weight=weight)), name
        copies = np.repeat(np.arange(80), weight)
        again = compute_metrics(labels[copies], scores[copies], 0.5)
        assert [float(got[m][row]) for m in METRICS] == pytest.approx([float(again[m]) for m in METRICS], nan_ok=True)


def test_what_cannot_be_computed_is_nan_not_a_number():
    only_sick = compute_metrics([1, 1, 1], [0.2, 0.6, 0.9], 0.5)
    assert np.isnan(only_sick["auroc"])
    assert np.isnan(only_sick["specificity"])
    nobody_called = compute_metrics([0, 1], [0.1, 0.2], 0.5)
    assert np.isnan(nobody_called["ppv"])
    assert float(compute_metrics([0, 1, 0, 1], [0.5] * 4, 0.5)["auroc"]) == 0.5


def test_groups_are_drawn_whole_and_within_their_class():
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    groups = np.array(["a", "a", "b", "c", "c", "d", "e"])
    weights = group_weights(labels, groups, 500, seed=0)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 2]].sum(axis=1), 2)  # two groups of pneumonia, drawn twice
    np.testing.assert_array_equal(weights[:, [3, 5, 6]].sum(axis=1), 3)
    assert group_weights(labels, np.where(labels == 1, "a", groups), 10, 0) is None


def test_intervals_hold_the_value_and_widen_with_grouping(predictions):
    grouped = metric_table(predictions, "test", 0.5, PARAMS, seed=1).set_index("metric")
    assert list(grouped.index) == METRICS
    assert (grouped.low <= grouped.value).all()
    assert (grouped.value <= grouped.high).all()
    pd.testing.assert_frame_equal(
        grouped, metric_table(predictions.sample(frac=1, random_state=1), "test", 0.5, PARAMS, 1).set_index("metric")
    )
    # Every patient's images the same: twenty times the images say no more than one each.
    copies = pd.concat(
        [predictions.assign(image_id=predictions.image_id + f"_{i}", group_id=predictions.image_id) for i in range(20)]
    )
    alone = predictions.assign(group_id=predictions.image_id)
    width = [(t.high - t.low).to_numpy() for t in (metric_table(p, "test", 0.5, PARAMS, 1) for p in (copies, alone))]
    np.testing.assert_allclose(width[0], width[1], atol=0.005)


def test_intervals_agree_with_scipys_bootstrap_of_groups(predictions):
    """Groups as scipy's observations: each class is a sample, an observation is a group's place in it."""
    rows = predictions[predictions.split == "test"]
    own = metric_table(predictions, "test", 0.5, EvaluationParams(resamples=4000), seed=1).set_index("metric")
    sick, well = (
        [g.to_numpy() for _, g in rows[rows.label == label].groupby("group_id").probability] for label in (1, 0)
    )

    def auroc(of_sick, of_well):
        drawn = [np.concatenate([sick[int(i)] for i in of_sick]), np.concatenate([well[int(i)] for i in of_well])]
        return roc_auc_score(np.repeat([1, 0], [len(scores) for scores in drawn]), np.concatenate(drawn))

    options = {"vectorized": False, "method": "percentile", "rng": np.random.default_rng(0)}
    places = (np.arange(len(sick)), np.arange(len(well)))
    theirs = bootstrap(places, auroc, n_resamples=600, **options).confidence_interval
    assert (own.low["auroc"], own.high["auroc"]) == pytest.approx(theirs, abs=0.012)
    hits, sizes = np.array([[(g >= 0.5).sum(), len(g)] for g in sick]).T
    share = bootstrap(
        (hits, sizes), lambda h, n: h.sum() / n.sum(), n_resamples=4000, paired=True, **options
    ).confidence_interval
    assert (own.low["sensitivity"], own.high["sensitivity"]) == pytest.approx(share, abs=0.012)


def test_resamples_that_all_agree_are_not_certainty():
    """No error among 10 groups of each class: the exact interval of 10 cases, and none where there is no such thing."""
    labels = np.repeat([0, 1], 20)
    groups = [f"{label}-{i // 2 % 10}" for i, label in enumerate(labels)]
    table = metric_table(frame(labels, 0.1 + 0.8 * labels, groups=groups), "test", 0.5, PARAMS, seed=1).set_index(
        "metric"
    )
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        assert (table.value[name], table.high[name]) == (1, 1)
        assert table.low[name] == pytest.approx(0.025 ** (1 / 10))
    assert table.low["accuracy"] == pytest.approx(0.025 ** (1 / 20))
    assert table.value["auroc"] == 1
    assert table.loc[["auroc", "auprc", "mcc"], ["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]])
@pytest.mark.parametrize("scores", [[0.5] * 4, [0.1, 0.9, 0.2, 0.8]])
def test_small_and_lopsided_splits_give_values_or_nan(labels, scores):
    table = metric_table(frame(labels, scores), "test", 0.5, PARAMS, seed=1).set_index("metric")
    one_class = len(set(labels)) == 1
    assert table.value.isna()["auroc"] == one_class
    assert table.low.isna()["auroc"]  # of one class, of scores that are all equal, or of classes that are apart
    assert table.value[["accuracy", "brier", "log_loss"]].notna().all()


def test_the_classification_report_is_scikit_learns(predictions):
    rows = predictions[predictions.split == "test"]
    own = classification_report(rows.label, rows.probability, 0.6).set_index("label")
    theirs = sklearn_report(rows.label, rows.probability >= 0.6, output_dict=True)
    for row, name in {0: "0", 1: "1", "mean": "macro avg", "weighted mean": "weighted avg"}.items():
        assert [*own.loc[row]] == pytest.approx(
            [theirs[name][k] for k in ("precision", "recall", "f1-score", "support")]
        )


def test_a_class_with_one_group_has_no_interval(predictions):
    lone = predictions.assign(group_id=np.where(predictions.label == 1, "one", predictions.group_id))
    table = metric_table(lone, "test", 0.5, PARAMS, seed=1)
    assert table.value.notna().all()
    assert table.low.isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.drop(columns="group_id"), r"lack the column\(s\) group_id"),
        (lambda p: p.assign(probability=np.nan), r"without a usable probability, such as test0000"),
        (lambda p: p.assign(probability=2.0), r"without a usable probability"),
        (lambda p: p.assign(label=2), r"label: received \[2\]"),
        (lambda p: pd.concat([p, p]), r"test0000 stands more than once"),
        (lambda p: p[p.split == "val"], r"no rows of split 'test'; splits found: val"),
        (lambda p: p.assign(group_id=None), r"group_id is missing"),
        (lambda p: p.assign(group_id=" "), r"group_id is missing in 200 test row\(s\), such as test0000"),
        (lambda p: p.assign(logit="high"), r"without a usable probability"),
    ],
)
def test_unusable_predictions_are_refused_in_words(predictions, change, message):
    with pytest.raises(EvaluationError, match=message):
        check_predictions(change(predictions), "test")


def test_threshold_is_chosen_on_validation_alone(predictions):
    chosen = choose_threshold(predictions, PARAMS)
    changed = predictions.assign(probability=predictions.probability.where(predictions.split == "val", 0.5))
    assert choose_threshold(changed, PARAMS) == chosen
    assert chosen.chosen_on == "validation"
    assert chosen.sensitivity >= 0.95
    val = predictions[predictions.split == "val"]
    higher = val.probability[val.probability >= chosen.value].min() + 0.005
    assert compute_metrics(val.label, val.probability, higher)["sensitivity"] < 0.95


def test_threshold_by_hand():
    val = frame([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.8], "val")
    youden = choose_threshold(val, EvaluationParams(threshold_rule="youden"))
    assert youden == Threshold(0.5, "largest sensitivity + specificity (Youden)", 1.0, 1.0)
    half = choose_threshold(val, EvaluationParams(target_sensitivity=0.5))
    assert (half.value, half.sensitivity, half.specificity) == (pytest.approx(0.7), 0.5, 1.0)
    fixed = choose_threshold(val, EvaluationParams(threshold_rule="fixed", fixed_threshold=0.2))
    assert (fixed.value, fixed.specificity) == (0.2, 0.5)


def test_binormal_threshold_lies_as_many_deviations_from_one_mean_as_from_the_other():
    logits = np.array([-3.0, -2.0, -1.0, 0.0, 4.0, 8.0])  # means -2 and 4, the second class four times as wide
    val = frame([0, 0, 0, 1, 1, 1], 1 / (1 + np.exp(-logits)), "val").assign(logit=logits)
    chosen = choose_threshold(val, EvaluationParams(threshold_rule="binormal"))
    assert np.log(chosen.value / (1 - chosen.value)) == pytest.approx(-2 + 6 / 5)
    wrong_way = val.assign(label=1 - val.label)
    with pytest.raises(EvaluationError, match="the mean logit of pneumonia does not lie above"):
        choose_threshold(wrong_way, EvaluationParams(threshold_rule="binormal"))


def test_views_weigh_as_much_as_the_images_themselves():
    plain = frame([0, 0, 1, 1], [0.1, 0.2, 0.5, 0.6], "val")
    shifted = pd.concat([frame([0, 0, 1, 1], [0.4, 0.5, 0.8, 0.9], "val")] * 3, ignore_index=True)
    rule = EvaluationParams(threshold_rule="binormal")
    low, high, both = (
        choose_threshold(*args) for args in ((plain, rule), (shifted.iloc[:4], rule), (plain, rule, shifted))
    )
    assert low.value < both.value < high.value
    assert both.rule == "equal error by binormal logits, on validation as it is and in 3 augmented views"
    assert (both.sensitivity, both.specificity) == (1.0, 1.0)  # of the images as they are
    assert choose_threshold(plain, rule, shifted.iloc[:0]) == low
    with pytest.raises(EvaluationError, match="views of 4 images, but validation has 4, or other ones"):
        choose_threshold(plain, rule, shifted.assign(image_id=shifted.image_id + "x"))


def test_evaluation_needs_no_tensorflow():
    program = (
        "import sys, pneumolib as pn; pn.evaluation.metric_table, pn.evaluation.choose_threshold;"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_patient_with_images_of_both_classes_is_drawn_whole():
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    groups = np.array(["both1", "both1", "both2", "both2", "n1", "n2", "p1", "p2"])
    weights = group_weights(labels, groups, 200, seed=1)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 2], weights[:, 3])
    assert (weights.sum(axis=1) == 8).all()
    assert weights[:, 4].std() > 0


def test_models_are_compared_on_the_same_resamples(predictions):
    """A model whose scores are the other's, moved a little, differs by little and surely; a worse one by much."""
    noise = np.random.default_rng(3).normal(0, 0.35, len(predictions))
    worse = predictions.assign(probability=(predictions.probability + noise).clip(0.01, 0.99))
    same = predictions.assign(probability=predictions.probability**2)
    models = {"plain": predictions, "same": same.sample(frac=1, random_state=0), "worse": worse}
    table = compare_auroc(models, "test", "plain", PARAMS, seed=1).set_index("name")
    rows = predictions[predictions.split == "test"]
    assert table.auroc["plain"] == pytest.approx(roc_auc_score(rows.label, rows.probability))
    assert table.loc["same", ["difference", "difference_low", "difference_high"]].abs().max() < 1e-12
    assert table.difference["worse"] == pytest.approx(table.auroc["worse"] - table.auroc["plain"])
    assert table.difference_high["worse"] < 0
    # Paired, the difference is surer than either value.
    assert (
        table.difference_high["worse"] - table.difference_low["worse"]
        < table.auroc_high["worse"] - table.auroc_low["worse"]
    )
    assert np.isnan(table.difference["plain"])
    alone = metric_table(predictions, "test", 0.5, PARAMS, seed=1).set_index("metric").loc["auroc"]
    assert (table.auroc_low["plain"], table.auroc_high["plain"]) == pytest.approx((alone.low, alone.high))


def test_models_of_other_images_are_not_compared(predictions):
    other = predictions[predictions.image_id != "test0003"]
    with pytest.raises(EvaluationError, match="b and a were scored on other images"):
        compare_auroc({"a": predictions, "b": other}, "test", "a", PARAMS, seed=1)
    one = predictions.assign(group_id="g" + predictions.label.astype(str))
    table = compare_auroc({"a": one, "b": one}, "test", "a", PARAMS, seed=1)
    assert table.difference[1] == 0
    assert table[["auroc_low", "difference_low"]].isna().all(axis=None)
