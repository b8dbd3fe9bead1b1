"""Tables and sentences on a frozen model and another source; the last one answers whether it holds there."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.compare import SITE
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.evaluation.threshold import Threshold
from pneumolib.reporting.familiarity_words import FACT_NAMES
from pneumolib.reporting.results import Result, figure_words, interval

CALIBRATION_NAMES = {
    "network": "the network's own",
    "frozen": "frozen calibration",
    "prior moved": "frozen, prior moved",
    "refitted": "refitted here",
}


def frozen_summary(run: str, result: Result, threshold: float, calibration: Calibration) -> Markdown:
    """What is frozen: the model and what was decided with it."""
    commit = (result.provenance.commit or "no git checkout")[:12]
    return Markdown(
        f"The model is that of run `{run}`, trained {result.provenance.finished:%Y-%m-%d} at commit {commit}. Its threshold, "
        f"**{threshold:.3f}** ({result.threshold.rule}), and its calibration ({calibration.in_words()}) were fixed on the study's "
        f"own validation images. Nothing of it moves here."
    )


def source_summary(source: Manifest, table: pd.DataFrame, share_before: float) -> Markdown:
    """How many images of the other source there are, what was left out, and how they were cut.

    Args:
        source: all that could be read.
        table: from `data.split_external`.
        share_before: of pneumonia in the study's own test.
    """
    sites = [site for site in sorted(set(table.site)) if site]
    lines = [
        f"- **{len(table)} images of {table.group_id.nunique()} groups, {table.label.mean():.1%} pneumonia**; in the study's own test "
        f"{share_before:.1%}.",
        f"- {_left_out(len(source.table) - len(table))}",
        f"- {len(source.problems)} files could not be used." if len(source.problems) else "- All files could be read.",
        *([f"- Sites: {', '.join(f'{site} ({(table.site == site).sum()})' for site in sites)}."] if sites else []),
    ]
    for part, what in (
        ("recalibration", "to choose threshold and calibration anew"),
        ("evaluation", "to judge that on"),
    ):
        rows = table[table.part == part]
        lines.append(
            f"- {what.capitalize()}: {len(rows)} images of {rows.group_id.nunique()} groups, {rows.label.mean():.1%} pneumonia."
        )
    return Markdown("\n".join(lines))


def _left_out(n: int) -> str:
    if not n:
        return "None of its images stands among the study's own, pixel for pixel."
    return f"**{n} more are left out**: they, or another image of their group, stand among the study's own images, pixel for pixel."


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


def drift_summary(alarms: pd.DataFrame, errors: pd.DataFrame) -> Markdown:
    """How many images are warned of beside the false alarms, and whether errors gather among them.

    Args:
        alarms: `evaluation.ood_warning_table`.
        errors: `evaluation.errors_by_warning`.
    """
    rates = alarms.set_index("kind")
    kinds = ", ".join(f"{r.Index} {r.flagged:.0%}" for r in rates.drop("any").itertuples())
    before = rates.false_alarms["any"]
    expected = "" if pd.isna(before) else f", where {before:.1%} of the study's own validation images are"
    return Markdown(
        f"**{rates.flagged['any']:.0%} of the images are warned of**{expected} ({kinds}). {_gathering(errors)}"
    )


def _gathering(errors: pd.DataFrame) -> str:
    rows = errors.set_index("part")
    flagged, others = rows.loc["flagged"], rows.loc["others"]
    if not flagged.images or not others.images:
        return f"{'No' if not flagged.images else 'Every'} image is warned of, so that errors cannot be compared."
    said = (
        "whether errors gather there cannot be said" if pd.isna(flagged.difference_low)
        else "errors gather there" if flagged.difference_low > 0
        else "errors are rarer there" if flagged.difference_high < 0
        else "that errors gather there is not shown"
    )  # fmt: skip
    return (
        f"Of those {flagged.images:.0f}, {flagged['share']:.1%} are called wrongly at the frozen threshold, of the other "
        f"{others.images:.0f}, {others['share']:.1%}: a difference of "
        f"{interval(flagged.difference, flagged.difference_low, flagged.difference_high, signed=True)}, so {said}."
    )


def difference_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.external_differences` for reading."""
    cells = {name: zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
             for name in ("internal", "external", "difference")}  # fmt: skip
    return pd.DataFrame({
        "Metric": table.metric.map(METRIC_NAMES),
        "The study's own test": [interval(*cell) for cell in cells["internal"]],
        "Here": [interval(*cell) for cell in cells["external"]],
        "Here less there": [interval(*cell, signed=True) for cell in cells["difference"]],
    })  # fmt: skip


