"""What a page says of an evaluation: every table, sentence and figure, for a usual test set and for odd ones."""

import re
from html import escape

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from pneumolib import evaluation
from pneumolib.evaluation import compare
from pneumolib.params import EvaluationParams
from pneumolib.project import swept
from pneumolib.reporting import comparing, evaluation_plots, words
from pneumolib.reporting.comparing import leaderboard
from pneumolib.reporting.results import by_metric, write_result
from test_reporting import result

PARAMS = EvaluationParams(resamples=60)
OPTIONS = {"params": PARAMS, "seed": 1}


def drawn(n: int, split: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 > 0).astype(int)
    logits = rng.normal(2.0 * labels - 1, 1.2)
    kinds = np.where(labels == 0, "normal", np.where(np.arange(n) % 3 == 1, "bacteria", "virus"))
    return pd.DataFrame({
        "image_id": [f"{split}{i:04d}" for i in range(n)], "split": split, "label": labels, "kind": kinds,
        "group_id": [f"{kind}-{i // 6}" for i, kind in enumerate(kinds)], "logit": logits, "probability": expit(logits),
    })  # fmt: skip


ODD = {
    "ten images": "in 95 of 100 test sets of this size",
    "one class": "The permutation test needs both classes: test holds one class only.",
    "all scores equal": "0.500 (no interval)",
    "no error": "1.000 (0.",
    "one child a class": "- gamma, severity 3: AUROC +0.000 (no interval)",
}


def table_of(case: str = "") -> pd.DataFrame:
    """A usual validation, and a test set with what `case` says is amiss."""
    val, test = drawn(150, "val", 1), drawn(120, "test", 2)
    if case == "ten images":
        test = test.iloc[:10]
    if case == "one class":
        test = test[test.label == 1]
    if case == "all scores equal":
        test = test.assign(logit=0.0, probability=0.5)
    if case == "no error":
        test = test.assign(logit=10.0 * test.label - 5).assign(probability=lambda t: expit(t.logit))
    if case == "one child a class":
        test = test.assign(group_id=test.label.map({0: "a", 1: "b"}))
    return pd.concat([val, test], ignore_index=True)


def alts(plots, as_on_the_page: bool = False) -> list[str]:
    """What the plots say, once they could be drawn: small and without the layout, which takes most of the time."""
    for plot in plots:
        if not as_on_the_page:
            plot.figure.set_layout_engine("none")
            plot.figure.set_dpi(30)
        assert f"</strong> {escape(plot.caption)}</figcaption>" in plot._repr_mimebundle_()["text/html"]
    return [plot.alt for plot in plots]


def comparison_alts(board, compared) -> list[str]:
    return alts([evaluation_plots.forest(board), evaluation_plots.roc_overlay(compared.bands),
                 evaluation_plots.cost_against_quality(board)])  # fmt: skip


