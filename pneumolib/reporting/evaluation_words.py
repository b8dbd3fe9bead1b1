"""Tables and sentences on one run's evaluation, made from tables of `evaluation`."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.evaluation.thresholds import Threshold
from pneumolib.params import EvaluationParams
from pneumolib.reporting.figures import NAMES
from pneumolib.reporting.results import interval


def target_summary(threshold: Threshold, params: EvaluationParams, test: pd.DataFrame) -> Markdown:
    """What the rule aimed at on validation, and what test gave."""
    found = test.set_index("metric")
    words = {name: interval(*found.loc[name, ["value", "low", "high"]]) for name in ("sensitivity", "specificity")}
    aim = (
        f"The target was a sensitivity of {params.target_sensitivity:.3f} on validation, where {threshold.sensitivity:.3f} was "
        f"reached"
        if params.threshold_rule == "sensitivity"
        else f"On validation the rule gave a sensitivity of {threshold.sensitivity:.3f} and a specificity of {threshold.specificity:.3f}"
    )
    low, high = found.low["sensitivity"], found.high["sensitivity"]
    kept = "" if pd.isna(low) else _target_verdict(threshold.sensitivity, low, high)
    return Markdown(
        f"{aim}; test gives a sensitivity of **{words['sensitivity']}** and a specificity of **{words['specificity']}** at the "
        f"same threshold.{kept}"
    )


def _target_verdict(target: float, low: float, high: float) -> str:
    if low <= target <= high:
        return " The interval of the sensitivity holds what validation promised."
    side = "below" if high < target else "above"
    return f" The whole interval of the sensitivity lies {side} what validation promised: the threshold did not carry over."


def report_words(report: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.classification_report` for reading."""
    named = report.label.map(lambda label: NAMES.get(label, label))
    figures = report[["precision", "recall", "f1"]].map(lambda v: "not computable" if pd.isna(v) else f"{v:.3f}")
    figures.columns = ["Precision", "Recall", "F1"]
    return pd.concat([named.rename("Class"), figures, report.images.rename("Images").astype(int)], axis=1)


def calibration_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.calibration_table` for reading; the method that the run uses is marked."""
    names = [f"{row.method}{' (used)' if row.chosen else ''}" for row in table.itertuples()]
    return pd.DataFrame({
        "Fitted on validation": names,
        "Brier score": table.brier.map("{:.4f}".format),
        "Log loss": table.log_loss.map("{:.4f}".format),
        "Slope": [interval(r.slope, r.slope_low, r.slope_high) for r in table.itertuples()],
        "Intercept": [interval(r.intercept, r.intercept_low, r.intercept_high, signed=True) for r in table.itertuples()],
        "ECE (floor)": [f"{r.ece:.3f} ({r.ece_floor:.3f})" for r in table.itertuples()],
    })  # fmt: skip


def calibration_summary(calibration: Calibration, table: pd.DataFrame) -> Markdown:
    """Whether the calibrated probabilities mean on test what they say."""
    row = table[table.chosen].iloc[0]
    parts = [f"The run uses {calibration.in_words()}, frozen on validation."]
    if not pd.isna(row.slope_low):
        extreme = (
            "too extreme"
            if row.slope_high < 1
            else "too timid"
            if row.slope_low > 1
            else "neither too extreme nor too timid"
        )
        parts.append(
            f"On test its slope is {interval(row.slope, row.slope_low, row.slope_high)}: probabilities are {extreme}."
        )
    if not pd.isna(row.intercept_low):
        moved = (
            "pneumonia is commoner than they say" if row.intercept_low > 0
            else "pneumonia is rarer than they say" if row.intercept_high < 0 else "their mean is about right"
        )  # fmt: skip
        parts.append(
            f"The intercept, {interval(row.intercept, row.intercept_low, row.intercept_high, signed=True)}, says that {moved}."
        )
    parts.append(
        f"A model whose probabilities were exactly right would show an ECE of about {row.ece_floor:.3f} on so many images."
    )
    return Markdown(" ".join(parts))


def predictive_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.predictive_values` for reading."""
    return pd.DataFrame({
        "Prevalence": table.prevalence.map("{:.0%}".format),
        "PPV": [interval(r.ppv, r.ppv_low, r.ppv_high) for r in table.itertuples()],
        "NPV": [interval(r.npv, r.npv_low, r.npv_high) for r in table.itertuples()],
    })  # fmt: skip


def subgroup_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.subgroup_table` for reading."""
    shown = pd.DataFrame(
        {"Part": table.part, "Images": table.images, "Pneumonia": table.pneumonia, "Groups": table.groups}
    )
    for name in ("auroc", "sensitivity", "specificity"):
        columns = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        shown[METRIC_NAMES[name]] = [interval(*cells) for cells in columns]
    return shown


