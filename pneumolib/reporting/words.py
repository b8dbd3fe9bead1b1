"""Sentences and tables of a training run, made from results. No number on a page is typed by hand."""

from html import escape

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.data.facts import FACTS, KINDS
from pneumolib.data.manifest import Manifest
from pneumolib.data.ood import QUANTILES, TrainingReference
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.evaluation.threshold import Threshold
from pneumolib.params import ModelParams
from pneumolib.reporting.prose import say
from pneumolib.reporting.results import Result, figure_words, in_words, interval, intervals, metrics_of, plain
from pneumolib.reporting.run_words import change_to_test, fact


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
    """`evaluation.metric_table` for reading: `Metric`, `Value (interval)`."""
    entries = metrics_of(table)
    names = [METRIC_NAMES[name] for name in entries]
    return pd.DataFrame({"Metric": names, "Value (interval)": map(in_words, entries.values())})


def threshold_summary(threshold: Threshold) -> Markdown:
    """The frozen threshold and what it gave on validation."""
    return say("training.threshold", t=threshold)


def show(table: pd.DataFrame, empty: str = "nothing to show") -> HTML:
    """A table without pandas's row numbers, or the words for an empty one."""
    return HTML(table.to_html(index=False, border=0) if len(table) else f"<p>{escape(empty)}</p>")


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on demand."""
    return HTML(f"<details><summary>{escape(title)}</summary>{show(table).data}</details>")


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
    return plain(values)


def change_summary(change: dict[str, float | None], before: str) -> Markdown:
    """What `change_of` says of two networks, in words."""
    words = interval(change["difference"], change["low"], change["high"], signed=True)
    return say("training.change", change=change | {"words": words}, before=before)


def result_summary(result: Result) -> Markdown:
    """What a training run found, read from its `result.json`."""
    return say(
        "training.result",
        r=result,
        t=result.threshold,
        facts=result.facts,
        moved=change_to_test(result),
        method=fact("interval_method", result),
    )


# Of the metrics, those that fit beside each other; `leaderboard.csv` has them all.
_LEADING = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "brier")


def leaderboard_words(board: pd.DataFrame) -> pd.DataFrame:
    """`results.leaderboard` for reading, intervals folded into one column a metric."""
    table = pd.DataFrame({"Run": board.run, "AUROC (validation)": board.validation_auroc.map(figure_words)})
    for name in _LEADING:
        table[METRIC_NAMES[name]] = intervals(board, name)
    table["Threshold"] = board.threshold.map("{:.3f}".format)
    if (board.seeds > 1).any():
        seeds = zip(board.seeds, board.auroc_sd, strict=True)
        table["Seeds"] = [f"mean of {n}, SD {sd:.3f}" if n > 1 else "1" for n, sd in seeds]
    return table


def cost_words(board: pd.DataFrame) -> pd.DataFrame:
    """What each run of `results.leaderboard` cost, for reading."""

    def shown(name: str, form: str) -> list[str]:
        return ["not measured" if pd.isna(value) else form.format(value) for value in board[name]]

    return pd.DataFrame({
        "Run": board.run, "Weights": shown("parameters", "{:,.0f}"), "Epochs": shown("epochs", "{:.0f}"),
        "Training, minutes": shown("minutes", "{:.1f}"), "Prediction, ms an image": shown("milliseconds_per_image", "{:.1f}"),
    })  # fmt: skip


def comparison_summary(board: pd.DataFrame, study: str) -> Markdown:
    """Which run validation would choose, and what it then reaches on test."""
    if board.empty:
        return Markdown(f"No training run of study `{study}` has finished yet: `make report STUDY={study}` runs them.")
    return say("training.comparison", best=board.iloc[0].to_dict(), runs=len(board))


FACT_NAMES = {name: FACTS[name].title for name in KINDS}


def ood_words(ood: TrainingReference) -> pd.DataFrame:
    """One row a fact: median and middle 95% of the training images, and the limits of a warning."""
    low, median, high = (QUANTILES.index(q) for q in (0.025, 0.5, 0.975))
    spread = ood.quantiles
    return pd.DataFrame({
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