def spoken(table: pd.DataFrame, as_on_the_page: bool = False) -> str:
    """All that a page would say and show; warnings are errors here."""
    params = PARAMS.model_copy(update={"refer_fraction": 0.1})
    threshold, calibration = evaluation.freeze(table, params)
    table = calibration.applied(table)
    test = table[table.split == "test"]
    at = (threshold.value,)
    validation, metrics = (evaluation.metric_table(table, part, *at, **OPTIONS) for part in ("val", "test"))
    calibrations = evaluation.calibration_table(table, "test", calibration, **OPTIONS)
    sizes = {"images": len(test), "pneumonia": test.label.sum(), "normal": (test.label == 0).sum()}
    precision = evaluation.precision_table(metrics, calibrations[calibrations.chosen].iloc[0], sizes)
    referral = evaluation.risk_coverage(table, "test", threshold)
    columns = pd.DataFrame({"view": np.where(np.arange(len(test)) % 4 < 2, "AP", "PA")}, test.image_id).astype(
        "category"
    )
    stratified = evaluation.stratified_table(table, "test", columns, **OPTIONS)
    changed = test.assign(corruption="gamma", severity=3, probability=expit(test.logit - 1.5))
    grey = pd.concat([test.assign(corruption="none", severity=0), changed])
    robust = evaluation.robustness_table(grey, "test", *at, **OPTIONS)
    others = {7: (table.assign(probability=table.probability**2), threshold.value)}
    seeds, review = evaluation.seed_tables(table, *at, others, **OPTIONS), evaluation.label_review(table, others)
    report = evaluation.classification_report(test.label, test.probability, *at)
    said = [
        words.table("metrics", metrics), words.table("classification_report", report), words.table("calibration", calibrations),
        words.table("predictive_values", evaluation.predictive_values(table, "test", *at, **OPTIONS)),
        words.table("subgroups", evaluation.subgroup_table(table, "test", *at, **OPTIONS)),
        words.table("seeds", seeds["test"]), words.table("precision", precision), words.table("risk_coverage", referral),
        *[words.table(name, found) for name, found in (("stratified", stratified), ("label_review", review)) if len(found)],
    ]  # fmt: skip
    sentences = [
        words.say("training.threshold", threshold, calibration, "balanced"),
        words.say(
            "evaluation.target", threshold, PARAMS, metrics, evaluation.unpaired_differences(metrics, validation)
        ),
        words.say("evaluation.stratified", stratified),
        words.say("evaluation.calibration", calibration, calibrations),
        words.robustness_summary(robust, len(test)),
        words.say("evaluation.permutation", evaluation.permutation_check(table, "test", 1, permutations=200)),
        words.say("evaluation.seeds", seeds["test"]),
    ]
    bins = evaluation.reliability(test, test.probability)
    smooth, curve = (
        evaluation.calibration_curve(test, test.probability, **OPTIONS),
        evaluation.decision_curve(table, "test", **OPTIONS),
    )
    plots = [
        evaluation_plots.curves(evaluation.curve_bands(table, **OPTIONS), validation, metrics),
        evaluation_plots.threshold_sweep(evaluation.threshold_sweep(table, "test"), *at),
        evaluation_plots.score_histograms(table, *at),
        evaluation_plots.confusion_matrix(evaluation.confusion_counts(test.label, test.probability, *at)),
        evaluation_plots.reliability({"calibration: platt": bins}, smooth=smooth),
        evaluation_plots.decision_curve(curve, evaluation.better_ranges(curve), "platt"),
        evaluation_plots.risk_coverage(referral),
        evaluation_plots.robustness(robust),
    ]
    text = "\n".join([*(t.to_string() for t in said), *(s.data for s in sentences), *alts(plots, as_on_the_page)])
    assert not re.search(r"\bnan\b", text.lower())
    return text


def test_a_usual_evaluation_is_said_whole():
    text = spoken(table_of(), as_on_the_page=True)
    assert "not computable" not in text
    for said in (
        "Over 2 seeds the mean test AUROC is",
        "changed in 1 ways at 1 severities",
        "The Brier score on test is",
    ):
        assert said in text


@pytest.mark.parametrize(("case", "said"), ODD.items())
def test_odd_test_sets_are_told_and_no_crash(case, said):
    text = spoken(table_of(case))
    assert said in text
    assert ("its slope is" in text) == (case == "one child a class")


def study(root, monkeypatch, tables: dict[str, pd.DataFrame]) -> list:
    """Finished runs on disk, with their predictions."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(root))
    results = []
    for run, table in tables.items():
        metrics = {name: by_metric(evaluation.metric_table(table, part, 0.5, **OPTIONS))
                   for name, part in (("validation", "val"), ("test", "test"))}  # fmt: skip
        one = result(run, metrics=metrics, parameters={"evaluation": PARAMS.model_dump(), "split": {"seed": 1}})
        folder = root / "runs/x" / run
        folder.mkdir(parents=True)
        table.to_csv(folder / "predictions.csv", index=False)
        write_result(one, folder)
        results.append(one)
    return results


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Ids and groups that look like numbers, and must not become any."""
    return table.assign(image_id="00" + table.image_id.str[-4:] + table.split.map({"val": "1", "test": "2"}),
                        group_id="00" + table.group_id.str.extract(r"(\d+)")[0] + table.label.astype(str))  # fmt: skip


def test_runs_are_compared_from_their_files(tmp_path, monkeypatch):
    table = numbered(table_of())
    worse = table.assign(logit=table.logit + np.random.default_rng(0).normal(0, 3, len(table)))
    worse["probability"] = expit(worse.logit)
    results = study(tmp_path, monkeypatch, {"worse": worse, "better": table})
    compared = comparing.compare_runs(results)
    assert compared.reference == "better"
    assert "- **worse** against better: AUROC -0." in comparing.difference_summary(compared).data
    assert words.table("differences", compared.differences, "better").Run.tolist() == ["worse"]
    # From files or from memory, to the last digit.
    thresholds = {"better": 0.4, "worse": 0.4}
    direct = compare.paired_differences({"better": table, "worse": worse}, "test", thresholds, "better", **OPTIONS)
    pd.testing.assert_frame_equal(compared.differences, direct)
    assert "2 runs: better, worse." in comparison_alts(leaderboard(results), compared)[1]


