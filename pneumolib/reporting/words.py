"""What a notebook says and shows: passages and tables of `prose`, those that need figures computed first, and how tables look.

No number on a page is typed by hand.
"""

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.compare import CHANGED
from pneumolib.reporting.figures import named
from pneumolib.reporting.prose import PARTS, WAYS, say, sentence, templates
from pneumolib.reporting.prose import table as table  # a notebook takes both from here
from pneumolib.reporting.results import NOT_COMPUTABLE, plain
from pneumolib.reporting.session import numbered
from pneumolib.text import csv_cell, html_text, visible

# What `interval` writes: a value, and its limits or the word that there are none.
_ESTIMATE = re.compile(r"([-+]?\d[-+.e\d]*) \((?:(?P<low>[-+.e\d]+) to (?P<high>[-+.e\d]+)|no interval)\)")


def show(table: pd.DataFrame, empty: str = "nothing to show", caption: str = "") -> HTML:
    """A table with number and caption, or the words for an empty one; its CSV goes to the run's folder.

    Args:
        table: an interval stands below its value; in the CSV value, low and high are columns.
        caption: of a table that has none of its own, see `prose.table`.
    """
    if not len(table):
        return HTML(f"<p>{html_text(empty)}</p>")
    title, data = _shown(table, caption)
    return HTML(f"<figure><figcaption>{title}</figcaption>{data}</figure>")


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on demand."""
    words, data = _shown(table, title) if len(table) else (html_text(title), "")
    return HTML(f"<details><summary>{words}</summary>{data}</details>")


def _shown(table: pd.DataFrame, caption: str) -> tuple[str, str]:
    """Number with caption, and the table, as HTML; writes the CSV."""
    caption = caption or table.attrs.get("caption", "")
    label, file = numbered("Table", table.attrs.get("name") or named(caption))
    if file:
        for_people = spread_out(table).map(csv_cell).rename(columns=csv_cell)
        for_people.to_csv(file.with_suffix(".csv"), index=False, lineterminator="\n")
    with pd.option_context("display.max_colwidth", None):
        data = table.map(visible).rename(columns=visible).to_html(index=False, border=0, na_rep=NOT_COMPUTABLE)
    if len(table.columns) > 2:  # limits stand below the value, so that more columns fit
        data = _ESTIMATE.sub(
            lambda cell: cell[0].replace(" (", "<br><small>(", 1).replace(" to", "&nbsp;to") + "</small>", data
        )
    wide = " wide" if len(table.columns) > 6 else ""
    return f"<strong>{label}.</strong> {html_text(caption)}", f'<div class="scroll{wide}" tabindex="0">{data}</div>'


def spread_out(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, with `<column> low` and `<column> high` behind each column of intervals."""
    columns = {}
    for name, cells in table.items():
        found = cells.astype(str).str.extract(f"^{_ESTIMATE.pattern}$")
        columns[name] = cells.where(found[0].isna(), found[0])
        if found[0].notna().any():
            columns |= {f"{name} {end}": found[end] for end in ("low", "high")}
    return pd.DataFrame(columns)


def findings_table(findings: Iterable[Any]) -> HTML:
    """One row an `audit.Finding`: verdict, what it says."""
    return HTML(templates("html").get_template("findings.html.j2").render(findings=as_checks(findings).values()))


def as_checks(findings: Iterable[Any]) -> dict[str, dict]:
    """`{name: {"verdict", "value", "low", "high", "sentence"}}`, for `result.json`; of two of one name the last."""
    return {
        found.name: {"verdict": found.verdict, "value": found.value, "low": found.low, "high": found.high,
                     "sentence": sentence(f"findings.{found.passage}", found)}
        for found in findings
    }  # fmt: skip


