"""Tables and sentences on a frozen model and another source; the last one answers whether it holds there."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.calibration import Calibration, Threshold
from pneumolib.evaluation.compare import SITE
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting.evaluation_words import FEWEST
from pneumolib.reporting.prose import row_interval, say
from pneumolib.reporting.results import Result, figure_words, interval, intervals
from pneumolib.reporting.words import FACT_NAMES, titled

CALIBRATION_NAMES = {
    "network": "the network's own",
    "frozen": "frozen calibration",
    "prior moved": "frozen, prior moved",
    "refitted": "refitted here",
}


def frozen_summary(run: str, result: Result, threshold: float, calibration: Calibration) -> Markdown:
    """What is frozen: the model and what was decided with it."""
    commit = (result.provenance.commit or "no git checkout")[:12]
    return say("external.frozen", run=run, result=result, commit=commit, threshold=threshold, calibration=calibration)


def source_summary(source: Manifest, table: pd.DataFrame, share_before: float) -> Markdown:
    """How many images of the other source there are, what was left out, and how they were cut.

    Args:
        source: all that could be read.
        table: from `data.split_external`.
        share_before: of pneumonia in the study's own test.
    """
    parts = {
        "Recalibration part, for threshold and calibration": table[table.part == "recalibration"],
        "Evaluation part, for their metrics": table[table.part == "evaluation"],
    }
    return say(
        "external.source",
        all=_sizes(table),
        share_before=share_before,
        left_out=len(source.table) - len(table),
        problems=len(source.problems),
        sites=table.site[table.site != ""].value_counts().sort_index().to_dict(),
        parts={what: _sizes(rows) for what, rows in parts.items()},
    )


def _sizes(rows: pd.DataFrame) -> dict[str, float]:
    return {"images": len(rows), "groups": rows.group_id.nunique(), "share": rows.label.mean()}


def drift_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.drift_table` for reading."""
    sides = [("training_median", "training_low", "training_high"), ("median", "low", "high")]
    here, there = ([interval(*cells, form=".3g" if abs(cells[-1]) < 1000 else ".0f")
                    for cells in table[list(names)].itertuples(index=False)] for names in sides)  # fmt: skip
    return titled("drift", "Facts of images in training and in the other source: median and middle 95%.", {
        "Fact of an image": table.fact.map(FACT_NAMES),
        "Training": here,
        "Other source": there,
        "Outside training's 95%": table.outside.map("{:.0%}".format),
        "With a warning": table.flagged.map("{:.0%}".format),
    })  # fmt: skip


def drift_summary(ood_warnings: pd.DataFrame, errors: pd.DataFrame) -> Markdown:
    """How many images are warned of beside the share on validation, and whether errors gather among them.

    Args:
        ood_warnings: `evaluation.ood_warning_table`.
        errors: `evaluation.errors_by_warning`.
    """
    rates, rows = ood_warnings.set_index("kind"), errors.set_index("part")
    return say(
        "external.drift",
        rates=rates.flagged.to_dict(),
        before=rates.validation_warnings["any"],
        flagged=rows.loc["flagged"].to_dict(),
        others=rows.loc["others"].to_dict(),
    )


def difference_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.external_differences` for reading."""
    return titled("differences", "Metrics on the study's own test and on the other source, and the difference.", {
        "Metric": table.metric.map(METRIC_NAMES),
        "Own test": intervals(table, "internal"),
        "Other source": intervals(table, "external"),
        "Other source minus own test": intervals(table, "difference", signed=True),
    })  # fmt: skip


def threshold_words(table: pd.DataFrame, frozen: float, local: Threshold) -> pd.DataFrame:
    """`evaluation.threshold_differences` for reading: the frozen threshold, the one chosen anew, and the difference."""
    values = {"frozen": frozen, "recalibrated": local.value}
    columns = {"Metric": [METRIC_NAMES[name] for name in dict.fromkeys(table.metric)]}
    for name, rows in table.groupby("name", sort=False):
        cells = zip(rows.value, rows.low, rows.high, strict=True)
        columns[f"{name.capitalize()}: {values[name]:.3f}"] = [interval(*cell) for cell in cells]
    changes = intervals(table[table.name == "recalibrated"], "difference", signed=True)
    caption = "Metrics on the other source at the frozen and at the recalibrated threshold."
    return titled("thresholds", caption, columns | {"Recalibrated minus frozen": changes})


def threshold_summary(table: pd.DataFrame, local: Threshold, images: int) -> Markdown:
    """What a threshold chosen anew on so many images changes."""
    rows = table[table.name == "recalibrated"].set_index("metric")
    names = ["sensitivity", "specificity"]
    changes = intervals(rows.loc[names], "difference", signed=True)
    moved = [f"{METRIC_NAMES[name].lower()} {change}" for name, change in zip(names, changes, strict=True)]
    return say("external.threshold", local=local, images=images, moved=moved)


def calibration_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.external_calibration_table` for reading."""
    changes = zip(table.method, intervals(table, "difference", signed=True), strict=True)
    return titled("calibration", "Calibration on the evaluation part of the other source.", {
        "Probabilities": table.method.map(CALIBRATION_NAMES),
        "Brier score": table.brier.map(figure_words),
        "Minus the frozen": ["" if method == "frozen" else change for method, change in changes],
        "Observed / expected": intervals(table, "observed_expected", form=".2f"),
        "Slope": intervals(table, "slope", form=".2f"),
        "Intercept": intervals(table, "intercept", signed=True, form=".2f"),
    })  # fmt: skip


def calibration_summary(table: pd.DataFrame, share_before: float, share_after: float) -> Markdown:
    """What the frozen probabilities say here, and what mends them.

    Args:
        share_before: of pneumonia that the frozen probabilities stand for, `evaluation.expected_share`.
        share_after: in the recalibration part.
    """
    rows = table.set_index("method")
    return say(
        "external.calibration",
        observed=intervals(rows.loc[["frozen"]], "observed_expected", form=".2f")[0],
        share_before=share_before,
        share_after=share_after,
        moved=rows.loc["prior moved"].to_dict(),
        moved_gain=_gain(rows.loc["prior moved"]),
        refitted_gain=_gain(rows.loc["refitted"]),
    )


def _gain(row: pd.Series) -> str:
    verdict = "a gain" if row.difference_high < 0 else "a loss" if row.difference_low > 0 else "no significant change"
    return f"{row_interval(row, 'difference', signed=True)}, {verdict}"


def answer(result: Result) -> Markdown:
    """Does the model hold on images from another source? From `checks.external` of the run's `result.json`."""
    return say("external.answer", r=result, sites=_between_sites(result.checks["external"]))


def _between_sites(found: dict) -> list[str]:
    """How far apart the sites are, where there are several."""
    told = []
    for name in ("sensitivity", "specificity"):
        sites = [row for row in found["subgroups"] if row["part"].startswith(SITE) and row[name] is not None]
        rows = [row for row in sites if min(row["pneumonia"], row["images"] - row["pneumonia"]) >= FEWEST]
        if len(rows) > 1:
            least, most = (pick(rows, key=lambda row: row[name]) for pick in (min, max))
            told.append(f"{name} from {least[name]:.3f} ({least['part']}) to {most[name]:.3f} ({most['part']})")
    return told
