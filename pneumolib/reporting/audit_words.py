"""Sentences and tables about the audit of images, made from results. No number on a page is typed by hand."""

import json
from collections.abc import Iterable
from html import escape

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.audit.features import CONSTANT
from pneumolib.audit.groups import Finding, shared_groups
from pneumolib.data.manifest import Manifest
from pneumolib.params import RunParams
from pneumolib.reporting.results import Result, interval

MARKS = {"ok": "✓ fine", "note": "• note", "warning": "▲ warning", "error": "✗ error"}


BACKGROUND = (
    "**Background.** The archive that this repository is built for holds 5,856 frontal (antero-posterior) radiographs of "
    "children of one to five years, taken in routine care at one hospital in Guangzhou (Kermany, Zhang and Goldbaum, "
    "Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0; Kermany et al., Cell 2018;172:1122-1131). Two physicians graded "
    "each, and a third checked the test images. Labels are normal or pneumonia, and pneumonia is bacterial or viral. Age, "
    "sex and dates of the single child were not published."
)


def background_words(params: RunParams) -> Markdown:
    """Who was imaged, where and when, as far as this source tells."""
    if params.data.source in ("csv", "npz"):
        return Markdown(
            "**Background.** Who was imaged, where and when, this source does not say: it names files and labels."
        )
    drawn = " The study at hand draws look-alikes in the same layout, with the same traps."
    return Markdown(BACKGROUND + (drawn if params.data.source == "synthetic" else ""))


def interval_words(params: RunParams) -> Markdown:
    """What the numbers in brackets are, and what AUROC means."""
    return Markdown(
        f"**How to read the numbers.** AUROC is the share of pairs, one image of each class, that a score puts in the right "
        f"order: 0.5 is a coin's, 1 is perfect. Brackets hold {params.evaluation.confidence:.0%} intervals: whole groups are "
        f"drawn again and again within each class, {params.evaluation.resamples} times, because images of one patient "
        f"resemble each other. SD is the standard deviation. The quantisation table is how coarsely a JPEG file was saved."
    )


def origin_words(manifest: Manifest, params: RunParams) -> Markdown:
    """What a group is in this source, and where validation comes from."""
    table = manifest.table
    groups = (
        "A **group** stands for a child. File names carry a number, but it starts again for each series (`bacteria`, "
        "`virus`, `IM`, `NORMAL2-IM`), so the group is series *and* number."
    )
    if len(shared_groups(table)) == 1:  # ids of another form than the archive's
        groups = "A **group** stands for a patient, as the source names it in `group_id`."
        if table.group_id.is_unique:
            groups = "Each image is a **group** of its own: either one was taken of each patient, or they are unknown."
    in_val = int((table.source_split == "val").sum())
    if params.split.validation == "as_published":
        validation = f"Validation is the source's own, {in_val} images; no group may stand on both sides of it."
    elif in_val:
        validation = (
            f"The source's own `val` split ({in_val} images) joins the training pool, and validation is cut anew."
        )
    else:
        validation = "Validation is cut from the training pool."
        if params.data.val_folder == "leave_out":
            validation += " Images of the source's own `val` split, where there is one, are left out."
    return Markdown(f"{groups} {validation}")


def key_words(table: pd.DataFrame) -> Markdown:
    """Why there are three keys, or why there is only one."""
    if len(shared_groups(table)) == 1:
        return Markdown("Groups are those of the source; there is no number in them that could be read in another way.")
    return Markdown(
        "The same images under three keys. The first is ours. The others forget part of the series; they are popular, and "
        "can find one number in both training and test. Numbers restart for each series, so an equal number in another series "
        "is another child as far as anyone can tell; no table of patients was ever published to settle it. "
        "Test images concerned are written to `sensitivity_exclusions.csv`, for an evaluation that leaves them out: join "
        "it with `predictions.csv` by `image_id`."
    )


