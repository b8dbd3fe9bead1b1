"""Sentences and tables of a training run, made from results, and how every table of a page is shown.

No number on a page is typed by hand.
"""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.data.facts import FACTS, KINDS, QUANTILES, TrainingReference
from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.calibration import Threshold
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.params import ModelParams
from pneumolib.reporting import results
from pneumolib.reporting.figures import named
from pneumolib.reporting.prose import say
from pneumolib.reporting.session import numbered

# What `interval` writes: a value, and its limits or the word that there are none.
_ESTIMATE = re.compile(r"([-+]?\d[-+.e\d]*) \((?:(?P<low>[-+.e\d]+) to (?P<high>[-+.e\d]+)|no interval)\)")


def data_summary(manifest: Manifest, split: pd.DataFrame) -> Markdown:
    """How many images and patients there are, where they went, and what was left out."""
    parts = split.groupby("split").agg(
        images=("image_id", "size"), groups=("group_id", "nunique"), share=("label", "mean")
    )
    table = manifest.table
    return say(
        "training.data",
        parts=parts.loc[["train", "val", "test"]].to_dict("index"),
        kinds=table.groupby("kind").group_id.value_counts().groupby("kind").mean().to_dict(),
        aspect=(table.width_px / table.height_px).groupby(table.label).median(),
        same=int(table.sha256.duplicated().sum()),
        problems=len(manifest.problems),
    )