def threshold_words(table: pd.DataFrame, frozen: float, local: Threshold) -> pd.DataFrame:
    """`evaluation.threshold_differences` for reading: the frozen threshold, the one chosen anew, and the difference."""
    values = {"frozen": frozen, "recalibrated": local.value}
    shown = pd.DataFrame({"Metric": [METRIC_NAMES[name] for name in dict.fromkeys(table.metric)]})
    for name, rows in table.groupby("name", sort=False):
        cells = zip(rows.value, rows.low, rows.high, strict=True)
        shown[f"{name.capitalize()}: {values[name]:.3f}"] = [interval(*cell) for cell in cells]
    rows = table[table.name == "recalibrated"]
    cells = zip(rows.difference, rows.difference_low, rows.difference_high, strict=True)
    return shown.assign(**{"Recalibrated less frozen": [interval(*cell, signed=True) for cell in cells]})


def threshold_summary(table: pd.DataFrame, local: Threshold, images: int) -> Markdown:
    """What a threshold chosen anew on so many images changes."""
    rows = table[table.name == "recalibrated"].set_index("metric")
    moved = [f"{METRIC_NAMES[name].lower()} {interval(*rows.loc[name, ['difference', 'difference_low', 'difference_high']], signed=True)}"
             for name in ("sensitivity", "specificity")]  # fmt: skip
    return Markdown(
        f"By the study's own rule ({local.rule}), {images} images of this source give **{local.value:.3f}**; on these very images its "
        f"sensitivity is {local.sensitivity:.3f} and its specificity {local.specificity:.3f}. On the others it changes "
        f"{' and '.join(moved)}. It is no result of the model: whoever uses it has to keep labelled images of each place."
    )


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
    frozen, moved = rows.loc["frozen"], rows.loc["prior moved"]
    parts = [
        f"For each image with pneumonia that the frozen probabilities add up to, {_short(*_observed(frozen))} show it. On "
        f"validation they add up to a share of {share_before:.1%}; here it is {share_after:.1%}. Moving that alone changes the Brier "
        f"score by {_gain(moved)}; fitting anew, by {_gain(rows.loc['refitted'])}."
    ]
    if not pd.isna(moved.slope_high) and moved.slope_high < 1:
        parts.append(
            "The slope stays below 1 with the prior moved: it is not the share of pneumonia alone that differs."
        )
    return Markdown(" ".join(parts))


def _observed(row: pd.Series) -> list[float]:
    return [row[f"observed_expected{end}"] for end in ("", "_low", "_high")]


def _gain(row: pd.Series) -> str:
    verdict = "a gain" if row.difference_high < 0 else "a loss" if row.difference_low > 0 else "no change is shown"
    return f"{_short(row.difference, row.difference_low, row.difference_high, '+.3f')}, {verdict}"


