"""Figures of a frozen model on another source, one per function, from tables of `evaluation`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pneumolib.data.pixels import ImageSet
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting.external_words import CALIBRATION_NAMES
from pneumolib.reporting.figures import (
    COLOURS,
    NAMES,
    NEUTRAL,
    OTHERS,
    Plot,
    curve_with_band,
    dots,
    new_axes,
    reliability_curve,
    sample_grid,
    stacked_scores,
)
from pneumolib.reporting.results import figure_words
from pneumolib.reporting.words import FACT_NAMES

# The two sources; colours apart from those of the classes.
HERE, THERE = OTHERS[1], OTHERS[0]
SOURCES = {"test": ("the study's own test", THERE), "external": ("the other source", HERE)}


def side_by_side(own: ImageSet, others: ImageSet) -> Plot:
    """Some images of the study's own, above, and of the other source, as the network sees them; titles name site and class."""
    pixels, titles = [], []
    for images in (own, others):
        rows = images.table.sort_values(["site", "label"], kind="stable")
        pixels += [images.pixels[place] for place in rows.index]
        titles += [f"{row.site or 'the other source'}\n{NAMES[row.label]}" for row in rows.itertuples()]
    what = "The study's own images, above, and the other source's"
    return sample_grid(np.stack(pixels), titles, columns=len(own), what=what)


def drift(table: pd.DataFrame) -> Plot:
    """Median and middle 95% of each fact in training and in the other source, from `evaluation.drift_table`."""
    figure, axes = new_axes(3, width=9, height=1.4 * -(-len(table) // 3) + 0.4, rows=-(-len(table) // 3))
    for ax in axes[len(table) :]:
        ax.set_axis_off()
    for ax, row in zip(axes, table.itertuples(), strict=False):
        training = (row.training_low, row.training_median, row.training_high)
        for place, (ends, colour) in enumerate(((training, THERE), ((row.low, row.median, row.high), HERE))):
            ax.plot([ends[0], ends[2]], [place, place], color=colour, lw=6, solid_capstyle="round", alpha=0.6)
            ax.plot(ends[1], place, "o", color=colour, mec="white", ms=8)
        ax.set(ylim=(1.6, -0.6), yticks=[0, 1], yticklabels=["training", "here"])
        ax.set_title(f"{FACT_NAMES[row.fact]}", fontsize=9)
        ax.margins(x=0.08)
        if len({*training, row.low, row.high}) == 1:  # colour, where all files are grey
            ax.set_xlim(row.low - 1, row.low + 9)
        ax.locator_params(axis="x", nbins=4)
    words = "; ".join(
        f"{FACT_NAMES[r.fact]} training {r.training_median:.3g} ({r.training_low:.3g} to {r.training_high:.3g}), here {r.median:.3g} "
        f"({r.low:.3g} to {r.high:.3g})"
        for r in table.itertuples()
    )
    return Plot(figure, f"Median and middle 95% of facts of images, in training and in the other source: {words}.")


def frozen(bands: pd.DataFrame, differences: pd.DataFrame) -> Plot:
    """ROC curves of both sources with bands and the frozen threshold as a dot; beside them three metrics with intervals.

    Args:
        bands: `evaluation.curve_bands` of splits `test` and `external`.
        differences: `evaluation.external_differences`.
    """
    figure, (left, right) = new_axes(2, width=9, height=4.3)
    rows = differences.set_index("metric")
    left.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
    for split, side in (("test", "internal"), ("external", "external")):
        name, colour = SOURCES[split]
        band = bands[(bands.curve == "roc") & (bands.split == split)]
        curve_with_band(left, band, colour, f"{name}, {figure_words(rows[side]['auroc'])}")
        left.plot(1 - rows[side]["specificity"], rows[side]["sensitivity"], "o", color=colour, mec="white", ms=9)
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="1 - specificity", ylabel="sensitivity")
    left.legend(title="AUROC", frameon=False, loc="lower right")
    _sides(right, rows)
    words = "; ".join(
        f"{METRIC_NAMES[name]} {figure_words(row.internal)} on the study's own test, {figure_words(row.external)} here"
        for name, row in rows.iterrows()
    )
    return Plot(
        figure, f"ROC curves and metrics with intervals of both sources, dots at the frozen threshold: {words}."
    )


def _sides(ax: Axes, rows: pd.DataFrame) -> None:
    """Each metric of both sources as a dot with its interval."""
    for side, split, shift in (("internal", "test", -0.14), ("external", "external", 0.14)):
        name, colour = SOURCES[split]
        dots(ax, rows, side, [METRIC_NAMES[metric] for metric in rows.index], shift, color=colour, label=name)
    ax.set(xlim=(-0.02, 1.02), xlabel="at the frozen threshold")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2, columnspacing=1, handletextpad=0.3)


def scores(predictions: pd.DataFrame, frozen: float, local: float) -> Plot:
    """Probabilities by class on the study's own test, above, and on the other source; both thresholds.

    Args:
        predictions: rows of splits `test` and `external`.
        frozen: threshold.
        local: the threshold chosen anew, which belongs to the other source alone.
    """
    figure, axes = new_axes(1, width=8, height=4.6, rows=2)
    for ax, (split, (name, _)) in zip(axes, SOURCES.items(), strict=True):
        rows = predictions[predictions.split == split]
        parts = {title: rows.probability[rows.label == label] for label, title in NAMES.items()}
        lines = {f"frozen: {frozen:.3f}": frozen}
        lines |= {f"recalibrated: {local:.3f}": local} if split == "external" else {}
        stacked_scores(ax, parts, COLOURS.values(), lines)
        ax.set(ylabel="images")
        ax.set_title(name, fontsize=10)
    axes[1].set_xlabel("probability of pneumonia, the network's own")
    return Plot(
        figure,
        f"Histograms of the predicted probability by class on the study's own test and on the other source; the frozen threshold is "
        f"{frozen:.3f}, one chosen anew here {local:.3f}.",
    )


def reliabilities(tables: Sequence[pd.DataFrame], methods: Sequence[str]) -> Plot:
    """Share with pneumonia by mean probability, a panel for each kind of probabilities, each by `evaluation.reliability`."""
    figure, axes = new_axes(2, width=8, height=7.4, rows=-(-len(tables) // 2))
    alts = []
    for ax, bins, method in zip(axes, tables, methods, strict=True):
        told = reliability_curve(ax, bins, CALIBRATION_NAMES[method], HERE)
        for row in bins.itertuples():
            ax.annotate(str(row.images), (row.probability, -0.11), ha="center", va="bottom", fontsize=7, color=NEUTRAL)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.12, 1.04))
        alts.append(f"{CALIBRATION_NAMES[method]}: {told}")
    for ax in axes[::2]:
        ax.set_ylabel("share with pneumonia")
    for ax in axes[-2:]:
        ax.set_xlabel("probability of pneumonia; small figures: images")
    return Plot(
        figure, f"Reliability on the evaluation part, share with pneumonia by mean probability. {'. '.join(alts)}."
    )
