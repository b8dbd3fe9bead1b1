"""Tables and sentences on one run's evaluation, made from tables of `evaluation`."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.evaluation.threshold import Threshold
from pneumolib.params import EvaluationParams
from pneumolib.reporting.figures import NAMES
from pneumolib.reporting.results import figure_words, interval


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
        return " The interval of the sensitivity includes what validation promised; it does not show that the promise was kept."
    side = "below" if high < target else "above"
    return f" The whole interval of the sensitivity lies {side} what validation promised: the threshold did not carry over."


def report_words(report: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.classification_report` for reading."""
    named = report.label.map(lambda label: NAMES.get(label, label))
    figures = report[["precision", "recall", "f1"]].map(figure_words)
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
    """What test says of the calibrated probabilities, and whether calibration helped."""
    row, raw = table[table.chosen].iloc[0], table[table.method == "none"].iloc[0]
    parts = [f"The run uses {calibration.in_words()}, frozen on validation.", *_slope_words(row)]
    if calibration.method != "none":
        helped = "a gain" if row.brier < raw.brier else "**no gain: what validation taught does not hold on test**"
        parts.append(f"It changes the Brier score on test from {raw.brier:.4f} to {row.brier:.4f}, {helped}.")
    parts.append(
        f"A model whose probabilities were exactly right would show an ECE of about {row.ece_floor:.3f} on so many images, if "
        f"they were independent."
    )
    return Markdown(" ".join(parts))


def _slope_words(row: pd.Series) -> list[str]:
    parts = []
    if not pd.isna(row.slope_low):
        said = "which includes 1: neither too extreme nor too timid probabilities are shown"
        if not row.slope_low <= 1 <= row.slope_high:
            said = f"so that probabilities are too {'extreme' if row.slope_high < 1 else 'timid'}"
        parts.append(f"On test its slope is {interval(row.slope, row.slope_low, row.slope_high)}, {said}.")
    if not pd.isna(row.intercept_low):
        said = "which includes 0: no shift is shown"
        if not row.intercept_low <= 0 <= row.intercept_high:
            said = f"so that pneumonia is {'commoner' if row.intercept_low > 0 else 'rarer'} than they say"
        parts.append(
            f"The intercept is {interval(row.intercept, row.intercept_low, row.intercept_high, signed=True)}, {said}."
        )
    return parts


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
        # Short words: seven columns must stand beside each other.
        shown[METRIC_NAMES[name]] = [
            interval(*cells).replace("interval not computable", "no interval") for cells in columns
        ]
    return shown


def robustness_summary(table: pd.DataFrame, images: int) -> Markdown:
    """Which changes the network minds most, and which it does not; from `evaluation.robustness_table`."""
    changed = table[table.corruption != "none"].dropna(subset=["auroc_change"])
    if changed.empty:
        return Markdown("No image was changed: `robustness.images` is 0, or a class is missing.")
    worst = changed.loc[changed.groupby("corruption").auroc_change.idxmin()].sort_values("auroc_change")
    hurt = worst[worst.auroc_change_high < 0]
    unknown = worst[worst.auroc_change_low.isna()]
    lines = [
        f"- **{r.corruption}**, severity {r.severity}: AUROC "
        f"{interval(r.auroc_change, r.auroc_change_low, r.auroc_change_high, signed=True)}, sensitivity "
        f"{r.sensitivity_change:+.3f}, specificity {r.specificity_change:+.3f}"
        for r in hurt.itertuples()
    ]
    ways, severities = changed.corruption.nunique(), changed.severity.nunique()
    parts = [
        f"{images} test images, changed in {ways} ways at {severities} severities; of each way the severity with the lowest AUROC, "
        f"its interval not corrected for that choice. "
        + (
            "The AUROC falls, the interval excluding zero, under:"
            if lines
            else "Under none does the interval of a fall exclude zero."
        )
    ]
    parts += ["\n".join(lines)] if lines else []
    others = {"No fall is shown under": set(worst.corruption) - set(hurt.corruption) - set(unknown.corruption),
              "No interval can be computed under": set(unknown.corruption)}  # fmt: skip
    parts += [f"{words} {', '.join(sorted(names))}." for words, names in others.items() if names]
    return Markdown("\n\n".join(parts))


def permutation_summary(found: dict[str, float]) -> Markdown:
    """`evaluation.permutation_check` in a sentence."""
    if pd.isna(found["mean"]):
        return Markdown("Labels cannot be dealt out anew: test holds one class only.")
    return Markdown(
        f"When the labels are dealt out anew among groups, a thousand times, the AUROC is {found['mean']:.3f} on average and "
        f"within {found['low']:.3f} to {found['high']:.3f} in 95% of the deals; chance would be 0.5. The p-value of the AUROC above is "
        f"{found['p']:.3f}. That checks the arithmetic of the evaluation; it says nothing about leaks in the training."
    )


def seed_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.seed_table` for reading: the interval of the mean and the spread over seeds, apart."""
    return pd.DataFrame({
        "Metric": table.metric.map(METRIC_NAMES),
        "Mean (its interval)": [interval(*cells) for cells in zip(table["mean"], table.low, table.high, strict=True)],
        "SD over seeds": table.sd.map(figure_words),
        "Lowest to highest": [
            figure_words(r.lowest) if pd.isna(r.sd) else f"{r.lowest:.3f} to {r.highest:.3f}" for r in table.itertuples()
        ],
    })  # fmt: skip


def seed_summary(table: pd.DataFrame) -> Markdown:
    """What the seeds say of luck, in a sentence; empty for one seed."""
    if table.empty:
        return Markdown("")
    row = table.set_index("metric").loc["auroc"]
    if pd.isna(row["mean"]):
        return Markdown("The AUROC of the seeds cannot be computed on test.")
    return Markdown(
        f"Over {row.seeds:.0f} seeds the test AUROC is {interval(row['mean'], row.low, row.high)} on average: the interval says "
        f"how far other children would move that mean. From seed to seed it lies between {row.lowest:.3f} and {row.highest:.3f}: "
        f"so far another start moved it, and with more seeds it may be further."
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