def robustness_summary(table: pd.DataFrame, images: int) -> Markdown:
    """Which changes the network minds most, and which it does not; from `evaluation.robustness_table`."""
    changed = table[table.corruption != "none"].dropna(subset=["auroc_change"])
    if changed.empty:
        return Markdown("No image was changed: `robustness.images` is 0, or a class is missing.")
    worst = changed.loc[changed.groupby("corruption").auroc_change.idxmin()].sort_values("auroc_change")
    hurt = worst[worst.auroc_change_high < 0]
    lines = [
        f"- **{r.corruption}**, severity {r.severity}: AUROC "
        f"{interval(r.auroc_change, r.auroc_change_low, r.auroc_change_high, signed=True)}, sensitivity "
        f"{r.sensitivity_change:+.3f}, specificity {r.specificity_change:+.3f}"
        for r in hurt.itertuples()
    ]
    unhurt = [name for name in worst.corruption if name not in set(hurt.corruption)]
    lead = f"{images} test images, changed in {changed.corruption.nunique()} ways at {changed.severity.nunique()} severities."
    lead += (
        " The AUROC falls, its interval excluding zero, under:"
        if lines
        else " No change lowers the AUROC by more than its interval allows for."
    )
    tail = f"\n\nNo fall of the AUROC is shown under {', '.join(unhurt)}." if unhurt and lines else ""
    return Markdown("\n".join([lead, "", *lines]) + tail)


def permutation_summary(found: dict[str, float]) -> Markdown:
    """`evaluation.permutation_check` in a sentence."""
    if pd.isna(found["mean"]):
        return Markdown("Labels cannot be dealt out anew: test holds one class only.")
    return Markdown(
        f"When the labels are dealt out anew among groups, a thousand times, the AUROC is {found['mean']:.3f} on average and "
        f"within {found['low']:.3f} to {found['high']:.3f} in 95% of the deals: the evaluation makes nothing out of nothing. "
        f"The p-value of the AUROC above is {found['p']:.3f}."
    )


def seed_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.seed_table` for reading: the interval of the mean and the spread over seeds, apart."""
    return pd.DataFrame({
        "Metric": table.metric.map(METRIC_NAMES),
        "Mean (its interval)": [interval(*cells) for cells in zip(table["mean"], table.low, table.high, strict=True)],
        "SD over seeds": table.sd.map("{:.3f}".format),
        "Lowest to highest": [f"{r.lowest:.3f} to {r.highest:.3f}" for r in table.itertuples()],
    })  # fmt: skip


def seed_summary(table: pd.DataFrame) -> Markdown:
    """What the seeds say of luck, in a sentence; empty for one seed."""
    if table.empty:
        return Markdown("")
    row = table.set_index("metric").loc["auroc"]
    if pd.isna(row["low"]):
        return Markdown(
            f"Over {row.seeds:.0f} seeds the test AUROC is {row['mean']:.3f} on average; an interval is not computable."
        )
    wide, spread = row.high - row.low, row.highest - row.lowest
    which = "less than" if spread < wide else "as much as"
    return Markdown(
        f"Over {row.seeds:.0f} seeds the test AUROC is {interval(row['mean'], row.low, row.high)} on average, with seeds from "
        f"{row.lowest:.3f} to {row.highest:.3f}. Another random start changes it by {which} other children would."
    )


def difference_words(differences: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """`evaluation.paired_differences` for reading: a row a run other than `reference`, a column a metric; empty likewise."""
    if differences.empty:
        return differences
    others = differences[differences.name != reference]
    names = list(dict.fromkeys(others.name))
    table = pd.DataFrame({"Run": names})
    for metric in dict.fromkeys(others.metric):
        rows = others[others.metric == metric].set_index("name").loc[names]
        cells = zip(rows.difference, rows.difference_low, rows.difference_high, strict=True)
        table[METRIC_NAMES[metric]] = [interval(*cell, signed=True) for cell in cells]
    return table


def tests_words(tests: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.secondary_tests` for reading; empty likewise."""
    if tests.empty:
        return tests
    return pd.DataFrame({
        "Run": tests.name,
        "Only the reference right": tests.only_reference_right,
        "Only this one right": tests.only_this_right,
        "McNemar, exact": [_p_value(p, h) for p, h in zip(tests.mcnemar, tests.mcnemar_holm, strict=True)],
        "DeLong": [_p_value(p, h) for p, h in zip(tests.delong, tests.delong_holm, strict=True)],
    })  # fmt: skip


def _p_value(p: float, holm: float) -> str:
    return "not computable" if pd.isna(p) else f"{_small(p)} (Holm {_small(holm)})"


def _small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
