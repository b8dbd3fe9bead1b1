"""Tables and sentences on one run's evaluation, made from tables of `evaluation`."""

from typing import Any

import pandas as pd
from IPython.display import Markdown

from pneumolib.evaluation.calibration import Calibration, Threshold
from pneumolib.evaluation.compare import CHANGED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.params import EvaluationParams
from pneumolib.reporting.figures import NAMES
from pneumolib.reporting.prose import say
from pneumolib.reporting.results import figure_words, interval, intervals
from pneumolib.reporting.words import titled

FEWEST = 10  # images of either class in a subgroup whose metrics are shown


def target_summary(threshold: Threshold, params: EvaluationParams, test: pd.DataFrame) -> Markdown:
    """What the rule aimed at on validation, and what test gave."""
    found = test.set_index("metric").loc["sensitivity"]
    sensitivity, specificity = (
        interval(*test.set_index("metric").loc[name, ["value", "low", "high"]])
        for name in ("sensitivity", "specificity")
    )
    return say(
        "evaluation.target",
        params=params,
        threshold=threshold,
        sensitivity=sensitivity,
        specificity=specificity,
        low=found.low,
        high=found.high,
    )


def report_words(report: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.classification_report` for reading."""
    columns = {"Class": [NAMES.get(label, label) for label in report.label]}
    columns |= {name.capitalize(): report[name].map(figure_words) for name in ("precision", "recall", "f1")}
    caption = "Precision, recall and F1 by class, on test at the frozen threshold."
    return titled("classification-report", caption, columns | {"Images": report.images.astype(int)})


def calibration_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.calibration_table` for reading; the method that the run uses is marked."""
    names = [f"{row.method}{' (used)' if row.chosen else ''}" for row in table.itertuples()]
    return titled("calibration", "Calibration on test, by method.", {
        "Fitted on validation": names,
        "Brier score": [figure_words(value, ".4f") for value in table.brier],
        "Log loss": [figure_words(value, ".4f") for value in table.log_loss],
        "Slope": intervals(table, "slope"),
        "Intercept": intervals(table, "intercept", signed=True),
        "ECE (floor)": [f"{r.ece:.3f} ({r.ece_floor:.3f})" for r in table.itertuples()],
    })  # fmt: skip


def calibration_summary(calibration: Calibration, table: pd.DataFrame) -> Markdown:
    """What test says of the calibrated probabilities, and whether calibration helped."""
    row, raw = (table[rows].to_dict("records")[0] for rows in (table.chosen, table.method == "none"))
    return say("evaluation.calibration", method=calibration, row=row, raw=raw)


def predictive_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.predictive_values` for reading."""
    columns = {"Prevalence": table.prevalence.map("{:.0%}".format)}
    columns |= {name.upper(): intervals(table, name) for name in ("ppv", "npv")}
    return titled("predictive-values", "Predictive values at other prevalences, at the frozen threshold.", columns)


def subgroup_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.subgroup_table` for reading."""
    columns = {"Subgroup": table.part, "Images": table.images, "Pneumonia": table.pneumonia, "Groups": table.groups}
    for name in CHANGED:
        cells = zip(intervals(table, name), map(large_enough, table.itertuples()), strict=True)
        columns[METRIC_NAMES[name]] = [cell if enough else "" for cell, enough in cells]
    caption = f"Subgroups at the frozen threshold. Below {FEWEST} images of a class only counts are shown."
    return titled("subgroups", caption, columns)


def large_enough(row: Any) -> bool:
    """Whether a row of `evaluation.subgroup_table` holds enough images of both classes to show a metric."""
    return min(row.pneumonia, row.images - row.pneumonia) >= FEWEST


def robustness_summary(table: pd.DataFrame, images: int) -> Markdown:
    """Which changes the network minds most, and which it does not; from `evaluation.robustness_table`."""
    changed = table[table.corruption != "none"].dropna(subset=["auroc_change"])
    if changed.empty:
        return Markdown("No image was changed: `robustness.images` is 0, or a class is missing.")
    worst = changed.loc[changed.groupby("corruption").auroc_change.idxmin()].sort_values("auroc_change")
    hurt = worst[worst.auroc_change_high < 0]
    unknown = worst[worst.auroc_change_low.isna()]
    return say(
        "evaluation.robustness",
        images=images,
        ways=changed.corruption.nunique(),
        severities=changed.severity.nunique(),
        hurt=hurt.to_dict("records"),
        unhurt=set(worst.corruption) - set(hurt.corruption) - set(unknown.corruption),
        unknown=set(unknown.corruption),
    )


def permutation_summary(found: dict[str, float]) -> Markdown:
    """`evaluation.permutation_check` in a sentence."""
    return say("evaluation.permutation", found=found)


def seed_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.seed_table` for reading: the interval of the mean and the spread over seeds, apart."""
    return titled("seeds", "Seed variability on test: the mean over seeds with its interval, and the spread.", {
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
    row = table.set_index("metric").loc["auroc"].to_dict()
    return say("evaluation.seeds", row=row | {"interval": interval(row["mean"], row["low"], row["high"])})


def difference_words(differences: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """`evaluation.paired_differences` for reading: a row a run other than `reference`, a column a metric; empty likewise."""
    if differences.empty:
        return differences
    others = differences[differences.name != reference]
    columns = {"Run": list(dict.fromkeys(others.name))}
    for metric in dict.fromkeys(others.metric):
        rows = others[others.metric == metric].set_index("name").loc[columns["Run"]]
        columns[METRIC_NAMES[metric]] = intervals(rows, "difference", signed=True)
    return titled("differences", f"Paired differences on test from {reference}.", columns)


def tests_words(tests: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.secondary_tests` for reading; empty likewise."""
    if tests.empty:
        return tests
    return titled("tests", "Secondary tests against the reference: images that one run alone classifies correctly, and p-values.", {
        "Run": tests.name,
        "Only the reference correct": tests.only_reference_right,
        "Only this run correct": tests.only_this_right,
        "McNemar, exact": [_p_value(p, h) for p, h in zip(tests.mcnemar, tests.mcnemar_holm, strict=True)],
        "DeLong": [_p_value(p, h) for p, h in zip(tests.delong, tests.delong_holm, strict=True)],
    })  # fmt: skip


def _p_value(p: float, holm: float) -> str:
    return figure_words(p) if pd.isna(p) else f"{_small(p)} (Holm {_small(holm)})"


def _small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