def metric_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.metric_table` for reading, or `evaluation.own_metrics`: `Metric`, `Value (interval)`."""
    names = [METRIC_NAMES.get(name, name) for name in table.metric]
    values = map(results.interval, table.value, table.low, table.high)
    columns = {"Metric": names, "Value (interval)": values}
    return titled("metrics", "Metrics with intervals, at the frozen threshold.", columns)


def threshold_summary(threshold: Threshold) -> Markdown:
    """The frozen threshold and what it gave on validation."""
    return say("training.threshold", t=threshold)


def titled(name: str, caption: str, columns: Mapping[str, Any]) -> pd.DataFrame:
    """A table for reading that knows its caption, and the name of its file `tables/<name>.csv`."""
    table = pd.DataFrame({title: list(cells) for title, cells in columns.items()})
    table.attrs = {"name": name, "caption": caption}
    return table


def show(table: pd.DataFrame, empty: str = "nothing to show", caption: str = "") -> HTML:
    """A table with number and caption, or the words for an empty one; its CSV goes to the run's folder.

    Args:
        table: an interval stands below its value; in the CSV value, low and high are columns.
        caption: of a table that has none of its own, see `titled`.
    """
    if not len(table):
        return HTML(f"<p>{escape(empty)}</p>")
    title, data = _shown(table, caption)
    return HTML(f"<figure><figcaption>{title}</figcaption>{data}</figure>")


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on demand."""
    words, data = _shown(table, title) if len(table) else (escape(title), "")
    return HTML(f"<details><summary>{words}</summary>{data}</details>")


def _shown(table: pd.DataFrame, caption: str) -> tuple[str, str]:
    """Number with caption, and the table, as HTML; writes the CSV."""
    caption = caption or table.attrs.get("caption", "")
    label, file = numbered("Table", table.attrs.get("name") or named(caption))
    if file:
        spread_out(table).to_csv(file.with_suffix(".csv"), index=False, lineterminator="\n")
    with pd.option_context("display.max_colwidth", None):
        data = table.to_html(index=False, border=0, na_rep=results.NOT_COMPUTABLE)
    if len(table.columns) > 2:  # limits stand below the value, so that more columns fit
        data = _ESTIMATE.sub(
            lambda cell: cell[0].replace(" (", "<br><small>(", 1).replace(" to", "&nbsp;to") + "</small>", data
        )
    wide = " wide" if len(table.columns) > 6 else ""
    return f"<strong>{label}.</strong> {escape(caption)}", f'<div class="scroll{wide}" tabindex="0">{data}</div>'


def spread_out(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, with `<column> low` and `<column> high` behind each column of intervals."""
    columns = {}
    for name, cells in table.items():
        found = [_ESTIMATE.fullmatch(str(cell)) for cell in cells]
        columns[name] = [one[1] if one else cell for one, cell in zip(found, cells, strict=True)]
        if any(found):
            columns |= {f"{name} {end}": [one and one[end] for one in found] for end in ("low", "high")}
    return pd.DataFrame(columns)


def trained_and_frozen(layers: pd.DataFrame) -> Markdown:
    """How many weights each part of a network has, and how many of them are trained; by `learning.summary_table`."""
    # Running averages of BatchNormalization are weights, but no gradient moves them.
    parts = layers.groupby("part", sort=False)[["parameters", "trainable"]].sum()
    total, trained = layers[["parameters", "trainable"]].sum()
    return say("training.weights", total=total, trained=trained, parts=parts[parts.parameters > 0].to_dict("index"))


def backbone_origin(model: ModelParams) -> Markdown:
    """Where a backbone's weights come from, in a sentence."""
    return say("training.backbone", model=model)


def change_of(compared: pd.DataFrame) -> dict[str, float | None]:
    """The second row of `evaluation.compare_auroc` against the first, as plain values; null where not computable."""
    before, after = compared.itertuples()
    values = {"auroc_before": before.auroc, "auroc_after": after.auroc, "difference": after.difference,
              "low": after.difference_low, "high": after.difference_high}  # fmt: skip
    return results.plain(values)


def change_summary(change: dict[str, float | None], before: str) -> Markdown:
    """What `change_of` says of two networks, in words."""
    words = results.interval(change["difference"], change["low"], change["high"], signed=True)
    return say("training.change", change=change | {"words": words}, before=before)


# Of the metrics, those that fit beside each other; `leaderboard.csv` has them all.
_LEADING = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "brier")


def leaderboard_words(board: pd.DataFrame) -> pd.DataFrame:
    """`results.leaderboard` for reading, intervals folded into one column a metric."""
    columns = {"Run": board.run, "AUROC (validation)": board.validation_auroc.map(results.figure_words)}
    columns |= {METRIC_NAMES[name]: results.intervals(board, name) for name in _LEADING}
    columns["Threshold"] = board.threshold.map(results.figure_words)
    if (board.seeds > 1).any():
        seeds = zip(board.seeds, board.auroc_sd, strict=True)
        columns["Seeds"] = [f"mean of {n}, SD {sd:.3f}" if n > 1 else "1" for n, sd in seeds]
    return titled("leaderboard", "Runs in the order of their validation AUROC, with metrics of test.", columns)


def cost_words(board: pd.DataFrame) -> pd.DataFrame:
    """What each run of `results.leaderboard` cost, for reading."""

    def shown(name: str, form: str) -> list[str]:
        return ["not measured" if pd.isna(value) else form.format(value) for value in board[name]]

    return titled("costs", "What each run cost.", {
        "Run": board.run, "Weights": shown("parameters", "{:,.0f}"), "Epochs": shown("epochs", "{:.0f}"),
        "Training, minutes": shown("minutes", "{:.1f}"), "Prediction, ms an image": shown("milliseconds_per_image", "{:.1f}"),
    })  # fmt: skip


FACT_NAMES = {name: FACTS[name].title for name in KINDS}


def ood_words(ood: TrainingReference) -> pd.DataFrame:
    """One row a fact: median and middle 95% of the training images, and the limits of a warning."""
    low, median, high = (QUANTILES.index(q) for q in (0.025, 0.5, 0.975))
    spread = ood.quantiles
    return titled("training-reference", "Training images: facts of an image, and the limits of a warning.", {
        "Fact of an image": FACT_NAMES.values(),
        "Training images: median": [f"{spread[fact][median]:.4g}" for fact in FACT_NAMES],
        "Middle 95%": [f"{spread[fact][low]:.4g} to {spread[fact][high]:.4g}" for fact in FACT_NAMES],
        "No warning within": ["{:.4g} to {:.4g}".format(*ood.limits[fact]) for fact in FACT_NAMES],
    })  # fmt: skip


def ood_summary(ood: TrainingReference) -> Markdown:
    """How often validation images would be warned of."""
    rates = ood.validation_warnings
    kinds = [f"{kind} {rate:.1%}" for kind, rate in rates.items() if kind != "any"]
    return say("training.ood", reference=ood, warned=rates["any"], kinds=kinds)