def data_summary(manifest: Manifest, split: pd.DataFrame) -> Markdown:
    """How many images and patients there are, where they went, and what was left out."""
    table = manifest.table
    return say(
        "training.data",
        parts={part: _sizes(split[split.split == part]) for part in ("train", "val", "test")},
        kinds=table.groupby("kind").group_id.value_counts().groupby("kind").mean().to_dict(),
        aspect=(table.width_px / table.height_px).groupby(table.label).median().to_dict(),
        same=int(table.sha256.duplicated().sum()),
        problems=int(manifest.problems.files.sum()),
    )


def source_summary(source: Manifest, table: pd.DataFrame, share_before: float) -> Markdown:
    """How many images of the other source there are, what was left out, and how they were cut.

    Args:
        source: all that could be read.
        table: from `data.split_external`.
        share_before: of pneumonia in the study's own test.
    """
    return say(
        "external.source",
        all=_sizes(table),
        share_before=share_before,
        left_out=len(source.table) - len(table),
        problems=int(source.problems.files.sum()),
        sites=table.site[table.site != ""].value_counts().sort_index().to_dict(),
        parts={part: _sizes(table[table.part == part]) for part in ("recalibration", "evaluation")},
    )


def _sizes(rows: pd.DataFrame) -> dict[str, float]:
    return {"images": len(rows), "groups": rows.group_id.nunique(), "share": rows.label.mean()}


def trained_and_frozen(layers: pd.DataFrame) -> Markdown:
    """How many weights each part of a network has, and how many of them are trained; by `learning.summary_table`."""
    # Running averages of BatchNormalization are weights, but no gradient moves them.
    parts = layers.groupby("part", sort=False)[["parameters", "trainable"]].sum()
    return say("training.weights", all=parts.sum().to_dict(), parts=parts[parts.parameters > 0].to_dict("index"))


def robustness_summary(table: pd.DataFrame, images: int) -> Markdown:
    """What each change does at its worst, and which do no harm; from `evaluation.robustness_table`."""
    changed = table[table.corruption != "none"].dropna(subset=["auroc_change"])
    worst = changed.loc[changed.groupby("corruption").auroc_change.idxmin()].sort_values("auroc_change")
    # Where all resamples agree there is no interval: a metric that did not move did not fall.
    fell = [(changed[f"{name}_change"] < 0) & ~(changed[f"{name}_change_high"] >= 0) for name in CHANGED]
    unhurt = sorted(set(changed.corruption) - set(changed.corruption[pd.concat(fell, axis=1).any(axis=1)]))
    return say("evaluation.robustness", images, changed.severity.nunique(), worst, unhurt)


def change_of(compared: pd.DataFrame) -> dict[str, float | None]:
    """The second row of `evaluation.compare_auroc` against the first, as plain values; null where not computable."""
    before, after = compared.itertuples()
    return plain({"auroc_before": before.auroc, "auroc_after": after.auroc, "difference": after.difference,
                  "low": after.difference_low, "high": after.difference_high})  # fmt: skip


def comparison_table(compared: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """For `data_plots.auroc_intervals`: `name`, and AUROC with its limits for each split.

    Args:
        compared: split to `evaluation.compare_auroc` of the ways of equalisation.
    """
    columns = {"name": compared["val"].name.map(WAYS)}
    for part, rows in compared.items():
        columns |= {f"{PARTS[part]}{end}": rows[f"auroc{end}"].to_numpy() for end in ("", "_low", "_high")}
    return pd.DataFrame(columns)


def comparison_facts(compared: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The same for `result.json`: split to way to figures; NaN becomes null."""
    ways = {part: table.set_index("name").map(lambda v: round(float(v), 6)) for part, table in compared.items()}
    return plain({part: table.to_dict("index") for part, table in ways.items()})


def training_facts(histories: dict[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Epochs of each training and the one that was kept, for `result.json`."""
    return {
        way: {"epochs": len(history), "best_epoch": int(history.epoch[history.val_auroc.idxmax()])}
        for way, history in histories.items()
    }