@pytest.mark.parametrize(
    "tables", [{}, {"alone": table_of()}, {"one class": table_of("one class"), "too": table_of("one class")}]
)
def test_nothing_one_run_or_one_class_to_compare_is_no_crash(tmp_path, monkeypatch, tables):
    results = study(tmp_path, monkeypatch, tables)
    compared, board = comparing.compare_runs(results), leaderboard(results)
    shown = [
        words.show(words.table("differences", compared.differences, compared.reference), empty="no two runs").data,
        words.show(words.table("tests", compared.tests), empty="no two runs").data,
        comparing.difference_summary(compared).data,
        words.table("leaderboard", board).to_string(), words.table("costs", board).to_string(),
    ]  # fmt: skip
    shown += comparison_alts(board, compared)
    assert not re.search(r"\bnan\b", "\n".join(shown).lower())
    assert ("no two runs" in shown[0]) == (len(tables) < 2)


def test_a_sweep_is_drawn_by_parameter_and_many_runs_are_told_from_all(tmp_path, monkeypatch):
    """A panel a parameter, other values by colour; seeds alone on an axis of their own. Of 30 runs 20 are drawn, and it is said."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    (tmp_path / "params/x").mkdir(parents=True)
    for run, sweep in {
        "03_baseline_cnn": "{training.learning_rate: [1.0e-4, 1.0e-2], augment.flip: [true, false], seed: [1, 2]}",
        "04_transfer_learning": "{seed: [5, 6, 7]}",
        "04_transfer_learning-kinds": "{image.reencode_quality: [null, 75], augment.crop_area: [[0.2, 1.0], [1.0, 1.0]]}",
    }.items():
        (tmp_path / f"params/x/{run}.yaml").write_text(f"sweep: {sweep}\n", encoding="utf-8")
    runs = [run for file in sorted(tmp_path.glob("params/x/*")) for run in swept(file)]
    results = [result(run, 0.7 + 0.01 * n) for n, run in enumerate(runs[1:])]  # the first has not finished
    tables = comparing.sweeps("x", results)
    assert [table.columns.tolist()[2:] for table in tables.values()] == [
        ["training.learning_rate", "augment.flip", "seed"], ["image.reencode_quality", "augment.crop_area"], ["seed"]
    ]  # fmt: skip
    assert [len(table) for table in tables.values()] == [7, 4, 3]
    plot = evaluation_plots.sweep(tables)
    panels = {ax.get_xlabel(): ax for ax in plot.figure.axes}
    assert list(panels) == [
        "training.learning_rate",
        "augment.flip",
        "image.reencode_quality",
        "augment.crop_area",
        "seed",
    ]
    shown = [sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o") for ax in plot.figure.axes]
    assert shown == [4, 4, 4, 4, 3]  # null is a value, too
    assert panels["training.learning_rate"].get_xscale() == "log"
    dots = [line for line in panels["seed"].lines if len(line.get_xdata())]
    assert [*zip(*dots[0].get_data(), strict=True)] == [*zip(tables["04_transfer_learning"].seed, tables["04_transfer_learning"].validation_auroc, strict=True)]  # fmt: skip
    assert (
        f"03_baseline_cnn: {runs[7]}; 04_transfer_learning-kinds: {runs[11]}; 04_transfer_learning: {runs[14]}"
        in plot.alt
    )
    assert evaluation_plots.sweep(comparing.sweeps("x", [])) is None
    assert comparing.sweeps("no folder of params", results) == {}  # a notebook opened on Colab
    board = leaderboard([result(f"03_baseline_cnn-{n}", 0.5 + 0.01 * n) for n in range(30)])
    for plot in (evaluation_plots.forest(board), evaluation_plots.cost_against_quality(board)):
        assert "the 20 of 30 that are best on validation" in plot.caption
    assert len(evaluation_plots.forest(board).figure.axes[0].get_yticklabels()) == 20