def findings_table(findings: Iterable[Finding]) -> HTML:
    """One row a finding: verdict, what it says."""
    rows = [
        f'<tr><td class="verdict-{f.verdict}" style="white-space: nowrap">{MARKS[f.verdict]}</td>'
        f'<td style="text-align: left; white-space: normal; overflow-wrap: anywhere">{escape(f.sentence)}</td></tr>'
        for f in findings
    ]
    return HTML(
        f"<table><thead><tr><th>Verdict</th><th>Finding</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def exploration_summary(result: Result) -> Markdown:
    """What the exploration found, read from its `result.json`: errors and warnings first."""
    data, findings = result.data, result.checks["audit"]
    lines = [f"{data.images} images of {data.groups} groups are usable, {data.left_out} files are not."]
    for verdict, words in (("error", "Errors"), ("warning", "Warnings")):
        chosen = [f["sentence"] for f in findings.values() if f["verdict"] == verdict]
        if chosen:
            lines += [f"**{words}**", "\n".join(f"- {sentence}" for sentence in chosen)]
    if len(lines) == 1:
        lines.append("The audit found nothing to warn of.")
    if result.synthetic:
        lines.append(
            "**The images are synthetic**: the traps were drawn into them, so that the audit has some to find."
        )
    return Markdown("\n\n".join(lines))


def shared_words(shared: pd.DataFrame) -> pd.DataFrame:
    """`audit.shared_groups`, for reading."""
    titles = {
        "key": "A patient is a",
        "groups": "Groups",
        "shared": "In training pool and test",
        "test_images": "Test images of these",
    }
    return shared.rename(columns=titles)


TITLES = {
    "log2_width_px": "width", "log2_height_px": "height", "log2_aspect": "width / height",
    "log2_bytes_per_px": "bytes per pixel", "log2_quantisation_sum": "JPEG quantisation", "is_jpeg": "file format",
    "mean_intensity": "mean grey value", "sd_intensity": "SD of grey values",
}  # fmt: skip


def feature_words(table: pd.DataFrame) -> pd.DataFrame:
    """`audit.feature_table`, for reading, without constant facts."""
    table = table[table.in_words != CONSTANT]
    return pd.DataFrame(
        {
            "Fact of the file": _titles(table.feature),
            "Reads as": table.in_words,
            "AUROC alone, training pool": _intervals(table, "pool"),
            "AUROC alone, test": _intervals(table, "test"),
        }
    )


def coefficient_words(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Coefficients of `audit.judge_shortcut`, for reading: what one standard deviation more does to the odds."""
    coefficients = coefficients[coefficients.in_words != CONSTANT]
    return pd.DataFrame(
        {
            "Fact of the file": _titles(coefficients.feature),
            "Reads as": coefficients.in_words,
            "One SD more multiplies the odds of pneumonia by": coefficients.odds_ratio.map("{:.2f}".format),
        }
    )


def table_facts(table: pd.DataFrame) -> list[dict]:
    """A table of the audit for `result.json`: a dict a row, NaN as null."""
    return json.loads(table.to_json(orient="records"))


def constant_words(coefficients: pd.DataFrame) -> Markdown:
    """Which facts are the same for all images of the training pool."""
    names = _titles(coefficients.feature[coefficients.in_words == CONSTANT])
    return Markdown(f"The same for all images of the training pool, and left out here: {', '.join(names) or 'none'}.")


def _titles(features: pd.Series) -> pd.Series:
    return features.map(lambda name: TITLES.get(name, name.replace("mode_", "stored as ")))


def cure_words(cures: pd.DataFrame) -> pd.DataFrame:
    """`audit.mitigation_table`, for reading; changes are from the first row of the files and of the network's input."""
    starts = cures.groupby("seen").head(1).index
    return pd.DataFrame(
        {
            "Cure": cures.cure,
            "Images": cures.images,
            "AUROC of file facts, cross-validated": _intervals(cures, "cv"),
            "Change, cross-validated": [
                "" if pd.isna(c.change) or i in starts else interval(c.change, c.change_low, c.change_high, signed=True)
                for i, c in enumerate(cures.itertuples())
            ],
            "AUROC of file facts, test": _intervals(cures, "test"),
        }
    )


def _intervals(table: pd.DataFrame, column: str) -> list[str]:
    ends = zip(table[column], table[f"{column}_low"], table[f"{column}_high"], strict=True)
    return [interval(*values) for values in ends]
