"""Figures of a frozen model on another source, one per function, from tables of `evaluation`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pneumolib.data.pixels import ImageSet
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting import figures
from pneumolib.reporting.external_words import CALIBRATION_NAMES
from pneumolib.reporting.results import figure_words
from pneumolib.reporting.words import FACT_NAMES

# The two sources; colours apart from those of the classes.
HERE, THERE = figures.OTHERS[1], figures.OTHERS[0]
SOURCES = {"test": ("own test", THERE), "external": ("other source", HERE)}


def side_by_side(own: ImageSet, others: ImageSet) -> figures.Plot:
    """Some images of the study's own, above, and of the other source, as the network sees them; titles name site and class."""
    pixels, titles = [], []
    for images in (own, others):
        rows = images.table.sort_values(["site", "label"], kind="stable")
        pixels += [images.pixels[place] for place in rows.index]
        titles += [f"{row.site or 'other source'}\n{figures.NAMES[row.label]}" for row in rows.itertuples()]
    what = "Images of the study, above, and of the other source"
    return figures.sample_grid(np.stack(pixels), titles, columns=len(own), what=what)


def drift(table: pd.DataFrame) -> figures.Plot:
    """Median and middle 95% of each fact in training and in the other source, from `evaluation.drift_table`."""
    words = "; ".join(
        f"{FACT_NAMES[r.fact]} training {r.training_median:.3g} ({r.training_low:.3g} to {r.training_high:.3g}), here {r.median:.3g} "
        f"({r.low:.3g} to {r.high:.3g})"
        for r in table.itertuples()
    )
    ends = table[["training_low", "training_median", "training_high", "low", "high"]]
    moved = table[ends.min(axis=1) < ends.max(axis=1)]
    moved = moved if len(moved) else table
    rows = -(-len(moved) // 2)
    figure, axes = figures.new_axes(2, height=1.15 * rows, rows=rows)
    for ax in axes[len(moved) :]:
        ax.set_axis_off()
    for ax, row in zip(axes, moved.itertuples(), strict=False):
        training = (row.training_low, row.training_median, row.training_high)
        for place, (ends, colour) in enumerate(((training, THERE), ((row.low, row.median, row.high), HERE))):
            ax.plot([ends[0], ends[2]], [place, place], color=colour, lw=6, solid_capstyle="round", alpha=0.6)
            ax.plot(ends[1], place, "o", color=colour, mec="white", ms=8)
        ax.set(ylim=(1.6, -0.6), yticks=[0, 1], yticklabels=["training", "here"])
        ax.set_title(FACT_NAMES[row.fact], fontsize=9)
        ax.margins(x=0.08)
        ax.locator_params(axis="x", nbins=4)
    same = ", ".join(FACT_NAMES[fact] for fact in table.fact if fact not in set(moved.fact))
    caption = "Median (dot) and middle 95% (bar) of facts of images, in training and in the other source."
    caption += f" The same in all images, and not shown: {same}." if same else ""
    return figures.Plot(figure, "drift", caption, f"{words}.")


def frozen(bands: pd.DataFrame, differences: pd.DataFrame) -> figures.Plot:
    """ROC curves of both sources with bands and the frozen threshold as a dot; below them three metrics with intervals.

    Args:
        bands: `evaluation.curve_bands` of splits `test` and `external`.
        differences: `evaluation.external_differences`.
    """
    figure, (above, below) = figures.new_axes(rows=2, height=6.4, height_ratios=(2, 1))
    rows = differences.set_index("metric")
    figures.curve_panel(above, "roc", {name: bands[bands.split == split] for split, (name, _) in SOURCES.items()},
                [(colour, "-") for _, colour in SOURCES.values()])  # fmt: skip
    for split, side in (("test", "internal"), ("external", "external")):
        at = rows[side]
        above.plot(1 - at["specificity"], at["sensitivity"], "o", color=SOURCES[split][1], mec="white", ms=9)
    names = [METRIC_NAMES[metric] for metric in rows.index]
    figures.dots(below, rows, names, {"internal": SOURCES["test"], "external": SOURCES["external"]})
    below.set(xlim=(-0.02, 1.02), xlabel="at the frozen threshold")
    figures.legend_below(figure, above)
    words = "; ".join(
        f"{METRIC_NAMES[name]} {figure_words(row.internal)} on the study's own test, {figure_words(row.external)} here"
        for name, row in rows.iterrows()
    )
    caption = "ROC curves and metrics of both sources with intervals. Dots mark the frozen threshold."
    return figures.Plot(figure, "roc", caption, f"{words}.")


def scores(predictions: pd.DataFrame, frozen: float, local: float) -> figures.Plot:
    """Probabilities by class on the study's own test, above, and on the other source; both thresholds.

    Args:
        predictions: rows of splits `test` and `external`.
        frozen: threshold.
        local: the recalibrated threshold, which belongs to the other source alone.
    """
    own, other = (predictions[predictions.split == split] for split in SOURCES)
    panels = {
        "own test": (own, {"frozen": frozen}),
        "other source": (other, {"frozen": frozen, "recalibrated": local}),
    }
    return figures.score_plot(panels, "label", figures.COLOURS)


def reliabilities(tables: Sequence[pd.DataFrame], methods: Sequence[str]) -> figures.Plot:
    """Share with pneumonia by mean probability, a panel for each kind of probabilities, each by `evaluation.reliability`."""
    names = [CALIBRATION_NAMES[method] for method in methods]
    return figures.reliability_plot(dict(zip(names, tables, strict=True)), "the evaluation part")
