"""Sentences and tables for pages, made from results. No number on a page is typed by hand."""

from html import escape

import pandas as pd
from IPython.display import HTML, Markdown

from pneumolib.data.manifest import Manifest
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.evaluation.threshold import Threshold
from pneumolib.params import ModelParams
from pneumolib.reporting.results import Result, figure_words, in_words, interval, metrics_of, plain
from pneumolib.reporting.run_words import change_to_test, interval_method


def data_summary(manifest: Manifest, split: pd.DataFrame) -> Markdown:
    """How many images and patients there are, where they went, and what was left out."""
    parts = split.groupby("split").agg(
        images=("image_id", "size"), groups=("group_id", "nunique"), share=("label", "mean")
    )
    lines = [
        f"- **{part.Index}**: {part.images} images of {part.groups} groups, {part.share:.1%} pneumonia"
        for part in parts.loc[["train", "val", "test"]].itertuples()
    ]
    per_group = manifest.table.groupby("kind").group_id.value_counts().groupby("kind").mean()
    sizes = ", ".join(f"{kind} {mean:.1f}" for kind, mean in per_group.items())
    aspect = (manifest.table.width_px / manifest.table.height_px).groupby(manifest.table.label).median()
    n_same = int(manifest.table.sha256.duplicated().sum())
    lines += [
        f"- Images per group (the archive's stand-in for a patient): {sizes}.",
        f"- The median aspect ratio is {aspect[0]:.2f} for normal and {aspect[1]:.2f} for pneumonia.",
        f"- {n_same} files repeat the bytes of another; {len(manifest.problems)} files were left out as unusable.",
    ]
    return Markdown("\n".join(lines))


def metric_words(table: pd.DataFrame) -> pd.DataFrame:
    """`evaluation.metric_table` for reading: `Metric`, `Value (interval)`."""
    entries = metrics_of(table)
    names = [METRIC_NAMES[name] for name in entries]
    return pd.DataFrame({"Metric": names, "Value (interval)": map(in_words, entries.values())})


def threshold_summary(threshold: Threshold) -> Markdown:
    """The frozen threshold and what it gave on validation."""
    return Markdown(
        f"Threshold: **{threshold.value:.3f}** ({threshold.rule}). On validation it gives a sensitivity of "
        f"{threshold.sensitivity:.3f} and a specificity of {threshold.specificity:.3f}."
    )


def show(table: pd.DataFrame, empty: str = "nothing to show") -> HTML:
    """A table without pandas's row numbers, or the words for an empty one."""
    return HTML(table.to_html(index=False, border=0) if len(table) else f"<p>{escape(empty)}</p>")


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on demand."""
    return HTML(f"<details><summary>{escape(title)}</summary>{show(table).data}</details>")


def trained_and_frozen(layers: pd.DataFrame) -> Markdown:
    """How many weights each part of a network has, and how many of them are trained; by `learning.summary_table`."""
    parts = layers.groupby("part", sort=False)[["parameters", "trainable"]].sum()
    lines = [
        f"- **{part.Index}**: {part.parameters:,} weights, {_trained(part.trainable, part.parameters)}"
        for part in parts[parts.parameters > 0].itertuples()
    ]
    total, trained = int(layers.parameters.sum()), int(layers.trainable.sum())
    return Markdown("\n".join([f"{trained:,} of {total:,} weights are trained.", "", *lines]))


def _trained(trainable: int, parameters: int) -> str:
    # Running averages of BatchNormalization are weights, but no gradient moves them.
    return "all frozen" if not trainable else f"{trainable:,} trained ({trainable / parameters:.1%})"


def backbone_origin(model: ModelParams) -> Markdown:
    """Where a backbone's weights come from, in a sentence."""
    if model.from_file:
        return Markdown(
            f"The backbone is read from `{model.backbone}`, which wants pixels prepared as `{model.preprocess}`."
        )
    if model.weights == "none":
        return Markdown(
            f"The backbone is {model.backbone} **with random weights**: it has learned nothing, so this page tests the "
            f"software. `model.weights: imagenet`, or the path of a weights file, gives it what transfer learning is about."
        )
    source = "its ImageNet weights" if model.weights == "imagenet" else f"the weights in `{model.weights}`"
    return Markdown(f"The backbone is {model.backbone} with {source}.")


