"""Sentences and tables about the images, their audit and histogram equalisation, made from results."""

from collections.abc import Iterable
from html import escape

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.audit.groups import Finding, shared_groups
from pneumolib.data.facts import CONSTANT
from pneumolib.data.manifest import Manifest
from pneumolib.params import RunParams
from pneumolib.reporting.data_plots import WAYS
from pneumolib.reporting.prose import say
from pneumolib.reporting.results import Result, intervals
from pneumolib.reporting.words import titled

MARKS = {"ok": "✓ fine", "note": "• note", "warning": "▲ warning", "error": "✗ error"}


def background_words(params: RunParams) -> Markdown:
    """Who was imaged, where and when, as far as this source tells."""
    return say("audit.background", source=params.data.source)


def interval_words(params: RunParams) -> Markdown:
    """What the numbers in brackets are, and what AUROC means."""
    return say("audit.numbers", evaluation=params.evaluation)


def origin_words(manifest: Manifest, params: RunParams) -> Markdown:
    """What a group is in this source, and where validation comes from."""
    table = manifest.table
    return say(
        "audit.groups",
        archive=len(shared_groups(table)) > 1,  # else the ids are of another form than the archive's
        single=table.group_id.is_unique,
        in_val=int((table.source_split == "val").sum()),
        params=params,
    )


def key_words(table: pd.DataFrame) -> Markdown:
    """Why there are three keys, or why there is only one."""
    return say("audit.keys", archive=len(shared_groups(table)) > 1)


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


def shared_words(shared: pd.DataFrame) -> pd.DataFrame:
    """`audit.shared_groups`, for reading."""
    titles = {
        "key": "Key of a patient",
        "groups": "Groups",
        "shared": "In training pool and test",
        "test_images": "Test images of these",
    }
    caption = "Patients in training pool and test at the same time, by key."
    return titled("shared-patients", caption, shared.rename(columns=titles))


TITLES = {
    "log2_width_px": "width", "log2_height_px": "height", "log2_aspect": "width / height",
    "log2_bytes_per_px": "bytes per pixel", "log2_quantisation_sum": "JPEG quantisation", "is_jpeg": "file format",
    "mean_intensity": "mean grey value", "sd_intensity": "SD of grey values",
}  # fmt: skip


def feature_words(table: pd.DataFrame) -> pd.DataFrame:
    """`audit.feature_table`, for reading, without constant facts."""
    table = table[table.in_words != CONSTANT]
    return titled("file-facts", "AUROC of each fact of the file alone.", {
        "Fact of the file": _titles(table.feature),
        "Reads as": table.in_words,
        "AUROC, training pool": intervals(table, "pool"),
        "AUROC, test": intervals(table, "test"),
    })  # fmt: skip


def coefficient_words(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Coefficients of `audit.judge_shortcut`, for reading: what one standard deviation more does to the odds."""
    coefficients = coefficients[coefficients.in_words != CONSTANT]
    return titled("file-fact-odds", "Odds ratio of pneumonia for one standard deviation more, all facts together.", {
        "Fact of the file": _titles(coefficients.feature),
        "Reads as": coefficients.in_words,
        "Odds ratio": coefficients.odds_ratio.map("{:.2f}".format),
    })  # fmt: skip


def constant_words(coefficients: pd.DataFrame) -> Markdown:
    """Which facts are the same for all images of the training pool."""
    names = _titles(coefficients.feature[coefficients.in_words == CONSTANT])
    return Markdown(f"The same for all images of the training pool, and left out here: {', '.join(names) or 'none'}.")


def _titles(features: pd.Series) -> pd.Series:
    return features.map(lambda name: TITLES.get(name, name.replace("mode_", "stored as ")))


def mitigation_words(mitigations: pd.DataFrame) -> pd.DataFrame:
    """`audit.mitigation_table`, for reading; changes are from the first row of the files and of the network's input."""
    starts = mitigations.groupby("seen").head(1).index
    changes = pd.Series(intervals(mitigations, "change", signed=True), mitigations.index)
    return titled("mitigations", "AUROC of file facts after each mitigation.", {
        "Mitigation": mitigations.mitigation,
        "Images": mitigations.images,
        "Cross-validated": intervals(mitigations, "cv"),
        "Change, cross-validated": changes.mask(mitigations.change.isna() | mitigations.index.isin(starts), ""),
        "Test": intervals(mitigations, "test"),
    })  # fmt: skip


def distance_words(distances: dict[str, dict[str, float]]) -> pd.DataFrame:
    """`data.grey_distances` of each way, for reading."""
    titles = {
        "classes": "normal against pneumonia (training)",
        "shift_normal": "training against test, normal",
        "shift_pneumonia": "training against test, pneumonia",
    }
    rows = [{"Images": WAYS[way]} | {titles[k]: f"{v:.1f}" for k, v in d.items()} for way, d in distances.items()]
    return titled("grey-distances", "Distances of grey values, in grey values.", pd.DataFrame(rows))


def comparison_words(compared: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`evaluation.compare_auroc` of validation and test, for reading."""
    table = pd.DataFrame({"Images": compared["test"].name.map(WAYS)})
    for part, title in (("val", "validation"), ("test", "test")):
        rows = compared[part]
        table[f"AUROC, {title}"] = intervals(rows, "auroc")
        differences = pd.Series(intervals(rows, "difference", signed=True), rows.index)
        table[f"Difference, {title}"] = differences.mask(rows.name == "none", "").to_numpy()
    return titled("equalisation", "AUROC with each equalisation, and the paired difference from none.", table)


def comparison_table(compared: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The same for `data_plots.auroc_intervals`: `name`, and AUROC with its limits for validation and test."""
    table = pd.DataFrame({"name": compared["test"].name.map(WAYS)})
    for part, title in (("val", "validation"), ("test", "test")):
        for end in ("", "_low", "_high"):
            table[f"{title}{end}"] = compared[part][f"auroc{end}"].to_numpy()
    return table


def comparison_facts(compared: dict[str, pd.DataFrame]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The same for `result.json`: split to way to figures; NaN becomes null."""
    return {
        part: {
            row["name"]: {k: None if pd.isna(v) else round(float(v), 6) for k, v in row.items() if k != "name"}
            for row in table.to_dict("records")
        }
        for part, table in compared.items()
    }


def training_facts(histories: dict[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Epochs of each training and the one that was kept, for `result.json`."""
    return {
        way: {"epochs": len(history), "best_epoch": int(history.epoch[history.val_auroc.idxmax()])}
        for way, history in histories.items()
    }


def equalisation_summary(result: Result) -> Markdown:
    """What equalisation did to the scores, read from `result.json`."""
    return say("equalisation.summary", r=result, ways=WAYS)
