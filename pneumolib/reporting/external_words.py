"""Tables and sentences on a frozen model and another source; the last one answers whether it holds there."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.compare import SITE
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.evaluation.threshold import Threshold
from pneumolib.reporting.prose import say
from pneumolib.reporting.results import Result, interval, intervals
from pneumolib.reporting.words import FACT_NAMES

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
        "To choose threshold and calibration anew": table[table.part == "recalibration"],
        "To judge that on": table[table.part == "evaluation"],
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
    return pd.DataFrame({
        "Fact of an image": table.fact.map(FACT_NAMES),
        "Training: median (95%)": [_spread(*cells) for cells in
                                   zip(table.training_median, table.training_low, table.training_high, strict=True)],
        "Here: median (95%)": [_spread(*cells) for cells in zip(table["median"], table.low, table.high, strict=True)],
        "Outside training's 95%": table.outside.map("{:.0%}".format),
        "Warned of": table.flagged.map("{:.0%}".format),
    })  # fmt: skip


def _spread(median: float, low: float, high: float) -> str:
    return f"{median:.3g} ({low:.3g} to {high:.3g})" if abs(high) < 1000 else f"{median:.0f} ({low:.0f} to {high:.0f})"


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
    return pd.DataFrame(
        {
            "Metric": table.metric.map(METRIC_NAMES),
            "The study's own test": intervals(table, "internal"),
            "Here": intervals(table, "external"),
            "Here less there": intervals(table, "difference", signed=True),
        }
    )


def threshold_words(table: pd.DataFrame, frozen: float, local: Threshold) -> pd.DataFrame:
    """`evaluation.threshold_differences` for reading: the frozen threshold, the one chosen anew, and the difference."""
    values = {"frozen": frozen, "recalibrated": local.value}
    shown = pd.DataFrame({"Metric": [METRIC_NAMES[name] for name in dict.fromkeys(table.metric)]})
    for name, rows in table.groupby("name", sort=False):
        cells = zip(rows.value, rows.low, rows.high, strict=True)
        shown[f"{name.capitalize()}: {values[name]:.3f}"] = [interval(*cell) for cell in cells]
    changes = intervals(table[table.name == "recalibrated"], "difference", signed=True)
    return shown.assign(**{"Recalibrated less frozen": changes})


def threshold_summary(table: pd.DataFrame, local: Threshold, images: int) -> Markdown:
    """What a threshold chosen anew on so many images changes."""
    rows = table[table.name == "recalibrated"].set_index("metric")
    names = ["sensitivity", "specificity"]
    changes = intervals(rows.loc[names], "difference", signed=True)
    moved = [f"{METRIC_NAMES[name].lower()} {change}" for name, change in zip(names, changes, strict=True)]
    return say("external.threshold", local=local, images=images, moved=moved)


def calibration_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.external_calibration_table` for reading; two decimals, so that six columns stand beside each other."""
    rows = list(table.itertuples())
    return pd.DataFrame({
        "Probabilities": table.method.map(CALIBRATION_NAMES),
        "Brier score": table.brier.map("{:.3f}".format),
        "Less the frozen": ["" if r.method == "frozen" else _short(r.difference, r.difference_low, r.difference_high, "+.3f")
                            for r in rows],
        "Observed / expected": [_short(r.observed_expected, r.observed_expected_low, r.observed_expected_high) for r in rows],
        "Slope": [_short(r.slope, r.slope_low, r.slope_high) for r in rows],
        "Intercept": [_short(r.intercept, r.intercept_low, r.intercept_high, "+.2f") for r in rows],
    })  # fmt: skip


def _short(value: float, low: float, high: float, form: str = ".2f") -> str:
    if pd.isna(value):
        return "not computable"
    return f"{value:{form}} " + ("(no interval)" if pd.isna(low) else f"({low:{form}} to {high:{form}})")


def calibration_summary(table: pd.DataFrame, share_before: float, share_after: float) -> Markdown:
    """What the frozen probabilities say here, and what mends them.

    Args:
        share_before: of pneumonia that the frozen probabilities stand for, `evaluation.expected_share`.
        share_after: in the recalibration part.
    """
    rows = table.set_index("method")
    observed = [rows.loc["frozen", f"observed_expected{end}"] for end in ("", "_low", "_high")]
    return say(
        "external.calibration",
        observed=_short(*observed),
        share_before=share_before,
        share_after=share_after,
        moved=rows.loc["prior moved"].to_dict(),
        moved_gain=_gain(rows.loc["prior moved"]),
        refitted_gain=_gain(rows.loc["refitted"]),
    )


def _gain(row: pd.Series) -> str:
    verdict = "a gain" if row.difference_high < 0 else "a loss" if row.difference_low > 0 else "no change is shown"
    return f"{_short(row.difference, row.difference_low, row.difference_high, '+.3f')}, {verdict}"


def answer(result: Result) -> Markdown:
    """Does the model hold on images from another source? From `checks.external` of the run's `result.json`."""
    return say("external.answer", r=result, sites=_between_sites(result.checks["external"]))


def _between_sites(found: dict) -> list[str]:
    """How far apart the sites are, where there are several."""
    told = []
    for name in ("sensitivity", "specificity"):
        rows = [row for row in found["subgroups"] if row["part"].startswith(SITE) and row[name] is not None]
        if len(rows) > 1:
            least, most = (pick(rows, key=lambda row: row[name]) for pick in (min, max))
            told.append(f"{name} from {least[name]:.3f} ({least['part']}) to {most[name]:.3f} ({most['part']})")
    return told