def change_of(compared: pd.DataFrame) -> dict[str, float | None]:
    """The second row of `evaluation.compare_auroc` against the first, as plain values; null where not computable."""
    before, after = compared.itertuples()
    values = {"auroc_before": before.auroc, "auroc_after": after.auroc, "difference": after.difference,
              "low": after.difference_low, "high": after.difference_high}  # fmt: skip
    return plain(values)


def change_summary(change: dict[str, float | None], before: str) -> Markdown:
    """What `change_of` says of two networks, in words."""
    low, high = change["low"], change["high"]
    difference = interval(change["difference"], low, high, signed=True)
    if change["difference"] is None:
        return Markdown(f"The AUROC cannot be computed on test, so that no change from {before} can be named.")
    if low is None:
        verdict = "Whether that is a difference cannot be said: the resamples give no interval."
    elif low > 0 or high < 0:
        verdict = f"The interval excludes zero: on these images the network is {'better' if low > 0 else 'worse'} than before."
    else:
        verdict = "The interval includes zero: no difference is shown."
    return Markdown(
        f"{before}: test AUROC {change['auroc_before']:.3f}. Now: {change['auroc_after']:.3f}, a change of {difference}. "
        + verdict
    )


def result_summary(result: Result) -> Markdown:
    """What a training run found, read from its `result.json`."""
    validation, test = (result.own("auroc", part) for part in ("validation", "test"))
    moved = change_to_test(result)
    drop = "" if moved is None else f" From validation to test the AUROC changes by {moved:+.3f}."
    t = result.threshold
    lines = [
        f"The test AUROC is **{in_words(test)}**; on validation it is {in_words(validation)}.{drop}",
        f"The threshold, {t.value:.3f} ({t.rule}), was frozen on validation, where it gave a sensitivity of "
        f"{t.sensitivity:.3f} and a specificity of {t.specificity:.3f}. On test it gives "
        f"{in_words(result.own('sensitivity'))} and {in_words(result.own('specificity'))}.",
        _training_words(result.facts),
        f"Brackets hold {interval_method(result)}",
    ]
    if result.seeds() > 1:
        lines.insert(
            1,
            f"That is one seed of {result.seeds()}, whose mean is **{in_words(result.metric('auroc'))}**: quote that.",
        )
    if result.synthetic:
        lines.append("**The images are synthetic**, drawn by a program: these figures test the software, not medicine.")
    return Markdown("\n\n".join(lines))


def _training_words(facts: dict) -> str:
    """How the training went: epochs, the kept one, and whether more might have helped."""
    if not facts["floors_exceeded"]:
        return f"No epoch of {facts['epochs']} exceeded all floors of `training.floors`: the weights are those of the last."
    late = facts["best_epoch"] == facts["epochs"] > 1
    words = f"Validation was best in epoch {facts['best_epoch']} of {facts['epochs']}, whose weights were kept"
    return f"{words}; it was the last one, and more epochs might help." if late else f"{words}."


# Of the metrics, those that fit beside each other; `leaderboard.csv` has them all.
_LEADING = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "brier")


def leaderboard_words(board: pd.DataFrame) -> pd.DataFrame:
    """`results.leaderboard` for reading, intervals folded into one column a metric."""
    table = pd.DataFrame({"Run": board.run, "AUROC (validation)": board.validation_auroc.map(figure_words)})
    for name in _LEADING:
        columns = zip(board[name], board[f"{name}_low"], board[f"{name}_high"], strict=True)
        table[METRIC_NAMES[name]] = [interval(*cells) for cells in columns]
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
    best = board.iloc[0]
    place = (
        f"is the best of {len(board)} runs on validation, with an AUROC of"
        if len(board) > 1
        else "is the only run; its validation AUROC is"
    )
    auroc, sensitivity, specificity = (
        interval(*best[[name, f"{name}_low", f"{name}_high"]]) for name in ("auroc", "sensitivity", "specificity")
    )
    return Markdown(
        f"**{best.run}** {place} {figure_words(best.validation_auroc)}. On test it reaches an AUROC of {auroc}, a sensitivity of "
        f"{sensitivity} and a specificity of {specificity} at the frozen threshold. The order of the table is that of "
        f"validation; test plays no part in it."
    )
