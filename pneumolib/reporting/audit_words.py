"""Sentences and tables about the audit of images, made from results. No number on a page is typed by hand."""

from collections.abc import Iterable
from html import escape

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.audit.findings import Finding
from pneumolib.reporting.results import Result
from pneumolib.reporting.words import interval

MARKS = {"ok": "✓ fine", "note": "• note", "warning": "▲ warning", "error": "✗ error"}


def findings_table(findings: Iterable[Finding]) -> HTML:
    """One row a finding: verdict, what it says."""
    rows = [
        f'<tr><td class="verdict-{f.verdict}" style="white-space: nowrap">{MARKS[f.verdict]}</td>'
        f'<td style="text-align: left; white-space: normal">{escape(f.sentence)}</td></tr>'
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
        "key": "A child is a",
        "groups": "Groups",
        "shared": "In training pool and test",
        "test_images": "Test images of these",
    }
    return shared.rename(columns=titles)


TITLES = {
    "log2_width_px": "width", "log2_height_px": "height", "log2_aspect": "width / height",
    "log2_bytes_per_px": "bytes per pixel", "log2_quantisation_sum": "JPEG quantisation",
    "mean_intensity": "mean grey value", "sd_intensity": "SD of grey values",
}  # fmt: skip


def feature_words(table: pd.DataFrame) -> pd.DataFrame:
    """`audit.feature_table`, for reading."""
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
    return pd.DataFrame(
        {
            "Fact of the file": _titles(coefficients.feature),
            "Reads as": coefficients.in_words,
            "One SD more multiplies the odds of pneumonia by": coefficients.odds_ratio.map("{:.2f}".format),
        }
    )


def _titles(features: pd.Series) -> pd.Series:
    return features.map(lambda name: TITLES.get(name, name.replace("mode_", "stored as ")))


def cure_words(cures: pd.DataFrame) -> pd.DataFrame:
    """`audit.cure_table`, for reading."""
    return pd.DataFrame(
        {
            "Cure": cures.cure,
            "Images": cures.images,
            "AUROC of file facts, cross-validated": _intervals(cures, "cv"),
            "AUROC of file facts, test": _intervals(cures, "test"),
        }
    )


def _intervals(table: pd.DataFrame, column: str) -> list[str]:
    ends = zip(table[column], table[f"{column}_low"], table[f"{column}_high"], strict=True)
    return [interval(*values) for values in ends]