def answer(result: Result) -> Markdown:
    """Does the model hold on images from another source? From `checks.external` of the run's `result.json`."""
    found = result.checks["external"]
    moved = {row["metric"]: row for row in found["differences"]}
    lost = {name: _verdict(row) for name, row in moved.items()}
    cells = {name: interval(row["difference"], row["difference_low"], row["difference_high"], signed=True)
             for name, row in moved.items()}  # fmt: skip
    where = f"On {found['images']} images of {found['groups']} groups from another source"
    shown = f"the AUROC of `{found['run']}` is {_value(moved['auroc'])}; on the study's own test it is {figure_words(moved['auroc']['internal'])}"
    lines = [f"{_opening(lost)} {where}, {shown}: a change of {cells['auroc']}."]
    if (low := moved["auroc"]["external_low"]) is not None and low <= 0.5:
        lines.append("That need not be better than chance.")
    sensitivity, specificity = (f"{_value(moved[n])}, a change of {cells[n]}" for n in ("sensitivity", "specificity"))
    lines.append(
        f"At the frozen threshold, {found['threshold']:.3f}, its sensitivity is {sensitivity}; its specificity {specificity}."
    )
    lines += [*_between_sites(found), _chosen_anew(found)]
    text = [" ".join(lines), _likeness(found)]
    if result.synthetic:
        text.append("**The images are synthetic**, drawn by a program: these figures test the software, not medicine.")
    return Markdown("\n\n".join(text))


def _between_sites(found: dict) -> list[str]:
    """How far apart the sites are, where there are several."""
    told = []
    for name in ("sensitivity", "specificity"):
        rows = [row for row in found["subgroups"] if row["part"].startswith(SITE) and row[name] is not None]
        if len(rows) > 1:
            least, most = (pick(rows, key=lambda row: row[name]) for pick in (min, max))
            told.append(f"{name} from {least[name]:.3f} ({least['part']}) to {most[name]:.3f} ({most['part']})")
    return [f"Between its sites: {', '.join(told)}."] if told else []


def _value(row: dict) -> str:
    return interval(row["external"], row["external_low"], row["external_high"])


def _verdict(row: dict) -> str:
    """`lower`, `higher`, `same` (no difference is shown) or `unknown`."""
    if row["difference_low"] is None:
        return "unknown"
    return "lower" if row["difference_high"] < 0 else "higher" if row["difference_low"] > 0 else "same"


def _opening(lost: dict[str, str]) -> str:
    if lost["auroc"] == "unknown":
        return "**Whether it holds cannot be said**: an interval cannot be computed."
    if lost["auroc"] == "lower":
        return "**No, it does not hold.**"
    calls = [METRIC_NAMES[name].lower() for name in ("sensitivity", "specificity") if lost[name] in ("lower", "higher")]
    if any(lost[name] == "unknown" for name in ("sensitivity", "specificity")):
        return (
            "**It still ranks the images; whether its threshold holds cannot be said**: an interval cannot be computed."
        )
    if calls:
        return f"**In part**: it still ranks the images, and its threshold does not carry over ({' and '.join(calls)} moved)."
    return "**No loss is shown**, which is no proof that there is none: the intervals say how large one may be."


def _chosen_anew(found: dict) -> str:
    rows = {row["metric"]: row for row in found["thresholds"] if row["name"] == "recalibrated"}
    changes = " and ".join(
        f"{name} by {interval(*(rows[name][key] for key in ('difference', 'difference_low', 'difference_high')), signed=True)}"
        for name in ("sensitivity", "specificity")
    )
    return (
        f"A threshold chosen anew on {found['recalibration']['images']} images of this source, {found['recalibration']['threshold']:.3f}, "
        f"would change {changes}; the order of the scores, and so the AUROC, no threshold and no calibration can mend."
    )


def _likeness(found: dict) -> str:
    rates = next(row for row in found["alarms"] if row["kind"] == "any")
    usual = "" if rates["false_alarms"] is None else f" ({rates['false_alarms']:.1%} on validation)"
    return (
        f"Of these images {rates['flagged']:.0%}{usual} look unlike training by size, exposure, colour or content. The figures are "
        f"those of this one source, with its patients, devices and labels: another one needs its own look."
    )
